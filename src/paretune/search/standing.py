"""How candidates stand: their scores at the largest share they reached, and who is told apart from whom."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from paretune.search.field import Candidate
from paretune.search.front_trial import FrontSpec
from paretune.search.intervals import FEWEST_DRAWS, Interval, leads, mean_interval
from paretune.search.jobs import Scored
from paretune.search.ladder import middle_first

Result = tuple[FrontSpec, Scored]
CORRELATIONS = ("matthews", "spearman")  # exactly 0 where all answers are one


@dataclass(frozen=True)
class Standing:
    """One candidate.

    Args:
        candidate: The candidate.
        lr: Its best learning rate.
        share: The largest share of the steps at which it has a score.
        scores: By seed, at that share and rate; higher is better (a loss comes negated). A seed under which
            the trial failed has the worst score of all candidates at that share.
        failed: These seeds.
        loss: Mean on held-out train; infinite where a trial has not learnt to answer different examples
            differently. Such a loss says how fast the rate is, not how good.
        results: Of the same.
    """

    candidate: Candidate
    lr: float
    share: float
    scores: dict[int, float]
    loss: float
    results: tuple[Scored, ...] = field(repr=False)
    failed: tuple[int, ...] = ()

    @property
    def mean(self) -> float:
        """Of the scores."""
        return float(np.mean(list(self.scores.values())))

    @property
    def worth(self) -> tuple[float, float]:
        """What candidates are ranked by: the score, the lower loss among equals."""
        return self.mean, -self.loss

    @property
    def interval(self) -> Interval:
        """The mean with its 95 % interval."""
        return mean_interval(list(self.scores.values()))

    @property
    def trained(self) -> int:
        """Trained weights."""
        return int(self.results[0].details["trained"])


def standing(
    candidate: Candidate, results: Iterable[Result], higher: bool, rates: Sequence[float] = ()
) -> Standing | None:
    """How a candidate stands; None when none of its trials has a score.

    The largest share counts; there, the rate that failed under the fewest seeds, of these the one with the
    most seeds, and among these of the best score; of equals the one nearest to the middle of the range that
    it was tried with, ``rates``, whichever was finished first.
    """
    results = list(results)
    mine = [(spec, scored) for spec, scored in results if spec.candidate == candidate.name]
    share = max((spec.share for spec, scored in mine if scored.score is not None), default=None)
    if share is None:
        return None
    sign = 1 if higher else -1
    scores = [scored.score for spec, scored in results if spec.share == share and scored.score is not None]
    worst = min(sign * score for score in scores)
    by_rate: dict[float, list[Result]] = {}
    for spec, scored in mine:
        if spec.share == share:
            by_rate.setdefault(spec.lr, []).append((spec, scored))
    found = []
    for lr, rows in by_rate.items():
        good = tuple(scored for _, scored in rows if scored.score is not None)
        if good:
            signed = {spec.seed: None if s.score is None else sign * s.score for spec, s in rows}
            paid = {seed: worst if score is None else score for seed, score in signed.items()}
            loss = float(np.mean([_telling_loss(scored) for scored in good]))
            failed = tuple(seed for seed, score in signed.items() if score is None)
            found.append(Standing(candidate, lr, share, paid, loss, good, failed))
    return max(found, key=lambda s: (-len(s.failed), len(s.scores), s.worth, -_far(s.lr, rates), -s.lr))


def _telling_loss(scored: Scored) -> float:
    """A trial's loss; infinite where its model gives every example the same answer."""
    scores = scored.details.get("scores") or {}
    return float("inf") if any(scores.get(name) == 0.0 for name in CORRELATIONS) else scored.loss


def _far(lr: float, rates: Sequence[float]) -> int:
    """How far from the middle of a range a rate is; one that is not in it is the farthest."""
    order = middle_first(rates, len(rates))
    return order.index(lr) if lr in order else len(order)


def rates_of(
    candidate: Candidate, results: Iterable[Result], share: float, higher: bool, rates: Sequence[float] = ()
) -> list[float]:
    """A candidate's learning rates by their scores at a share, best first; those without one are left out.

    Of equals as :func:`standing`.
    """
    found = [
        ((1 if higher else -1) * scored.score, -_telling_loss(scored), -_far(spec.lr, rates), spec.lr)
        for spec, scored in results
        if spec.candidate == candidate.name and spec.share == share and scored.score is not None
    ]
    ranked = sorted(found, key=lambda row: (*row[:-1], -row[-1]), reverse=True)
    return list(dict.fromkeys(lr for *_, lr in ranked))


def told_apart(best: Standing, others: Sequence[Standing]) -> dict[str, Interval]:
    """How far the best is above each other one, paired over the seeds that they share; see :func:`leads`.

    Those without a shared seed at the same share have an interval without ends.
    """
    intervals = {}
    for other in others:
        shared = sorted(set(best.scores) & set(other.scores)) if best.share == other.share else []
        if not shared:
            intervals[other.candidate.name] = Interval(best.mean - other.mean, -np.inf, np.inf)
            continue
        # The level is that of all comparisons; padding with names keeps their number right.
        scores = {best.candidate.name: [best.scores[seed] for seed in shared]}
        scores[other.candidate.name] = [other.scores[seed] for seed in shared]
        scores |= {f"#{n}": scores[best.candidate.name] for n in range(len(others) - 1)}
        intervals[other.candidate.name] = leads(scores, best.candidate.name)[other.candidate.name]
    return intervals


def contenders(best: Standing, others: Sequence[Standing]) -> list[Standing]:
    """Those that the best is not told apart from; with too few shared seeds nobody is."""
    ahead = told_apart(best, others)
    return [
        other for other in others if too_few_seeds(best, other) or not ahead[other.candidate.name].low > 0
    ]


def too_few_seeds(best: Standing, other: Standing) -> bool:
    """Whether two candidates share fewer seeds than an interval is trusted with."""
    return len(set(best.scores) & set(other.scores)) < FEWEST_DRAWS


def on_front(standings: Sequence[Standing]) -> set[str]:
    """Names of those that nobody beats on both score and trained weights, at the largest share tried."""
    if not standings:
        return set()
    share = max(each.share for each in standings)
    last = [each for each in standings if each.share == share]
    return {
        each.candidate.name
        for each in last
        if not any(
            other.mean >= each.mean
            and other.trained <= each.trained
            and (other.mean > each.mean or other.trained < each.trained)
            for other in last
        )
    }
