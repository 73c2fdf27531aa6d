"""Means with intervals, and when a winner is told apart from the others."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
FEWEST_DRAWS = 3  # below that no interval is trusted to end a stage


@dataclass(frozen=True)
class Interval:
    """A mean, and the t interval around it; infinite for a single value."""

    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """The mean of a sample with its t interval at a level."""
    sample = np.asarray(values, dtype=np.float64)
    mean = float(sample.mean())
    if len(sample) < 2:
        return Interval(mean, -math.inf, math.inf)
    error = float(sample.std(ddof=1)) / math.sqrt(len(sample))
    reach = float(stats.t.ppf((1 + level) / 2, len(sample) - 1)) * error
    return Interval(mean, mean - reach, mean + reach)


def leads(scores: Mapping[str, Sequence[float]], winner: str) -> dict[str, Interval]:
    """How far a winner is above each other choice, paired by draw.

    The level is Bonferroni's, over the other choices and over the looks that were taken after ever more
    draws: all intervals, of all looks together, hold the true leads with 95 %.

    Args:
        scores: Scores by choice, higher is better; draw i is the same random design and seed for all.
        winner: The choice to compare with.
    """
    others = [choice for choice in scores if choice != winner]
    level = 1 - (1 - LEVEL) * _share_of_look(len(scores[winner])) / max(len(others), 1)
    best = np.asarray(scores[winner], dtype=np.float64)
    return {
        choice: mean_interval((best - np.asarray(scores[choice], dtype=np.float64)).tolist(), level)
        for choice in others
    }


def _share_of_look(draws: int) -> float:
    """What a look after so many draws may spend of the chance to be wrong; all looks together spend all.

    ``6 / (pi i)^2`` for the i-th look, the first one at ``FEWEST_DRAWS``: 61 %, 15 %, 7 %, 4 %, ...
    """
    look = max(draws - FEWEST_DRAWS, 0) + 1
    return 6 / (math.pi * look) ** 2


def ranked(
    scores: Mapping[str, Sequence[float]], losses: Mapping[str, Sequence[float]] | None = None
) -> list[str]:
    """Choices from the best mean to the worst; among equals the lower mean loss, then the earlier one."""

    def worth(choice: str) -> tuple[float, float]:
        return -float(np.mean(scores[choice])), float(np.mean(losses[choice])) if losses else 0.0

    return sorted(scores, key=worth)


def ties(scores: Mapping[str, Sequence[float]], winner: str) -> list[str]:
    """The choices that the winner is not told apart from."""
    return [choice for choice, lead in leads(scores, winner).items() if not lead.low > 0]


def separated(scores: Mapping[str, Sequence[float]]) -> bool:
    """Whether the best choice is told apart from every other one."""
    draws = min(len(values) for values in scores.values())
    return draws >= FEWEST_DRAWS and not ties(scores, ranked(scores)[0])
