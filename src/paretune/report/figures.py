"""The report's charts, as plotly figures in JSON; the page gives them the theme's colours.

Whatever comes from a data file passes :func:`paretune.report.axes.said` on its way into a figure: plotly
reads a few HTML tags.
"""

import math
from collections.abc import Sequence
from typing import Any

from paretune.report.axes import (
    COLOURS,
    SYMBOLS,
    Figure,
    chart_layout,
    error_bars,
    log_ticks,
    said,
    score_axis,
    written,
)
from paretune.report.curves import loss_curves, rate_curves
from paretune.report.document import Report
from paretune.report.maps import plan_figures
from paretune.report.records import Candidate

COSTS: dict[str, tuple[str, str]] = {  # field of a candidate: what the axis says, how a value is written
    "trained": ("trained weights, head included", ","),
    "delta_bytes": ("size of the delta", "bytes"),
    "peak_bytes": ("peak memory", "bytes"),
    "step_seconds": ("seconds a training step", ".3g"),
}


def figures(report: Report) -> dict[str, Any]:
    """Every chart of a report by name; what there is no data for is left out.

    Returns:
        ``front`` (one figure for each cost), ``predicted``, ``rates``, ``losses``, and ``plans``: for each
        plan its ``map`` and a figure for each of the ``tensors`` with a density, in order.
    """
    style = _styles(report)
    found: dict[str, Any] = {"plans": [plan_figures(plan) for plan in report.plans]}
    scored = [candidate for candidate in report.candidates if candidate.score is not None]
    if scored and report.kind == "front":
        found["front"] = {
            cost: _front(report, scored, cost, style) for cost in COSTS if any(_cost(c, cost) for c in scored)
        }
    if any(candidate.predicted is not None for candidate in scored):
        found["predicted"] = _predicted(report, scored, style)
    if report.rates:
        found["rates"] = rate_curves(report, style)
    if any(trial.losses for trial in report.trials):
        found["losses"] = loss_curves(report, style)
    return found


