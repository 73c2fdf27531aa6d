import time
from collections import Counter

import pytest

from paretune.errors import PareError
from paretune.search.book import Book
from paretune.search.outcome import WIDTH, stage_table
from paretune.search.ration import Limits
from paretune.search.schedule import round_cost
from tests.processes import start
from tests.search.counted import BEST, Counted
from tests.search.designs_help import SPACE, calls, run

ONE = round_cost([len(options) for options in SPACE.components.values()])


def winners(outcomes):
    return {outcome.component: outcome.winner for outcome in outcomes}


def test_the_planted_best_is_found_and_every_table_fits(tmp_path):
    said = []
    outcomes = run(tmp_path, Counted(tmp_path / "log", noise=0.3), say=said.append)
    assert winners(outcomes) == BEST
    assert sum(outcome.trials for outcome in outcomes) == len(calls(tmp_path / "log")) <= 2 * ONE.trials
    assert said[0].startswith(f"at most {2 * ONE.trials} trials, worth {2 * ONE.equivalents:.0f} whole")
    for outcome in outcomes:
        lines = stage_table(outcome, "accuracy").splitlines()
        assert max(map(len, lines)) <= WIDTH
        assert {row.choice for row in outcome.rows} == set(SPACE.components[outcome.component])
        assert sum(row.n for row in outcome.rows) <= outcome.trials


def test_choices_of_a_stage_see_the_same_designs_and_seeds(tmp_path):
    run(tmp_path, Counted(tmp_path / "log"))
    book = Book(tmp_path / "study.journal", {"task": "a"})
    seen = {}
    for _, job, _ in book.trials():
        spec = job.spec
        component = list(SPACE.components)[spec["stage"]]
        rest = tuple(sorted((name, option) for name, option in spec["point"].items() if name != component))
        seen.setdefault((spec["stage"], spec["draw"]), set()).add((rest, spec["seed"]))
    book.close()
    assert len(seen) > len(SPACE.components)
    assert all(len(rests) == 1 for rests in seen.values())
    assert len({next(iter(rests))[1] for rests in seen.values()}) == len(seen)  # draws differ


def test_a_clear_winner_ends_its_stage_early_and_equal_choices_tie(tmp_path):
    outcomes = run(tmp_path, Counted(tmp_path / "log", noise=0.1), limits=Limits(trials=10 * ONE.trials))
    assert {outcome.ends for outcome in outcomes} == {"separated"}
    assert not any(outcome.ties for outcome in outcomes)
    assert len(calls(tmp_path / "log")) < 5 * ONE.trials

    flat = run(tmp_path / "flat", Flat(tmp_path / "flatlog"))
    assert all(outcome.ends == "spent" and outcome.ties for outcome in flat)
    assert "; a tie with" in stage_table(flat[0], "f1")


class Flat(Counted):
    """Every design is as good as every other."""

    def __call__(self, spec):
        scored = super().__call__(spec)
        return type(scored)(0.5, scored.seconds, scored.training)


def test_equal_scores_are_settled_by_the_loss(tmp_path):
    class Losses(Flat):
        def __call__(self, spec):
            scored = Counted.__call__(self, spec)
            return type(scored)(0.5, scored.seconds, scored.training, loss=scored.loss)

    assert winners(run(tmp_path, Losses(tmp_path / "log"))) == BEST


def test_lower_is_better_for_a_loss(tmp_path):
    class Loss(Counted):
        def __call__(self, spec):
            scored = super().__call__(spec)
            return type(scored)(1 - scored.score, scored.seconds, scored.training)

    outcomes = run(tmp_path, Loss(tmp_path / "log"), higher=False)
    assert winners(outcomes) == BEST
    row = outcomes[0].rows[0]
    assert 0 <= row.mean <= 1 and row.low <= row.mean <= row.high


def test_a_choice_that_diverges_loses(tmp_path):
    outcomes = run(tmp_path, Counted(tmp_path / "log", bad=("0.01",)))
    assert outcomes[0].winner == "0.001"
    assert outcomes[0].rows[-1].diverged > 0
    assert "diverged" in stage_table(outcomes[0], "f1")
    with pytest.raises(PareError, match=r"every training diverged .*nan.*--lr"):
        run(tmp_path / "all", Counted(tmp_path / "log2", bad=("0.01", "0.001")))


def test_a_group_that_is_not_tuned_is_not_searched(tmp_path):
    class FirstOnly(Counted):
        def __call__(self, spec):
            scored = super().__call__(spec)
            return type(scored)(
                scored.score + (spec["point"]["tuned"] == "1"), scored.seconds, scored.training
            )

    outcomes = run(tmp_path, FirstOnly(tmp_path / "log"))
    assert winners(outcomes)["tuned"] == "1"
    assert (outcomes[-1].ends, outcomes[-1].trials) == ("not tuned", 0)


