"""Which rule is right for which tensor of a model: found on a few real examples, checked against autograd."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from paretune.errors import PareError
from paretune.evidence.gradients import ExampleGradients, accumulation_dtype
from paretune.evidence.rules import Call, Rule, find_rule
from paretune.evidence.shared import Shared, Slot, find_shared, slots
from paretune.evidence.tape import Tape

__all__ = ["Batch", "Findings", "Losses", "first_examples", "study"]

Batch = Mapping[str, Any]
Losses = Callable[[nn.Module, Batch], Tensor]

_EXAMPLES = 2  # one to have a gradient, one to have none
# By the model's precision: what a right gradient may be off by, of its norm and of the model's mean gradient.
_TOLERANCE = (1e-3, 1e-5)
_HALF_TOLERANCE = (5e-2, 1e-2)


@dataclass
class Findings:
    """How the per-example gradients of a model's tensors are taken.

    Attributes:
        rules: The rule of each module that has one.
        slots: Parameters taken by a rule, and those that were not used.
        shared: Values taken by giving them a dimension of examples.
        slow: Tensors without a right rule, taken one example at a time.
        spread: As in `Tape`.
    """

    rules: dict[nn.Module, Rule] = field(default_factory=dict)
    slots: list[Slot] = field(default_factory=list)
    shared: list[Shared] = field(default_factory=list)
    slow: set[str] = field(default_factory=set)
    spread: set[nn.Module] = field(default_factory=set)


def first_examples(batch: Batch, start: int, stop: int) -> dict[str, Any]:
    """Examples `start` to `stop` of a batch: what has no dimension of examples is passed on."""
    size = max((len(v) for v in batch.values() if isinstance(v, Tensor) and v.ndim), default=0)
    return {
        key: value[start:stop] if isinstance(value, Tensor) and value.ndim and len(value) == size else value
        for key, value in batch.items()
    }


@torch.enable_grad()
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
    # With gradients, as below: attention picks its kernel by them, and kernels round otherwise.
    with requiring_gradients(tensors.values()):
        expected = losses(model, batch).detach()
    for generous in (True, False):
        with requiring_gradients(tensors.values()), _Trial(model, tensors, generous) as trial:
            try:
                values = trial.forward(losses, batch, count)
            except (RuntimeError, ValueError):
                # A model may not bear other shapes of its positions or tokens; else the error is its own.
                if not generous:
                    raise
                continue
            if _agree(expected, values.detach()):
                return trial.findings(values, chosen=count // 2)
    raise PareError(
        "the model's forward is random: the same examples had losses "
        f"{expected.flatten().tolist()[:3]} and then {values.flatten().tolist()[:3]}. "
        "Take out what draws random numbers in eval mode"
    )


def _agree(a: Tensor, b: Tensor) -> bool:
    """Whether two passes gave the same losses, up to rounding; losses that are not finite are not judged."""
    tolerance = 1e-2 if a.dtype in (torch.bfloat16, torch.float16) else 1e-4
    return torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance, equal_nan=True)


class _Trial:
    """One forward and one backward with a rule for every call that has one.

    Attributes:
        found: What is known so far.
    """

    def __init__(self, model: nn.Module, tensors: Mapping[str, nn.Parameter], generous: bool) -> None:
        """Install the hooks.

        Args:
            model: The model.
            tensors: The tensors that are wanted.
            generous: Give values that stand for all examples a dimension of examples.
        """
        self._model, self._tensors = model, tensors
        self._taken: dict[str, ExampleGradients] = {}
        self.found = Findings()
        places = slots(model, tensors)
        self._shared = find_shared(model, places) if generous else []
        apart = [value.slot for value in self._shared]
        self._listened = [slot for slot in places if slot not in apart]
        spread: set[nn.Module] | None = None if generous else set()
        self._tape = Tape(self._listened, self._shared, self._rule, self._take, spread=spread)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._tape.close()
        self._taken.clear()  # what it holds of the batch is not to wait for the garbage collector

    def _rule(self, call: Call, output: Any) -> Rule | None:
        """The rule for a call, the same for all calls of a module."""
        if call.module not in self.found.rules:
            rule = find_rule(call, output)
            if rule is None:
                return None
            self.found.rules[call.module] = rule
        return self.found.rules[call.module]

    def _take(self, gradients: ExampleGradients) -> None:
        """Keep the factors, which are small, until autograd's gradients are there."""
        self._taken[gradients.name] = gradients

    def forward(self, losses: Losses, batch: Batch, count: int) -> Tensor:
        """The losses of so many examples."""
        with self._tape.recording(count):
            return losses(self._model, batch)

    def findings(self, values: Tensor, chosen: int) -> Findings:
        """What is right, judged by the chosen example's gradient."""
        judged = _Judgement(self._taken, chosen)
        if values.requires_grad:
            handles = [
                parameter.register_hook(partial(judged.see, name))
                for name, parameter in self._tensors.items()
            ]
            try:
                with self._tape.collecting():
                    torch.autograd.grad(
                        values[..., chosen].sum(), list(self._tensors.values()), allow_unused=True
                    )
            finally:
                for handle in handles:
                    handle.remove()
        found = self.found
        found.slow = judged.wrong()
        # What was used but has no gradient (positions that a model computes without one) is left alone.
        apart = found.slow | (self._tape.used - judged.seen)
        found.spread = self._tape.spread
        found.shared = [value for value in self._shared if value.slot.name not in apart]
        found.slots = [slot for slot in self._listened if slot.name not in apart]
        return found


