"""The control that every choice must beat: a uniformly random mask."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, get_args

import numpy as np

from paretune.anatomy import Tensor
from paretune.errors import PareError
from paretune.evidence.decreasing import of_pool
from paretune.methods.base import Choice, Question
from paretune.methods.ranking import Within, competing
from paretune.methods.rates import MASK_POWER
from paretune.methods.units import check_budget, check_granularity, fill
from paretune.selection import Granularity, Selection, unit_bound


@dataclass(frozen=True)
class Random:
    """k weights drawn uniformly, without replacement: single entries by default.

    Args:
        within: ``blocks``: from the matrices of the model's blocks (from everything, where these hold less
            than the budget); ``all``: from every tensor that may be selected.
        granularity: ``entries``: single weights; or whole ``rows``, ``columns`` or ``blocks`` (tiles of 16 x
            16 of a matrix), in random order as long as they fit the budget, which counts weights.

    Raises:
        PareError: A setting out of range.
    """

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "single weights at random: the control"
    learning_rates: ClassVar[tuple[float, ...]] = (5e-4, 1.5e-3, 5e-3, 1.5e-2)
    rate_power: ClassVar[float] = MASK_POWER
    sized: ClassVar[bool] = True

    within: Within = "blocks"
    granularity: Granularity = "entries"

    def __post_init__(self) -> None:
        if self.within not in get_args(Within):
            raise PareError(f"within={self.within!r} is none of {', '.join(get_args(Within))}")
        check_granularity(self.granularity)

    def choose(self, question: Question) -> Choice:
        """Draw the mask; it differs by seed and by tensor.

        Raises:
            PareError: The budget holds not one unit.
        """
        tensors = competing(question.candidates, self.within, question.k, self.granularity)
        if self.granularity != "entries":
            check_budget(tensors, self.granularity, question.k)
            return Choice(random_units(tensors, self.granularity, question.k, question.seed))
        return Choice(random_entries(tensors, question.k, question.seed))


def random_entries(candidates: Sequence[Tensor], k: int, seed: int) -> tuple[Selection, ...]:
    """``k`` entries, uniformly over all entries of the candidates."""
    ends = np.cumsum([tensor.count for tensor in candidates])
    drawn = draw(np.random.default_rng(seed), int(ends[-1]), k)
    parts = np.split(drawn, np.searchsorted(drawn, ends[:-1]))
    return tuple(
        Selection(tensor.name, tensor.shape, "entries", part - (end - tensor.count))
        for tensor, part, end in zip(candidates, parts, ends, strict=True)
        if len(part)
    )


def random_units(
    candidates: Sequence[Tensor], granularity: Granularity, k: int, seed: int
) -> tuple[Selection, ...]:
    """Rows, columns or blocks of ``k`` weights at most, in random order as long as they fit."""
    pool = {t.name: np.arange(unit_bound(t.name, t.shape, granularity)) for t in candidates}
    every = [Selection(t.name, t.shape, granularity, pool[t.name]) for t in candidates]
    sizes = np.concatenate([selection.sizes for selection in every])
    order = np.random.default_rng(seed).permutation(len(sizes))
    taken = of_pool(pool, np.sort(order[fill(sizes[order], k)]))
    return tuple(
        replace(selection, indices=taken[selection.tensor])
        for selection in every
        if selection.tensor in taken
    )


def draw(rng: np.random.Generator, total: int, count: int) -> np.ndarray:
    """``count`` different integers below ``total``, uniformly, in increasing order; O(count) memory.

    Drawing with repeats and rejecting them is uniform over subsets; above a half the complement is drawn.
    """
    if count > total // 2:
        left_out = draw(rng, total, total - count)
        return np.delete(np.arange(total, dtype=np.int64), left_out)
    chosen = np.empty(0, dtype=np.int64)
    while len(chosen) < count:
        more = rng.integers(0, total, size=count - len(chosen), dtype=np.int64)
        chosen = np.union1d(chosen, more)
    return chosen
