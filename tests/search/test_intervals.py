"""Intervals that are looked at again and again still are wrong in one case of twenty at most."""

import math

import numpy as np
import pytest

from paretune.search.intervals import FEWEST_DRAWS, leads, mean_interval, separated, ties

MOST = 20  # draws
ROUNDS = 600


def wrongly_told_apart(choices, rng):
    """Whether equal choices are ever told apart while draws are added until they are."""
    scores = rng.normal(size=(choices, MOST))
    for draws in range(FEWEST_DRAWS, MOST + 1):
        if separated({str(choice): scores[choice, :draws].tolist() for choice in range(choices)}):
            return True
    return False


@pytest.mark.parametrize("choices", [2, 4])
def test_equal_choices_are_seldom_told_apart_however_often_one_looks(choices):
    rng = np.random.default_rng(choices)
    wrong = np.mean([wrongly_told_apart(choices, rng) for _ in range(ROUNDS)])
    assert wrong <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / ROUNDS)


def test_different_choices_are_told_apart_and_more_draws_help():
    rng = np.random.default_rng(0)
    ahead = 0.1 + 0.01 * rng.normal(size=MOST)
    scores = {"good": ahead.tolist(), "bad": np.zeros(MOST).tolist()}
    assert ties({name: values[:5] for name, values in scores.items()}, "good") == []
    few, many = (
        leads({name: values[:draws] for name, values in scores.items()}, "good")["bad"] for draws in (3, 20)
    )
    assert many.high - many.low < few.high - few.low


def test_one_look_at_one_choice_is_wider_than_the_plain_interval():
    ahead = [0.1, 0.12, 0.15]
    lead = leads({"good": ahead, "bad": [0.0, 0.0, 0.0]}, "good")["bad"]
    plain = mean_interval(ahead)
    assert lead.low < plain.low < plain.high < lead.high