def test_options_that_no_design_can_be_made_with_are_said(tmp_path):
    def refusal(point):
        return "needs 9 weights, the budget is 3; raise the budget" if "lora" in point["group 1"] else None

    outcomes = run(tmp_path, Counted(tmp_path / "log"), refusal=refusal)
    assert set(outcomes[4].dropped) == {"lora", "adapter+lora"}
    assert "raise the budget" in stage_table(outcomes[4], "f1")
    assert not any("('group 1', 'lora')" in call for call in calls(tmp_path / "log"))
    with pytest.raises(PareError, match="no design of this space can be made: too small"):
        run(tmp_path / "none", Counted(tmp_path / "log2"), refusal=lambda point: "too small")


def test_finished_trials_are_not_run_again(tmp_path):
    objective = Counted(tmp_path / "log", noise=0.2)
    first = run(tmp_path, objective)
    count = len(calls(tmp_path / "log"))
    assert run(tmp_path, objective) == first
    assert len(calls(tmp_path / "log")) == count
    assert len(set(calls(tmp_path / "log"))) == count


def test_an_interrupted_search_goes_on_to_the_same_end(tmp_path):
    class Stops(Counted):
        def __call__(self, spec):
            if self.log.exists() and len(calls(self.log)) == 33:
                raise KeyboardInterrupt
            return super().__call__(spec)

    whole = run(tmp_path / "whole", Counted(tmp_path / "whole.log", noise=0.2))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", Stops(tmp_path / "log", noise=0.2))
    assert run(tmp_path / "run", Counted(tmp_path / "log", noise=0.2)) == whole
    assert calls(tmp_path / "log") == calls(tmp_path / "whole.log")


def run_search(folder, objective, workers):
    run(folder, objective, limits=Limits(workers=workers))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_search_loses_and_repeats_nothing(tmp_path, workers):
    slow = Counted(tmp_path / "log", seconds=0.2)
    process = start(tmp_path / "said", run_search, tmp_path, slow, workers)
    log, journal = tmp_path / "log", tmp_path / "study.journal"
    deadline = time.monotonic() + 120
    try:
        while not (log.exists() and len(calls(log)) >= 12):
            assert time.monotonic() < deadline and process.exitcode is None
            time.sleep(0.01)
    finally:
        process.kill()
        process.join()
    time.sleep(0.5)  # a worker in a trial ends it, has nobody to tell, and goes
    with journal.open("ab") as file:
        file.write(b'{"op_code":5,"wor')  # the half line of a kill in the middle of a write
    at_kill = len(calls(log))
    outcomes = run(tmp_path, Counted(log))
    again = [call for call, times in Counter(calls(log)).items() if times > 1]
    assert len(again) <= workers  # those that were running
    assert at_kill < len(calls(log))
    assert winners(outcomes) == winners(run(tmp_path / "whole", Counted(tmp_path / "whole.log")))


def test_two_workers_find_what_one_finds(tmp_path):
    one = run(tmp_path / "one", Counted(tmp_path / "one.log", noise=0.2))
    two = run(tmp_path / "two", Counted(tmp_path / "two.log", noise=0.2), workers=2)
    assert one == two
    assert sorted(calls(tmp_path / "one.log")) == sorted(calls(tmp_path / "two.log"))
    assert len({line.split()[0] for line in (tmp_path / "two.log").read_text().splitlines()}) == 2


def test_the_stated_trials_are_kept_and_too_few_are_refused(tmp_path):
    with pytest.raises(PareError, match=rf"--trials 5: one draw for each choice takes {ONE.trials}; ask"):
        run(tmp_path / "few", Counted(tmp_path / "few.log"), limits=Limits(trials=5))
    assert not (tmp_path / "few.log").exists()
    for trials in (ONE.trials, ONE.trials + 17):
        log = tmp_path / f"{trials}.log"
        run(tmp_path / str(trials), Counted(log, noise=3.0, own=True), limits=Limits(trials=trials))
        assert ONE.trials * 0.7 < len(calls(log)) <= trials


def test_minutes_are_kept_and_too_few_are_refused_after_one_trial(tmp_path):
    objective = Counted(tmp_path / "log", noise=3.0, own=True, seconds=0.0)
    with pytest.raises(PareError, match=r"--minutes 0\.01: one draw for each choice takes about"):
        run(tmp_path / "few", objective, limits=Limits(minutes=0.01))
    assert len(calls(tmp_path / "log")) == 1
    slow = Slows(tmp_path / "slow.log", noise=3.0, own=True)
    start = time.monotonic()
    outcomes = run(tmp_path / "slow", slow, limits=Limits(minutes=0.1))
    assert time.monotonic() - start < 9
    assert {"out of time", "not tried"} & {outcome.ends for outcome in outcomes}


class Slows(Counted):
    """Fast at first, then a hundred times slower than its first trial let expect."""

    def __call__(self, spec):
        begun = time.perf_counter()
        scored = super().__call__(spec)
        time.sleep(0.005 if len(calls(self.log)) < 5 else 0.5)
        seconds = time.perf_counter() - begun
        return type(scored)(scored.score, seconds, seconds / 2)


@pytest.mark.parametrize(
    ("limits", "said"),
    [({"workers": 0}, "--workers 0"), ({"minutes": 0}, "--minutes 0"), ({"trials": 0}, "--trials 0")],
)
def test_limits_out_of_range(limits, said):
    with pytest.raises(PareError, match=said):
        Limits(**limits)
