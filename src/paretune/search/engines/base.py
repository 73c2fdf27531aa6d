"""What an engine is: it runs jobs wherever it likes, and tells a desk what becomes of them."""

from collections.abc import Iterable
from typing import Protocol

from paretune.search.jobs import Job, Scored

ATTEMPTS = 3  # times that a trial may lose the process it runs in


class Desk(Protocol):
    """Where running trials are recorded; called by the process that asked for them."""

    def begin(self, job: Job) -> int:
        """A trial runs now; its number."""
        ...

    def finish(self, trial: int, job: Job, scored: Scored) -> None:
        """It has a result."""
        ...

    def give_up(self, trial: int, reason: str) -> None:
        """It came to nothing, and may be begun again."""
        ...

    def refuse(self, trial: int, job: Job, reason: str) -> None:
        """It cannot be done: the objective refused it, or it lost its process ``ATTEMPTS`` times.

        Raises:
            PareError: Where one such trial ends everything; the engine lets it through.
        """
        ...


class Engine(Protocol):
    """Runs trials. It knows nothing of what they are about.

    Every job is begun once; a trial that loses its process is given up and begun again, at most
    ``ATTEMPTS`` times. Jobs are taken from the iterable only when they can be begun, so that whoever makes
    them may stop at any time.
    """

    def run(self, jobs: Iterable[Job], desk: Desk) -> None:
        """Run all jobs; returns when each was finished or refused.

        Raises:
            PareError: As ``desk.refuse``; what still ran is given up.
        """
        ...

    def close(self) -> None:
        """Let the processes go; trials that run are stopped."""
        ...


class Waiting:
    """The jobs of a run that are to be begun, those that lost their process first.

    Args:
        jobs: All jobs.
        desk: Told what becomes of them.
    """

    def __init__(self, jobs: Iterable[Job], desk: Desk) -> None:
        self._coming, self._desk = iter(jobs), desk
        self._again: list[Job] = []
        self._losses: dict[str, int] = {}

    def next(self) -> Job | None:
        """The next job; None when none waits."""
        return self._again.pop() if self._again else next(self._coming, None)

    def answered(self, trial: int, job: Job, answer: Scored | str) -> None:
        """A trial has a result, or was refused by its objective."""
        if isinstance(answer, Scored):
            self._desk.finish(trial, job, answer)
        else:
            self._desk.refuse(trial, job, answer)

    def lost(self, trial: int, job: Job, cause: str, refusal: str) -> None:
        """A trial lost its process: it waits again, or is refused when that was its last attempt."""
        self._losses[job.key] = self._losses.get(job.key, 0) + 1
        if self._losses[job.key] >= ATTEMPTS:
            self._desk.refuse(trial, job, refusal)
        else:
            self._desk.give_up(trial, cause)
            self._again.append(job)
