"""Trials on the nodes of a Ray cluster, which this process hands them to and looks after."""

import contextlib
import logging
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paretune.errors import PareError
from paretune.files import write_atomic
from paretune.search.engines.base import ATTEMPTS, Desk, Waiting
from paretune.search.engines.cluster import Cluster
from paretune.search.engines.rooms import refuse_without_room
from paretune.search.engines.seat import About, Seat, about
from paretune.search.jobs import Job, NeedsFolders, Objective, Scored

try:
    import ray
    from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayError, RayTaskError
except ImportError as problem:
    raise PareError("--engine ray needs Ray: pip install 'paretune[ray]'") from problem

PATIENCE = 300.0  # seconds to wait for room while no trial runs
_GOES_ON = "What is finished is kept: the same command goes on"


@dataclass(eq=False)
class _Place:
    """A seat and where it is.

    Args:
        actor: The seat.
        opening: What it has to say of its node; None once it was heard.
        node: The node's name.
    """

    actor: Any
    opening: Any
    node: str = ""


class Ray:
    """Hands trials to seats on a cluster's nodes; one that is lost is replaced, and its trial begun again.

    Only this process keeps the record: what a lost node may still answer is not heard.

    Args:
        objective: What a trial is; it is pickled once.
        workers: Trials at a time.
        cluster: Which cluster, and what each trial holds of it.

    Raises:
        PareError: Ray is not installed, the cluster does not answer, or it has too little room.
    """

    def __init__(self, objective: Objective, workers: int = 1, cluster: Cluster | None = None) -> None:
        self._cluster = cluster or Cluster()
        self._marks: list[Path] = []
        self._places: list[_Place] = []
        self._failed = 0
        self._connected = not ray.is_initialized()
        if self._connected:
            _connect(self._cluster)
        try:
            refuse_without_room(ray.nodes(), self._cluster, workers)
            self._here = about()
            reads, writes = [], []
            if isinstance(objective, NeedsFolders):
                reads, writes = list(objective.reads), list(objective.writes)
            self._reads = [str(path.absolute()) for path in reads]
            self._marks = [_marked(path.absolute()) for path in writes]
            self._objective = ray.put(objective)
            self._places = [self._open() for _ in range(workers)]
        except BaseException:
            self.close()
            raise

    def run(self, jobs: Iterable[Job], desk: Desk) -> None:
        """Run all jobs, as many at a time as there are seats.

        Raises:
            PareError: As ``desk.refuse``; a node cannot run trials, or none has room.
        """
        waiting = Waiting(jobs, desk)
        running: dict[Any, tuple[_Place, int, Job]] = {}
        try:
            while True:
                busy = [place for place, _, _ in running.values()]
                free = [place for place in self._places if place.opening is None and place not in busy]
                for place in free:
                    job = waiting.next()
                    if job is None:
                        break
                    trial = desk.begin(job)
                    running[place.actor.run.remote(job.spec)] = (place, trial, job)
                if free and not running:
                    return
                for ready in self._wait(running):
                    if ready not in running:
                        self._hear(ready)
                        continue
                    place, trial, job = running[ready]
                    answer = self._receive(ready, place)
                    del running[ready]
                    if isinstance(answer, Scored | str):
                        waiting.answered(trial, job, answer)
                    else:
                        cause = f"lost on {place.node}: {answer.cause}"
                        waiting.lost(trial, job, cause, _lost(job, answer))
        finally:
            for _, trial, _ in running.values():
                desk.give_up(trial, "interrupted")
            if running:
                self.close()

    def close(self) -> None:
        """Leave the cluster; what still runs there is stopped."""
        for place in self._places:
            _stop(place)
        self._places = []
        for mark in self._marks:
            mark.unlink(missing_ok=True)
        self._marks = []
        if self._connected:
            ray.shutdown()

    def _open(self) -> _Place:
        """Ask for a seat; the cluster starts it where and when there is room."""
        actor: Any = (
            ray.remote(Seat)
            .options(
                num_cpus=self._cluster.cpus,
                num_gpus=self._cluster.gpus,
                max_restarts=0,
                scheduling_strategy="SPREAD",
            )
            .remote([self._objective], self._cluster.gpus > 0)
        )
        paths = [*self._reads, *map(str, self._marks)]
        return _Place(actor, actor.about.remote(str(Path.cwd()), paths))

    def _replace(self, place: _Place) -> None:
        _stop(place)  # one that is only out of reach must not go on
        self._places[self._places.index(place)] = self._open()

    def _wait(self, running: Iterable[Any]) -> list[Any]:
        """What happened next: a trial's answer, or a seat that opened.

        Raises:
            PareError: No trial runs, and no seat opened for long.
        """
        trials = list(running)
        opening = [place.opening for place in self._places if place.opening is not None]
        ready, _ = ray.wait([*trials, *opening], timeout=None if trials else PATIENCE)
        if not ready:
            raise PareError(
                f"no node of the cluster has had room for a trial in {PATIENCE / 60:g} minutes "
                f"({self._cluster}); wait until others are done, or start more nodes. {_GOES_ON}"
            )
        return ready

    def _hear(self, opening: Any) -> None:
        """Take in what a seat says of its node.

        Raises:
            PareError: Trials cannot run there, or no seat opens.
        """
        place = next(each for each in self._places if each.opening is opening)
        try:
            found: About = ray.get(opening)
        except RayError as problem:
            if "No module named 'paretune" in str(problem):
                raise PareError(
                    "a node of the cluster has no paretune; install the same version on all of them: "
                    f"pip install paretune=={self._here.versions['paretune']}"
                ) from None
            self._failed += 1
            if self._failed >= ATTEMPTS:
                raise PareError(
                    f"no worker starts on the cluster, {ATTEMPTS} were tried: {_cause(problem)}. {_GOES_ON}"
                ) from None
            self._replace(place)
            return
        self._failed = 0
        place.opening, place.node = None, found.node
        self._refuse_unequal(found)

    def _refuse_unequal(self, found: About) -> None:
        """Refuse a node on which trials would not be the same.

        Raises:
            PareError: Another version, or something that it does not see.
        """
        other = {name: there for name, there in found.versions.items() if there != self._here.versions[name]}
        if other:
            there = ", ".join(f"{name} {version or 'missing'}" for name, version in other.items())
            here = ", ".join(f"{name} {self._here.versions[name]}" for name in other)
            raise PareError(
                f"node {found.node} has {there}, this machine {here}: scores would not compare; install the "
                "same versions on all nodes"
            )
        for path in found.missing:
            if path in self._reads:
                raise PareError(
                    f"node {found.node} does not see {path}; put it where every node has it at that path, or "
                    "give a model of the Hub"
                )
            raise PareError(
                f"node {found.node} does not see the run folder {Path(path).parent}; give an --out on "
                "storage that every node has at the same path"
            )

    def _receive(self, ready: Any, place: _Place) -> "Scored | str | _Loss":
        """A seat's answer: a result, a refusal, or how it was lost after replacing it."""
        try:
            answer: Scored | str = ray.get(ready)
            return answer
        except RayError as problem:
            self._replace(place)
            return _Loss(_cause(problem))


