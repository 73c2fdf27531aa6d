"""Curvature from forward passes alone: a parabola through five losses a group (GeN, arXiv 2407.02772)."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from paretune.errors import PareError
from paretune.evidence.groups import Direction, Group
from paretune.evidence.state import undisturbed
from paretune.progress import track
from paretune.task import Task

__all__ = ["forward_fit"]

POINTS = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
# The unit of the points moves a group by this share of its own norm: a step that is the same for all groups
# drowns in rounding for some and leaves the parabola for others.
STEP = 0.01
FRESH = 0.02  # root mean square taken for weights that are all zero: the usual spread of initial weights


def forward_fit(
    model: nn.Module,
    task: Task,
    groups: Sequence[Group],
    direction: Direction,
    indices: Sequence[int] | np.ndarray,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slope (K,), curvature (K,) and how well a parabola fits (K,), over training examples.

    The fit is the share of what five losses leave beside their straight line that the parabola explains. (The
    plain R^2 is near 1 wherever the slope is steep, whatever the curvature.)

    Raises:
        PareError: The model is in half precision, or the loss at the start is not finite.
    """
    named = dict(model.named_parameters())
    dtype = next(iter(named.values())).dtype
    if dtype not in (torch.float32, torch.float64):
        raise PareError(
            f"forward-fit takes differences of losses, which {dtype} cannot hold; load the model in float32 "
            "or take sampled-fisher"
        )
    device = next(iter(named.values())).device
    batches = list(task.batches("train", batch_size, np.asarray(indices), device))

    def loss() -> float:
        with torch.autocast(device.type, enabled=False):
            sums = [float(task.example_losses(model, batch).double().sum()) for batch in batches]
        return sum(sums) / len(indices)

    slope, curvature, fits = np.zeros(len(groups)), np.zeros(len(groups)), np.zeros(len(groups))
    with undisturbed(model), torch.no_grad():
        start = loss()
        if not math.isfinite(start):
            raise PareError(f"the loss over {len(indices)} examples is {start}; look at them or the model")
        for number, group in enumerate(track(groups, "forward fits")):
            length = math.sqrt(group.squared_norm(direction.vectors))
            if not length:
                continue
            unit = STEP * _size(group, named, direction) / length
            losses = []
            for point in POINTS:
                if not point:
                    losses.append(0.0)
                    continue
                with _moved(group, named, direction, -point * unit):
                    losses.append(loss() - start)
            line, parabola, fits[number] = fit(np.array(losses))
            slope[number], curvature[number] = -line / unit, parabola / unit**2
    return slope, curvature, fits


def fit(losses: np.ndarray) -> tuple[float, float, float]:
    """Least squares of losses (5,) at -2..2: first and second derivative at 0, the fit of the parabola."""
    straight, bent = POINTS, POINTS**2 - 2  # orthogonal on these points, with squared norms 10 and 14
    line, parabola = straight @ losses / 10, bent @ losses / 14
    rest = losses - losses.mean() - line * straight - parabola * bent
    explained, left = 14 * parabola**2, float(rest @ rest)
    return float(line), float(2 * parabola), float(explained / (explained + left)) if explained else 0.0


def _size(group: Group, named: dict[str, nn.Parameter], direction: Direction) -> float:
    """Norm of the group's weights, as far as they would move; of fresh zeros, what they may grow to."""
    square, count = 0.0, 0
    for piece in group.pieces:
        if piece.of(direction.vectors[piece.tensor]).any():
            part = piece.of(named[piece.tensor])
            square += float(torch.linalg.vector_norm(part, dtype=torch.float64)) ** 2
            count += part.numel()
    return math.sqrt(square) or FRESH * math.sqrt(count)


@contextmanager
def _moved(
    group: Group, named: dict[str, nn.Parameter], direction: Direction, distance: float
) -> Iterator[None]:
    """The group moved along its direction; put back bit for bit, whatever happens."""
    parts = [piece.of(named[piece.tensor]) for piece in group.pieces]
    before = [part.clone() for part in parts]
    try:
        for part, piece in zip(parts, group.pieces, strict=True):
            part.add_(piece.of(direction.vectors[piece.tensor]).to(part.dtype), alpha=distance)
        yield
    finally:
        for part, values in zip(parts, before, strict=True):
            part.copy_(values)
