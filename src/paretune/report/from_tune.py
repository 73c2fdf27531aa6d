"""The report of one tuned plan: ``request.json``, ``plan/``, ``sweep.json``, ``result.json``."""

from pathlib import Path
from typing import Any

from paretune.errors import PareError
from paretune.report.document import Report, facts
from paretune.report.reading import Fields, read_json, read_object
from paretune.report.records import Candidate, Trial

ASKED = ("model", "data", "method", "settings", "budget", "seed", "exclude", "recipe")
FOUND = ("device", "versions")


def tune_report(run: Path) -> Report:
    """Read a tune run folder, whatever of it is there.

    Raises:
        PareError: A file that is damaged or not of a run.
    """
    request = read_object(run / "request.json") or {}
    asked = Fields(request, str(run / "request.json"))
    result = read_object(run / "result.json")
    report = Report("tune", run.resolve().name, "finished" if result else "unfinished")
    report.facts = facts(request, ASKED) + facts(result or {}, FOUND)
    name = f"{asked.text('method')} {asked.text('budget')}".strip()
    if (run / "plan" / "plan.json").exists():
        report.add_plan(run / "plan", name)
        report.model_weights = report.plans[0]["weights"] if report.plans else 0
    else:
        report.missing.append("plan/plan.json is not there: nothing has been chosen yet.")
    if result:
        _add_result(report, run, asked, name, Fields(result, str(run / "result.json")))
    else:
        report.missing.append(
            "result.json is not there: the run is not finished; the same `paretune tune` command goes on."
        )
    _add_sweep(report, run, name)
    return report


def _add_result(report: Report, run: Path, asked: Fields, name: str, result: Fields) -> None:
    report.metric = result.text("metric", "score")
    score, lr = result.number("score"), result.number("lr")
    seconds = result.object("seconds")
    steps = result.count("steps")
    train = seconds.get("train")
    step_seconds = train / steps if isinstance(train, int | float) and steps else None
    method, trained, head = result.text("method"), result.count("trained"), result.count("head")
    if asked.text("head") == "inside":  # the budget paid for the head: it is among the trained weights
        trained -= head
    candidate = Candidate(
        name=name,
        method=method,
        settings=asked.object("settings"),
        budget=result.text("budget") or None,
        lr=lr,
        share=1.0,
        n=1,
        score=score,
        trained=trained,
        head=head,
        delta_bytes=result.count("delta_bytes"),
        peak_bytes=result.count("peak_bytes"),
        step_seconds=step_seconds,
        on_front=True,
        plan="plan",
        seeds=(result.count("seed"),),
    )
    report.candidates = [candidate]
    row = {**result.row, "candidate": name, "settings": candidate.settings, "share": 1.0, "id": "final"}
    row |= {"split": "validation", "seconds": train, "state": "finished"}
    report.trials = [Trial.read(row, str(run / "result.json"))]
    share = f" ({trained / report.model_weights:.2%} of the model)" if report.model_weights else ""
    report.recommendation = {
        "text": f"{name} trained {trained:,} weights{share} and scored {report.metric} {score or 0:.4f} on "
        f"validation with a learning rate of {lr or 0:g}. One run under one seed says nothing about the "
        "spread: `paretune front` compares methods over several.",
        "candidate": name,
        "simpler": [],
    }
    spent = sum(value for value in seconds.values() if isinstance(value, int | float))
    report.cost = {"trials": None, "equivalents": None, "seconds": spent}


def _add_sweep(report: Report, run: Path, name: str) -> None:
    """The learning rates that were tried on held-out train, where ``--lr sweep`` was asked for."""
    path = run / "sweep.json"
    rows = read_json(path)
    if rows is None:
        return
    if not isinstance(rows, list):
        raise PareError(f"{path}: holds no list of learning rates")
    points = []
    for number, row in enumerate(rows):
        get = Fields(row, f"{path}: row {number}")
        failed = get.text("failed")
        metric = report.metric if report.metric in get.row else next(_metrics(get.row), "")
        report.metric = metric if report.metric == "score" and metric else report.metric
        score = None if failed or not metric else get.number(metric)
        points.append(
            {
                "lr": get.number("lr"),
                "share": None,
                "n": 0 if score is None else 1,
                "score": score,
                "low": None,
                "high": None,
                "failed": failed,
            }
        )
    points.sort(key=lambda point: point["lr"] or 0.0)
    chosen = report.candidates[0].lr if report.candidates else None
    report.rates = [{"name": name, "chosen": chosen, "points": points}]


def _metrics(row: dict[str, Any]) -> Any:
    return (name for name in row if name not in ("lr", "steps", "loss", "failed"))
