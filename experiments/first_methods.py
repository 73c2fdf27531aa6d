"""The first methods at one budget: learning rates tuned on held-out train, then three seeds on validation.

``python -m experiments.first_methods`` writes ``docs/results/first_methods.jsonl`` line by line (it can be
killed and goes on), then ``docs/results/first_methods.md``; its last line is JSON.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from experiments.runner import Job, best_rates, read, run
from paretune.files import write_atomic
from paretune.methods import make_method
from paretune.search.tune import middle

RESULTS = Path(__file__).parents[1] / "docs" / "results"
BUDGET = "0.5%"


def variants() -> list[tuple[str, str, str | None, dict[str, Any]]]:
    """Label, method, budget, settings."""
    return [
        ("head", "head", None, {}),
        ("bitfit", "bitfit", None, {}),
        ("lora all linears", "lora", BUDGET, {"targets": "all"}),
        ("lora query+value", "lora", BUDGET, {"targets": "peft"}),
        ("random", "random", BUDGET, {}),
        ("random everywhere", "random", BUDGET, {"within": "all"}),
        ("magnitude", "magnitude", BUDGET, {}),
        ("gradient", "gradient", BUDGET, {}),
        ("fish", "fish", BUDGET, {}),
        ("fish, published", "fish", BUDGET, {"reading": "published"}),
        ("full", "full", None, {}),
    ]


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=["mrpc", "cola"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", nargs="+", type=int, default=[300, 700], help="one number a task")
    parser.add_argument("--default-rates", action="store_true", help="the product's, instead of a sweep")
    parser.add_argument("--only", nargs="+", help="labels of the variants to run; default: all")
    options = parser.parse_args()
    chosen = [variant for variant in variants() if not options.only or variant[0] in options.only]
    path = RESULTS / "first_methods.jsonl"
    steps = dict(zip(options.tasks, options.steps, strict=True))

    tuning = (
        []
        if options.default_rates
        else [
            Job(task, method, lr, budget, settings, steps=steps[task], split="heldout", label=label)
            for task in options.tasks
            for label, method, budget, settings in chosen
            for lr in make_method(method, settings).learning_rates
        ]
    )
    run(tuning, path)
    rates = best_rates(read(path))
    if options.default_rates:
        rates = {
            (task, label, budget): middle(make_method(method, settings).learning_rates)
            for task in options.tasks
            for label, method, budget, settings in chosen
        }
    final = [
        Job(
            task,
            method,
            rates[task, label, budget],
            budget,
            settings,
            seed=seed,
            steps=steps[task],
            label=label,
        )
        for seed in range(options.seeds)
        for task in options.tasks
        for label, method, budget, settings in chosen
    ]
    rows = run(final, path)
    write_atomic(RESULTS / "first_methods.md", table(rows, options))
    means = {
        f"{task} {label}": statistics.mean(
            r["score"] for r in rows if (r["task"], r["label"]) == (task, label)
        )
        for task in options.tasks
        for label, *_ in chosen
    }
    print(json.dumps({"means": means, "seeds": options.seeds, "steps": steps}))


def table(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """Markdown: mean, spread and loss of every method on every task."""
    steps = " and ".join(map(str, options.steps))
    tasks, seeds = options.tasks, len({row["seed"] for row in rows})
    rates = (
        "the methods' defaults"
        if options.default_rates
        else "by a sweep on held-out train (seed 0), then fixed"
    )
    lines = [
        "# The first methods at 0.5 %",
        "",
        f"Built-in encoder, {steps} steps of 32, bf16 autocast, {seeds} seeds; learning rates:",
        f"{rates}. Score: F1 (mrpc), Matthews correlation (cola), Spearman (stsb), times 100:",
        "mean (lowest to highest). `python -m experiments.first_methods` makes this page.",
        "",
        "| method | trained | " + " | ".join(f"{task} | lr | train loss" for task in tasks) + " |",
        "|---|---|" + "---|---|---|" * len(tasks),
    ]
    for label in dict.fromkeys(row["label"] for row in rows):
        cells = []
        trained = 0
        for task in tasks:
            of = [row for row in rows if row["task"] == task and row["label"] == label]
            scores = [100 * row["score"] for row in of]
            trained = of[0]["trained"]
            loss = statistics.mean(row["losses"][-1][1] for row in of)
            spread = f"({min(scores):.1f} to {max(scores):.1f})"
            cells.append(f"{statistics.mean(scores):.1f} {spread} | {of[0]['lr']:g} | {loss:.3f}")
        lines.append(f"| {label} | {trained:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
