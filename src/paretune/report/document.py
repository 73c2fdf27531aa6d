"""The report as data: what ``report.json`` holds and the page draws; docs/report.md describes it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from paretune.errors import PareError
from paretune.report.plans import plan_document
from paretune.report.records import Candidate, Trial

SCHEMA = 1
Kind = Literal["front", "tune", "search"]


@dataclass
class Report:
    """Everything there is to show about a run; what the run does not hold is empty and named in ``missing``.

    Args:
        kind: Which command made the run.
        run: Name of the run folder.
        status: ``finished``, ``running`` or ``interrupted``; of a run that keeps no status, ``unfinished``.
        metric: What scores are.
        higher_is_better: Whether a higher score is better.
        model_weights: Of the base model without the head; 0 when not known.
        facts: Name and value of what was asked for.
        missing: Sentences about what the folder does not hold (yet).
        recommendation: ``text``, ``candidate``, ``simpler``; or None.
        candidates: What is compared.
        trials: What was trained for it.
        skipped: ``method``, ``budget``, ``reason`` of what was not tried.
        rates: Per candidate its scores over learning rates.
        plans: As :func:`paretune.report.plans.plan_document`.
        stages: The stages of a search, as :class:`paretune.search.outcome.Outcome`.
        design: The found design of a search as YAML, or empty.
        prediction: ``n`` candidates that were trained to the end and ``spearman``, the rank correlation of
            their predicted gains with their scores; None where fewer than three were predicted.
        cost: ``trials``, ``equivalents`` in whole trainings, wall ``seconds``; None where not known.
    """

    kind: Kind
    run: str
    status: str
    metric: str = "score"
    higher_is_better: bool = True
    model_weights: int = 0
    facts: list[tuple[str, str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    recommendation: dict[str, Any] | None = None
    candidates: list[Candidate] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    rates: list[dict[str, Any]] = field(default_factory=list)
    plans: list[dict[str, Any]] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    design: str = ""
    prediction: dict[str, float] | None = None
    cost: dict[str, float | None] = field(
        default_factory=lambda: {"trials": None, "equivalents": None, "seconds": None}
    )

    def document(self) -> dict[str, Any]:
        """The report as JSON."""
        return {"schema": SCHEMA, **asdict(self)}

    def add_plan(self, folder: Path, name: str) -> None:
        """Take in a saved plan, or say why it is not shown."""
        try:
            self.plans.append(plan_document(folder, name))
        except PareError as problem:
            self.missing.append(f"The plan of {name} is not shown: {problem}.")


def facts(request: dict[str, Any], names: Sequence[str]) -> list[tuple[str, str]]:
    """Name and value of what was asked for, leaving out what was not."""
    return [(name, _plain(request[name])) for name in names if request.get(name) not in (None, [], {})]


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(each)}" for name, each in value.items() if each is not None)
    return str(value)


def lr_rows(trials: list[Trial], candidates: list[Candidate]) -> list[dict[str, Any]]:
    """Scores over learning rates, for every candidate with more than one rate.

    Returns:
        ``name``, ``chosen`` and ``points``: by rate the mean ``score``, ``low``, ``high`` (the lowest and
        highest seed), ``n``, ``share``, and ``failed`` where no training at that rate came to a score. Of
        every rate, the trials at its largest share count.
    """
    chosen = {candidate.name: candidate.lr for candidate in candidates}
    found = []
    for name in dict.fromkeys(trial.candidate for trial in trials):
        mine = [trial for trial in trials if trial.candidate == name and trial.lr is not None]
        points = [
            _at_rate([t for t in mine if t.lr == lr], lr) for lr in sorted({t.lr for t in mine if t.lr})
        ]
        if len(points) > 1:
            found.append({"name": name, "chosen": chosen.get(name), "points": points})
    return found


def _at_rate(trials: list[Trial], lr: float) -> dict[str, Any]:
    scored = [trial for trial in trials if trial.score is not None]
    share = max((trial.share or 1.0 for trial in scored or trials), default=1.0)
    scores = [t.score for t in scored if t.score is not None and (t.share or 1.0) == share]
    point: dict[str, Any] = {"lr": lr, "share": share, "n": len(scores), "failed": ""}
    if not scores:
        return point | {"score": None, "low": None, "high": None, "failed": trials[-1].failed or "no score"}
    return point | {"score": sum(scores) / len(scores), "low": min(scores), "high": max(scores)}
