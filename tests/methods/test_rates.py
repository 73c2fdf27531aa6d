"""A mask's learning rates follow its share of the model; modules' and whole tensors' do not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretune.methods import METHODS, learning_rates, make_method
from paretune.methods.rates import SMALLEST

MASKS = ("random", "magnitude", "gradient", "fish", "ird")


@pytest.mark.parametrize("name", METHODS)
def test_the_range_is_for_half_a_percent(name):
    method = METHODS[name]()
    assert learning_rates(method, 0.005) == method.learning_rates
    assert learning_rates(method, None) == method.learning_rates
    assert bool(method.rate_power) == (name in MASKS)


@given(share=st.floats(SMALLEST, 1.0), to=st.floats(0.0, 1.0))
@pytest.mark.parametrize("name", MASKS)
def test_fewer_weights_get_larger_steps(name, share, to):
    method = METHODS[name]()
    further = (share / SMALLEST) ** to  # at most down to the smallest share that was measured
    rates, below = learning_rates(method, share), learning_rates(method, share / further)
    assert list(rates) == sorted(set(rates))
    for rate, larger in zip(rates, below, strict=True):
        assert larger / rate == pytest.approx(further**method.rate_power, rel=0.11)  # two digits each


@given(share=st.floats(0.0, 1e9))
@pytest.mark.parametrize("name", METHODS)
def test_rates_stay_within_those_of_the_shares_that_were_measured(name, share):
    method = METHODS[name]()
    low, high = learning_rates(method, 1.0), learning_rates(method, SMALLEST)
    rates = learning_rates(method, share)
    assert all(a <= b <= c < 1 for a, b, c in zip(low, rates, high, strict=True))
    if not SMALLEST < share < 1.0:
        assert rates == (high if share <= SMALLEST else low)


def test_all_weights_get_about_the_steps_of_full_fine_tuning():
    full = METHODS["full"]().learning_rates
    assert full[0] < learning_rates(METHODS["random"](), 1.0)[2] < full[-1]


def test_modules_keep_their_range():
    lora = make_method("lora", {"targets": "all"})
    assert learning_rates(lora, 1e-4) == learning_rates(lora, 0.02) == lora.learning_rates


def test_the_largest_scores_keep_their_lower_range():
    published = make_method("fish", {"reading": "published"})
    assert learning_rates(published, 1e-3)[-1] < learning_rates(METHODS["fish"](), 1e-3)[-1]
