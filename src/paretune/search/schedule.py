"""How many trials a staged search takes, at which share of the steps, and what that costs."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

SHARES = (0.25, 0.5, 1.0)  # of the steps of a whole training
ROUNDS = 2  # draws for each choice and rung unless more trials are asked for


@dataclass(frozen=True)
class Rung:
    """So many choices compared at one share of the steps."""

    choices: int
    share: float


def rungs(choices: int) -> tuple[Rung, ...]:
    """A stage's rungs: each keeps the better half, the last compares at all of the steps.

    Args:
        choices: How many choices the stage has; one needs no trial.
    """
    if choices < 2:
        return ()
    count = min(len(SHARES), max(1, math.ceil(math.log2(choices))))
    sizes = [choices]
    while len(sizes) < count:
        sizes.append(math.ceil(sizes[-1] / 2))
    return tuple(Rung(size, share) for size, share in zip(sizes, SHARES[-count:], strict=True))


@dataclass(frozen=True)
class Cost:
    """Trials, and what they are worth in whole trainings."""

    trials: int = 0
    equivalents: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.trials + other.trials, self.equivalents + other.equivalents)

    def __mul__(self, times: int) -> "Cost":
        return Cost(self.trials * times, self.equivalents * times)


def round_cost(choices: Iterable[int]) -> Cost:
    """What one draw for each choice and rung costs over stages with so many choices."""
    every = [rung for count in choices for rung in rungs(count)]
    return Cost(sum(rung.choices for rung in every), sum(rung.choices * rung.share for rung in every))


@dataclass(frozen=True)
class Speed:
    """Seconds of a trial: a part that is the same for all, and a part for the steps.

    Args:
        fixed: Seconds to choose and to score.
        training: Seconds of a training at all of the steps.
    """

    fixed: float
    training: float

    def seconds(self, cost: Cost, workers: int) -> float:
        """Wall seconds of so many trials on so many workers."""
        return (cost.trials * self.fixed + cost.equivalents * self.training) / workers
