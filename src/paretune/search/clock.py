"""Wall seconds of a search: what its trials take, and what is left."""

import time

import numpy as np

from paretune.search.jobs import Job, Scored
from paretune.search.schedule import Cost, Speed


class Clock:
    """Learns how long trials take.

    Args:
        minutes: Wall minutes in all, those before an interruption included; None sets no limit.
        workers: Trials at a time.
        before: Wall seconds that interrupted runs took.
    """

    def __init__(self, minutes: float | None, workers: int, before: float = 0.0) -> None:
        self.ahead = Cost()
        self._minutes, self._workers = minutes, workers
        self._before = before
        self._start = time.perf_counter()
        self._timed: list[tuple[float, float, float]] = []  # share, seconds, those of the training

    @property
    def seconds(self) -> float:
        """Wall seconds so far."""
        return self._before + time.perf_counter() - self._start

    @property
    def speed(self) -> Speed | None:
        """Seconds of a trial from those so far: a line through them; None before the first.

        While all have had the same share, what does not train is taken as the part that is the same for all.
        """
        if not self._timed:
            return None
        shares, seconds, training = np.array(self._timed).T
        if shares.min() < shares.max():
            slope, fixed = np.polyfit(shares, seconds, 1)
            if slope > 0 and fixed > 0:
                return Speed(float(fixed), float(slope))
        return Speed(float((seconds - training).mean()), float(training.sum() / shares.sum()))

    def learn(self, job: Job, scored: Scored) -> None:
        """Take the time of a finished trial into account."""
        self._timed.append((job.share, scored.seconds, scored.training))

    def took(self, job: Job) -> None:
        """One trial less is ahead."""
        self.ahead = Cost(max(self.ahead.trials - 1, 0), max(self.ahead.equivalents - job.share, 0.0))

    def left(self) -> float | None:
        """Wall seconds of what is ahead; None when no trial was timed."""
        return None if self.speed is None else self.speed.seconds(self.ahead, self._workers)

    def takes(self, cost: Cost) -> float:
        """Wall seconds of so much; there must have been a trial."""
        assert self.speed is not None
        return max(self.speed.seconds(cost, self._workers), 1e-9)

    def out_of_time(self, cost: Cost) -> bool:
        """Whether so much more would pass the limit in minutes."""
        if self._minutes is None or self.speed is None:
            return False
        return self.seconds + self.takes(cost) > 60 * self._minutes
