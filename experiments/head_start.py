"""Where a new head's bias begins: at the labels' prior, as in paretune, or at zero, as in transformers.

``python -m experiments.head_start`` writes docs/results/head_start.jsonl line by line (it can be killed and
goes on), then head_start.md; its last line is JSON. Every method has its own learning rate under either
start, the best of its four on held-out train (seed 0); the seeds of the report are the same for both.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from experiments.front import SINGLES
from experiments.runner import (
    FIRST_SEED,
    STARTS,
    STEPS,
    Job,
    best_rates,
    metric_name,
    rates_to_try,
    read,
    run,
)
from paretune.files import write_atomic
from paretune.methods import METHODS
from paretune.search.field import read_method

RESULTS = Path(__file__).parents[1] / "docs" / "results"
Rows = Sequence[dict[str, Any]]


def main() -> None:
    """Run what is missing and write the page."""
    options = _options()
    path = RESULTS / "head_start.jsonl"
    if not options.page_only:
        for task, start in product(options.tasks, STARTS):
            _run(task, start, options, path)
    rows = [row for row in read(path) if row["split"] == "validation" and "failed" not in row]
    write_atomic(path.with_suffix(".md"), page(rows, options))
    print(json.dumps({"runs": len(rows), "means": means(rows, options)}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=["stsb", "cola"])
    parser.add_argument("--budget", default="0.5%")
    parser.add_argument("--methods", nargs="+", default=list(SINGLES))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--page-only", action="store_true", help="run nothing; write the page")
    return parser.parse_args()


def _run(task: str, start: str, options: argparse.Namespace, path: Path) -> None:
    def job(text: str, lr: float, seed: int, split: str) -> Job:
        name, settings = read_method(text)
        budget = options.budget if METHODS[name].sized else None
        return Job(task, name, lr, budget, settings, [], seed, STEPS[task], split, text, start)

    tuning = [job(text, lr, 0, "heldout") for text in options.methods for lr in _rates(text, options.budget)]
    best = {label: lr for (_, label, _), lr in best_rates(run(tuning, path)).items()}
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    run([job(text, best[text], seed, "validation") for seed in seeds for text in best], path)


def _rates(text: str, budget: str) -> tuple[float, ...]:
    name, settings = read_method(text)
    return rates_to_try(name, settings, budget if METHODS[name].sized else None)


def means(rows: Rows, options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """By task and method: the scores' means from zero and from the prior, over the seeds that both have."""
    found: dict[str, dict[str, list[float]]] = {}
    for task, text in product(options.tasks, options.methods):
        zero, prior = (
            {row["seed"]: row["score"] for row in rows if _is(row, task, text, start)}
            for start in ("zero", "prior")
        )
        both = zero.keys() & prior.keys()
        if both:
            pair = [round(100 * statistics.mean(of[seed] for seed in both), 1) for of in (zero, prior)]
            found.setdefault(task, {})[text] = [*pair, len(both)]
    return found


def _is(row: dict[str, Any], task: str, text: str, start: str) -> bool:
    return (row["task"], row["label"], row["start"]) == (task, text, start)


def page(rows: Rows, options: argparse.Namespace) -> str:
    """Markdown: a table a task."""
    lines = [
        "# Where a new head starts",
        "",
        f"Built-in encoder, {options.budget} of its weights, bf16 autocast. The bias of a new head begins at",
        "zero, as in transformers, or at the labels' prior (their mean, or the log of how often each class",
        "comes), as in paretune; all else is the same. Scores on validation times 100, means over seeds that",
        "no rate has seen; every method has its own learning rate under either start, the best of its four",
        "on held-out train. `python -m experiments.head_start` makes this page.",
    ]
    for task, found in means(rows, options).items():
        seeds = min(seeds for _, _, seeds in found.values())
        lines += [
            "",
            f"## {task} ({metric_name(task)}), {STEPS[task]} steps of 32, {seeds:g} seed(s) at least",
            "",
        ]
        lines += ["| method | from zero | from the prior | difference |", "|---|---|---|---|"]
        lines += [f"| {text} | {a} | {b} | {b - a:+.1f} |" for text, (a, b, _) in found.items()]
        gains = [b - a for a, b, _ in found.values()]
        lines += ["", f"Mean difference: {statistics.mean(gains):+.1f}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
