from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretune.errors import PareError
from paretune.methods.layout import (
    ALLOCATIONS,
    GROUPINGS,
    allocation_shares,
    group_blocks,
    group_sizes,
    group_weights,
)


@pytest.mark.parametrize(
    ("grouping", "blocks", "sizes"),
    [
        ("spindle", 6, [1, 2, 2, 1]),
        ("spindle", 12, [2, 4, 4, 2]),
        ("spindle", 24, [4, 8, 8, 4]),
        ("bottleneck", 6, [2, 1, 1, 2]),
        ("bottleneck", 24, [8, 4, 4, 8]),
        ("increasing", 10, [1, 2, 3, 4]),
        ("decreasing", 10, [4, 3, 2, 1]),
        ("uniform", 6, [1, 2, 1, 2]),
        ("uniform", 24, [6, 6, 6, 6]),
        ("spindle", 2, [0, 1, 1, 0]),
    ],
)
def test_four_groups_at_known_depths(grouping, blocks, sizes):
    assert group_sizes(grouping, 4, blocks) == sizes


@given(st.sampled_from(GROUPINGS), st.integers(1, 9), st.integers(0, 60))
def test_every_block_is_in_one_group(grouping, groups, blocks):
    layout = group_blocks(grouping, groups, blocks)
    assert len(layout) == groups
    assert [block for group in layout for block in group] == list(range(blocks))
    if blocks >= groups:
        assert all(layout)


@given(st.integers(1, 9), st.integers(0, 60))
def test_shapes_keep_their_order(groups, blocks):
    if blocks < groups:
        blocks += groups
    increasing = group_sizes("increasing", groups, blocks)
    assert increasing == sorted(increasing)
    assert group_sizes("decreasing", groups, blocks) == increasing[::-1]
    uniform = group_sizes("uniform", groups, blocks)
    assert max(uniform) - min(uniform) <= 1
    for grouping in GROUPINGS:
        sizes, weights = group_sizes(grouping, groups, blocks), group_weights(grouping, groups)
        for one, other in combinations(range(groups), 2):
            same = weights[one] == weights[other]
            assert abs(sizes[one] - sizes[other]) <= 1 if same else True
            assert same or (sizes[one] >= sizes[other]) or weights[one] < weights[other]
            assert same or (sizes[one] <= sizes[other]) or weights[one] > weights[other]


@given(st.sampled_from(ALLOCATIONS), st.integers(1, 50), st.fractions(1, 100))
def test_shares_sum_to_one_and_keep_their_order(allocation, blocks, ratio):
    shares = allocation_shares(allocation, blocks, ratio)
    assert len(shares) == blocks
    assert sum(shares) == 1
    if allocation == "uniform":
        assert set(shares) == {Fraction(1, blocks)}
    else:
        assert max(shares) / min(shares) == (ratio if blocks > 1 else 1)
        assert shares == sorted(shares, reverse=allocation == "decreasing")


def test_unknown_names_say_what_there_is():
    with pytest.raises(PareError, match=r"no grouping 'spindel' \(did you mean 'spindle'\?\)"):
        group_sizes("spindel", 4, 6)
    with pytest.raises(PareError, match=r"no allocation 'even'.*increasing, uniform"):
        allocation_shares("even", 4)
