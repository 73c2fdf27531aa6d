"""Budgets: what is read, what it comes to, what is refused and with which words."""

import math
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from paretune.budget import Budget
from paretune.errors import PareError

MILLION = 10**6


@pytest.mark.parametrize(
    ("asked", "unit", "value"),
    [
        ("0.5%", "share", Fraction(1, 200)),
        ("100%", "share", 1),
        ("1e-3 %", "share", Fraction(1, 100_000)),
        (".5%", "share", Fraction(1, 200)),
        ("120k", "count", 120_000),
        ("120K", "count", 120_000),
        ("120000", "count", 120_000),
        ("120_000", "count", 120_000),
        ("120,000", "count", 120_000),
        ("1.2e5", "count", 120_000),
        (" 1.5M ", "count", 1_500_000),
        ("+2 G", "count", 2 * 10**9),
        (120_000, "count", 120_000),
        ("500KB", "bytes", 500_000),
        ("2MiB", "bytes", 2 * 2**20),
        ("2mib", "bytes", 2 * 2**20),
        ("1.5 GB", "bytes", 1_500_000_000),
        ("1GiB", "bytes", 2**30),
        ("3kib", "bytes", 3072),
        ("1MB", "bytes", MILLION),
    ],
)
def test_what_is_read(asked: str | int, unit: str, value: int | Fraction) -> None:
    budget = Budget.parse(asked)
    assert (budget.unit, budget.value) == (unit, value)
    assert str(budget) == budget.text == str(asked).strip()
    assert Budget.parse(budget) is budget


def test_share_is_exact() -> None:
    # In binary, 0.07 * 100 is 7.000000000000001 and 0.29 * 100 is 28.999999999999996.
    assert Budget.parse("29%").resolve(100) == 29
    assert Budget.parse("7%").resolve(100) == 7
    assert Budget.parse("0.1%").resolve(3_000_000_000_000_001) == 3_000_000_000_000
    assert Budget.parse("0.5%").resolve(22_713_216) == 113_566


def test_bytes_are_divided_by_the_size_of_a_weight() -> None:
    assert Budget.parse("2MiB").resolve(MILLION) == 2**19
    assert Budget.parse("2MiB").resolve(MILLION, bytes_per_weight=3) == 2**21 // 3
    assert Budget.parse("33KB").resolve(MILLION, bytes_per_weight=3.3) == 10_000
    assert Budget.parse("33KB").resolve(MILLION, bytes_per_weight=Fraction(33, 10)) == 10_000


def test_head_rule() -> None:
    budget = Budget.parse("1%")
    assert budget.resolve(100_000, head_weights=300) == 1000
    assert budget.resolve(100_000, head_weights=300, head_rule="outside") == 1000
    assert budget.resolve(100_000, head_weights=300, head_rule="inside") == 700
    assert Budget.parse("100%").resolve(50, head_weights=999) == 50
    assert Budget.parse("60").resolve(50, head_weights=10, head_rule="inside") == 50


@pytest.mark.parametrize(
    "asked",
    ["", "abc", "k", "%", "e5", ".", "nan", "inf", "0,5%", "1,2345", "--3", "5 percent", "1e", "3TB", "1e999",
     "0x10", "1/2", "٣", "9" * 41, None, True, [1], b"5"],
)  # fmt: skip
def test_what_cannot_be_read_is_answered_with_what_can(asked: object) -> None:
    with pytest.raises(PareError, match=r"cannot read .*budget") as error:
        Budget.parse(asked)  # type: ignore[arg-type]
    for example in ("0.5%", "120k", "1.5M", "120000", "500KB", "2MiB"):
        assert example in str(error.value)
        Budget.parse(example)


@pytest.mark.parametrize("asked", ["0", "0%", "-3", "-0.5%", "-2MiB", 0, -7, "0.0k"])
def test_nothing_and_less_are_refused(asked: str | int) -> None:
    with pytest.raises(PareError, match="must be above zero"):
        Budget.parse(asked)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (0.005, r"'0\.5%' if a share"),
        (120000.0, "write 120000 for so many weights"),
        (0.0, "above zero and finite"),
        (-1.5, "above zero and finite"),
        (math.nan, "above zero and finite"),
        (math.inf, "above zero and finite"),
    ],
)
def test_a_float_is_answered_with_what_may_be_meant(asked: float, words: str) -> None:
    with pytest.raises(PareError, match=words):
        Budget.parse(asked)  # type: ignore[arg-type]


def test_b_is_ambiguous() -> None:
    with pytest.raises(PareError, match=r"'2B' may mean billions or bytes; write '2G'"):
        Budget.parse("2B")


