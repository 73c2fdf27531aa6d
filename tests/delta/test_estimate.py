import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paretune.delta import delta_bytes
from paretune.delta.estimate import largest_within
from paretune.errors import BudgetError, PareError
from paretune.plan import Addition, Base, Plan, Selection

HEAD = (Selection("head", (10,), "all"),)
SIDE = 200
WEIGHTS = SIDE * SIDE


def plan(dtype, selections=(), additions=()):
    return Plan(Base("m", "f1" * 32, dtype), selections, additions, HEAD)


def ranks(dtype, size, modules):
    """A method of added modules in whole sizes, such as LoRA."""

    def attempt(k):
        rank = k // (size * modules)
        if not rank:
            raise BudgetError(f"rank 1 needs {size * modules}, the budget is {k}")
        added = tuple(Addition("lora", f"layer.{n}", rank, rank * size) for n in range(modules))
        return plan(dtype, additions=added)

    return attempt


def rows(dtype):
    """A method of whole rows."""

    def attempt(k):
        if k < SIDE:
            raise BudgetError("below one row")
        taken = np.arange(min(k // SIDE, SIDE)) if k < WEIGHTS else None
        granularity = "all" if taken is None else "rows"
        return plan(dtype, (Selection("w", (SIDE, SIDE), granularity, taken),))

    return attempt


def entries(dtype):
    """A method of single weights."""

    def attempt(k):
        places = np.sort(np.random.default_rng(0).permutation(WEIGHTS)[:k])
        return plan(dtype, (Selection("w", (SIDE, SIDE), "entries", places),))

    return attempt


def within(limit, attempt, dtype, shipped=None, weights=WEIGHTS):
    """What is found, and how often it was tried."""
    calls = []

    def counted(k):
        calls.append(k)
        return attempt(k)

    width = (shipped or getattr(torch, dtype)).itemsize
    return largest_within(limit, width, 10, weights, counted, shipped), len(calls)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@given(st.integers(1, 60), st.integers(1, 40), st.integers(-40, 9_000))
def test_whole_sizes_are_found_wherever_the_smallest_fits(dtype, size, modules, spare):
    attempt = ranks(dtype, size, modules)
    smallest = delta_bytes(attempt(size * modules))
    try:
        found, _ = within(smallest + spare, attempt, dtype)
    except BudgetError:
        found = None
    assert (found is not None) == (spare >= 0)
    if found is not None:
        assert delta_bytes(found) <= smallest + spare


@pytest.mark.parametrize("make", [rows, entries])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shipped", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("limit", [2_800, 9_000, 60_000, 500_000])
def test_bytes_are_used_and_kept_in_few_tries(make, dtype, shipped, limit):
    attempt = make(dtype)
    found, calls = within(limit, attempt, dtype, shipped)
    assert found is not None
    used = delta_bytes(found, shipped)
    assert used <= limit
    assert used > 0.85 * limit - 4 * SIDE or found.count == WEIGHTS
    assert calls <= 4


def test_what_refuses_all_that_the_bytes_could_hold_says_so_itself():
    with pytest.raises(BudgetError, match=r"rank 1 needs 4000, the budget is 734$"):
        within(2_513, ranks("bfloat16", 100, 40), "bfloat16")
    assert within(1_000, ranks("bfloat16", 1, 1), "bfloat16") == (None, 0)


def test_a_method_that_cannot_use_more_keeps_what_it_had():
    attempt = rows("float32")

    def few(k):
        if k > 2_600:
            raise PareError("above the 2,600 that have rows")
        return attempt(k - k // 2)

    found, _ = within(12_000, few, "float32", weights=2_150)
    assert found is not None and found.count == 1_000
    with pytest.raises(PareError, match="above the 2,600"):
        within(40_000, few, "float32")
