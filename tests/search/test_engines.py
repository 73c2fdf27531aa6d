import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from paretune.errors import PareError
from paretune.ranks import VISIBLE
from paretune.search.engines import Here, Workers, make_engine
from paretune.search.jobs import Job, Scored
from paretune.search.ration import Limits
from tests.search.counted import Counted
from tests.search.designs_help import calls, run


def test_a_worker_that_dies_is_replaced_and_nothing_is_lost(tmp_path):
    whole = run(tmp_path / "whole", Counted(tmp_path / "whole.log"))
    outcomes = run(tmp_path / "run", Counted(tmp_path / "log", deadly=7), limits=Limits(workers=2))
    assert outcomes == whole
    assert len(calls(tmp_path / "log")) > len(calls(tmp_path / "whole.log"))


def test_a_trial_that_kills_every_worker_is_named_and_the_rest_is_kept(tmp_path):
    with pytest.raises(PareError, match=r"lost its worker 3 times \(signal SIGKILL.*--workers.*goes on"):
        run(tmp_path, Counted(tmp_path / "log", deadly=-1), limits=Limits(workers=2))
    run(tmp_path, Counted(tmp_path / "log"))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_refusal_comes_through_and_the_search_can_go_on(tmp_path, workers):
    with pytest.raises(PareError, match="spindle cannot be trained; leave it out"):
        run(tmp_path, Counted(tmp_path / "log", refused="spindle"), limits=Limits(workers=workers))
    done = len(calls(tmp_path / "log"))
    run(tmp_path, Counted(tmp_path / "log2"), limits=Limits(workers=1))
    assert len(calls(tmp_path / "log2")) >= 1
    assert done >= 1


def test_engines_by_name(tmp_path):
    objective = Counted(tmp_path / "log")
    assert isinstance(make_engine(objective), Here)
    two = make_engine(objective, workers=2)
    assert isinstance(two, Workers)
    two.close()
    with pytest.raises(PareError, match=r"--engine worker: there are here, workers.*did you mean 'workers'"):
        make_engine(objective, "worker")
    with pytest.raises(PareError, match="for 2 use --engine workers"):
        make_engine(objective, "here", 2)


@pytest.mark.parametrize("workers", [1, 2])
def test_jobs_are_taken_only_when_they_can_be_begun(tmp_path, workers):
    """Whoever makes the jobs may stop at any time: none is taken ahead."""
    taken, begun = [], []

    def jobs():
        for number in range(6):
            taken.append(number)
            yield Job(str(number), {"point": {}, "share": 0.1, "seed": number}, 0.1)

    class Desk:
        def begin(self, job):
            begun.append(job.key)
            assert len(taken) == len(begun)
            return len(begun)

        def finish(self, trial, job, scored):
            assert begun[trial - 1] == job.key

    engine = make_engine(Counted(tmp_path / "log"), workers=workers)
    engine.run(jobs(), Desk())
    engine.close()
    assert len(begun) == len(calls(tmp_path / "log")) == 6


@dataclass(frozen=True)
class Looking:
    """Writes down which GPU its process sees; the first process to run seed 2 dies of it."""

    folder: Path

    def __call__(self, spec):
        time.sleep(0.2)  # so that no worker runs them all
        with (self.folder / "seen").open("a") as file:
            file.write(f"{os.getpid()} {os.environ[VISIBLE]}\n")
        if spec["seed"] == 2 and not (self.folder / "died").exists():
            (self.folder / "died").write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return Scored(1.0, 0.2, 0.2)


class Forgetful:
    def begin(self, job):
        return 1

    def finish(self, trial, job, scored):
        pass

    def give_up(self, trial, reason):
        pass


def test_workers_are_shared_out_over_the_gpus(tmp_path, monkeypatch):
    monkeypatch.setattr("paretune.search.engines.workers.gpus", lambda: ["4", "GPU-7"])
    monkeypatch.delenv(VISIBLE, raising=False)
    engine = make_engine(Looking(tmp_path), workers=2)
    engine.run([Job(str(n), {"seed": n}, 0.1) for n in range(6)], Forgetful())
    engine.close()
    assert VISIBLE not in os.environ
    seen = dict(line.split() for line in (tmp_path / "seen").read_text().splitlines())
    died = (tmp_path / "died").read_text()
    assert sorted(seen.values()) == sorted(["4", "GPU-7", seen[died]])  # who took its place has its GPU
