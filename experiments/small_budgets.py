"""Which learning rate a budget wants: one seed on held-out train, rates in steps of about three.

``python -m experiments.small_budgets`` writes ``docs/results/small_budgets.jsonl`` line by line (it can be
killed and goes on), then ``docs/results/small_budgets.md``; its last line is JSON.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from experiments.runner import Job, best_rates, read, run
from paretune.files import write_atomic

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
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--page-only", action="store_true")
    options = parser.parse_args()
    path = RESULTS / "small_budgets.jsonl"
    jobs = [
        Job(task, method, lr, budget, steps=options.steps, split="heldout", label=method)
        for task in options.tasks
        for budget in options.budgets
        for method in options.methods
        for lr in RATES[budget]
    ]
    rows = read(path) if options.page_only else run(jobs, path)
    print(json.dumps({"runs": len(rows)}))


if __name__ == "__main__":
    main()
