"""The recommendation: one plain sentence, with its uncertainty."""

import math
from collections.abc import Mapping, Sequence

from paretune.search.front_file import Recommendation
from paretune.search.intervals import Interval
from paretune.search.standing import Standing, contenders, told_apart, too_few_seeds

# From what is simplest to have in production to what takes the most: nothing to choose; modules that every
# library has; mixtures of them; masks that need no data; masks that look at data.
SIMPLICITY = (
    ("head",),
    ("bitfit", "bias", "norm"),
    ("lora", "adapter", "prefix"),
    ("s4", "design"),
    ("random", "magnitude"),
    ("gradient", "fish", "ird", "adapeft"),
)
MUCH_FEWER = 2.0  # times fewer trained weights are simpler, whatever the method
AS_MANY = 1.05  # times more trained weights still count as as many


def recommend(standings: Sequence[Standing], metric: str, higher: bool) -> Recommendation | None:
    """What to take, and what is simpler and not told apart from it; full fine-tuning is only compared with.

    Not told apart is not as good: each such candidate comes with how far it is behind, and how far it may be.

    Args:
        standings: Of all candidates that have a score.
        metric: What scores are called.
        higher: Whether a higher score is better.

    Returns:
        None when nothing has a score.
    """
    if not standings:
        return None
    share = max(each.share for each in standings)
    last = [each for each in standings if each.share == share]
    field = [each for each in last if each.candidate.method != "full"] or last
    best = max(field, key=lambda each: each.worth)
    others = [each for each in field if each is not best]
    leads, tied = told_apart(best, others), contenders(best, others)
    few = [each for each in tied if too_few_seeds(best, each)]
    compared = [each for each in tied if each not in few]
    simpler = sorted((each for each in compared if _simpler(each, best)), key=_effort)
    text = f"Take {_described(best, metric, higher)}."
    for said, those in (
        ("Simpler, and not told apart from it", simpler),
        ("Not told apart from it", [each for each in compared if each not in simpler]),
        ("Too few seeds to tell", few),
    ):
        if those:
            text += f" {said}: {_listed([_behind(each, leads, each not in few) for each in those])}."
    if len(field) > 1 and not tied:
        text += " It is told apart from everything else that was trained as long."
    text += _beside_full(best, last, higher)
    if share < 1:
        text += f" All this after {share:.0%} of the steps: give it more time to be surer."
    return Recommendation(text, best.candidate.name, [each.candidate.name for each in simpler])


def _behind(other: Standing, leads: Mapping[str, Interval], trusted: bool) -> str:
    """A name with how much worse it is on the mean, and at most where the interval is trusted."""
    lead = leads[other.candidate.name]
    if lead.mean >= 0:
        said, most = f"{lead.mean:.3f} worse", f", at most {lead.high:.3f}"
    else:  # the best has further seeds, by which it is ahead
        said, most = f"{-lead.mean:.3f} better on the seeds they share", f", at most {lead.high:.3f} worse"
    return f"{other.candidate.name} ({said}{most if trusted else ''})"


def _effort(standing: Standing) -> tuple[int, int]:
    method = standing.candidate.method
    level = next((n for n, names in enumerate(SIMPLICITY) if method in names), len(SIMPLICITY))
    return level, standing.trained


def _simpler(other: Standing, best: Standing) -> bool:
    """Whether something takes less to have: a plainer kind at no more weights, or much fewer weights."""
    plainer = _effort(other)[0] < _effort(best)[0] and other.trained <= AS_MANY * best.trained
    return plainer or MUCH_FEWER * other.trained <= best.trained


def _described(best: Standing, metric: str, higher: bool) -> str:
    sign, around, n = (1 if higher else -1), best.interval, len(best.scores)
    low, high = sorted((sign * around.low, sign * around.high))
    seeds = f"{n} seeds" if n > 1 else "one seed"
    spread = f"95 % interval {low:.3f} to {high:.3f}, {seeds}" if math.isfinite(low) else seeds
    weights = f"{best.trained:,} trained weights"
    if best.failed:
        spread += f", {len(best.failed)} of which failed and count as the worst score of all"
    return (
        f"{best.candidate.name}: {metric} {sign * best.mean:.3f} on held-out data ({spread}) with {weights}"
    )


def _beside_full(best: Standing, last: Sequence[Standing], higher: bool) -> str:
    full = next((each for each in last if each.candidate.method == "full" and each is not best), None)
    if full is None:
        return ""
    lead = told_apart(best, [full])[full.candidate.name]
    if not math.isfinite(lead.low):
        return (
            f" Full fine-tuning has {(1 if higher else -1) * full.mean:.3f}, with too few seeds to compare."
        )
    sign = 1 if higher else -1
    low, high = sorted((sign * lead.low, sign * lead.high))
    return f" Against full fine-tuning it is {sign * lead.mean:+.3f} ({low:+.3f} to {high:+.3f})."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
