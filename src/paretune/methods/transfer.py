"""Look at a small model, choose on a large one: items are matched by kind, role and relative depth."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from paretune.anatomy import anatomy, mark_head
from paretune.errors import PareError
from paretune.evidence.curvature import Average
from paretune.methods.base import Question
from paretune.methods.items import Item
from paretune.task import Task
from paretune.task.models import load_model_from_spec, load_tokenizer

__all__ = ["Small", "probe_task", "retarget", "shallow"]


@dataclass(frozen=True)
class Small:
    """A model to look at in place of the one that is trained."""

    model: nn.Module
    task: Task

    def question(self, large: Question) -> Question:
        """The same question about all of this model: names are of other tensors here, and may not exclude."""
        parts = anatomy(self.model)
        return replace(large, model=self.model, anatomy=parts, candidates=parts.body)


def probe_task(task: Task, checkpoint: str, seed: int) -> Small:
    """Another checkpoint for the same task, reading the same tokens.

    Raises:
        PareError: It cannot be loaded, or its tokenizer is another.
    """
    tokenizer = load_tokenizer(checkpoint, trust_remote_code=task.trust_remote_code)
    ours, theirs = task.tokenizer.get_vocab(), tokenizer.get_vocab()
    if ours != theirs:
        differing = len(set(ours.items()) ^ set(theirs.items()))
        raise PareError(
            f"probe model {checkpoint}: its tokenizer has {len(theirs):,} tokens, {task.model_id}'s has "
            f"{len(ours):,}, and {differing:,} entries differ; take a probe model of the same family, or "
            "probe_depth"
        )
    spec = {**task.spec(), "revision": None}
    model = load_model_from_spec(checkpoint, spec, seed, trust_remote_code=task.trust_remote_code)
    return Small(model.eval(), task)


def shallow(small: Small, depth: float) -> Small:
    """A copy of a model with a share of its blocks: the first, the last and evenly between, at least one.

    Raises:
        PareError: The model has no blocks in lists that could be shortened.
    """
    blocks = anatomy(small.model).blocks
    stacks: dict[str, list[str]] = {}
    for block in blocks:
        above, _, name = block.path.rpartition(".")
        stacks.setdefault(above, []).append(name)
    if not blocks or not all(isinstance(small.model.get_submodule(s), nn.ModuleList) for s in stacks):
        raise PareError(
            f"probe_depth={depth}: {type(small.model).__name__} has no list of blocks to shorten; leave "
            "probe_depth out"
        )
    model = copy.deepcopy(small.model)
    for path, names in stacks.items():
        stack = list(model.get_submodule(path).children())
        places = np.linspace(0, len(names) - 1, max(1, round(depth * len(names)))).round()
        above, _, name = path.rpartition(".")
        setattr(
            model.get_submodule(above),
            name,
            nn.ModuleList([stack[int(place)] for place in np.unique(places)]),
        )
    head = {tensor.name for tensor in anatomy(small.model).head}
    mark_head(model, [name for name, _ in model.named_parameters() if name in head])
    return Small(model, small.task)


def retarget(seen: Average, probed: Sequence[Item], items: Sequence[Item]) -> Average:
    """The gains of a large model's items, from those of a small one's.

    An item takes the gain per weight of the probed items with its part, kind and role, at its relative depth
    (between two of them, in proportion); its own count makes it a gain. Where none has its role, those of
    its kind are averaged.

    Args:
        seen: The small model's gains.
        probed: Its items.
        items: The large model's.

    Raises:
        PareError: The large model has a kind of item that the small one has not.
    """
    density = np.array([gain / item.count for gain, item in zip(seen.gain, probed, strict=True)])
    gains, shares = [], []
    for item in items:
        same = _alike(item, probed)
        known = [k for k in same if not np.isnan(density[k])]
        gains.append(item.count * _at(item.depth, known, probed, density) if known else np.nan)
        shares.append(np.mean([seen.share[k] for k in same]))
    none = np.full(len(items), np.nan)
    names = tuple(item.name for item in items)
    return Average(names, np.array(gains), none, None, np.array(shares), seen.states)


def _alike(item: Item, probed: Sequence[Item]) -> list[int]:
    """The probed items that stand for one."""

    def matching(*attributes: str) -> list[int]:
        return [
            number
            for number, other in enumerate(probed)
            if all(getattr(item, name) == getattr(other, name) for name in attributes)
        ]

    found = matching("part", "kind", "role") or matching("part", "kind") or matching("kind")
    if not found:
        kinds = sorted({other.kind for other in probed})
        raise PareError(
            f"the probe model has nothing to map {item.name} from: its items are of the kinds "
            f"{', '.join(kinds)}, not {item.kind} ({len(probed)} items); take a model of the same family"
        )
    return found


def _at(depth: float | None, known: Sequence[int], probed: Sequence[Item], density: np.ndarray) -> float:
    """The density at a relative depth."""
    depths = [probed[k].depth for k in known]
    if depth is None or any(other is None for other in depths):
        return float(np.mean(density[list(known)]))
    levels = sorted({float(other) for other in depths if other is not None})
    means = [np.mean([density[k] for k in known if probed[k].depth == level]) for level in levels]
    return float(np.interp(depth, levels, means))
