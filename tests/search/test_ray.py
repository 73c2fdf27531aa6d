"""Trials on a real Ray cluster of several nodes on this machine."""

import json
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest

from paretune.cli import OK, main
from paretune.errors import PareError
from paretune.search.engines import Cluster, make_engine
from paretune.search.front import front
from paretune.search.jobs import Job
from paretune.search.ration import Limits
from paretune.task import Task
from paretune.tuning import Recipe
from tests.search.planted import Planted, calls
from tests.search.race_help import candidate, race
from tests.search.ray_nodes import SMALL, Broken, InFolders, Sees, kill, more, ray_nodes
from tests.tiny import tiny_model, tiny_rows, write_jsonl

pytest.importorskip("ray", reason="Ray is not installed: pip install 'paretune[ray]'")

FEW = [candidate("fish"), candidate("lora")]
TWO = Limits(workers=2)
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def nodes():
    with ray_nodes(2) as cluster:
        yield cluster


@pytest.fixture
def cluster(nodes):
    while len(nodes.worker_nodes) < 2:  # a test before this one killed some
        nodes.add_node(num_cpus=1, **SMALL)
    return Cluster(nodes.address)


def scores(made):
    return {key: scored.score for key, (_, scored) in made.results.items()}


def test_too_little_room_is_said_at_once(cluster, tmp_path):
    objective = Planted(tmp_path / "log")
    room = r"--workers 3: the cluster has room for 2 at 1 CPU a trial .*give --workers 2"
    with pytest.raises(PareError, match=room):
        make_engine(objective, cluster, workers=3)
    with pytest.raises(PareError, match=r"no node of the cluster has 1 CPU and 0\.5 GPU a trial"):
        make_engine(objective, replace(cluster, gpus=0.5))


def test_a_killed_node_loses_nothing_and_repeats_nothing(nodes, cluster, tmp_path):
    """The race of one process, trial by trial, though a node dies under it."""
    log = tmp_path / "log"

    def watch(made, spec, scored):
        if len(made.results) == 8:
            kill(nodes)

    slow = Planted(log, noise=0.01, seconds=0.5)
    made = race(tmp_path / "run", slow, limits=TWO, candidates=FEW, engine=cluster, watch=watch)
    whole = race(tmp_path / "whole", Planted(tmp_path / "whole.log", noise=0.01), candidates=FEW)
    assert scores(made) == scores(whole)
    journal = (tmp_path / "run/study.journal").read_text()
    assert journal.count('"lost on ') == 1  # what the dead node was at
    assert sum(Counter(calls(log)).values()) - len(set(calls(log))) <= 1
    assert len({line.split()[0] for line in log.read_text().splitlines()}) >= 2


@dataclass
class Desk:
    """What an engine tells."""

    begun: list = field(default_factory=list)
    finished: list = field(default_factory=list)
    given_up: list = field(default_factory=list)
    refused: dict = field(default_factory=dict)

    def begin(self, job):
        self.begun.append(job.key)
        return len(self.begun)

    def finish(self, trial, job, scored):
        self.finished.append(job.key)

    def give_up(self, trial, reason):
        self.given_up.append((self.begun[trial - 1], reason))

    def refuse(self, trial, job, reason):
        self.refused[job.key] = reason


def told(objective, cluster, methods=("fish",), workers=1):
    """What an engine tells of a trial of each of these methods."""
    spec = {"lr": 0.01, "share": 0.1, "seed": 0}
    jobs = [Job(name, spec | {"method": name, "candidate": name}, 0.1) for name in methods]
    desk = Desk()
    engine = make_engine(objective, cluster, workers)
    try:
        engine.run(jobs, desk)
    finally:
        engine.close()
    return desk


@pytest.mark.slow
def test_what_goes_wrong_on_a_node_is_said_and_the_rest_goes_on(cluster, tmp_path):
    broken = Broken(tmp_path / "log", refused={"adapter": "cannot train that"}, deadly="lora")
    desk = told(broken, cluster, ("lora", "random", "adapter", "fish"), workers=2)
    assert desk.finished == ["fish"]
    assert desk.refused["adapter"] == "cannot train that"
    assert "lost its worker 3 times (its process died; lora)" in desk.refused["lora"]
    assert "lost its worker 3 times (TypeError: no such thing; random)" in desk.refused["random"]
    assert Counter(desk.begun) == {"lora": 3, "random": 3, "adapter": 1, "fish": 1}
    assert Counter(key for key, _ in desk.given_up) == {"lora": 2, "random": 2}


