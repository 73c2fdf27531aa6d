"""Which items to take: the best subset of a list of gains and costs, and the whole front that it lies on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from paretune.evidence.curvature import RISING
from paretune.silence import c_silent

__all__ = ["Problem", "Step", "Subset", "joint", "knapsack", "prefix"]

FRONT_SIZES = 16  # how many sizes the front of the knapsack is solved at
SECONDS = 20.0  # the longest that one knapsack is worked on; what is left open is the gap
GAP = 1e-6
CUTS = 50
SHRINK = 0.1  # how far the estimated matrix is drawn to its diagonal: it has fewer examples than entries


@dataclass(frozen=True)
class Problem:
    """Items that compete.

    Attributes:
        gains: What each brings, (K,); items with a gain of 0, less or nan are never taken.
        costs: What each takes of each resource, (resources, K), non-negative; the first is its weights.
        limits: How much there is of each resource, (resources,).
        rivals: Groups of items of which at most one can be taken.
    """

    gains: np.ndarray
    costs: np.ndarray
    limits: np.ndarray
    rivals: tuple[tuple[int, ...], ...] = ()

    def fits(self, chosen: Sequence[int]) -> bool:
        """Whether a subset is within every limit and takes no two rivals."""
        within = (self.costs[:, list(chosen)].sum(1) <= self.limits).all()
        return bool(within) and all(len(set(group) & set(chosen)) <= 1 for group in self.rivals)

    def worth(self) -> list[int]:
        """The items with a gain, the largest gain per weight first (AdaPEFT's influence per parameter)."""
        density = np.nan_to_num(self.gains, nan=0.0) / self.costs[0]
        return [int(k) for k in np.argsort(-density, kind="stable") if density[k] > 0]


@dataclass(frozen=True)
class Step:
    """One point of a predicted front: so many weights in so many items, and their gain."""

    weights: int
    gain: float
    items: int


@dataclass(frozen=True)
class Subset:
    """What was taken.

    Attributes:
        chosen: The items taken, in the order of the list.
        gain: Their gain together.
        front: The predicted front, sizes ascending.
        gap: How far the gain may be below the best, as a share of it; 0 where nothing was left open.
    """

    chosen: tuple[int, ...]
    gain: float
    front: tuple[Step, ...] = field(default=())
    gap: float = 0.0


def prefix(problem: Problem) -> Subset:
    """The longest beginning of the list sorted by gain per weight that fits (AdaPEFT's front).

    Each beginning is the best subset of its own size, since no other of that size has more per weight.
    """
    return _growing(problem, problem.worth(), lambda taken: float(problem.gains[list(taken)].sum()))


def knapsack(problem: Problem, front: bool = True) -> Subset:
    """The best subset that fits, by branch and bound (scipy's HiGHS); its front, if wanted, size by size."""
    items = problem.worth()
    if not items:
        return Subset((), 0.0)
    chosen, gap = _solve(problem, items)
    if not front:
        return Subset(tuple(sorted(chosen)), float(problem.gains[chosen].sum()), gap=gap)
    smallest, total = problem.costs[0, items].min(), problem.costs[0, items].sum()
    sizes = sorted({int(size) for size in np.geomspace(smallest, total, FRONT_SIZES).round()} | {int(total)})
    steps = []
    for size in sizes:
        limits = problem.limits.copy()
        limits[0] = size
        taken, _ = _solve(Problem(problem.gains, problem.costs, limits, problem.rivals), items)
        steps.append(_step(problem, taken, float(problem.gains[taken].sum())))
    steps.append(_step(problem, chosen, float(problem.gains[chosen].sum())))
    return Subset(tuple(sorted(chosen)), float(problem.gains[chosen].sum()), _best_of(steps), gap)


def joint(problem: Problem, slopes: np.ndarray, matrix: np.ndarray) -> Subset:
    """Greedy on the whole matrix: each next item is the one that adds the most gain per weight.

    With the items in M moved together by their best steps the gain is `b_M^T Q_MM^-1 b_M / 2`. What an item
    adds to those taken is `r^2 / (2 d)`, with r and d what is left of its slope and curvature when those
    taken have taken their share: one row of a Cholesky factor an item.

    Args:
        problem: The items; only those with a gain are looked at.
        slopes: b, (K,).
        matrix: Q, (K, K), positive semidefinite; it is drawn to its diagonal by `SHRINK`.
    """
    items = problem.worth()
    matrix = (1 - SHRINK) * matrix + SHRINK * np.diag(np.diagonal(matrix))
    slope, curvature = slopes.astype(float).copy(), np.diagonal(matrix).copy()
    factors = np.zeros((0, len(slopes)))
    order: list[int] = []
    gains: dict[int, float] = {}
    left = set(items)
    while left:
        candidates = sorted(left)
        added = slope[candidates] ** 2 / (2 * curvature[candidates])
        added = np.where(slope[candidates] > 0, added, RISING * added)
        best = int(np.argmax(added / problem.costs[0, candidates]))
        pick = candidates[best]
        if not added[best] > 0:
            break
        order.append(pick)
        gains[pick] = float(added[best])
        left -= {pick}.union(*(set(group) for group in problem.rivals if pick in group))
        row = (matrix[pick] - factors[:, pick] @ factors) / np.sqrt(curvature[pick])
        slope -= row * slope[pick] / row[pick]
        curvature = np.maximum(curvature - row**2, SHRINK * 1e-3 * np.diagonal(matrix))
        factors = np.vstack([factors, row])
    return _growing(problem, order, lambda taken: sum(gains[item] for item in taken))


def _growing(problem: Problem, order: Sequence[int], gain: Callable[[Sequence[int]], float]) -> Subset:
    """Take items in order; those that rival one taken are passed over."""
    taken: list[int] = []
    steps: list[Step] = []
    chosen: tuple[int, ...] = ()
    for item in order:
        if any(item in group and set(group) & set(taken) for group in problem.rivals):
            continue
        taken.append(item)
        steps.append(_step(problem, taken, gain(taken)))
        if len(chosen) == len(taken) - 1 and problem.fits(taken):
            chosen = tuple(taken)
    return Subset(tuple(sorted(chosen)), gain(chosen) if chosen else 0.0, tuple(steps))


def _solve(problem: Problem, items: Sequence[int]) -> tuple[list[int], float]:
    """The best subset of the items, and its gap."""
    items = [k for k in items if (problem.costs[:, k] <= problem.limits).all()]
    if not items:
        return [], 0.0
    gains, costs = problem.gains[items], problem.costs[:, items]
    # Rows and gains are scaled: the solver's tolerances are absolute.
    rows = [LinearConstraint(costs / problem.limits[:, None], ub=1)]
    rows += [_at_most(items, group, 1) for group in problem.rivals]
    for _ in range(CUTS):
        with c_silent():  # HiGHS prints a line of its own whatever it is told (its issue 2783)
            found = milp(
                -gains / gains.max(),
                constraints=rows,
                bounds=Bounds(0, 1),
                integrality=np.ones(len(items)),
                # With presolve a knapsack of 2,000 items takes three to six times as long.
                options={"mip_rel_gap": GAP, "time_limit": SECONDS, "presolve": False},
            )
        if found.x is None:
            break
        chosen = [item for item, taken in zip(items, found.x, strict=True) if taken > 0.5]
        if problem.fits(chosen):
            return chosen, float(found.mip_gap or 0.0)
        # Above a limit by less than the solver's tolerance: these items together are never within it.
        rows.append(_at_most(items, chosen, len(chosen) - 1))
    return [items[0]], 1.0  # out of time: the first item that fits is a subset


def _at_most(items: Sequence[int], group: Sequence[int], count: int) -> LinearConstraint:
    """At most so many of a group."""
    return LinearConstraint(np.isin(items, group).astype(float)[None], ub=count)


def _step(problem: Problem, taken: Sequence[int], gain: float) -> Step:
    return Step(int(problem.costs[0, list(taken)].sum()), gain, len(taken))


def _best_of(steps: Sequence[Step]) -> tuple[Step, ...]:
    """Steps that no smaller one reaches, sizes ascending."""
    front: list[Step] = []
    for step in sorted(set(steps), key=lambda step: (step.weights, -step.gain)):
        if not front or step.gain > front[-1].gain:
            front.append(step)
    return tuple(front)
