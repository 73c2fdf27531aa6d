"""The report of a front: ``front.json`` and the plans beside it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from paretune.errors import PareError
from paretune.report.document import Report, facts, lr_rows
from paretune.report.reading import Fields, check_schema, read_object
from paretune.report.records import Candidate, Trial

NEWEST = 1  # schema of front.json
PLANS = 12  # shown at most, those on the front first
FACTS = ("model", "data", "metric", "methods", "budgets", "seeds", "trials", "minutes", "recipe")
STATES = ("finished", "running", "interrupted")


def front_report(run: Path) -> Report:
    """Read a front's run folder, whatever of it is there.

    Raises:
        PareError: A file that is damaged, of a newer schema, or not of a front.
    """
    path = run / "front.json"
    document = read_object(path)
    if document is None:
        request = read_object(run / "request.json") or {}
        report = Report("front", run.resolve().name, "unfinished", facts=facts(request, FACTS))
        report.missing.append("front.json is not there: no trial has finished yet.")
        return report
    check_schema(document, NEWEST, path)
    get = Fields(document, str(path))
    request = get.object("request")
    status = get.text("status")
    if status not in STATES:
        raise PareError(f"{path}: status {status!r} is none of {', '.join(STATES)}")
    trials = [Trial.read(row, f"{path}: trial {n}") for n, row in enumerate(get.list("trials"))]
    candidates = [
        Candidate.read(row, f"{path}: candidate {n}", trials) for n, row in enumerate(get.list("candidates"))
    ]
    asked = Fields(request, f"{path}: request")
    if asked.text("head") == "inside":  # the budget paid for the head: it is among the trained weights
        candidates = [replace(each, trained=each.trained - each.head) for each in candidates]
    report = Report(
        "front",
        run.resolve().name,
        status,
        metric=asked.text("metric", "score"),
        higher_is_better=request.get("higher_is_better") is not False,
        model_weights=get.count("model_weights"),
        facts=facts(request, FACTS),
        recommendation=_recommendation(get, path),
        candidates=candidates,
        trials=trials,
        skipped=[_skipped(row, path) for row in get.list("skipped")],
        rates=lr_rows(trials, candidates),
        cost=_cost(get, path),
    )
    report.prediction = _prediction(report)
    _say_missing(report)
    _add_plans(report, run)
    return report


def _recommendation(get: Fields, path: Path) -> dict[str, Any] | None:
    row = get.object("recommendation")
    if not row:
        return None
    said = Fields(row, f"{path}: recommendation")
    simpler = [str(name) for name in said.list("simpler")]
    return {"text": said.text("text"), "candidate": said.text("candidate"), "simpler": simpler}


def _prediction(report: Report) -> dict[str, float] | None:
    """How well the order by predicted gain is the order by score, among those trained to the end."""
    whole = max((c.share or 0 for c in report.candidates), default=0)
    sign = 1 if report.higher_is_better else -1
    pairs = [
        (c.predicted, sign * c.score)
        for c in report.candidates
        if c.predicted is not None and c.score is not None and c.share == whole
    ]
    if len(pairs) < 3 or any(len(set(column)) == 1 for column in zip(*pairs, strict=True)):
        return None
    from scipy.stats import spearmanr  # only fronts with predictions pay for it

    return {"n": len(pairs), "spearman": float(spearmanr(pairs).statistic)}


def _cost(get: Fields, path: Path) -> dict[str, float | None]:
    cost = Fields(get.object("cost"), f"{path}: cost")
    return {name: cost.number(name) for name in ("trials", "equivalents", "seconds")}


def _skipped(row: Any, path: Path) -> dict[str, str]:
    get = Fields(row, f"{path}: skipped")
    return {name: get.text(name) for name in ("method", "budget", "reason")}


def _say_missing(report: Report) -> None:
    if report.status != "finished":
        report.missing.append(
            f"The run is {report.status}: more trials may come; the same `paretune front` command goes on."
        )
    if not report.candidates:
        report.missing.append("No candidate has a score yet.")
    elif report.recommendation is None:
        report.missing.append("There is no recommendation yet.")
    without = [c.name for c in report.candidates if c.score is None]
    if without:
        report.missing.append(f"Without a score so far: {', '.join(without)}.")
    failed = sum(bool(trial.failed) for trial in report.trials)
    if failed:
        report.missing.append(f"{failed} of {len(report.trials)} trials failed; their causes are below.")


def _add_plans(report: Report, run: Path) -> None:
    """The plans of candidates, those on the front first, one for each folder."""
    first = report.recommendation["candidate"] if report.recommendation else ""
    ordered = sorted(report.candidates, key=lambda c: (c.name != first, not c.on_front))
    folders: dict[str, str] = {}
    for candidate in ordered:
        if candidate.plan:
            folders.setdefault(candidate.plan, candidate.name)
    for folder, name in list(folders.items())[:PLANS]:
        inside = (run / folder).resolve()
        if not inside.is_relative_to(run.resolve()):
            report.missing.append(f"The plan of {name} is not shown: {folder} lies outside of the run.")
            continue
        report.add_plan(inside, name)
    if len(folders) > PLANS:
        report.missing.append(f"{PLANS} of {len(folders)} plans are shown, those on the front first.")
