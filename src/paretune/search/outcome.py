"""What a stage of a search came to, as data and as a table that fits 80 columns."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from paretune.search.intervals import Interval, leads, mean_interval, ranked

WIDTH = 80  # columns
ENDINGS = {
    "separated": "the winner is told apart from every other choice left",
    "spent": "the stage's share of trials is spent",
    "only choice": "there is one choice",
    "out of time": "the time is up",
    "not tried": "no time was left; the choice is that of the best trial so far",
    "not tuned": "this group is not tuned",
}


@dataclass(frozen=True)
class Row:
    """One choice of a stage, at the largest share of the steps it was tried with.

    Args:
        choice: The option.
        share: Of the steps.
        n: Number of trials there.
        mean: Of their scores.
        low: Lower end of the mean's 95 % interval; None where there is none.
        high: Upper end.
        diverged: How many of the trials diverged; they count as the worst score of their rung.
        lead: How far the winner is above it, with the ends of the interval; None unless it was compared
            with the winner in the last rung.
    """

    choice: str
    share: float
    n: int
    mean: float
    low: float | None
    high: float | None
    diverged: int = 0
    lead: tuple[float, float | None, float | None] | None = None


@dataclass(frozen=True)
class Outcome:
    """What a stage came to.

    Args:
        name: Such as ``S1 grouping``.
        component: The component it settles.
        winner: The option that is kept.
        ends: Why it ended: a key of ``ENDINGS``.
        ties: Choices that the winner is not told apart from.
        rows: One for each choice, best first.
        trials: How many it took.
        equivalents: The same in whole trainings.
        dropped: Choices that could not be tried, and why.
    """

    name: str
    component: str
    winner: str
    ends: str
    ties: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    trials: int = 0
    equivalents: float = 0.0
    dropped: dict[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The outcome as JSON."""
        return asdict(self)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Outcome":
        """The outcome of a document."""
        rows = tuple(
            Row(**{**row, "lead": tuple(row["lead"]) if row["lead"] else None}) for row in document["rows"]
        )
        return cls(**{**document, "rows": rows, "ties": tuple(document["ties"])})


def last_rung_rows(
    scores: Mapping[str, Sequence[float]],
    order: Sequence[str],
    share: float,
    diverged: Mapping[str, int],
    higher: bool,
) -> list[Row]:
    """The rows of the choices compared in a stage's last rung.

    Args:
        scores: By choice, paired by draw; higher is better (a loss comes negated).
        order: The choices, best first.
        share: Of the steps.
        diverged: How many trials of a choice diverged.
        higher: Whether the metric itself is better when higher; its sign is given back to the rows.
    """
    ahead = leads(scores, order[0])
    return [
        _row(choice, share, scores[choice], diverged[choice], higher, ahead.get(choice)) for choice in order
    ]


def earlier_rows(
    scores: Mapping[str, Sequence[float]], share: float, diverged: Mapping[str, int], higher: bool
) -> list[Row]:
    """The rows of choices that an earlier rung let go, best first."""
    return [_row(choice, share, scores[choice], diverged[choice], higher) for choice in ranked(scores)]


def _row(
    choice: str,
    share: float,
    scores: Sequence[float],
    diverged: int,
    higher: bool,
    lead: Interval | None = None,
) -> Row:
    sign = 1 if higher else -1
    around = mean_interval(scores)
    low, high = sorted((sign * around.low, sign * around.high))
    ahead = None if lead is None else (lead.mean, finite(lead.low), finite(lead.high))
    return Row(choice, share, len(scores), sign * around.mean, finite(low), finite(high), diverged, ahead)


def finite(value: float) -> float | None:
    """A number for JSON: None where it is infinite."""
    return value if math.isfinite(value) else None


def stage_table(outcome: Outcome, metric: str) -> str:
    """A stage as text: every choice with its mean, interval and lead, and how the stage ended."""
    lines = [f"{outcome.name}: {outcome.winner}"]
    if outcome.rows:
        heads = f"{'choice':<24}{'steps':>5}{'n':>4}{metric[:9]:>10}{'95 % interval':>15}"
        lines.append(f"  {heads}  winner leads by")
    for row in outcome.rows:
        mark = "*" if row.choice == outcome.winner else "=" if row.choice in outcome.ties else " "
        cells = f"{row.choice:<24}{row.share:>5.0%}{row.n:>4}{row.mean:>10.4f}{_range(row.low, row.high):>15}"
        lead = "" if row.lead is None else f"{row.lead[0]:.3f} {_range(*row.lead[1:])}"
        bad = f"{row.diverged} diverged; " if row.diverged else ""
        lines.append(f"{mark} {cells}  {bad}{lead}".rstrip()[:WIDTH].rstrip("; "))
    lines += [f"  {choice}: {reason}"[:WIDTH] for choice, reason in outcome.dropped.items()]
    tied = f"; a tie with {', '.join(outcome.ties)}" if outcome.ties else ""
    lines += _wrapped(f"{ENDINGS[outcome.ends]} ({outcome.trials} trials){tied}")
    return "\n".join(lines)


def _range(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.3f}..{high:.3f}"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="  ", break_long_words=False)
