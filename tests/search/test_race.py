import time
from collections import Counter
from dataclasses import replace

import pytest

from paretune.errors import PareError
from paretune.methods import METHODS
from paretune.search.ladder import AUTO_LADDERS, FRONT_LADDERS
from paretune.search.ration import Limits
from paretune.search.verdict import recommend
from tests.processes import start
from tests.search.planted import GOOD, Planted, calls
from tests.search.race_help import CANDIDATES, NAMES, candidate, race


def order(made):
    return [each.candidate.method for each in made.standings if each.share == 1]


def test_the_planted_best_is_found_within_the_stated_total(tmp_path):
    said = []
    made = race(tmp_path, Planted(tmp_path / "log", noise=0.01), say=said.append)
    assert order(made)[0] == "fish"
    assert {"head", "full"} <= set(order(made))  # the ends of the scale are always there
    assert made.spent.equivalents <= 25
    assert said[0].startswith(f"{made.stated['trials']} trials of 6 candidates, worth ")
    assert "at most 25 whole trainings in all" in said[0]
    assert made.spent.trials == len(calls(tmp_path / "log")) == len(set(calls(tmp_path / "log")))


def test_all_candidates_see_the_same_seeds_and_shares(tmp_path):
    made = race(tmp_path, Planted(tmp_path / "log", noise=0.05))
    ladder = made.book.noted("ladder")
    looks = [spec for spec, _ in made.results.values() if spec.share == ladder["first"]]
    assert {spec.seed for spec in looks} == {0}
    assert Counter(spec.method for spec in looks) == {
        name: len(METHODS[name].learning_rates) for name in NAMES
    }
    finals = [spec for spec, _ in made.results.values() if spec.share == 1]
    seeds = {
        name: {spec.seed for spec in finals if spec.method == name} for name in {s.method for s in finals}
    }
    assert all({0, 1, 2} <= found for found in seeds.values())


@pytest.mark.parametrize("place", [0, 3])
def test_each_method_gets_its_own_best_rate(tmp_path, place):
    rates = {name: METHODS[name].learning_rates[place] for name in NAMES}
    made = race(tmp_path, Planted(tmp_path / "log", rates=rates))
    assert {each.candidate.method: each.lr for each in made.standings} == rates


def test_equal_candidates_get_more_seeds_and_different_ones_do_not(tmp_path):
    two = [candidate("fish"), candidate("random")]
    apart = race(tmp_path / "apart", Planted(tmp_path / "apart.log", noise=0.001), candidates=two)
    assert max(spec.seed for spec, _ in apart.results.values()) == 2
    equal = Planted(tmp_path / "equal.log", noise=0.05, good=GOOD | {"fish": 0.8})
    tied = race(tmp_path / "equal", equal, candidates=two)
    assert max(spec.seed for spec, _ in tied.results.values()) > 2
    assert 20 < tied.spent.equivalents <= 25


FEW = [candidate(name) for name in ("fish", "random", "lora")]


def test_a_seed_that_diverges_costs_the_worst_score(tmp_path):
    fails = {("fish", 1.0, 1): ("diverged: nan", {})}
    diverging = Planted(tmp_path / "log", fails=fails, noise=0.001)
    made = race(tmp_path, diverging, candidates=FEW, limits=Limits(trials=40))
    (fish,) = [each for each in made.standings if each.candidate.method == "fish"]
    finals = [scored.score for spec, scored in made.results.values() if spec.share == 1 and scored.score]
    assert fish.failed == (1,)
    assert fish.scores[1] == min(finals)
    assert len(fish.results) == len(fish.scores) - 1
    advice = recommend(made.standings, "accuracy", True)
    assert "1 of which failed and count as the worst score of all" in advice.text
    assert "told apart from everything" not in advice.text


def test_choosing_that_fails_under_one_seed_is_a_failed_trial(tmp_path):
    fails = {("fish", 1.0, 1): ("no item has positive curvature", {"impossible": True})}
    made = race(tmp_path, Planted(tmp_path / "log", fails=fails, noise=0.001), candidates=FEW)
    assert made.impossible == {}
    (fish,) = [each for each in made.standings if each.candidate.method == "fish"]
    assert fish.failed == (1,)
    limit = {("fish", 1.0, 1): ("needs 9 GiB", {"impossible": True, "plan": "fish"})}
    over = race(tmp_path / "over", Planted(tmp_path / "over.log", fails=limit, noise=0.001), candidates=FEW)
    assert over.impossible == {"fish 1%": "needs 9 GiB"}


