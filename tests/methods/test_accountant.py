from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretune.errors import PareError
from paretune.methods.accountant import Part, Price, spent, whole_sizes

prices = st.one_of(
    st.builds(Price, st.integers(0, 50)),
    st.builds(
        Price,
        st.integers(0, 30),
        st.lists(st.tuples(st.integers(1, 40), st.integers(1, 30)), min_size=1, max_size=3).map(tuple),
    ),
)
shapes = st.lists(st.lists(prices, min_size=1, max_size=4), min_size=1, max_size=6)


def parts_of(shape):
    return [Part(block, f"s{i}", price) for block, group in enumerate(shape) for i, price in enumerate(group)]


def even(shape):
    return {block: Fraction(1, len(shape)) for block in range(len(shape))}


@given(prices, st.integers(0, 3000))
def test_size_is_the_largest_that_fits(price, count):
    size = price.size(count)
    assert 1 <= size <= price.most
    assert size == 1 or price.count(size) <= count
    assert size == price.most or price.count(size + 1) > count


@given(shapes, st.integers(0, 4000), st.data())
def test_never_above_the_budget_and_nothing_left_that_buys_a_size(shape, extra, data):
    parts = parts_of(shape)
    weights = data.draw(st.lists(st.integers(1, 9), min_size=len(shape), max_size=len(shape)))
    shares = {block: Fraction(weight, sum(weights)) for block, weight in enumerate(weights)}
    budget = spent(parts, [1] * len(parts)) + extra
    sizes = whole_sizes(parts, shares, budget)
    total = spent(parts, sizes)
    assert total <= budget
    assert all(1 <= size <= part.price.most for part, size in zip(parts, sizes, strict=True))
    steps = [
        part.price.count(size + 1) - part.price.count(size)
        for part, size in zip(parts, sizes, strict=True)
        if size < part.price.most
    ]
    assert not steps or budget - total < min(steps)


@given(shapes, st.integers(0, 4000))
def test_a_larger_jump_start_changes_nothing(shape, extra):
    """Growing from size 1 one by one gives what starting at the aims gives."""
    parts = parts_of(shape)
    budget = spent(parts, [1] * len(parts)) + extra
    sizes = whole_sizes(parts, even(shape), budget)
    assert sizes == slow_sizes(parts, even(shape), budget)


def slow_sizes(parts, shares, budget):
    paid = {b: sum(p.price.fixed for p in parts if p.block == b and not p.price.slopes) for b in shares}
    growing = {b: sum(1 for p in parts if p.block == b and p.price.slopes) for b in shares}
    aims = [
        max(shares[p.block] * budget - paid[p.block], Fraction(1)) / max(growing[p.block], 1) for p in parts
    ]
    sizes = [1] * len(parts)
    open_ = {i for i, p in enumerate(parts) if p.price.most > 1}
    while open_:
        i = min(open_, key=lambda i: (parts[i].price.count(sizes[i] + 1) / aims[i], -parts[i].block, i))
        step = parts[i].price.count(sizes[i] + 1) - parts[i].price.count(sizes[i])
        if spent(parts, sizes) + step > budget:
            open_.discard(i)
            continue
        sizes[i] += 1
        if sizes[i] == parts[i].price.most:
            open_.discard(i)
    return sizes


@given(st.integers(1, 8), st.integers(1, 40), st.integers(0, 5000))
def test_equal_blocks_get_equal_sizes(blocks, step, extra):
    parts = [Part(block, "lora", Price(0, ((step, 10_000),))) for block in range(blocks)]
    sizes = whole_sizes(parts, {b: Fraction(1, blocks) for b in range(blocks)}, blocks * step + extra)
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes)  # what is left over goes to the blocks nearest the output


def test_shares_are_followed_and_fixed_costs_come_first():
    parts = [
        Part(0, "lora", Price(0, ((10, 1000),))),
        Part(1, "lora", Price(0, ((10, 1000),))),
        Part(1, "bias", Price(100)),
    ]
    sizes = whole_sizes(parts, {0: Fraction(1, 4), 1: Fraction(3, 4)}, 1000)
    assert sizes == [25, 65, 1]


def test_a_size_at_its_end_leaves_its_share_to_the_others():
    parts = [Part(0, "lora", Price(0, ((10, 3),))), Part(1, "lora", Price(0, ((10, 1000),)))]
    assert whole_sizes(parts, {0: Fraction(1, 2), 1: Fraction(1, 2)}, 1000) == [3, 97]


def test_too_small_a_budget_says_the_least_that_fits():
    parts = parts_of([[Price(5, ((10, 9),)), Price(7)], [Price(0, ((20, 9),))]])
    with pytest.raises(PareError, match=r"in 2 tuned blocks takes 42 weights, the budget is 41; raise"):
        whole_sizes(parts, {0: Fraction(1, 2), 1: Fraction(1, 2)}, 41)
    assert whole_sizes(parts, {0: Fraction(1, 2), 1: Fraction(1, 2)}, 42) == [1, 1, 1]
