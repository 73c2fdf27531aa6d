"""Trials and minutes of a search: how much a stage may take, so that the stated total is kept."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from paretune.errors import PareError
from paretune.search.jobs import Job, Scored
from paretune.search.schedule import ROUNDS, Cost, Speed, round_cost


@dataclass(frozen=True)
class Limits:
    """What a search may take.

    Args:
        trials: Trials in all; None takes ``ROUNDS`` draws for each choice and rung.
        minutes: Wall minutes in all, those before an interruption included; None sets no limit.
        workers: Trials at a time.

    Raises:
        PareError: A value out of range.
    """

    trials: int | None = None
    minutes: float | None = None
    workers: int = 1

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise PareError(f"--workers {self.workers}: at least one is needed")
        if self.minutes is not None and not self.minutes > 0:
            raise PareError(f"--minutes {self.minutes:g}: must be above 0")
        if self.trials is not None and self.trials < 1:
            raise PareError(f"--trials {self.trials}: must be at least 1")


class Ration:
    """Divides what is left over what is still to do.

    Args:
        limits: What there is in all.
        before: Wall seconds that interrupted runs took.
    """

    def __init__(self, limits: Limits, before: float = 0.0) -> None:
        self.limits = limits
        self.ahead = Cost()
        self._before = before
        self._start = time.perf_counter()
        self._fixed = self._training = self._shares = 0.0
        self._timed = 0

    @property
    def seconds(self) -> float:
        """Wall seconds so far."""
        return self._before + time.perf_counter() - self._start

    @property
    def speed(self) -> Speed | None:
        """Seconds of a trial by the mean of those so far; None before the first."""
        if not self._timed:
            return None
        return Speed(self._fixed / self._timed, self._training / self._shares)

    def learn(self, job: Job, scored: Scored) -> None:
        """Take the time of a finished trial into account."""
        self._timed += 1
        self._fixed += scored.seconds - scored.training
        self._training += scored.training
        self._shares += job.share

    def took(self, job: Job) -> None:
        """One trial less is ahead."""
        self.ahead = Cost(max(self.ahead.trials - 1, 0), max(self.ahead.equivalents - job.share, 0.0))

    def left(self) -> float | None:
        """Wall seconds of what is ahead; None when no trial was timed."""
        return None if self.speed is None else self.speed.seconds(self.ahead, self.limits.workers)

    def total(self, choices: Iterable[int]) -> Cost:
        """What the whole search takes at most, with so many choices a stage.

        Raises:
            PareError: Fewer trials or minutes than one look at every choice takes.
        """
        one = round_cost(choices)
        trials = self.limits.trials
        if trials is not None and trials < one.trials:
            raise PareError(
                f"--trials {trials}: one draw for each choice takes {one.trials}; ask for that, or search "
                "fewer groups, strategies or learning rates"
            )
        rounds = ROUNDS if trials is None else trials // max(one.trials, 1)
        if self.limits.minutes is None or self.speed is None:
            return one * rounds
        left = 60 * self.limits.minutes - self.seconds
        needed = self.speed.seconds(one, self.limits.workers)
        if left < needed:
            minutes = (needed + self.seconds) / 60
            raise PareError(
                f"--minutes {self.limits.minutes:g}: one draw for each choice takes about {minutes:.1f} "
                f"({one.trials} trials); ask for that, fewer --steps, or search fewer groups or strategies"
            )
        return one * min(rounds, int(left // needed))

    def rounds(self, choices: Sequence[int], used: int) -> int:
        """How many draws each choice and rung of the next stage gets; 0 when the time is up.

        Args:
            choices: Number of choices of this stage and of each that follows.
            used: Trials of the stages before.
        """
        one = round_cost(choices)
        if not one.trials:
            self.ahead = Cost()
            return 1
        trials = self.limits.trials
        rounds = ROUNDS if trials is None else max((trials - used) // one.trials, 1)
        if self.limits.minutes is not None and self.speed is not None:
            affordable = int((60 * self.limits.minutes - self.seconds) // self._of(one))
            # What does not reach for all stages still settles the first of them.
            rounds = min(rounds, max(affordable, int(not self.out_of_time(round_cost(choices[:1])))))
        self.ahead = one * rounds
        return rounds

    def out_of_time(self, cost: Cost) -> bool:
        """Whether so much more would pass the limit in minutes."""
        if self.limits.minutes is None or self.speed is None:
            return False
        return self.seconds + self._of(cost) > 60 * self.limits.minutes

    def _of(self, cost: Cost) -> float:
        assert self.speed is not None
        return max(self.speed.seconds(cost, self.limits.workers), 1e-9)
