"""Slope and curvature of the loss along a direction, group by group (AdaPEFT, arXiv 2505.12579).

Moving the weights of group k by `-step * u_k` changes the loss by `-step b_k + step^2 q_k / 2` to second
order, with `b_k = G_k^T u_k` and `q_k = u_k^T H_kk u_k`. The best step is `b_k / q_k`, its gain
`b_k^2 / (2 q_k)`.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import nn

from paretune.errors import PareError
from paretune.evidence.exact import exact
from paretune.evidence.forward_fit import forward_fit
from paretune.evidence.group_dots import GroupDots
from paretune.evidence.groups import Direction, Group
from paretune.evidence.labels import Labels, contrasts
from paretune.evidence.passes import evidence_pass
from paretune.task import Task
from paretune.task.collate import IGNORED
from paretune.task.kinds import find_kind

__all__ = ["Average", "Curvature", "Estimator", "average", "beyond", "curvature", "probe_losses"]

Estimator = Literal["sampled-fisher", "exact", "forward-fit"]
USABLE, DEAD, FLAT, INFINITE, POOR = "usable", "no gradient", "curvature <= 0", "not finite", "poor fit"
RISING = 1e-3
MOST_CONTRASTS = 3  # backwards of one forward, 2.3 passes; above, two passes with a drawn label are cheaper
LEAST_LEFT = 1e-6  # share of a curvature below which what others leave of it is rounding
LEAST_FIT = 0.9  # share of what is left beyond the slope that a parabola must explain


@dataclass(frozen=True)
class Curvature:
    """What a probe says of each group.

    Attributes:
        names: The groups' names, (K,).
        slope: b_k, (K,) float64: how fast the loss falls along the direction.
        curvature: q_k, (K,) float64.
        state: For each group "usable", or why it is not: "no gradient", "curvature <= 0", "not finite",
            "poor fit".
        matrix: `u_k^T H_kl u_l`, (K, K) float64, where it was asked for.
    """

    names: tuple[str, ...]
    slope: np.ndarray
    curvature: np.ndarray
    state: tuple[str, ...]
    matrix: np.ndarray | None = None

    @property
    def usable(self) -> np.ndarray:
        """Which groups have a gain that means something, (K,) bool."""
        return np.array([state == USABLE for state in self.state], bool)

    @property
    def gain(self) -> np.ndarray:
        """`b_k^2 / (2 q_k)`, (K,) float64; nan if not usable, a thousandth of it where the loss rises.

        A direction that falls on its own batch and rises on an independent one is noise, which training
        would follow all the same: such a group comes after those that fall.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            gain = self.slope**2 / (2 * self.curvature)
        return np.where(self.usable, np.where(self.slope > 0, gain, RISING * gain), np.nan)


def beyond(probe: Curvature, mandatory: int) -> Curvature:
    """What is left for each group once the last ones of a probe, which are trained anyway, took their steps.

    Under a fresh head every tensor's direction first of all moves the commoner class, which the head's own
    bias does as well: each group has that same gain, and none adds to it. Taking the mandatory groups' share
    from slopes and curvatures (a Schur complement) leaves what only the group can do.

    Args:
        probe: With a matrix.
        mandatory: How many groups at the end are mandatory.

    Returns:
        The probe of the groups before these.
    """
    assert probe.matrix is not None
    slope, matrix = probe.slope.copy(), probe.matrix.copy()
    first = len(slope) - mandatory
    for place in range(first, len(slope)):
        if matrix[place, place] > LEAST_LEFT * probe.curvature[place]:
            row = matrix[place] / matrix[place, place]
            slope -= row * slope[place]
            matrix -= np.outer(row, matrix[place])
    slope, matrix = slope[:first], matrix[:first, :first]
    curvature = np.diagonal(matrix).copy()
    states = tuple(
        FLAT if state == USABLE and not left > LEAST_LEFT * whole else state
        for state, left, whole in zip(probe.state, curvature, probe.curvature, strict=False)
    )
    return Curvature(probe.names[:first], slope, curvature, states[:first], matrix)