def test_a_score_from_fewer_steps_stands_below_one_from_more(tmp_path):
    class Sinking(Planted):
        """Everything scores less after half of the steps than before."""

        def __call__(self, spec):
            scored = super().__call__(spec)
            return replace(scored, score=scored.score - 0.6 * (spec["share"] >= 0.5))

    sinking = Sinking(tmp_path / "log", noise=0.001)
    made = race(tmp_path, sinking, equivalents=5.0, ladders=AUTO_LADDERS, seeds=1)
    shares = [each.share for each in made.standings]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[-1]
    assert max(made.standings, key=lambda each: each.worth).share < shares[0]


def test_a_race_goes_on_with_the_rates_it_began_with(tmp_path):
    log, limits = tmp_path / "log", Limits(trials=22)
    race(tmp_path, Planted(log, noise=0.01), candidates=FEW, limits=limits)
    before = calls(log)
    moved = [replace(each, share=each.share / 10) for each in FEW]
    assert moved[0].rates != FEW[0].rates
    made = race(tmp_path, Planted(log, noise=0.01), candidates=moved, limits=limits)
    assert calls(log) == before
    assert made.spent.trials <= 22


def test_more_seeds_may_be_asked_for_later(tmp_path):
    log = tmp_path / "log"
    apart = {"fish": 0.9, "random": 0.8, "lora": 0.7}
    race(tmp_path, Planted(log, good=apart), candidates=FEW, limits=Limits(trials=40), seeds=1)
    made = race(tmp_path, Planted(log, good=apart), candidates=FEW, limits=Limits(trials=200), seeds=6)
    assert {len(each.scores) for each in made.standings if each.share == 1} == {6}


def test_the_first_trial_timed_is_not_the_cheapest_reference(tmp_path):
    race(tmp_path, Planted(tmp_path / "log"))
    assert not calls(tmp_path / "log")[0].startswith(("head", "full"))


def test_a_failed_trial_is_a_result_and_stops_nothing(tmp_path):
    bad = {"lora": "diverged: nan", "random": "out of memory: 3 GiB"}
    made = race(tmp_path, Planted(tmp_path / "log", bad=bad, refused={"adapter": "cannot train"}))
    assert order(made)[0] == "fish"
    failed = {spec.method: scored.failed for spec, scored in made.results.values() if scored.score is None}
    assert failed == bad | {"adapter": "cannot train"}
    count = len(calls(tmp_path / "log"))
    race(tmp_path, Planted(tmp_path / "log", bad=bad, refused={"adapter": "cannot train"}))
    assert len(calls(tmp_path / "log")) == count


def test_what_is_impossible_is_tried_once(tmp_path):
    made = race(tmp_path, Planted(tmp_path / "log", impossible={"lora": "rank 1 needs more"}))
    assert made.impossible == {"lora 1%": "rank 1 needs more"}
    assert len(calls(tmp_path / "log", "lora")) == 1
    with pytest.raises(PareError, match="no trial came to a score; the last one: none of it"):
        race(tmp_path / "all", Planted(tmp_path / "log2", impossible=dict.fromkeys(NAMES, "none of it")))


@pytest.mark.parametrize("at", [1, 9, 31])
def test_an_interrupted_race_goes_on_to_the_same_end(tmp_path, at):
    class Stops(Planted):
        def __call__(self, spec):
            if len(calls(self.log)) == at:
                raise KeyboardInterrupt
            return super().__call__(spec)

    whole = race(tmp_path / "whole", Planted(tmp_path / "whole.log", noise=0.02))
    with pytest.raises(KeyboardInterrupt):
        race(tmp_path / "run", Stops(tmp_path / "log", noise=0.02))
    again = race(tmp_path / "run", Planted(tmp_path / "log", noise=0.02))
    assert again.results == whole.results
    assert calls(tmp_path / "log") == calls(tmp_path / "whole.log")


def run_race(folder, objective, workers):
    race(folder, objective, limits=Limits(workers=workers))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_race_loses_and_repeats_nothing(tmp_path, workers):
    slow = Planted(tmp_path / "log", noise=0.01, seconds=0.1)
    process = start(tmp_path / "said", run_race, tmp_path, slow, workers)
    log = tmp_path / "log"
    until = time.monotonic() + 120
    try:
        while len(calls(log)) < 14:
            assert time.monotonic() < until and process.exitcode is None
            time.sleep(0.01)
    finally:
        process.kill()
        process.join()
    time.sleep(0.5)  # a worker in a trial ends it, has nobody to tell, and goes
    made = race(tmp_path, Planted(log, noise=0.01, seconds=0.001))
    again = [call for call, times in Counter(calls(log)).items() if times > 1]
    assert len(again) <= workers  # those that were running
    whole = race(tmp_path / "whole", Planted(tmp_path / "whole.log", noise=0.01))
    assert made.results.keys() == whole.results.keys()
    assert {key: scored.score for key, (_, scored) in made.results.items()} == {
        key: scored.score for key, (_, scored) in whole.results.items()
    }


