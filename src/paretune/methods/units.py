"""Whole rows, columns or blocks chosen under a budget that counts weights.

Such units differ in size: a unit scores the sum of its weights' scores, and units are compared by the mean.
Taken in order, a unit that no longer fits is passed over, until no smaller one fits either.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paretune.anatomy import Tensor
from paretune.errors import BudgetError, PareError
from paretune.selection import Granularity, Selection, unit_bound

CHOICES = ("entries", "rows", "columns", "blocks")


def check_granularity(granularity: Granularity) -> None:
    """Refuse what a method cannot choose.

    Raises:
        PareError: Neither entries nor rows, columns or blocks.
    """
    if granularity not in CHOICES:
        raise PareError(f"granularity={granularity!r} is none of {', '.join(CHOICES)}")


def having_units(tensors: Sequence[Tensor], granularity: Granularity) -> tuple[Tensor, ...]:
    """The tensors that have such units: a vector has no blocks, a scalar not even rows.

    Raises:
        PareError: None has.
    """
    least = {"blocks": 2, "entries": 0}.get(granularity, 1)
    most = 2 if granularity == "blocks" else np.inf
    found = tuple(tensor for tensor in tensors if least <= len(tensor.shape) <= most)
    if not found:
        raise PareError(f"no tensor that may be selected has {granularity}; take granularity=entries")
    return found


def check_budget(tensors: Sequence[Tensor], granularity: Granularity, k: int) -> None:
    """Refuse a budget that no unit fits, or that is above all of them together.

    Raises:
        BudgetError: The budget is below the smallest unit, which is named.
        PareError: It is above what the tensors hold.
    """
    if granularity == "entries":
        return
    last = [  # of blocks the last one is the smallest
        Selection(t.name, t.shape, granularity, np.array([unit_bound(t.name, t.shape, granularity) - 1]))
        for t in tensors
    ]
    smallest = min(last, key=lambda selection: selection.count)
    if smallest.count > k:
        raise BudgetError(
            f"a budget of {k:,} weights is below one of the {granularity}: the smallest, of "
            f"{smallest.tensor}, has {smallest.count:,}; raise the budget, or take granularity=entries"
        )
    there = sum(tensor.count for tensor in tensors)
    if k > there:
        raise PareError(
            f"a budget of {k:,} weights is above the {there:,} of the tensors that have {granularity}; lower "
            "it, or take granularity=entries"
        )


def fill(sizes: np.ndarray, budget: int) -> np.ndarray:
    """Take units in order as long as they fit; one that does not is passed over.

    Args:
        sizes: Weights of each unit (n,), in the order in which they are offered; all above zero.
        budget: Weights in all.

    Returns:
        Positions of the units taken, ascending; no other unit fits what is left.
    """
    taken = [np.empty(0, dtype=np.int64)]
    offered = np.arange(len(sizes))
    while len(offered):
        ends = np.cumsum(sizes[offered])
        fit = int(np.searchsorted(ends, budget, side="right"))
        taken.append(offered[:fit])
        budget -= int(ends[fit - 1]) if fit else 0
        # The next one does not fit, so all of its size go: as many rounds as there are sizes, at most.
        offered = offered[fit:]
        offered = offered[sizes[offered] <= budget]
    return np.sort(np.concatenate(taken))


@dataclass(frozen=True)
class UnitPicker:
    """Chooses again and again among the units of a pool.

    Attributes:
        even: Every tensor gets its share of units; else all are ranked together.
        power: Of the score in the chance to be drawn; 0 takes the largest.
        waits: The exponential number of each unit of the pool.
        owner: The number of each unit's tensor.
        sizes: Weights of each unit.
        units: How many units each tensor has, those outside the pool included.
        weights: Of all these tensors together.
    """

    even: bool
    power: float
    waits: np.ndarray
    owner: np.ndarray
    sizes: np.ndarray
    units: np.ndarray
    weights: int

    def __call__(self, among: np.ndarray, scores: np.ndarray, count: int) -> np.ndarray:
        """Which of some positions stay.

        Args:
            among: Positions in the pool (m,), ascending.
            scores: Sums over the weights of each unit (m,).
            count: How many weights stay, at most.

        Returns:
            The positions that stay, ascending.

        Raises:
            BudgetError: Not one of them fits.
        """
        means = scores / self.sizes[among]
        keys = means**self.power / self.waits[among] if self.power else means
        order = self._in_turn(among, keys, count) if self.even else np.argsort(-keys, kind="stable")
        taken = order[fill(self.sizes[among][order], count)]
        if not len(taken):
            raise BudgetError(
                f"none of the {len(among):,} rows, columns or blocks in question fits a budget of {count:,} "
                "weights; raise the budget, or take granularity=entries"
            )
        return among[np.sort(taken)]

    def _in_turn(self, among: np.ndarray, keys: np.ndarray, count: int) -> np.ndarray:
        """The order under which every tensor gets its share: whole numbers first, then largest remainders.

        A tensor with u units is owed ``count * u / weights`` of them. Its unit of rank r has its turn by what
        is still owed before it, the most first; one or more counts as one.
        """
        owner = self.owner[among]
        order = np.lexsort((-keys, owner))
        owner = owner[order]
        rank = np.arange(len(order)) - np.searchsorted(owner, owner)
        owed = count * self.units[owner] - rank * self.weights
        return order[np.argsort(-np.minimum(owed, self.weights), kind="stable")]
