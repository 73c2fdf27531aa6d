"""Trials and minutes of a search: how much a stage may take, so that the stated total is kept."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from paretune.errors import PareError
from paretune.search.clock import Clock
from paretune.search.schedule import ROUNDS, Cost, round_cost


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


class Ration(Clock):
    """Divides what is left over what is still to do.

    Args:
        limits: What there is in all.
        before: Wall seconds that interrupted runs took.
    """

    def __init__(self, limits: Limits, before: float = 0.0) -> None:
        super().__init__(limits.minutes, limits.workers, before)
        self.limits = limits

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
            affordable = int((60 * self.limits.minutes - self.seconds) // self.takes(one))
            # What does not reach for all stages still settles the first of them.
            rounds = min(rounds, max(affordable, int(not self.out_of_time(round_cost(choices[:1])))))
        self.ahead = one * rounds
        return rounds