def test_two_workers_race_as_one_does(tmp_path):
    one = race(tmp_path / "one", Planted(tmp_path / "one.log", noise=0.02))
    two = race(tmp_path / "two", Planted(tmp_path / "two.log", noise=0.02), limits=Limits(workers=2))
    assert two.results.keys() == one.results.keys()
    assert [each.scores for each in two.standings] == [each.scores for each in one.standings]
    assert len({line.split()[0] for line in (tmp_path / "two.log").read_text().splitlines()}) == 2


def test_a_worker_that_dies_is_replaced_and_one_that_always_dies_is_a_result(tmp_path):
    two = Limits(workers=2)
    once = race(tmp_path / "once", Planted(tmp_path / "log", deadly="lora", once=True), limits=two)
    whole = race(tmp_path / "whole", Planted(tmp_path / "whole.log"))
    assert once.results.keys() == whole.results.keys()
    assert order(once) == order(whole)
    few = [candidate("fish"), candidate("lora")]
    dead = Planted(tmp_path / "log2", deadly="lora")
    made = race(tmp_path / "dead", dead, limits=Limits(trials=6, workers=2), candidates=few)
    failed = [scored.failed for spec, scored in made.results.values() if spec.method == "lora"]
    assert failed and all("lost its worker 3 times (signal SIGKILL" in text for text in failed)
    assert order(made)[0] == "fish"


def test_trials_are_kept_and_too_few_are_refused_before_one_is_run(tmp_path):
    least = FRONT_LADDERS[-1].cost([4] * 6, 2).trials
    with pytest.raises(PareError, match=rf"--trials {least - 1}: .*6 candidates takes {least} trials; ask"):
        race(tmp_path / "few", Planted(tmp_path / "few.log"), limits=Limits(trials=least - 1))
    assert not (tmp_path / "few.log").exists()
    for trials in (least, 20, 60):
        log = tmp_path / f"{trials}.log"
        made = race(tmp_path / str(trials), Planted(log, noise=1.0), limits=Limits(trials=trials))
        assert trials / 2 < len(calls(log)) <= trials
        assert order(made)


def test_a_finished_race_goes_on_with_more_trials(tmp_path):
    race(tmp_path, Planted(tmp_path / "log", noise=1.0), limits=Limits(trials=30))
    first = calls(tmp_path / "log")
    race(tmp_path, Planted(tmp_path / "log", noise=1.0), limits=Limits(trials=40))
    assert calls(tmp_path / "log")[: len(first)] == first
    assert len(first) < len(calls(tmp_path / "log")) <= 40
    assert len(set(calls(tmp_path / "log"))) == len(calls(tmp_path / "log"))


class Real(Planted):
    """Tells the time that it takes."""

    def __call__(self, spec):
        start = time.perf_counter()
        scored = super().__call__(spec)
        seconds = time.perf_counter() - start
        return type(scored)(scored.score, seconds, seconds, loss=scored.loss, details=scored.details)


def test_minutes_are_kept_and_too_few_are_refused_after_one_trial(tmp_path):
    with pytest.raises(PareError, match=r"--minutes 0\.002: .*about .* minutes; ask for that"):
        race(tmp_path / "few", Real(tmp_path / "few.log", seconds=2.0), limits=Limits(minutes=0.002))
    assert len(calls(tmp_path / "few.log")) == 1
    start = time.monotonic()
    made = race(tmp_path / "run", Real(tmp_path / "log", seconds=0.5, noise=1.0), limits=Limits(minutes=0.1))
    assert time.monotonic() - start < 9
    assert made.standings


def test_every_budget_has_its_place(tmp_path):
    many = [candidate(name, budget) for budget in ("0.1%", "1%") for name in ("lora", "fish", "random")]
    good = {"lora": 0.2, "fish": 0.3, "random": 0.1}

    class ByBudget(Planted):
        def __call__(self, spec):
            scored = super().__call__(spec)
            more = 0.5 if spec["budget"] == "1%" else 0.0
            return type(scored)(scored.score + more, scored.seconds, scored.training, details=scored.details)

    made = race(tmp_path, ByBudget(tmp_path / "log", good=good), candidates=many)
    ended = {each.candidate.name for each in made.standings if each.share == 1}
    assert {"fish 0.1%", "fish 1%"} <= ended


def test_it_is_a_study_that_optuna_reads(tmp_path):
    import optuna
    from optuna.storages.journal import JournalFileBackend

    race(tmp_path, Planted(tmp_path / "log"), candidates=CANDIDATES[3:5])
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(tmp_path / "study.journal")))
    study = optuna.load_study(study_name=None, storage=storage)
    assert study.best_params["candidate"] == "fish 1%"
