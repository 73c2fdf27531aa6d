"""Learning rates of the demo: whole runs on train, scored on its held-out part.

Rates beyond a method's range are asked for: ``--methods head --rates 0.1``, ``--methods lora --rates 5e-3``.

``python -m experiments.demo_rates`` writes ``docs/results/demo_rates.jsonl`` line by line (it can be killed
and goes on) and prints the best rate of each method; its last line is JSON.
"""

import argparse
import json
from pathlib import Path

from experiments.runner import read
from paretune.demo import BUDGET, EPOCHS, RUNS, SETTINGS
from paretune.errors import DivergedError
from paretune.methods import METHODS, choose
from paretune.progress import set_quiet
from paretune.search.trial import run_trial
from paretune.task import Task
from paretune.task.demo import model_folder, write_data
from paretune.tuning import Recipe

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "demo_rates.jsonl"


def main() -> None:
    """Run what is missing and print the best rates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("runs/demo/data"), help="(%(default)s)")
    parser.add_argument("--methods", nargs="+", default=[*(name for name, _ in RUNS), "full"])
    parser.add_argument("--rates", nargs="+", type=float, help="instead of each method's range")
    options = parser.parse_args()
    set_quiet(True)
    task = Task.from_files(*write_data(options.data), model=model_folder())
    rows = {(row["method"], row["lr"]): row for row in read(RESULTS) if row["data"] == task.fingerprint}
    for method in options.methods:
        for lr in options.rates or METHODS[method].learning_rates:
            if (method, lr) not in rows:
                rows[method, lr] = _trial(task, method, lr)
                with RESULTS.open("a") as file:
                    file.write(json.dumps(rows[method, lr]) + "\n")
                print(rows[method, lr])
    best = {}  # by the loss: of so few examples, accuracy says less
    for method in options.methods:
        good = [row for row in rows.values() if row["method"] == method and "score" in row]
        best[method] = min(good, key=lambda row: row["loss"])["lr"]
    print(json.dumps(best))


def _trial(task: Task, method: str, lr: float) -> dict[str, object]:
    """One whole run on train, scored on its held-out part."""
    model = task.load_model(seed=0)
    plan = choose(
        method, model, task, None if method == "full" else BUDGET, seed=0, **SETTINGS.get(method, {})
    )
    row = {"method": method, "lr": lr, "epochs": EPOCHS, "data": task.fingerprint, "trained": plan.count}
    try:
        outcome = run_trial(model, task, plan, Recipe(lr=lr, epochs=EPOCHS, precision="amp"), seed=0)
    except DivergedError as problem:
        return row | {"failed": str(problem)}
    return row | {"score": outcome.scores[task.metric], "loss": outcome.scores["loss"]}


if __name__ == "__main__":
    main()