def _styles(report: Report) -> dict[str, tuple[str, str]]:
    """Colour and symbol of every method."""
    methods = dict.fromkeys([*(c.method for c in report.candidates), *(t.method for t in report.trials)])
    return {
        method: (COLOURS[place % len(COLOURS)], SYMBOLS[(place + place // len(COLOURS)) % len(SYMBOLS)])
        for place, method in enumerate(methods)
    }


def _cost(candidate: Candidate, cost: str) -> float:
    """The cost, 0 where it is not known."""
    if cost == "trained":
        return candidate.trained + candidate.head
    return getattr(candidate, cost) or 0


def _front(report: Report, scored: Sequence[Candidate], cost: str, style: dict[str, Any]) -> Figure:
    """Score over a cost: a point a candidate with its interval, and the front as a line."""
    known = [candidate for candidate in scored if _cost(candidate, cost) > 0]
    best = [candidate for candidate in known if _is_on_front(report, known, candidate, cost)]
    at = _side_by_side(known, cost)
    traces = [_front_line(best, at, cost)]
    for method in dict.fromkeys(candidate.method for candidate in known):
        mine = [candidate for candidate in known if candidate.method == method]
        parts = [[c for c in mine if c not in best], [c for c in mine if c in best]]
        for part in (part for part in parts if part):
            named = part is parts[-1] or not parts[-1]  # one entry of the legend a method
            traces.append(_points(part, report, cost, at, style[method], part is parts[-1], named))
    title, form = COSTS[cost]
    axis = {"title": {"text": title}, "type": "log", **log_ticks([_cost(c, cost) for c in known], form)}
    return {"data": traces, "layout": chart_layout(axis, score_axis(report.metric, [c.score for c in known]))}


def _points(
    mine: Sequence[Candidate],
    report: Report,
    cost: str,
    at: dict[str, float],
    style: tuple[str, str],
    on_front: bool,
    named: bool,
) -> Figure:
    """The candidates of one method, on the front or off it."""
    colour, symbol = style
    return {
        "type": "scatter",
        "mode": "markers",
        "name": said(mine[0].method),
        "legendgroup": said(mine[0].method),
        "showlegend": named,
        "x": [at[candidate.name] for candidate in mine],
        "y": [candidate.score for candidate in mine],
        "error_y": error_bars([(c.score, c.low, c.high) for c in mine], colour),
        "marker": {
            "symbol": [symbol if _is_whole(report, each) else f"{symbol}-open" for each in mine],
            "color": colour,
            "size": 13 if on_front else 9,
        },
        "opacity": 1.0 if on_front else 0.7,
        "hoverinfo": "text",
        "hovertext": [_hover(candidate, report, cost) for candidate in mine],
        # The page finds the candidate of a point by its place in the report.
        "customdata": [report.candidates.index(candidate) for candidate in mine],
    }


def _side_by_side(known: Sequence[Candidate], cost: str) -> dict[str, float]:
    """Where each candidate stands: those of nearly one cost beside each other instead of on each other."""
    logs = {candidate.name: math.log10(_cost(candidate, cost)) for candidate in known}
    span = max(max(logs.values(), default=0.0) - min(logs.values(), default=0.0), 0.3)
    groups: list[list[str]] = []
    for name in sorted(logs, key=lambda name: logs[name]):
        if groups and logs[name] - logs[groups[-1][0]] < span / 100:
            groups[-1].append(name)
        else:
            groups.append([name])
    at = {}
    for group in groups:
        step = span * min(0.012, 0.05 / len(group))
        for place, name in enumerate(group):
            at[name] = 10 ** (logs[group[0]] + step * (place - (len(group) - 1) / 2))
    return at


def _front_line(best: Sequence[Candidate], at: dict[str, float], cost: str) -> Figure:
    ordered = sorted(best, key=lambda candidate: (_cost(candidate, cost), candidate.score))
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "front",
        "x": [at[candidate.name] for candidate in ordered],
        "y": [candidate.score for candidate in ordered],
        "line": {"shape": "hv", "width": 2, "dash": "dot", "color": "#888888"},
        "hoverinfo": "skip",
    }


def _is_on_front(report: Report, known: Sequence[Candidate], candidate: Candidate, cost: str) -> bool:
    """On the run's own front over trained weights; over another cost, whether nobody beats it on both."""
    if cost == "trained" and any(each.on_front for each in known):
        return candidate.on_front
    if not _is_whole(report, candidate):
        return False
    known = [each for each in known if _is_whole(report, each)]
    sign = 1 if report.higher_is_better else -1
    mine = (sign * (candidate.score or 0), -_cost(candidate, cost))
    others = [(sign * (each.score or 0), -_cost(each, cost)) for each in known]
    return not any(a >= mine[0] and b >= mine[1] and (a, b) != mine for a, b in others)


def _is_whole(report: Report, candidate: Candidate) -> bool:
    """Whether it was trained for as many of the steps as any; the others were stopped on the way."""
    return (candidate.share or 0) >= max(each.share or 0 for each in report.candidates)


def _hover(candidate: Candidate, report: Report, cost: str) -> str:
    """What a point says: the plan, the score, the settings, the seeds."""
    interval = ""
    if candidate.low is not None and candidate.high is not None:
        interval = f" ({candidate.low:.4f} to {candidate.high:.4f})"
    lines = [
        f"<b>{said(candidate.name)}</b>",
        f"{said(report.metric)} {candidate.score:.4f}{interval}",
        f"{candidate.trained:,} trained + {candidate.head:,} head",
        f"{candidate.n} trials, seeds {', '.join(map(str, candidate.seeds)) or 'not known'}",
    ]
    if candidate.lr is not None:
        share = "" if candidate.share is None else f", {candidate.share:.0%} of the steps"
        lines.append(f"lr {candidate.lr:g}{share}")
    if cost != "trained":
        title, form = COSTS[cost]
        lines.append(f"{title} {written(_cost(candidate, cost), form)}")
    settings = [f"{said(name)}={said(value)}" for name, value in candidate.settings.items()]
    return "<br>".join([*lines, *settings[:6], *(["…"] if len(settings) > 6 else [])])


def _predicted(report: Report, scored: Sequence[Candidate], style: dict[str, Any]) -> Figure:
    """Measured score over the gain that was predicted before anything was trained."""
    traces: list[Figure] = []
    known = [candidate for candidate in scored if candidate.predicted is not None]
    for method in dict.fromkeys(candidate.method for candidate in known):
        colour, symbol = style[method]
        mine = [candidate for candidate in known if candidate.method == method]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": said(method),
                "x": [candidate.predicted for candidate in mine],
                "y": [candidate.score for candidate in mine],
                "error_y": error_bars([(c.score, c.low, c.high) for c in mine], colour),
                "marker": {
                    "color": colour,
                    "symbol": [symbol if _is_whole(report, each) else f"{symbol}-open" for each in mine],
                    "size": 10,
                },
                "hoverinfo": "text",
                "hovertext": [
                    f"<b>{said(c.name)}</b><br>predicted gain {c.predicted:.3g}"
                    f"<br>{said(report.metric)} {c.score:.4f}"
                    for c in mine
                ],
            }
        )
    y = score_axis(report.metric, [candidate.score for candidate in known])
    return {"data": traces, "layout": chart_layout({"title": {"text": "predicted gain"}}, y)}