@dataclass(frozen=True)
class Average:
    """Several probes as one.

    Attributes:
        names: The groups' names, (K,).
        gain: Mean gain over the probes in which a group is usable, (K,); nan where there is none.
        slope: Mean slope over the same, (K,).
        matrix: Mean matrix over all probes, or None.
        share: In which share of the probes each group is usable, (K,).
        states: How often each state occurred, over groups and probes.
    """

    names: tuple[str, ...]
    gain: np.ndarray
    slope: np.ndarray
    matrix: np.ndarray | None
    share: np.ndarray
    states: dict[str, int]

    @property
    def usable_share(self) -> float:
        """The share of usable groups, over all probes."""
        return float(self.share.mean())


def average(probes: Sequence[Curvature]) -> Average:
    """Average over the valid probes of each group.

    Args:
        probes: One or more probes of the same groups.
    """
    usable = np.array([probe.usable for probe in probes])
    counts = usable.sum(0)

    def mean(rows: list[np.ndarray]) -> np.ndarray:
        total = np.where(usable, np.array(rows), 0).sum(0)
        return np.where(counts > 0, total / np.maximum(counts, 1), np.nan)

    matrices = [probe.matrix for probe in probes if probe.matrix is not None]
    return Average(
        probes[0].names,
        mean([probe.gain for probe in probes]),
        mean([probe.slope for probe in probes]),
        np.mean(matrices, axis=0) if matrices else None,
        counts / len(probes),
        dict(Counter(state for probe in probes for state in probe.state)),
    )


def curvature(
    model: nn.Module,
    task: Task,
    groups: Sequence[Group],
    direction: Direction,
    indices: Sequence[int] | np.ndarray,
    *,
    estimator: Estimator = "sampled-fisher",
    matrix: bool = False,
    batch_size: int = 32,
    seed: int = 0,
) -> Curvature:
    """Probe every group on examples that the direction was not taken from.

    On the direction's own examples the slope is inflated by their noise. The model is probed in eval mode;
    weights, flags, gradients and random state are bit-equal afterwards, also after an error.

    * "sampled-fisher": labels from the model, `q_k = mean (<g_i, u_k>)^2`: the Gauss-Newton part of the
      curvature, never negative, for all groups at once. With one output or up to four classes the mean over
      labels is taken in full, and slope and curvature come from one forward and a backward for each class
      but one; else a label is drawn, and the slope takes a pass of its own.
    * "exact": one double backward a group.
    * "forward-fit": a parabola through the losses at 5 points a group (GeN, arXiv 2407.02772): 4 K + 1
      forwards. Slope and curvature both come from the fit.

    Args:
        model: The model.
        task: The task.
        groups: The groups, K of them.
        direction: From `find_direction`.
        indices: Training examples.
        estimator: How the curvature is taken.
        matrix: Also the K x K matrix between groups (not for "forward-fit").
        batch_size: Examples in a forward pass.
        seed: Of the labels drawn.

    Raises:
        PareError: Unknown estimator, a loss or a gradient that is not finite, or an estimator that cannot do
            what is asked.
    """
    if estimator not in get_args(Estimator):
        raise PareError(f"estimator {estimator!r} is none of {', '.join(get_args(Estimator))}")
    if matrix and estimator == "forward-fit":
        raise PareError("forward-fit gives no matrix between groups; take sampled-fisher or exact")
    fit = np.ones(len(groups))
    between: np.ndarray | None = None
    if estimator == "sampled-fisher":
        slope, values, between = _sampled_fisher(model, task, groups, direction, indices, batch_size, seed)
    elif estimator == "exact":
        slope, values, between = exact(model, task, groups, direction, indices, matrix, batch_size)
    else:
        slope, values, fit = forward_fit(model, task, groups, direction, indices, batch_size)
    states = tuple(
        _state(group.name in direction.dead, *numbers)
        for group, *numbers in zip(groups, slope, values, fit, strict=True)
    )
    names = tuple(group.name for group in groups)
    return Curvature(names, slope, values, states, between if matrix else None)


