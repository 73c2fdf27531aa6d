"""Which rule is right for which tensor of a model: found on a few real examples, checked against autograd."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from paretune.errors import PareError
from paretune.evidence.gradients import ExampleGradients, accumulation_dtype
from paretune.evidence.rules import Call, Rule, find_rule
from paretune.evidence.tape import Slot, Tape, slots

__all__ = ["Batch", "Findings", "Losses", "first_examples", "study"]

Batch = Mapping[str, Any]
Losses = Callable[[nn.Module, Batch], Tensor]

_EXAMPLES = 3  # with three, a dimension that is not the examples' is seldom taken for it
# By the model's precision: what a right gradient may be off by, of its norm and of the model's mean gradient.
_TOLERANCE = {torch.float64: (1e-8, 1e-12), torch.float32: (1e-3, 1e-5)}
_HALF_TOLERANCE = (5e-2, 1e-2)


@dataclass
class Findings:
    """How the per-example gradients of a model's tensors are taken.

    Attributes:
        rules: The rule of each module that has one.
        slots: Parameters taken by a rule, and those that were not used.
        expanded: Parameters taken by giving them a dimension of examples.
        slow: Tensors without a right rule, taken one example at a time.
        broadcast: As in `Tape`.
    """

    rules: dict[nn.Module, Rule] = field(default_factory=dict)
    slots: list[Slot] = field(default_factory=list)
    expanded: list[Slot] = field(default_factory=list)
    slow: set[str] = field(default_factory=set)
    broadcast: bool = True


def first_examples(batch: Batch, start: int, stop: int) -> dict[str, Any]:
    """Examples `start` to `stop` of a batch: what has no dimension of examples is passed on."""
    size = max((len(v) for v in batch.values() if isinstance(v, Tensor) and v.ndim), default=0)
    return {
        key: value[start:stop] if isinstance(value, Tensor) and value.ndim and len(value) == size else value
        for key, value in batch.items()
    }


def study(
    model: nn.Module, losses: Losses, batch: Batch, examples: int, tensors: Mapping[str, nn.Parameter]
) -> Findings:
    """Find and check the rules on the first examples of a batch.

    One example alone gets a gradient, so a rule must give autograd's gradient for it and nothing for the
    others; what does not is left to the slow way.

    Args:
        model: The model, in eval mode.
        losses: The losses of a batch, (examples,) or (several, examples).
        batch: The batch.
        examples: How many examples it has.
        tensors: The tensors that are wanted.

    Raises:
        PareError: The same examples have other losses the second time.
    """
    count = min(examples, _EXAMPLES)
    batch = first_examples(batch, 0, count)
    with torch.no_grad():
        expected = losses(model, batch)
    for generous in (True, False):
        try:
            found, values = _attempt(model, losses, batch, count, tensors, generous)
        except (RuntimeError, ValueError):
            # A model may not bear another shape of its positions or tokens; without it errors are its own.
            if not generous:
                raise
            continue
        if _agree(expected, values):
            return found
    raise PareError(
        "the model's forward is random: the same examples had losses "
        f"{expected.flatten().tolist()[:3]} and then {values.flatten().tolist()[:3]}. "
        "Take out what draws random numbers in eval mode"
    )


def _agree(a: Tensor, b: Tensor) -> bool:
    """Whether two passes gave the same losses, up to rounding; losses that are not finite are not judged."""
    tolerance = 1e-2 if a.dtype in (torch.bfloat16, torch.float16) else 1e-4
    return torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance, equal_nan=True)


def _attempt(
    model: nn.Module,
    losses: Losses,
    batch: Batch,
    count: int,
    tensors: Mapping[str, nn.Parameter],
    generous: bool,
) -> tuple[Findings, Tensor]:
    """Findings of one forward and one backward, and the forward's losses."""
    places = slots(model, tensors)
    found = Findings(broadcast=generous)
    raw = [slot for slot in places if generous and slot.local not in ("weight", "bias") and _is_single(slot)]
    taken: dict[str, ExampleGradients] = {}

    def find(call: Call, output: Any) -> Rule | None:
        if call.module not in found.rules:
            rule = find_rule(call, output)
            if rule is None:
                return None
            found.rules[call.module] = rule
        return found.rules[call.module]

    listened = [slot for slot in places if slot not in raw]
    tape = Tape(listened, raw, find, lambda got: taken.__setitem__(got.name, got), broadcast=generous)
    chosen = count // 2
    try:
        with requiring_gradients(tensors.values()), torch.enable_grad():
            with tape.recording(count):
                values = losses(model, batch)
            with tape.collecting():
                truth = torch.autograd.grad(
                    values[..., chosen].sum(), list(tensors.values()), allow_unused=True
                )
    finally:
        tape.close()
    gradients = dict(zip(tensors, truth, strict=True))
    found.slow = _wrong(gradients, taken, chosen)
    found.expanded = [slot for slot in raw if slot.name not in found.slow]
    found.slots = [slot for slot in listened if slot.name not in found.slow]
    return found, values.detach()


def _is_single(slot: Slot) -> bool:
    """Whether a parameter's first dimension is 1, standing for all examples."""
    return slot.parameter.ndim >= 2 and slot.parameter.shape[0] == 1


@torch.no_grad()
def _wrong(
    gradients: Mapping[str, Tensor | None], taken: Mapping[str, ExampleGradients], chosen: int
) -> set[str]:
    """Tensors whose per-example gradients are not autograd's."""
    known = [gradient for gradient in gradients.values() if gradient is not None]
    total = sum((float(gradient.double().square().sum()) for gradient in known), 0.0)
    mean = (total / max(1, sum(gradient.numel() for gradient in known))) ** 0.5
    wrong = set()
    for name, gradient in gradients.items():
        if gradient is None:
            continue
        relative, floor = _TOLERANCE.get(gradient.dtype, _HALF_TOLERANCE)
        size = float(gradient.double().norm())
        error = _distance(taken[name], gradient, chosen) if name in taken else None
        if error is None or not error <= relative * size + floor * mean * gradient.numel() ** 0.5:
            wrong.add(name)
    return wrong


def _distance(taken: ExampleGradients, gradient: Tensor, chosen: int) -> float:
    """How far the chosen example's gradient is from autograd's; infinite if another example has any."""
    rest = gradient.reshape(taken.rows, taken.columns).to(accumulation_dtype(gradient.dtype), copy=True)
    for block in taken.blocks():
        for example, values in zip(
            range(block.examples.start, block.examples.stop), block.values, strict=True
        ):
            if example == chosen:
                rest[block.rows] -= values
            elif values.any():
                return float("inf")
    return float(rest.double().norm())


@contextmanager
def requiring_gradients(parameters: Any) -> Iterator[None]:
    """Let some parameters require gradients for a while."""
    changed = [parameter for parameter in parameters if not parameter.requires_grad]
    try:
        for parameter in changed:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(False)
