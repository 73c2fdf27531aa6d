"""Maps of a plan: blocks x kinds, and the density inside each tensor."""

import math
from collections.abc import Sequence
from typing import Any

from paretune.report.axes import Figure, chart_layout, said


def plan_figures(plan: dict[str, Any]) -> dict[str, Any]:
    """The ``map`` of a plan and a figure for each of its ``tensors`` with a density, in order."""
    drawn = [tensor for tensor in plan["tensors"] if tensor["density"]]
    return {"map": _map(plan["map"]), "tensors": [_density(tensor) for tensor in drawn]}


def _map(cells: dict[str, Any]) -> Figure:
    """Blocks down, kinds across, the number of trained weights in each cell."""
    blocks = ["outside" if block is None else f"block {block}" for block in cells["blocks"]]
    counts = cells["counts"]
    texts = [[f"{n:,}" if n else "" for n in row] for row in counts]
    trace = {
        "type": "heatmap",
        "x": [said(kind) for kind in cells["kinds"]],
        "y": blocks,
        # The square root keeps small cells visible beside large ones; the text says the count.
        "z": [[math.sqrt(n) if n else None for n in row] for row in counts],
        "text": texts,
        "texttemplate": "%{text}",
        "hovertemplate": "%{y}, %{x}: %{text} weights<extra></extra>",
        "hoverongaps": False,
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
        "zmin": 0,
    }
    y = {"autorange": "reversed", "type": "category"}
    layout = chart_layout({"type": "category", "side": "top", "showgrid": False}, y | {"showgrid": False})
    return {"data": [trace], "layout": layout | {"height": 90 + 34 * max(len(blocks), 1)}}


def _density(tensor: dict[str, Any]) -> Figure:
    """The share of selected entries over the cells of one tensor."""
    density = tensor["density"]
    rows, columns = _spans(density["row_ends"]), _spans(density["column_ends"])
    shares = [
        [
            100 * n / ((row[1] - row[0]) * (column[1] - column[0]))
            for n, column in zip(line, columns, strict=True)
        ]
        for line, row in zip(density["counts"], rows, strict=True)
    ]
    trace = {
        "type": "heatmap",
        "x": [_span(column) for column in columns],
        "y": [_span(row) for row in rows],
        "z": [[float(f"{share:.3g}") for share in line] for line in shares],
        "zmin": 0,
        "hovertemplate": "rows %{y}, columns %{x}: %{z:.3g} % of the weights<extra></extra>",
        "colorbar": {"title": {"text": "%"}, "thickness": 12, "outlinewidth": 0},
    }
    x = {"title": {"text": "columns"}, "type": "category", "nticks": 6}
    y = {"title": {"text": "rows"}, "type": "category", "autorange": "reversed", "nticks": 6}
    height = 170 if len(rows) == 1 else 380
    return {"data": [trace], "layout": chart_layout(x, y) | {"height": height}}


def _spans(ends: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _span(span: tuple[int, int]) -> str:
    return f"{span[0]:,}" if span[1] - span[0] == 1 else f"{span[0]:,} to {span[1] - 1:,}"
