"""How blocks fall into groups, and how a budget falls onto blocks: the two shapes of a design."""

from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import Literal, get_args

from paretune.errors import PareError, near

Grouping = Literal["increasing", "uniform", "decreasing", "spindle", "bottleneck"]
Allocation = Literal["increasing", "uniform", "decreasing"]
GROUPINGS: tuple[Grouping, ...] = get_args(Grouping)
ALLOCATIONS: tuple[Allocation, ...] = get_args(Allocation)


def group_weights(grouping: str, groups: int) -> list[int]:
    """The relative number of blocks of each group; of four groups a spindle is 1, 2, 2, 1.

    Raises:
        PareError: There is no such grouping.
    """
    rising = list(range(1, groups + 1))
    spindle = [min(one, other) for one, other in zip(rising, reversed(rising), strict=True)]
    weights = {
        "increasing": rising,
        "uniform": [1] * groups,
        "decreasing": rising[::-1],
        "spindle": spindle,
        "bottleneck": [max(spindle, default=0) + 1 - weight for weight in spindle],
    }
    if grouping not in weights:
        raise PareError(f"no grouping {grouping!r}{near(grouping, weights)}; there are {', '.join(weights)}")
    return weights[grouping]


def group_sizes(grouping: str, groups: int, blocks: int) -> list[int]:
    """How many consecutive blocks each group has; every group has one where there are enough blocks.

    After one block each, the others go one by one to the group that is furthest below its weight
    (Sainte-Lague's rule; the middle first among equals). A uniform grouping spreads what does not divide.
    With fewer blocks than groups, each block joins the group that its depth falls into.

    Args:
        grouping: One of ``GROUPINGS``.
        groups: Number of groups, at least 1.
        blocks: Number of blocks.

    Returns:
        ``groups`` numbers that sum up to ``blocks``.

    Raises:
        PareError: There is no such grouping.
    """
    weights = group_weights(grouping, groups)
    if blocks < groups:
        return _by_depth(weights, blocks)
    if grouping == "uniform":
        ends = [blocks * group // groups for group in range(groups + 1)]
        return [end - start for start, end in pairwise(ends)]
    sizes = [1] * groups
    middle = (groups - 1) / 2
    for _ in range(blocks - groups):
        furthest = max(
            range(groups),
            key=lambda g: (Fraction(weights[g], 2 * sizes[g] + 1), weights[g], -abs(g - middle), -g),
        )
        sizes[furthest] += 1
    return sizes


def _by_depth(weights: Sequence[int], blocks: int) -> list[int]:
    """Blocks by the group that the middle of each falls into, with groups as wide as their weights."""
    ends = list(accumulate(weights))
    sizes = [0] * len(weights)
    for block in range(blocks):
        sizes[bisect_right(ends, Fraction(2 * block + 1, 2 * blocks) * ends[-1])] += 1
    return sizes


def group_blocks(grouping: str, groups: int, blocks: int) -> list[range]:
    """The block numbers of each group, in order; every block is in one group."""
    ends = [0, *accumulate(group_sizes(grouping, groups, blocks))]
    return [range(start, end) for start, end in pairwise(ends)]


def allocation_shares(allocation: str, blocks: int, ratio: Fraction | int = 3) -> list[Fraction]:
    """The share of the budget of each tuned block, in order; linear from one end to the other.

    Args:
        allocation: One of ``ALLOCATIONS``.
        blocks: Number of tuned blocks, at least 1.
        ratio: How many times the smallest share the largest is, unless the allocation is uniform.

    Returns:
        ``blocks`` fractions that sum up to 1.

    Raises:
        PareError: There is no such allocation.
    """
    if allocation not in ALLOCATIONS:
        known = ", ".join(ALLOCATIONS)
        raise PareError(f"no allocation {allocation!r}{near(allocation, ALLOCATIONS)}; there are {known}")
    slope = Fraction(0) if allocation == "uniform" or blocks == 1 else (Fraction(ratio) - 1) / (blocks - 1)
    weights = [1 + slope * place for place in range(blocks)]
    if allocation == "decreasing":
        weights.reverse()
    total = sum(weights, Fraction(0))
    return [weight / total for weight in weights]
