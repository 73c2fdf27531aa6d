"""A plan for the report: the map of blocks x kinds, each tensor's share and the density inside it."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from paretune.plan import Plan
from paretune.plan_table import cell_counts, delta_bytes
from paretune.report.reading import Fields
from paretune.selection import Selection

GRID = 20  # cells a side, at most, of a tensor's density
DRAWN = 24  # tensors of a plan whose density is kept, those with the most trained weights: bounds the page


def plan_document(folder: Path, name: str) -> dict[str, Any]:
    """A saved plan as the report shows it.

    Args:
        folder: The plan's folder.
        name: What the report calls it.

    Raises:
        PareError: No plan there, a newer schema, or a damaged file.
    """
    plan = Plan.load(folder)
    cells = cell_counts(plan)
    blocks = sorted({block for block, _ in cells}, key=lambda block: (block is None, block or 0))
    of_kind = {kind: sum(n for (_, k), n in cells.items() if k == kind) for _, kind in cells}
    kinds = sorted(of_kind, key=lambda kind: -of_kind[kind])
    return {
        "name": name,
        "digest": plan.digest,
        "method": plan.method,
        "settings": plan.settings,
        "seed": plan.seed,
        "model": plan.base.model,
        "dtype": plan.base.dtype,
        "asked": plan.asked,
        "trained": plan.count,
        "head": plan.head_count,
        "head_rule": plan.head_rule,
        "weights": plan.weights,
        "delta_bytes": delta_bytes(plan),
        "map": {
            "blocks": blocks,
            "kinds": kinds,
            "counts": [[cells.get((block, kind), 0) for kind in kinds] for block in blocks],
        },
        "tensors": _tensors(plan),
        "additions": [
            {"strategy": a.strategy, "module": a.module, "size": a.size, "count": a.count}
            for a in plan.additions
        ],
        "table": _table(plan.notes.get("table")),
        "kept": _kept(plan.notes.get("kept")),
    }


def _tensors(plan: Plan) -> list[dict[str, Any]]:
    """Every tensor with a selection, in the model's order; the density inside the fullest ones."""
    parted = [s for s in plan.selections if s.granularity != "all" and s.count]
    drawn = {s.tensor for s in sorted(parted, key=lambda s: -s.count)[:DRAWN]}
    rows = []
    for selection in plan.selections:
        block, kind = plan.places.get(selection.tensor, [None, "other"])
        rows.append(
            {
                "name": selection.tensor,
                "block": block,
                "kind": kind,
                "shape": list(selection.shape),
                "granularity": selection.granularity,
                "count": selection.count,
                "density": density(selection) if selection.tensor in drawn else None,
            }
        )
    return rows


def _table(table: Any) -> dict[str, Any] | None:
    """A method's own table; None where its notes hold none."""
    if not isinstance(table, dict) or not {"title", "columns", "rows"} <= table.keys():
        return None
    rows = [list(row) for row in table["rows"]]
    return {"title": str(table["title"]), "columns": list(table["columns"]), "rows": rows}


def _kept(samples: Any) -> list[dict[str, Any]]:
    """The samples that a method kept, as in :mod:`paretune.methods.samples`."""
    rows = [Fields(sample, "the plan's kept samples") for sample in samples or []]
    return [
        {"loss": row.number("loss"), "label": row.text("label"), "text": row.text("text")} for row in rows
    ]


def density(selection: Selection) -> dict[str, Any]:
    """How many of a tensor's weights are selected, over a grid of cells of nearly equal size.

    Args:
        selection: Of a tensor; a vector is one row, further dimensions are taken as columns.

    Returns:
        ``row_ends`` and ``column_ends`` (where the cells end) and ``counts``, one list for each row of cells.
    """
    rows = selection.shape[0] if len(selection.shape) > 1 else 1
    columns = selection.numel // rows
    at_row, at_column = np.divmod(selection.flat(), columns)
    row_ends, column_ends = _ends(rows), _ends(columns)
    counts, *_ = np.histogram2d(at_row, at_column, bins=[[0, *row_ends], [0, *column_ends]])
    return {
        "row_ends": row_ends,
        "column_ends": column_ends,
        "counts": counts.astype(np.int64).tolist(),
    }


def _ends(size: int) -> list[int]:
    """Where the cells of one side end."""
    cells = min(GRID, size)
    return [math.floor(size * (place + 1) / cells) for place in range(cells)]