class _Judgement:
    """Compares per-example gradients with autograd's, tensor by tensor as they arrive; keeps none."""

    def __init__(self, taken: dict[str, ExampleGradients], chosen: int) -> None:
        """Start with nothing seen.

        Args:
            taken: The gradients by rules; a tensor's are complete when autograd's arrives, and are taken out.
            chosen: The example whose gradient autograd gives.
        """
        self._taken, self._chosen = taken, chosen
        self._seen: dict[str, tuple[torch.dtype, int, float, float]] = {}  # dtype, size, norm, distance

    @property
    def seen(self) -> set[str]:
        """Tensors that autograd has a gradient for."""
        return set(self._seen)

    @torch.no_grad()
    def see(self, name: str, gradient: Tensor) -> Tensor:
        """Compare, and let autograd keep a zero instead of the gradient."""
        taken = self._taken.pop(name, None)
        distance = math.inf if taken is None else _distance(taken, gradient, self._chosen)
        self._seen[name] = gradient.dtype, gradient.numel(), _norm(gradient), distance
        return gradient.new_zeros(()).expand_as(gradient)

    def wrong(self) -> set[str]:
        """Tensors whose per-example gradients are not autograd's."""
        count = sum(size for _, size, _, _ in self._seen.values())
        mean = math.hypot(*(norm for _, _, norm, _ in self._seen.values())) / max(count, 1) ** 0.5
        wrong = set()
        for name, (dtype, size, norm, distance) in self._seen.items():
            relative, floor = _HALF_TOLERANCE if dtype.itemsize == 2 else _TOLERANCE
            if not distance <= relative * norm + floor * mean * size**0.5:
                wrong.add(name)
        return wrong


def _distance(taken: ExampleGradients, gradient: Tensor, chosen: int) -> float:
    """How far the chosen example's gradient is from autograd's; infinite if another example has any."""
    if not all(taken.is_zero(example) for example in range(taken.examples) if example != chosen):
        return math.inf
    rest = gradient.reshape(1, taken.rows, taken.columns).to(accumulation_dtype(gradient.dtype), copy=True)
    taken.add_to(rest.neg_(), slice(chosen, chosen + 1), slice(0, taken.rows))
    return _norm(rest)


def _norm(values: Tensor) -> float:
    """Euclidean norm."""
    return float(torch.linalg.vector_norm(values, dtype=accumulation_dtype(values.dtype)))


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
