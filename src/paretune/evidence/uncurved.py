"""Scores of groups without a curvature, to be compared with AdaPEFT's gains: slope, Fisher information."""

from collections.abc import Sequence

import numpy as np
from torch import nn

from paretune.evidence.consumers import SquaredSum
from paretune.evidence.curvature import DEAD, INFINITE, RISING, USABLE, Curvature
from paretune.evidence.group_dots import GroupDots
from paretune.evidence.groups import Direction, Group
from paretune.evidence.passes import evidence_pass
from paretune.task import Task

__all__ = ["Uncurved", "slopes", "squares"]


class Uncurved(Curvature):
    """Groups whose score is their slope; `curvature` is nan."""

    @property
    def gain(self) -> np.ndarray:
        """The slope, (K,) float64; nan if not usable, a thousandth of its size where the loss rises."""
        gain = np.where(self.slope > 0, self.slope, -RISING * self.slope)
        return np.where(self.usable, gain, np.nan)


def slopes(
    model: nn.Module,
    task: Task,
    groups: Sequence[Group],
    direction: Direction,
    indices: Sequence[int] | np.ndarray,
    *,
    batch_size: int = 32,
) -> Uncurved:
    """How fast the loss falls along the direction, group by group.

    Args:
        model: The model; left as it was.
        task: The task.
        groups: The groups, K of them.
        direction: From `find_direction`.
        indices: Training examples that the direction was not taken from.
        batch_size: Examples in a forward pass.

    Raises:
        PareError: A loss or a gradient that is not finite.
    """
    consumer = GroupDots(len(indices), groups, direction.vectors)
    evidence_pass(model, task, [consumer], indices, batch_size=batch_size)
    dead = [group.name in direction.dead for group in groups]
    return _uncurved(groups, consumer.values.numpy().mean(0), dead)


def squares(
    model: nn.Module,
    task: Task,
    groups: Sequence[Group],
    indices: Sequence[int] | np.ndarray,
    *,
    batch_size: int = 32,
) -> Uncurved:
    """Empirical Fisher information: squared gradients, a mean over examples summed over a group's weights.

    Args:
        model: The model; left as it was.
        task: The task.
        groups: The groups, K of them.
        indices: Training examples.
        batch_size: Examples in a forward pass.

    Raises:
        PareError: A loss or a gradient that is not finite.
    """
    named = dict(model.named_parameters())
    consumer = SquaredSum({piece.tensor: named[piece.tensor] for group in groups for piece in group.pieces})
    evidence_pass(model, task, [consumer], indices, batch_size=batch_size)
    sums = [
        sum(float(piece.of(consumer.values[piece.tensor]).double().sum()) for piece in group.pieces)
        for group in groups
    ]
    scores = np.array(sums) / len(indices)
    return _uncurved(groups, scores, (scores == 0).tolist())


def _uncurved(groups: Sequence[Group], scores: np.ndarray, dead: Sequence[bool]) -> Uncurved:
    states = [
        DEAD if none else USABLE if finite else INFINITE
        for none, finite in zip(dead, np.isfinite(scores), strict=True)
    ]
    names = tuple(group.name for group in groups)
    return Uncurved(names, scores, np.full(len(groups), np.nan), tuple(states))
