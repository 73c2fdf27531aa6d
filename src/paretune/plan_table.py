"""A plan as a table that fits 80 columns: what would train, where, and what it costs."""

import math
import textwrap
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from paretune.plan import Plan

OPTIMISER_BYTES = 12  # fp32 gradient and AdamW's two moments, for each trained weight
SHADES = " ░▒▓█"
WIDTH = 80  # columns
LISTED = 20  # rows of a method's own table
STEPS = 9  # sizes at which a predicted front is shown


def plan_table(plan: Plan) -> str:
    """The plan's counts, costs, and its map of blocks x kinds."""
    counts = cell_counts(plan)
    share = f" of {plan.weights:,}: {plan.count / plan.weights:.3%}" if plan.weights else ""
    asked = f" (asked: {plan.asked})" if plan.asked else ""
    lines = [
        _title(plan),
        f"trains   {plan.count:,} weights{share}{asked}",
        f"head     {plan.head_count:,} weights ({plan.head_rule} the budget)",
        f"delta    about {readable_bytes(delta_bytes(plan))}",
        f"training {readable_bytes(OPTIMISER_BYTES * plan.trained)} of gradients and optimiser state",
    ]
    if plan.selections:
        lines += textwrap.wrap(_selected(plan), WIDTH, initial_indent="selects  ", subsequent_indent=" " * 9)
    if plan.settings:
        settings = "settings " + ", ".join(f"{name}={value}" for name, value in plan.settings.items())
        lines += textwrap.wrap(settings, WIDTH, subsequent_indent=" " * 9)
    if counts:
        lines += ["", *_map(counts)]
    if "table" in plan.notes:
        lines += ["", *_listing(**plan.notes["table"])]
    if "front" in plan.notes:
        lines += ["", *front_table(plan)]
    return "\n".join(lines)


def _title(plan: Plan) -> str:
    """The method and the model, of whose path the end is kept where it is long."""
    method, dtype, model = f"{plan.method} on ", f" ({plan.base.dtype})", str(plan.base.model)
    room = WIDTH - len(method) - len(dtype)
    return method + (model if len(model) <= room else f"...{model[3 - room :]}") + dtype


def _selected(plan: Plan) -> str:
    """How many units of each granularity, of how many tensors."""
    units: Counter[str] = Counter()
    tensors: Counter[str] = Counter()
    for selection in plan.selections:
        units[selection.granularity] += 0 if selection.indices is None else len(selection.indices)
        tensors[selection.granularity] += 1
    said = []
    for kind, count in tensors.items():
        what = "tensors" if count > 1 else "tensor"
        said.append(
            f"{count:,} whole {what}" if kind == "all" else f"{units[kind]:,} {kind} of {count:,} {what}"
        )
    return ", ".join(said)


def _listing(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """What a method lists in its notes: a title and a table, text to the left and numbers to the right."""
    texts = [list(columns), *([_cell(value) for value in row] for row in rows[:LISTED])]
    widths = [max(len(row[place]) for row in texts) for place in range(len(columns))]
    longest = widths.index(max(widths))
    widths[longest] = min(widths[longest], WIDTH - sum(widths) - 2 * len(widths) + widths[longest] + 2)
    left = [isinstance(value, str) for value in (rows[0] if rows else columns)]
    lines = [title]
    for row in texts:
        cells = []
        for text, width, is_text in zip(row, widths, left, strict=True):
            text = text if len(text) <= width else f"...{text[3 - width :]}"
            cells.append(f"{text:<{width}}" if is_text else f"{text:>{width}}")
        lines.append("  ".join(cells).rstrip())
    return [*lines, f"and {len(rows) - LISTED} more"] if len(rows) > LISTED else lines


def front_table(plan: Plan) -> list[str]:
    """The predicted front of a plan that has one: what the best choice of each size would gain."""
    front = [step for step in plan.notes["front"] if step[0] > 0]
    if not front:
        return []
    low, high = front[0][0], front[-1][0]
    aims = [round(low * (high / low) ** (place / (STEPS - 1))) for place in range(STEPS)]
    shown = {max(bisect_right(front, aim, key=lambda step: step[0]) - 1, 0) for aim in aims}
    rows = [
        [f"{weights:,}", f"{weights / plan.weights:.3%}" if plan.weights else "-", gain, items]
        for weights, gain, items in (front[place] for place in sorted(shown))
    ]
    taken = f"{plan.notes['gain']:.3g}" if "gain" in plan.notes else "-"
    title = f"Predicted front; predicted for this plan: {taken}"
    return _listing(title, ["weights", "share", "gain", "items"], rows)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def cell_counts(plan: Plan) -> dict[tuple[int | None, str], int]:
    """Trained weights by (block number or None, kind); added modules count under their strategy's name."""
    cells: Counter[tuple[int | None, str]] = Counter()
    for selection in plan.selections:
        block, kind = plan.places.get(selection.tensor, [None, "other"])
        cells[block, kind] += selection.count
    for addition in plan.additions:
        block, kind = plan.places.get(f"{addition.strategy}:{addition.module}", [None, addition.strategy])
        cells[block, kind] += addition.count
    return dict(cells)


def delta_bytes(plan: Plan) -> int:
    """About how large the delta will be: values in the base's dtype, indices at their coded size."""
    width = 2 if plan.base.dtype in ("bfloat16", "float16") else 4
    total = 0.0
    for selection in (*plan.selections, *plan.head):
        total += width * selection.count + 80
        if selection.indices is not None and len(selection.indices):
            bits = 1.6 + math.log2(
                selection.bound / len(selection.indices)
            )  # a Rice code, see docs/format.md
            total += len(selection.indices) * bits / 8
    return round(total + sum(4 * addition.count + 160 for addition in plan.additions))


def _map(cells: dict[tuple[int | None, str], int]) -> list[str]:
    """Blocks down, kinds across; the shade of a cell is its share of the largest one."""
    of_kind: Counter[str] = Counter()
    for (_, kind), count in cells.items():
        of_kind[kind] += count
    kinds = [kind for kind, _ in of_kind.most_common()]
    blocks = sorted({block for block, _ in cells}, key=lambda block: (block is None, block or 0))
    highest = max(cells.values())

    def column(kind: str, write: Callable[[int], str]) -> list[str]:
        counts = [cells.get((block, kind), 0) for block in blocks]
        texts = [f"{write(n)} {_shade(n, highest)}" if n else "- " for n in counts]
        width = max(map(len, [kind, *texts])) + 2
        return [f"{text:>{width}}" for text in (kind, *texts)]

    totals = [f"{sum(n for (at, _), n in cells.items() if at == block):,}" for block in blocks]
    width = max(map(len, totals)) + 2
    last = [f"{text:>{width}}" for text in ("all", *totals)]
    labels = ["block", *("outside" if block is None else str(block) for block in blocks)]
    for write in (lambda count: f"{count:,}", _short):
        columns = [column(kind, write) for kind in kinds]
        lines = [f"{label:<7}" + "".join(row) for label, *row in zip(labels, *columns, last, strict=True)]
        if len(lines[0]) <= WIDTH:
            break
    return lines


def _shade(count: int, highest: int) -> str:
    return SHADES[round((len(SHADES) - 1) * count / highest)]


def _short(count: int) -> str:
    """A count in at most four characters."""
    size = min((len(str(count)) - 1) // 3, 3)
    return f"{round(count / 1000**size)}{['', 'k', 'M', 'G'][size]}"


def readable_bytes(count: float) -> str:
    """A number of bytes in B, KiB, MiB or GiB."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