def test_below_one_weight() -> None:
    with pytest.raises(PareError, match=r"'0.001%' is less than one weight of the model's 1,000"):
        Budget.parse("0.001%").resolve(1000)
    with pytest.raises(PareError, match=r"write '0.005%' or '0.5%' if a share is meant"):
        Budget.parse("0.005").resolve(1000)
    with pytest.raises(PareError, match="less than one weight"):
        Budget.parse("0.003KB").resolve(1000)
    assert Budget.parse("0.004KB").resolve(1000) == 1
    assert Budget.parse("0.1%").resolve(1000) == 1


def test_above_the_model() -> None:
    with pytest.raises(PareError, match="more than the whole model: '100%' is the largest"):
        Budget.parse("100.1%")
    with pytest.raises(PareError, match=r"1,001 weights but the model has 1,000 .*: ask for 1,000 at most"):
        Budget.parse(1001).resolve(1000, head_weights=50)
    with pytest.raises(
        PareError, match=r"1,000 pretrained weights and 50 of the head: ask for 1,050 at most"
    ):
        Budget.parse(1051).resolve(1000, head_weights=50, head_rule="inside")
    assert Budget.parse(1050).resolve(1000, head_weights=50, head_rule="inside") == 1000


@pytest.mark.parametrize("asked", [299, 300])
def test_head_that_takes_the_whole_budget(asked: int) -> None:
    with pytest.raises(
        PareError, match=rf"{asked} weights and the head alone takes 300.*at least 301.*'outside'"
    ):
        Budget.parse(asked).resolve(1000, head_weights=300, head_rule="inside")
    assert Budget.parse(asked).resolve(1000, head_weights=300) == asked


def test_wrong_arguments() -> None:
    with pytest.raises(PareError, match="unknown head rule 'beside'"):
        Budget.parse(5).resolve(10, head_rule="beside")  # type: ignore[arg-type]
    for size in (0, -1.0, math.nan, math.inf):
        with pytest.raises(PareError, match="bytes_per_weight must be a number above zero"):
            Budget.parse("1KB").resolve(1000, bytes_per_weight=size)


# Properties.

weights = st.integers(1, 10**13)
percents = st.decimals(min_value=0, max_value=100, places=6, allow_nan=False, allow_infinity=False)


@given(percents, weights)
def test_a_share_is_the_floor_of_the_exact_product(percent: object, size: int) -> None:
    exact = Fraction(str(percent)) / 100 * size
    assume(exact >= 1)
    found = Budget.parse(f"{percent}%").resolve(size)
    assert found <= exact < found + 1
    assert 1 <= found <= size


@given(st.integers(1, 10**13), st.sampled_from(["", "k", "M", "G"]), weights)
def test_a_count_is_itself_or_refused(number: int, unit: str, size: int) -> None:
    scale = {"": 1, "k": 1000, "M": MILLION, "G": 10**9}[unit]
    budget = Budget.parse(f"{number}{unit}")
    if number * scale <= size:
        assert budget.resolve(size) == number * scale
    else:
        with pytest.raises(PareError, match="at most"):
            budget.resolve(size)


@given(st.integers(1, 10**9), st.floats(0.01, 64), weights)
def test_bytes_are_never_exceeded(kilobytes: int, per_weight: float, size: int) -> None:
    exact = kilobytes * 1000 / Fraction(str(per_weight))
    assume(1 <= exact <= size)
    found = Budget.parse(f"{kilobytes}KB").resolve(size, bytes_per_weight=per_weight)
    assert found * Fraction(str(per_weight)) <= kilobytes * 1000 < (found + 1) * Fraction(str(per_weight))


@given(weights, st.integers(0, 10**6), st.integers(1, 10**13))
def test_inside_pays_the_head_from_the_same_budget(size: int, head: int, asked: int) -> None:
    assume(head < asked <= size)
    budget = Budget.parse(asked)
    assert budget.resolve(size, head, "inside") + head == budget.resolve(size, head, "outside") == asked


@given(st.integers(10**3, 10**9), st.integers(1, 10**6), st.integers(1, 10**6))
def test_more_asked_is_never_less_given(size: int, one: int, other: int) -> None:
    low, high = sorted((one, other))
    shares = [Budget.parse(f"{part / 10**4:.4f}%") for part in (low, high)]
    assume(shares[0].value * size >= 1)
    assert shares[0].resolve(size) <= shares[1].resolve(size)


@given(st.text(max_size=50))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        budget = Budget.parse(text)
    except PareError as error:
        assert text.strip() in str(error) or repr(text.strip())[1:-1] in str(error)
    else:
        assert budget.value > 0


@given(st.from_regex(r"\A[+-]?[0-9.,_e]{1,12} ?(%|k|M|G|KB|MiB|B)?\Z"))
def test_text_that_looks_like_a_budget_is_read_or_refused(text: str) -> None:
    try:
        budget = Budget.parse(text)
    except PareError:
        return
    assert budget.value > 0
    assert Budget.parse(budget.text) == budget