@dataclass(frozen=True)
class _Loss:
    cause: str


def _connect(cluster: Cluster) -> None:
    """Join the cluster as one that asks for work to be done.

    Raises:
        PareError: It does not let us.
    """
    cluster.probe()
    try:
        ray.init(
            address=cluster.head, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False
        )
    except (RuntimeError, ConnectionError, ValueError, OSError) as problem:
        raise PareError(
            f"--address {cluster.head}: Ray cannot join this cluster ({' '.join(str(problem).split())}); "
            "this machine must be one of its nodes (`ray start --address=...`), with the same Ray and Python"
        ) from problem
    # Ray prints what becomes of nodes to standard output, which belongs to the result.
    ray._private.worker._worker_logs_enabled = False


def _marked(folder: Path) -> Path:
    """A new file in a folder, by which a node that sees the same folder is known."""
    mark = folder / f".seen-{uuid.uuid4().hex}"
    write_atomic(mark, "")
    return mark


def _stop(place: _Place) -> None:
    with contextlib.suppress(RayError, ValueError):
        ray.kill(place.actor)


def _cause(problem: RayError) -> str:
    """Why a seat was lost, in few words."""
    if isinstance(problem, RayTaskError):
        return f"{type(problem.cause).__name__}: {problem.cause}"
    text = " ".join(str(problem).split())
    if "creation task" in text:
        return str(problem).strip().splitlines()[-1]
    if isinstance(problem, OutOfMemoryError) or "low on memory" in text:
        return "its node ran out of memory"
    if isinstance(problem, ActorUnavailableError):
        return "its node does not answer"
    if "node" in text and ("node has died" in text or "node was terminated" in text):
        return "its node died"
    return "its process died"


def _lost(job: Job, loss: _Loss) -> str:
    return (
        f"a trial lost its worker {ATTEMPTS} times ({loss.cause}; {job.key}); if memory ran out give a "
        f"larger --trial-cpus, so that fewer share a node, or a smaller --batch-size. {_GOES_ON}"
    )