@pytest.mark.slow
def test_folders_must_be_on_every_node(cluster, tmp_path, monkeypatch):
    there = InFolders(tmp_path / "log", reads=(tmp_path,), writes=(tmp_path / "plans",))
    assert told(there, cluster).finished == ["fish"]
    assert not list((tmp_path / "plans").iterdir())
    with pytest.raises(PareError, match=r"node \S+ does not see \S+/model; put it where every node has it"):
        told(replace(there, reads=(tmp_path / "model",)), cluster)
    # A folder that only this machine has: what was put into it is not there on the nodes.
    monkeypatch.setattr("paretune.search.engines.ray._marked", lambda folder: folder / ".seen-by-nobody")
    with pytest.raises(PareError, match=r"does not see the run folder \S+/plans; give an --out on storage"):
        told(there, cluster)
    assert len(calls(tmp_path / "log")) == 1


@pytest.mark.slow
def test_a_trial_sees_the_gpus_that_it_holds(nodes, cluster, tmp_path):
    sees = Sees(tmp_path / "log", seconds=20.0)  # two seconds: the second trial is begun beside the first
    two = ("fish", "lora")
    with more(nodes, cpus=2, gpus=1):
        told(sees, replace(cluster, gpus=0.5), two, workers=2)
        told(sees, cluster, two, workers=1)
    assert (tmp_path / "log.gpus").read_text().splitlines() == ["0", "0", "", ""]


@pytest.mark.slow
def test_another_version_on_a_node_is_refused(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0.9" if name == "paretune" else "1")
    with pytest.raises(PareError, match=r"has paretune \S+, .*this machine paretune 0\.0\.9, .*the same ver"):
        told(Planted(tmp_path / "log"), cluster)


@pytest.mark.slow
def test_a_node_without_paretune_is_refused(nodes, cluster, tmp_path, monkeypatch):
    code = "import sys\nsys.modules['paretune'] = None\n"
    (tmp_path / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (
        more(nodes, cpus=3),
        pytest.raises(PareError, match="a node of the cluster has no paretune; install"),
    ):
        told(Planted(tmp_path / "log"), replace(cluster, cpus=3))


@pytest.mark.slow
def test_an_interrupted_race_goes_on_to_the_same_end(cluster, tmp_path):
    def stop(made, spec, scored):
        if len(made.results) == 5:
            raise KeyboardInterrupt

    objective = Planted(tmp_path / "log", noise=0.01, seconds=0.2)
    with pytest.raises(KeyboardInterrupt):
        race(tmp_path / "run", objective, limits=TWO, candidates=FEW, engine=cluster, watch=stop)
    made = race(tmp_path / "run", objective, limits=TWO, candidates=FEW, engine=cluster)
    whole = race(tmp_path / "whole", Planted(tmp_path / "whole.log", noise=0.01), candidates=FEW)
    assert scores(made) == scores(whole)
    assert len(calls(tmp_path / "log")) - len(whole.results) <= 2  # those that were running


@pytest.mark.slow
def test_a_front_of_real_trainings_is_the_same_trial_by_trial(nodes, cluster, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "train.jsonl", tiny_rows("pair", 80))
    tiny_model("bert", tmp_path / "bert", blocks=2)
    # Paths as people type them: the nodes work elsewhere.
    task = Task.from_files("train.jsonl", model="bert", heldout=0.25)
    asked = {
        "methods": ("head", "lora:targets=peft", "random", "fish:samples=16"),
        "budgets": ("5%",),
        "recipe": Recipe(lr=1.0, steps=8, batch_size=8),
        "seeds": 1,
    }

    def show(progress):
        if progress.done == 6:
            kill(nodes)

    one = front(task, "one", **asked, limits=Limits(trials=14))
    many = front(task, "many", **asked, limits=Limits(trials=14, workers=2), engine=cluster, show=show)
    names = ("candidate", "lr", "share", "seed", "state", "score", "scores", "losses", "trained", "plan")
    found = [
        sorted(json.dumps([row[name] for name in names]) for row in result["trials"])
        for result in (one, many)
    ]
    assert found[0] == found[1]
    assert one["recommendation"] == many["recommendation"]
    assert '"lost on ' in (tmp_path / "many/study.journal").read_text()

    words = "front --model bert --train train.jsonl --heldout 0.25 --methods head,random --budgets 5%"
    words += " --trials 4 --seeds 1 --steps 4 --engine ray --trial-cpus 1 --out shown --json"
    assert main([*words.split(), "--address", nodes.address]) == OK
    assert json.loads(capsys.readouterr().out)["status"] == "finished"
