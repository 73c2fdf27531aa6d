"""Who runs trials: this process, or several that this one hands them to and looks after."""

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Protocol

from paretune.errors import PareError
from paretune.search.jobs import Job, Scored

ATTEMPTS = 3  # times that a trial may lose its worker
GOODBYE = 3.0  # seconds for an idle worker to go


class Objective(Protocol):
    """What a trial is: a point trained for a share of the steps under a seed, and scored."""

    def __call__(self, point: dict[str, str], share: float, seed: int) -> Scored:
        """Train and score.

        Raises:
            PareError: It cannot work at all; a training that diverges is a result instead.
        """
        ...


class Desk(Protocol):
    """Where running trials are recorded."""

    def begin(self, job: Job) -> int:
        """A trial runs now; its id."""
        ...

    def finish(self, trial: int, job: Job, scored: Scored) -> None:
        """It has a result."""
        ...

    def give_up(self, trial: int, reason: str) -> None:
        """It came to nothing."""
        ...


class Crew(Protocol):
    """Runs trials."""

    def run(self, jobs: Iterable[Job], desk: Desk) -> None:
        """Run all jobs; returns when each has a result."""
        ...

    def close(self) -> None:
        """Let the workers go."""
        ...


class Here:
    """Runs trials in this process.

    Args:
        objective: What a trial is.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective

    def run(self, jobs: Iterable[Job], desk: Desk) -> None:
        """Run one after the other.

        Raises:
            PareError: As the objective.
        """
        for job in jobs:
            trial = desk.begin(job)
            try:
                scored = self._objective(job.point, job.share, job.seed)
            except PareError as problem:
                desk.give_up(trial, str(problem))
                raise
            desk.finish(trial, job, scored)

    def close(self) -> None:
        """Nothing to let go."""


class Workers:
    """Hands trials to worker processes; a worker that dies is replaced, and its trial begun again.

    Args:
        objective: What a trial is; it is pickled once for each worker.
        count: Number of workers.
    """

    def __init__(self, objective: Objective, count: int) -> None:
        self._objective = objective
        self._context = multiprocessing.get_context("spawn")
        self._workers = [self._start() for _ in range(count)]

    def run(self, jobs: Iterable[Job], desk: Desk) -> None:
        """Run all jobs, as many at a time as there are workers.

        Raises:
            PareError: As the objective, or a trial lost its worker too often.
        """
        waiting = list(jobs)
        lost: dict[str, int] = {}
        running: dict[Connection, tuple[int, Job]] = {}
        try:
            while waiting or running:
                for connection, _ in self._workers:
                    if connection not in running and waiting:
                        job = waiting.pop(0)
                        running[connection] = (desk.begin(job), job)
                        self._send(connection, job)
                for ready in wait(list(running)):
                    assert isinstance(ready, Connection)
                    trial, job = running.pop(ready)
                    answer = self._receive(ready)
                    if isinstance(answer, Scored):
                        desk.finish(trial, job, answer)
                    elif isinstance(answer, str):
                        desk.give_up(trial, answer)
                        raise PareError(answer)
                    else:
                        desk.give_up(trial, f"its worker ended with {answer}")
                        lost[job.key] = lost.get(job.key, 0) + 1
                        _refuse_lost(job, lost[job.key], answer)
                        waiting.insert(0, job)
        finally:
            for trial, _ in running.values():
                desk.give_up(trial, "interrupted")
            if running:
                self.close()

    def close(self) -> None:
        """End the workers; one that is in a trial is stopped."""
        for connection, _ in self._workers:
            connection.close()  # an idle worker goes by itself
        for _, process in self._workers:
            process.join(GOODBYE)
            process.terminate()
            process.join()
        self._workers = []

    def _start(self) -> tuple[Connection, BaseProcess]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, self._objective), daemon=True)
        process.start()
        theirs.close()  # so that the end of the worker is the end of the pipe
        return ours, process

    def _send(self, connection: Connection, job: Job) -> None:
        with contextlib.suppress(BrokenPipeError):  # it died idle: the answer will say so
            connection.send((job.point, job.share, job.seed))

    def _receive(self, connection: Connection) -> Scored | str | int | None:
        """A worker's answer: a result, a refusal, or how the worker ended after replacing it."""
        try:
            answer: Scored | str = connection.recv()
            return answer
        except (EOFError, ConnectionResetError):
            place = next(i for i, (ours, _) in enumerate(self._workers) if ours is connection)
            process = self._workers[place][1]
            process.join()
            connection.close()
            self._workers[place] = self._start()
            return process.exitcode


def _refuse_lost(job: Job, times: int, code: int | str | None) -> None:
    if times >= ATTEMPTS:
        how = f"signal {signal.Signals(-code).name}" if isinstance(code, int) and code < 0 else f"code {code}"
        raise PareError(
            f"a trial lost its worker {times} times ({how}; {job.choice}, draw {job.draw}); if memory ran "
            "out use fewer --workers or a smaller --batch-size. What is finished is kept: the same command "
            "goes on"
        )


def _work(connection: Connection, objective: Callable[[dict[str, str], float, int], Scored]) -> None:
    """A worker's life: trials until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's to answer
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            point, share, seed = connection.recv()
            try:
                answer: Scored | str = objective(point, share, seed)
            except PareError as problem:
                answer = str(problem)
            connection.send(answer)
