"""Attach every added module of a plan at once: all of them, or none."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from paretune.errors import PareError
from paretune.plan import Addition
from paretune.strategies.base import Attached, check_additions
from paretune.strategies.registry import STRATEGIES


@dataclass
class Mixture:
    """Added modules of several strategies, in the order in which they were attached."""

    parts: tuple[Attached, ...]

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """Trained tensors of all strategies by key, sorted."""
        return dict(sorted(item for part in self.parts for item in part.tensors.items()))

    @property
    def unmergeable(self) -> str | None:
        """The first reason why a part cannot be folded into the base weights, or None."""
        return next((part.unmergeable for part in self.parts if part.unmergeable), None)

    def detach(self) -> None:
        """Take every part away; the model is what it was."""
        for part in reversed(self.parts):
            part.detach()

    def merge(self) -> None:
        """Fold every part into the base weights; nothing is changed when one of them cannot be."""
        if self.unmergeable:
            raise PareError(self.unmergeable)
        for part in self.parts:
            part.merge()


def attach_additions(model: nn.Module, additions: Sequence[Addition], name: str = "paretune") -> Mixture:
    """Add modules of any strategies to a model, in place.

    What the model computes does not depend on the order of ``additions``: low-rank updates come first, then
    added biases, then adapters; prefixes act inside attention. ``requires_grad`` of the model's own
    parameters is left as it is, that of added ones is True.

    Args:
        model: The model, plain or with other attachments on it.
        additions: What to add, from a plan or a delta.
        name: Name of this attachment; a second one on the same model needs another name.

    Returns:
        The attachment: its tensors, and how to take it away or merge it.

    Raises:
        PareError: An addition that does not fit the model (unknown strategy or module, wrong size or count,
            a block that cannot carry it). The model is as it was.
    """
    groups = _by_strategy(additions)
    for strategy, group in groups.items():
        check_additions(STRATEGIES[strategy], model, group, name)
    parts: list[Attached] = []
    try:
        for strategy, group in groups.items():
            parts.append(STRATEGIES[strategy].attach(model, group, name))
    except BaseException:
        Mixture(tuple(parts)).detach()
        raise
    return Mixture(tuple(parts))


def _by_strategy(additions: Sequence[Addition]) -> dict[str, list[Addition]]:
    """The additions of each strategy, in the registry's order."""
    for addition in additions:
        if addition.strategy not in STRATEGIES:
            near = difflib.get_close_matches(addition.strategy, STRATEGIES, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(STRATEGIES)}"
            raise PareError(f"{addition.module}: no strategy {addition.strategy!r}{hint}")
    groups = {name: [a for a in additions if a.strategy == name] for name in STRATEGIES}
    return {name: group for name, group in groups.items() if group}
