"""Whole sizes from a budget: never above it, and nothing left that would still buy a size."""

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from paretune.errors import BudgetError


@dataclass(frozen=True)
class Price:
    """What a strategy costs in one block, by its size.

    Args:
        fixed: Weights paid once, whatever the size.
        slopes: For each module, the weights that one more of the size costs and the size it ends at. None at
            all for what has no size, such as existing biases.
    """

    fixed: int
    slopes: tuple[tuple[int, int], ...] = ()

    @property
    def most(self) -> int:
        """The largest size; 1 for what has no size."""
        return max((end for _, end in self.slopes), default=1)

    def count(self, size: int) -> int:
        """Number of weights at a size of at least 1."""
        return self.fixed + sum(step * min(size, end) for step, end in self.slopes)

    def size(self, count: int | Fraction) -> int:
        """The largest size whose count is at most ``count``, from 1 to ``most``; 1 also where none fits."""
        low, high = 1, self.most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.count(middle) <= count else (low, middle - 1)
        return low


@dataclass(frozen=True)
class Part:
    """One strategy in one tuned block: its place, and its price."""

    block: int
    strategy: str
    price: Price


def whole_sizes(parts: Sequence[Part], shares: Mapping[int, Fraction], budget: int) -> list[int]:
    """The size of each part.

    Every part has size 1 at least. A block aims at its share of the budget; what has no size is paid from
    it first, and its other strategies divide the rest equally. Sizes then grow one by one, always the one
    that is furthest below its aim, as long as any still fits (d'Hondt's rule).

    Args:
        parts: What is tuned.
        shares: Of the budget, for each block; they sum up to 1.
        budget: Number of weights.

    Returns:
        Sizes in the order of ``parts``; their counts sum up to at most ``budget``, and what is left over
        is less than one more of any size that is not at its end.

    Raises:
        BudgetError: Size 1 of everything is above the budget; the message says what it takes.
    """
    sizes = [1] * len(parts)
    least = spent(parts, sizes)
    if least > budget:
        blocks = len({part.block for part in parts})
        raise BudgetError(
            f"one whole size of every strategy in {blocks} tuned blocks takes {least:,} weights, the budget "
            f"is {budget:,}; raise the budget to that, or tune fewer groups or with fewer strategies"
        )
    aims = _aims(parts, shares, budget)
    at_aim = [part.price.size(aim) for part, aim in zip(parts, aims, strict=True)]
    if spent(parts, at_aim) <= budget:
        sizes = at_aim  # growing one by one comes past here
    left = budget - spent(parts, sizes)
    queue = [_next(parts, sizes, aims, place) for place in range(len(parts)) if _grows(parts, sizes, place)]
    heapq.heapify(queue)
    while queue:
        *_, place = heapq.heappop(queue)
        price, size = parts[place].price, sizes[place]
        step = price.count(size + 1) - price.count(size)
        if step > left:
            continue
        left -= step
        sizes[place] += 1
        if _grows(parts, sizes, place):
            heapq.heappush(queue, _next(parts, sizes, aims, place))
    return sizes


def spent(parts: Sequence[Part], sizes: Sequence[int]) -> int:
    """Number of weights of all parts together."""
    return sum(part.price.count(size) for part, size in zip(parts, sizes, strict=True))


def _aims(parts: Sequence[Part], shares: Mapping[int, Fraction], budget: int) -> list[Fraction]:
    """How many weights each part should get; above zero, so that it can be divided by."""
    paid = Counter(dict.fromkeys(shares, 0))
    growing = Counter(dict.fromkeys(shares, 0))
    for part in parts:
        if part.price.slopes:
            growing[part.block] += 1
        else:
            paid[part.block] += part.price.fixed
    rest = {block: max(share * budget - paid[block], Fraction(1)) for block, share in shares.items()}
    return [rest[part.block] / max(growing[part.block], 1) for part in parts]


def _grows(parts: Sequence[Part], sizes: Sequence[int], place: int) -> bool:
    return sizes[place] < parts[place].price.most


def _next(
    parts: Sequence[Part], sizes: Sequence[int], aims: Sequence[Fraction], place: int
) -> tuple[Fraction, int, int]:
    """A heap's entry: how far a part would be along its aim; blocks nearer the output first among equals."""
    part = parts[place]
    return part.price.count(sizes[place] + 1) / aims[place], -part.block, place
