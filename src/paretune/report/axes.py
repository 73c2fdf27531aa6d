"""What the report's charts share: texts made safe, ticks, bars, layout."""

import html
import math
from collections.abc import Sequence
from typing import Any

from paretune.plan_table import readable_bytes

Figure = dict[str, Any]  # a plotly figure as JSON

# Eight colours that stay apart for most colour-blind eyes and on both grounds; symbols tell the rest apart.
COLOURS = ("#2f7ed8", "#e07b1f", "#23a06f", "#c84f92", "#8a6fd1", "#b3932b", "#3aa6b9", "#d2574a")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "pentagon")
DASHES = ("solid", "dash", "dot", "dashdot")


def said(text: object) -> str:
    """A text from a file, such that plotly shows it and reads nothing in it."""
    return html.escape(str(text).replace("\n", " "), quote=True)


def error_bars(rows: Sequence[tuple[float | None, float | None, float | None]], colour: str) -> Figure:
    """Bars from the low to the high end of (value, low, high); none where an end is missing."""
    up = [h - v if v is not None and h is not None else None for v, _, h in rows]
    down = [v - low if v is not None and low is not None else None for v, low, _ in rows]
    return {
        "type": "data",
        "symmetric": False,
        "array": up,
        "arrayminus": down,
        "color": colour,
        "thickness": 1.3,
        "width": 4,
    }


def score_axis(metric: str, scores: Sequence[float | None]) -> Figure:
    """The axis of scores; scores that are all the same do not make it span whole numbers."""
    values = [score for score in scores if score is not None]
    axis: Figure = {"title": {"text": said(metric)}}
    if values and max(values) - min(values) < 1e-9:
        room = max(0.1 * abs(values[0]), 0.01)
        axis["range"] = [values[0] - room, values[0] + room]
    return axis


def log_ticks(values: Sequence[float], form: str) -> Figure:
    """Ticks at 1, 2 and 5 times powers of ten, written in the axis's own form."""
    positive = [value for value in values if value > 0]
    if not positive:
        return {}
    low, high = math.log10(min(positive)), math.log10(max(positive))
    room = max(0.04 * (high - low), 0.08)
    steps = (1,) if high - low > 2.5 else (1, 3) if high - low > 1.2 else (1, 2, 5)
    if form == "bytes":
        ticks = [float(base * 1024**power) for power in range(5) for base in (1, 4, 16, 64, 256)]
        ticks += [2.0 * tick for tick in ticks] if high - low < 1.2 else []
    else:
        powers = range(math.floor(low) - 1, math.ceil(high) + 1)
        ticks = [step * 10.0**power for power in powers for step in steps]
    shown = sorted(tick for tick in ticks if low - room <= math.log10(tick) <= high + room)
    return {
        "range": [low - room, high + room],
        "tickvals": shown,
        "ticktext": [written(tick, form) for tick in shown],
    }


def written(value: float, form: str) -> str:
    """A value as an axis shows it: ``bytes``, ``,`` (k, M, G) or a format specification."""
    if form == "bytes":
        return readable_bytes(value).replace(".0 ", " ").replace(".00 ", " ")
    if form == ",":
        for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if value >= size:
                return f"{value / size:.3g}{unit}"
        return f"{value:.0f}"
    return f"{value:{form}}"


def chart_layout(x: Figure, y: Figure) -> Figure:
    """What all charts share; colours are the page's."""
    common = {"automargin": True, "zeroline": False}
    return {
        "xaxis": common | x,
        "yaxis": common | y,
        "margin": {"l": 10, "r": 10, "t": 16, "b": 10},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "legend": {"orientation": "h", "x": 0, "yref": "container", "y": 0, "yanchor": "bottom"},
        "hoverlabel": {"align": "left"},
        "hovermode": "closest",
        "height": 360,
    }
