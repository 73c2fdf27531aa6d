"""What a race may spend: trials, whole trainings, minutes; and the most generous ladder within."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from paretune.errors import PareError
from paretune.search.clock import Clock
from paretune.search.ladder import Ladder, affordable
from paretune.search.ration import Limits
from paretune.search.schedule import Cost


@dataclass(frozen=True)
class Allowance:
    """The limits of a race.

    Args:
        limits: Trials and minutes; None in either sets no limit.
        equivalents: Whole trainings that all trials together may be worth; None sets no limit.
        clock: Knows how long trials take.
    """

    limits: Limits
    equivalents: float | None
    clock: Clock

    @property
    def said(self) -> str:
        """The limits in words."""
        words = []
        if self.limits.trials is not None:
            words.append(f"{self.limits.trials} trials")
        if self.equivalents is not None:
            words.append(f"{self.equivalents:g} whole trainings")
        if self.limits.minutes is not None:
            words.append(f"{self.limits.minutes:g} minutes")
        return ", ".join(words)

    def holds(self, cost: Cost, spent: Cost | None = None) -> bool:
        """Whether a cost is within all limits, beside what was spent before."""
        spent = spent or Cost()
        if self.limits.trials is not None and spent.trials + cost.trials > self.limits.trials:
            return False
        if self.equivalents is not None and spent.equivalents + cost.equivalents > self.equivalents + 1e-9:
            return False
        return not self.clock.out_of_time(cost)

    def ladder(self, ladders: Iterable[Ladder], counts: Sequence[int], references: int, seeds: int) -> Ladder:
        """The most generous ladder within the limits.

        Args:
            ladders: From generous to meagre.
            counts: How many learning rates each candidate has.
            references: How many of the candidates are references.
            seeds: See :func:`paretune.search.ladder.affordable`.

        Raises:
            PareError: None is.
        """
        ladders = list(ladders)
        found = affordable(ladders, counts, references, self.holds, seeds)
        if found is not None:
            return found
        least = ladders[-1].cost(counts, references)
        many = f"the shortest look at {len(counts)} candidates takes {least.trials} trials"
        way = "ask for that, or name fewer --methods or --budgets"
        if self.limits.trials is not None and self.limits.trials < least.trials:
            raise PareError(f"--trials {self.limits.trials}: {many}; {way}")
        if self.limits.minutes is not None and self.clock.speed is not None:
            minutes = (self.clock.seconds + self.clock.takes(least)) / 60
            raise PareError(
                f"--minutes {self.limits.minutes:g}: {many}, about {minutes:.1f} minutes; {way}, "
                "or give fewer --steps"
            )
        raise PareError(f"{self.equivalents:g} whole trainings: {many}, worth {least.equivalents:.1f}; {way}")
