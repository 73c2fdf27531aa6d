"""Groups of weights whose gain is asked for together, and the direction that each would be moved along."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from paretune.errors import PareError
from paretune.evidence.consumers import Sum
from paretune.evidence.passes import evidence_pass
from paretune.task import Task

__all__ = ["Direction", "Group", "Piece", "Rule", "find_direction"]

Rule = Literal["gradient", "adamw"]
BETAS, EPSILON = (0.9, 0.999), 1e-8  # AdamW's own defaults, used where no optimiser has begun
# Below this share of the model's root mean square gradient a group's gradient is rounding: by precision.
_ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-5}
_HALF_ROUNDING = 1e-2


@dataclass(frozen=True)
class Piece:
    """A part of one tensor.

    Attributes:
        tensor: Its name in `model.named_parameters()`.
        rows: First row and the one after the last, of the first dimension; None for all of it.
    """

    tensor: str
    rows: tuple[int, int] | None = None

    def of(self, values: Tensor) -> Tensor:
        """The piece's part of something of the tensor's shape (a view)."""
        return values if self.rows is None else values[self.rows[0] : self.rows[1]]


@dataclass(frozen=True)
class Group:
    """Weights that are trained together or not at all.

    Attributes:
        name: What messages and tables call it.
        pieces: Its weights; no weight twice, and in no other group.
    """

    name: str
    pieces: tuple[Piece, ...]

    def dot(self, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
        """Inner product over the group of two things of the tensors' shapes; differentiable, a scalar."""
        products = [(piece.of(a[piece.tensor]) * piece.of(b[piece.tensor])).sum() for piece in self.pieces]
        return torch.stack(products).sum()

    def squared_norm(self, values: Mapping[str, Tensor]) -> float:
        """Sum of squares over the group, taken in float64."""
        parts = (piece.of(values[piece.tensor]) for piece in self.pieces)
        return sum(float(torch.linalg.vector_norm(part, dtype=torch.float64)) ** 2 for part in parts)

    def count(self, values: Mapping[str, Tensor]) -> int:
        """How many weights it has."""
        return sum(piece.of(values[piece.tensor]).numel() for piece in self.pieces)


@dataclass(frozen=True)
class Direction:
    """Where each tensor would be moved: weights go from `w` to `w - step * u`.

    Attributes:
        vectors: u by tensor, of the tensor's shape; zero where a group's gradient is nothing but rounding
            (the bias of attention's keys, which no output depends on).
        dead: Names of those groups.
    """

    vectors: dict[str, Tensor]
    dead: frozenset[str]


def find_direction(
    model: nn.Module,
    task: Task,
    groups: Sequence[Group],
    indices: Sequence[int] | np.ndarray,
    *,
    rule: Rule = "adamw",
    optimiser: torch.optim.Optimizer | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> Direction:
    """The direction of the next step, from the mean gradient over examples; nothing is stepped.

    `adamw` is `m / (sqrt(v) + eps)` with the moments that the optimiser's state would have after this
    gradient, corrected for their start; the state itself is only read. Without an optimiser the moments
    start here, so that u is `g / (|g| + eps)`. Decoupled weight decay is no part of u.

    Args:
        model: The model; left as it was.
        task: The task.
        groups: The groups; their tensors get a direction.
        indices: Training examples; the curvature must be taken on others (see `curvature`).
        rule: "gradient" or "adamw".
        optimiser: A `torch.optim.AdamW` that trains the model's parameters.
        batch_size: Examples in a forward pass.
        seed: Passed on to the pass.

    Raises:
        PareError: There is no such rule, a gradient is not finite, or every gradient is zero.
    """
    if rule not in get_args(Rule):
        raise PareError(f"direction {rule!r} is none of {', '.join(get_args(Rule))}")
    named = dict(model.named_parameters())
    wanted = {piece.tensor: named[piece.tensor] for group in groups for piece in group.pieces}
    consumer = Sum(wanted)
    evidence_pass(model, task, [consumer], indices, batch_size=batch_size, seed=seed)
    gradients = {name: values.div_(len(indices)) for name, values in consumer.values.items()}
    dead = _without_gradient(groups, gradients, next(iter(named.values())).dtype)
    if rule == "adamw":
        for name, gradient in gradients.items():
            gradients[name] = _preconditioned(gradient, wanted[name], optimiser)
    for group in groups:
        if group.name in dead:
            for piece in group.pieces:
                piece.of(gradients[piece.tensor]).zero_()
    return Direction(gradients, dead)


def _without_gradient(
    groups: Iterable[Group], gradients: Mapping[str, Tensor], dtype: torch.dtype
) -> frozenset[str]:
    """Groups whose root mean square gradient is rounding beside the model's."""
    squares = {group.name: (group.squared_norm(gradients), group.count(gradients)) for group in groups}
    total = sum(square for square, _ in squares.values()) / max(1, sum(n for _, n in squares.values()))
    if not total:
        raise PareError(
            "every gradient is zero: no group can be preferred. Is the head all zeros, or do the candidates "
            "not reach the loss?"
        )
    floor = _ROUNDING.get(dtype, _HALF_ROUNDING) ** 2 * total
    return frozenset(name for name, (square, count) in squares.items() if square <= floor * count)


@torch.no_grad()
def _preconditioned(
    gradient: Tensor, parameter: nn.Parameter, optimiser: torch.optim.Optimizer | None
) -> Tensor:
    """AdamW's step for a gradient, without the learning rate; the optimiser's state is read only."""
    betas, epsilon, state = BETAS, EPSILON, {}
    for settings in optimiser.param_groups if optimiser else ():
        if any(each is parameter for each in settings["params"]):
            assert optimiser is not None
            betas, epsilon, state = settings["betas"], settings["eps"], optimiser.state.get(parameter, {})
    if not state:
        return gradient / (gradient.abs() + epsilon)
    step = float(state["step"]) + 1
    first = state["exp_avg"] * betas[0] + gradient * (1 - betas[0])
    second = state["exp_avg_sq"] * betas[1] + gradient.square() * (1 - betas[1])
    root = (second / (1 - betas[1] ** step)).sqrt_().add_(epsilon)
    return (first / (1 - betas[0] ** step)).div_(root)
