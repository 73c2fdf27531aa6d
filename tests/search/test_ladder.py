import pytest

from paretune.methods import METHODS
from paretune.search.field import FIELD, REFERENCES, read_method
from paretune.search.front import EQUIVALENTS
from paretune.search.ladder import AUTO_LADDERS, FRONT_LADDERS, Ladder, affordable, middle_first
from paretune.search.schedule import Cost


def test_the_cost_is_counted_rung_by_rung():
    ladder = Ladder(rates=2, first=1 / 8, carried=1, second=1 / 4, finalists=2, seeds=3)
    # Ten candidates with four rates each: 20 looks, half of eight and two references, two and two to the end.
    assert ladder.cost([4] * 10, 2) == Cost(20 + 6 + 12, 20 / 8 + 6 / 4 + 12)
    assert Ladder(4, 1 / 4, 0, 0.0, 1, 1).cost([4, 2], 0) == Cost(7, 6 / 4 + 1)


def test_ladders_go_from_generous_to_meagre():
    for ladders in (FRONT_LADDERS, AUTO_LADDERS):
        costs = [ladder.cost([4] * 12, 2) for ladder in ladders]
        assert costs[0].equivalents > costs[-1].equivalents
        assert costs[0].trials > costs[-1].trials == min(cost.trials for cost in costs)


def test_the_default_front_is_worth_at_most_25_whole_trainings_with_three_seeds():
    rates = [len(METHODS[read_method(text)[0]].learning_rates) for text in FIELD]
    found = affordable(
        FRONT_LADDERS, rates, len(REFERENCES), lambda cost: cost.equivalents <= EQUIVALENTS, seeds=3
    )
    assert found is not None
    assert (found.rates, found.seeds) == (2, 3)
    assert found.first >= 1 / 4  # shorter looks tell nobody apart


def test_what_cannot_be_afforded_is_none_and_fewer_seeds_are_kept():
    assert affordable(FRONT_LADDERS, [4] * 6, 0, lambda cost: cost.trials < 3, 3) is None
    found = affordable(FRONT_LADDERS, [4] * 6, 0, lambda cost: True, seeds=1)
    assert found is not None and found.seeds == 1


@pytest.mark.parametrize(("count", "expected"), [(1, [3]), (2, [3, 4]), (4, [3, 4, 2, 1]), (9, [3, 4, 2, 1])])
def test_middle_rates_come_first(count, expected):
    assert middle_first([1, 2, 3, 4], count) == expected


def test_the_default_auto_leaves_room_for_evidence_and_the_winner():
    found = affordable(AUTO_LADDERS, [4] * 5, 0, lambda cost: cost.equivalents <= 4.4, seeds=2)
    assert found is not None
    assert (found.finalists, found.last) == (3, 1.0)  # only whole trainings tell on every task
