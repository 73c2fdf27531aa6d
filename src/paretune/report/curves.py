"""Curves of the report: score over learning rate, training loss over steps."""

from typing import Any

from paretune.report.axes import (
    COLOURS,
    DASHES,
    SYMBOLS,
    Figure,
    chart_layout,
    error_bars,
    log_ticks,
    said,
    score_axis,
)
from paretune.report.document import Report

LOSS_CURVES = 12  # drawn at most


def rate_curves(report: Report, style: dict[str, Any]) -> Figure:
    """Score over learning rate, a line a candidate, the range over seeds as bars."""
    methods = {candidate.name: candidate.method for candidate in report.candidates}
    front = _front_names(report)
    of_trials = {trial.candidate: trial.method for trial in report.trials}
    traces = []
    for place, row in enumerate(report.rates):
        method = methods.get(row["name"]) or of_trials.get(row["name"], "")
        fallback = (COLOURS[place % len(COLOURS)], SYMBOLS[0])
        colour, symbol = style.get(method, fallback)
        points = [point for point in row["points"] if point["score"] is not None and point["lr"]]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": said(row["name"]),
                "x": [point["lr"] for point in points],
                "y": [point["score"] for point in points],
                "error_y": error_bars([(p["score"], p["low"], p["high"]) for p in points], colour),
                "line": {"color": colour, "width": 2, "dash": DASHES[place % len(DASHES)]},
                "marker": {
                    "color": colour,
                    "symbol": symbol,
                    "line": {"width": 0},
                    "opacity": 1.0,
                    "size": [13 if point["lr"] == row["chosen"] else 8 for point in points],
                },
                "visible": _visible(row["name"], front),
                "hoverinfo": "text",
                "hovertext": [
                    f"<b>{said(row['name'])}</b><br>lr {point['lr']:g}: {point['score']:.4f}"
                    f"<br>{point['n']} trials{_of_steps(point['share'])}"
                    f"{'<br>chosen' if point['lr'] == row['chosen'] else ''}"
                    for point in points
                ],
            }
        )
    rates = [point["lr"] for row in report.rates for point in row["points"] if point["lr"]]
    axis = {"title": {"text": "learning rate"}, "type": "log", **log_ticks(rates, "g")}
    scores = [point["score"] for row in report.rates for point in row["points"]]
    return {"data": traces, "layout": chart_layout(axis, score_axis(report.metric, scores))}


def _of_steps(share: float | None) -> str:
    return "" if share is None else f" of {share:.0%} of the steps"


def loss_curves(report: Report, style: dict[str, Any]) -> Figure:
    """Training loss over steps, for each candidate the longest of its best trials."""
    rates = {candidate.name: candidate.lr for candidate in report.candidates}
    chosen: dict[str, Any] = {}
    for trial in report.trials:
        best = chosen.get(trial.candidate)
        fits = trial.losses and trial.lr == rates.get(trial.candidate, trial.lr)
        if fits and (best is None or trial.losses[-1][0] > best.losses[-1][0]):
            chosen[trial.candidate] = trial
    front = _front_names(report)
    shown = sorted(chosen.values(), key=lambda trial: trial.candidate not in front)[:LOSS_CURVES]
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": said(trial.candidate),
            "x": [step for step, _ in trial.losses],
            "y": [loss for _, loss in trial.losses],
            "line": {
                "color": style[trial.method][0],
                "width": 2,
                "dash": DASHES[place % len(DASHES)],
            },
            "visible": _visible(trial.candidate, front),
            "hovertemplate": f"step %{{x}}: %{{y:.4f}}<extra>lr {trial.lr or 0:g}, seed {trial.seed}</extra>",
        }
        for place, trial in enumerate(shown)
    ]
    return {
        "data": traces,
        "layout": chart_layout({"title": {"text": "step"}}, {"title": {"text": "training loss"}}),
    }


def _front_names(report: Report) -> set[str]:
    return {candidate.name for candidate in report.candidates if candidate.on_front}


def _visible(name: str, front: set[str]) -> bool | str:
    """Many curves are a tangle: those off the front wait in the legend."""
    return name in front or not front or "legendonly"
