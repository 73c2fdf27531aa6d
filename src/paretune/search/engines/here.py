"""Trials in this process, one after the other."""

from collections.abc import Iterable

from paretune.errors import PareError
from paretune.search.engines.base import Desk
from paretune.search.jobs import Job, Objective


class Here:
    """Runs trials in this process.

    Args:
        objective: What a trial is.
        workers: Trials at a time.

    Raises:
        PareError: More than one at a time.
    """

    def __init__(self, objective: Objective, workers: int = 1) -> None:
        if workers > 1:
            raise PareError(f"--engine here runs one trial at a time; for {workers} use --engine workers")
        self._objective = objective

    def run(self, jobs: Iterable[Job], desk: Desk) -> None:
        """Run one after the other.

        Raises:
            PareError: As ``desk.refuse``.
        """
        for job in jobs:
            trial = desk.begin(job)
            try:
                scored = self._objective(job.spec)
            except PareError as problem:
                desk.refuse(trial, job, str(problem))
            else:
                desk.finish(trial, job, scored)

    def close(self) -> None:
        """Nothing to let go."""