def _state(dead: bool, slope: float, value: float, fit: float) -> str:
    """Whether a group is usable, and if not, why."""
    if dead:
        return DEAD
    if not (np.isfinite(slope) and np.isfinite(value)):
        return INFINITE
    if not value > 0:
        return FLAT
    return USABLE if fit >= LEAST_FIT else POOR


def _sampled_fisher(
    model: nn.Module,
    task: Task,
    groups: Sequence[Group],
    direction: Direction,
    indices: Sequence[int] | np.ndarray,
    batch_size: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slope (K,), curvature (K,) and matrix (K, K) from per-example inner products."""
    several = contrasts(task)
    if several is not None and several <= MOST_CONTRASTS:
        return _all_labels(model, task, groups, direction, indices, batch_size, several)

    def dots(labels: Labels) -> np.ndarray:
        consumer = GroupDots(len(indices), groups, direction.vectors)
        evidence_pass(model, task, [consumer], indices, batch_size=batch_size, labels=labels, seed=seed)
        return consumer.values.numpy()

    slope = dots("data").mean(0)
    scores = dots("sampled")
    between = (scores * _scale(task, indices)[:, None]).T @ scores / len(indices)
    return slope, np.diagonal(between).copy(), between


def _all_labels(
    model: nn.Module,
    task: Task,
    groups: Sequence[Group],
    direction: Direction,
    indices: Sequence[int] | np.ndarray,
    batch_size: int,
    several: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slope (K,), curvature (K,) and matrix (K, K), the mean over labels taken in full."""
    count = len(indices)
    consumer = GroupDots(several * count, groups, direction.vectors)
    outputs = evidence_pass(
        model, task, [consumer], indices, batch_size=batch_size, labels="contrasts"
    ).numpy()
    dots = consumer.values.numpy().reshape(several, count, len(groups))
    labels = np.asarray(task.train["labels"])[np.asarray(indices)]
    if task.kind == "regression":  # a squared error without a half
        slope = np.einsum("ri,rik->k", 2 * (outputs - labels), dots) / count
        scores = math.sqrt(2) * dots[0]
    else:
        outputs = np.concatenate([np.zeros((1, count)), outputs])
        dots = np.concatenate([np.zeros((1, *dots.shape[1:])), dots])
        shares = np.exp(outputs - outputs.max(0))
        shares /= shares.sum(0)
        errors = shares - (np.arange(len(shares))[:, None] == labels)
        slope = np.einsum("ci,cik->k", errors, dots) / count
        centred = dots - np.einsum("ci,cik->ik", shares, dots)
        scores = (np.sqrt(shares)[..., None] * centred).reshape(-1, len(groups))
    between = scores.T @ scores / count
    return slope, np.diagonal(between).copy(), between


def _scale(task: Task, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """What makes the squared score of each example its Gauss-Newton curvature.

    A language model's loss is a mean over T tokens: the labels drawn are independent, so the squared mean is
    1/T of the mean of squares.
    """
    if not find_kind(task.kind).scores_tokens:
        return np.ones(len(indices))
    late = 1 if task.kind == "causal-lm" else 0
    labels = task.train.select([int(index) for index in indices])["labels"]
    return np.array([sum(token != IGNORED for token in row[late:]) for row in labels], float)


def probe_losses(model: nn.Module, task: Task, indices: Sequence[int] | np.ndarray, batch_size: int) -> float:
    """Mean loss over training examples in eval mode, summed in float64."""
    device = next(model.parameters()).device
    with torch.no_grad():
        batches = task.batches("train", batch_size, np.asarray(indices), device)
        return sum(float(task.example_losses(model, b).double().sum()) for b in batches) / len(indices)
