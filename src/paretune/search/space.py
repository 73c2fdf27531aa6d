"""A design space as named components with their options; a point of it is a design and a learning rate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations
from typing import Any

import numpy as np

from paretune.errors import PareError
from paretune.methods.design import Design, in_order
from paretune.methods.layout import ALLOCATIONS, GROUPINGS, group_sizes
from paretune.methods.prices import Prices
from paretune.strategies import STRATEGIES

RATE, GROUPING, ALLOCATION, TUNED = "rate", "grouping", "allocation", "tuned"
Point = dict[str, str]


@dataclass(frozen=True)
class Space:
    """What a search chooses from.

    Args:
        components: Options by component, in the order in which they are settled: the learning rate, the
            grouping, the allocation, the tuned groups, then the strategies of each group.
        settings: Further settings by strategy, the same for all designs.
        left_out: What the model cannot have, and why, in words.
    """

    components: dict[str, tuple[str, ...]]
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @property
    def groups(self) -> int:
        """Number of groups."""
        return len(self.components) - len((RATE, GROUPING, ALLOCATION, TUNED))

    @property
    def designs(self) -> int:
        """How many points there are."""
        return int(np.prod([len(options) for options in self.components.values()], dtype=object))

    def draw(self, generator: np.random.Generator) -> Point:
        """A point, every component uniformly; every draw takes as many random numbers."""
        return {
            name: options[int(generator.integers(len(options)))] for name, options in self.components.items()
        }

    def design(self, point: Mapping[str, str]) -> Design:
        """The design of a point."""
        return Design(
            strategies=tuple(
                tuple(point[group_name(number)].split("+")) for number in range(1, self.groups + 1)
            ),
            grouping=point[GROUPING],
            allocation=point[ALLOCATION],
            tuned=tuple(int(number) for number in point[TUNED].split("+")),
            settings=self.settings,
        )


def group_name(number: int) -> str:
    """The component that holds the strategies of a group."""
    return f"group {number}"


def make_space(
    prices: Prices,
    rates: Sequence[float],
    groups: int = 4,
    strategies: Sequence[str] = tuple(STRATEGIES),
) -> Space:
    """The space of a model: every grouping that differs at its depth, runs of tuned groups, strategy subsets.

    Args:
        prices: Of the model; their settings are the space's.
        rates: Learning rates to settle first.
        groups: Number of groups; a model with fewer blocks gets as many as it has blocks.
        strategies: What groups can have any subset of; what a block of the model cannot carry is left out.

    Raises:
        PareError: No rate, fewer than one group, or no strategy that the model can carry.
    """
    if groups < 1 or not rates:
        raise PareError("a design space has one group and one learning rate at least")
    left_out: list[str] = []
    carried = []
    for strategy in in_order(tuple(strategies)):
        reason = prices.refusal(strategy)
        if reason is None:
            carried.append(strategy)
        else:
            left_out.append(reason)
    if not carried:
        raise PareError(f"the model can carry none of the strategies: {left_out[0]}")
    if prices.blocks < groups:
        left_out.append(f"{prices.blocks} blocks make {prices.blocks} groups, not {groups}")
        groups = prices.blocks
    components = {
        RATE: tuple(f"{rate:g}" for rate in rates),
        GROUPING: _distinct_groupings(groups, prices.blocks, left_out),
        ALLOCATION: tuple(ALLOCATIONS),
        TUNED: _runs(groups),
    }
    subsets = tuple("+".join(names) for names in _subsets(carried))
    components |= {group_name(number): subsets for number in range(1, groups + 1)}
    return Space(components, {k: dict(v) for k, v in prices.settings.items()}, tuple(left_out))


def _distinct_groupings(groups: int, blocks: int, left_out: list[str]) -> tuple[str, ...]:
    """One grouping of each layout: at few blocks some are the same."""
    by_layout: dict[tuple[int, ...], str] = {}
    for grouping in GROUPINGS:
        layout = tuple(group_sizes(grouping, groups, blocks))
        first = by_layout.setdefault(layout, grouping)
        if first != grouping:
            left_out.append(f"{grouping} grouping is the same as {first} with {blocks} blocks")
    return tuple(by_layout.values())


def _runs(groups: int) -> tuple[str, ...]:
    """Every run of neighbouring groups, the longest (all of them) first."""
    numbers = [str(number) for number in range(1, groups + 1)]
    return tuple(
        "+".join(numbers[start : start + length])
        for length in range(groups, 0, -1)
        for start in range(groups - length + 1)
    )


def _subsets(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Every subset but the empty one."""
    return list(chain.from_iterable(combinations(names, count) for count in range(1, len(names) + 1)))
