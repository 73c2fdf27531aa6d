"""Which learning rate a budget wants: one seed on held-out train, rates in steps of two to three.

``python -m experiments.small_budgets`` writes ``docs/results/small_budgets.jsonl`` line by line (it can be
killed and goes on), then ``docs/results/small_budgets.md``; its last line is JSON.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.runner import (
    STARTS,
    STEPS,
    Job,
    add_start,
    best_rates,
    metric_name,
    rates_to_try,
    read,
    run,
)
from paretune.files import write_atomic
from paretune.search.tune import middle

RESULTS = Path(__file__).parents[1] / "docs" / "results"
# By budget: rates around where the best was expected.
RATES: dict[str, tuple[float, ...]] = {
    "0.5%": (1.5e-3, 5e-3, 1e-2, 1.5e-2),
    "0.2%": (5e-3, 1e-2, 2e-2, 5e-2),
    "0.05%": (1e-2, 2e-2, 5e-2, 1.5e-1),
    "0.02%": (2e-2, 5e-2, 1.5e-1, 5e-1),
    "2%": (5e-4, 1.5e-3, 5e-3, 1e-2),
}
METHODS = ("random", "fish")


def main() -> None:
    """Run what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=["cola"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--budgets", nargs="+", default=list(RATES))
    parser.add_argument("--page-only", action="store_true")
    add_start(parser)
    options = parser.parse_args()
    path = RESULTS / "small_budgets.jsonl"
    jobs = [
        Job(
            task,
            method,
            lr,
            budget,
            steps=STEPS[task],
            split="heldout",
            label=method,
            start=options.start,
        )
        for task in options.tasks
        for budget in options.budgets
        for method in options.methods
        for lr in RATES[budget]
    ]
    rows = read(path) if options.page_only else run(jobs, path)
    rows = [row for row in rows if row["start"] == options.start]
    write_atomic(path.with_suffix(".md"), page(rows, options.start))
    best = {" ".join(map(str, place)): rate for place, rate in best_rates(rows).items()}
    print(json.dumps({"runs": len(rows), "best": best}))


def page(rows: Sequence[dict[str, Any]], start: str) -> str:
    """Markdown: by task and method, the scores of a budget over its learning rates."""
    lines = [
        "# Which learning rate a budget wants",
        "",
        "Built-in encoder, bf16 autocast, one seed; score on held-out train times 100 (its loss) at each",
        "learning rate. The last column is the rate that `tune` takes when none is asked for: the middle of",
        "the method's range, which follows the share of the model that is trained. The bias of a new head",
        f"begins at {STARTS[start]}. `python -m experiments.small_budgets --start {start}` makes this page.",
    ]
    for task, method in dict.fromkeys((row["task"], row["method"]) for row in rows):
        here = [row for row in rows if (row["task"], row["method"]) == (task, method)]
        lines += ["", f"## {method} on {task} ({metric_name(task)}), {here[0]['steps']} steps", ""]
        lines += ["| budget | learning rate: score (loss) | default |", "|---|---|---|"]
        for budget in sorted({row["budget"] for row in here}, key=lambda text: -float(text.rstrip("%"))):
            found = sorted((row for row in here if row["budget"] == budget), key=lambda row: row["lr"])
            cells = ", ".join(_cell(row) for row in found)
            lines.append(f"| {budget} | {cells} | {middle(rates_to_try(method, {}, budget)):g} |")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"{row['lr']:g}: diverged"
    return f"{row['lr']:g}: {100 * row['score']:.1f} ({row['scores']['loss']:.3f})"


if __name__ == "__main__":
    main()
