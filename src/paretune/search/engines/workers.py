"""Trials in several processes of this machine, which this one hands them to and looks after."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from paretune.errors import PareError
from paretune.ranks import VISIBLE, gpus
from paretune.search.engines.base import ATTEMPTS, Desk, Waiting
from paretune.search.jobs import Job, Objective, Scored

GOODBYE = 3.0  # seconds for an idle worker to go


class Workers:
    """Hands trials to worker processes; a worker that dies is replaced, and its trial begun again.

    Where there are several GPUs, the workers are shared out over them; each sees one.

    Args:
        objective: What a trial is; it is pickled once for each worker.
        workers: Number of processes.
    """

    def __init__(self, objective: Objective, workers: int = 2) -> None:
        self._objective = objective
        self._context = multiprocessing.get_context("spawn")
        self._workers = [self._start(place) for place in range(workers)]

    def run(self, jobs: Iterable[Job], desk: Desk) -> None:
        """Run all jobs, as many at a time as there are workers.

        Raises:
            PareError: As ``desk.refuse``.
        """
        waiting = Waiting(jobs, desk)
        running: dict[Connection, tuple[int, Job]] = {}
        try:
            while True:
                for connection in [connection for connection, _ in self._workers]:
                    if connection in running:
                        continue
                    job = waiting.next()
                    if job is None:
                        break
                    running[connection] = (desk.begin(job), job)
                    self._send(connection, job)
                if not running:
                    return
                for ready in wait(list(running)):
                    assert isinstance(ready, Connection)
                    answer = self._receive(ready)
                    trial, job = running.pop(ready)
                    if isinstance(answer, Scored | str):
                        waiting.answered(trial, job, answer)
                    else:
                        waiting.lost(trial, job, f"its worker ended with {answer}", _lost(job, answer))
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

    def _start(self, place: int) -> tuple[Connection, BaseProcess]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, self._objective), daemon=True)
        with _one_gpu(place):
            process.start()
        theirs.close()  # so that the end of the worker is the end of the pipe
        return ours, process

    def _send(self, connection: Connection, job: Job) -> None:
        with contextlib.suppress(BrokenPipeError):  # it died idle: the answer will say so
            connection.send(job.spec)

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
            self._workers[place] = self._start(place)
            return process.exitcode


@contextlib.contextmanager
def _one_gpu(place: int) -> Iterator[None]:
    """Processes started in the block see one of this one's GPUs: the next for each place, and round again."""
    there, before = gpus(), os.environ.get(VISIBLE)
    if there:
        os.environ[VISIBLE] = there[place % len(there)]
    try:
        yield
    finally:
        if before is not None:
            os.environ[VISIBLE] = before
        elif there:
            del os.environ[VISIBLE]


def _lost(job: Job, code: int | None) -> str:
    how = f"signal {signal.Signals(-code).name}" if isinstance(code, int) and code < 0 else f"code {code}"
    return (
        f"a trial lost its worker {ATTEMPTS} times ({how}; {job.key}); if memory ran out use fewer "
        "--workers or a smaller --batch-size. What is finished is kept: the same command goes on"
    )


def _work(connection: Connection, objective: Objective) -> None:
    """A worker's life: trials until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's to answer
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            spec: dict[str, Any] = connection.recv()
            try:
                answer: Scored | str = objective(spec)
            except PareError as problem:
                answer = str(problem)
            connection.send(answer)
