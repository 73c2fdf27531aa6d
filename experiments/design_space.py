"""A whole search of a design space on two tasks, and what it found beside single strategies on four.

``python -m experiments.design_space`` searches on mrpc and cola (held-out train decides), spends as many
trainings on tuning the single strategies, tunes every learning rate, then scores on validation, also on sst2
and stsb that the search never saw. It can be killed and goes on. It writes ``design_space.jsonl`` (a line a
training), ``design_space_TASK.json`` (the stages) and, after every part, ``design_space.md``; its last
line is JSON.
"""

import argparse
import json
import math
import statistics
from itertools import product
from pathlib import Path
from typing import Any

from experiments.runner import FIRST_SEED, STEPS, Job, best_rates, load_task, metric_name, read, run
from paretune.files import write_atomic
from paretune.methods import METHODS
from paretune.search.outcome import Outcome, stage_table
from paretune.search.ration import Limits
from paretune.search.search import search
from paretune.search.staged import Progress
from paretune.strategies import STRATEGIES
from paretune.tuning import Recipe

PUBLISHED = (
    "| T5 (the paper) | spindle | uniform | all "
    "| adapter+lora / adapter+prefix / adapter+prefix+bias / prefix+bias+lora | |"
)
ROOT = Path(__file__).parents[1]
STEPS_SAID = ", ".join(f"{STEPS[task]} ({task})" for task in ("mrpc", "cola", "sst2", "stsb"))
# What is tuned of each single strategy beside its learning rate; sizes follow from the budget.
SINGLES: dict[str, list[dict[str, Any]]] = {
    "adapter": [{"after": "mlp"}, {"after": "both"}],
    "prefix": [{"std": 0.02}, {"std": 0.2}],
    "bias": [{}],
    "lora": [{"targets": "all"}, {"targets": "attention"}, {"targets": "peft"}],
}
Variant = tuple[str, str, str | None, dict[str, Any]]  # label, method, budget, settings


def main() -> None:
    """Run what is missing and write the page."""
    options = _options()
    path = options.out / "design_space.jsonl"
    if not options.page_only:
        _run(options, path)
    found, rows, tasks = _write(options)
    means = {
        f"{task} {label}": statistics.mean(r["score"] for r in _of(rows, task, label))
        for task, label in product(tasks, dict.fromkeys(row["label"] for row in rows))
        if _of(rows, task, label)
    }
    print(json.dumps({"means": means, "search_equivalents": _spent(found)}))


def _run(options: argparse.Namespace, path: Path) -> None:
    """Search, tune, score; the page after each part, and after each seed of the scores."""
    for task in options.search_tasks:
        _search(task, options)
        _write(options)
    found = _found(options)
    singles = _tune_singles(options, path, _spent(found))
    variants: list[Variant] = [
        *(
            (f"found on {task}", "design", options.budget, _as_settings(r["design"]))
            for task, r in found.items()
        ),
        ("s4", "s4", options.budget, {}),
        *singles,
        ("full", "full", None, {}),
    ]
    tasks = list(dict.fromkeys([*options.search_tasks, *options.tasks]))
    rates = [
        Job(task, method, lr, budget, settings, steps=STEPS[task], split="heldout", label=label)
        for label, method, budget, settings in variants
        for task in tasks
        for lr in METHODS[method].learning_rates
    ]
    best = best_rates(run(rates, path))
    # Seeds that no search and no rate has seen; all methods and tasks of one before the next.
    for seed in range(FIRST_SEED, FIRST_SEED + options.seeds):
        run(
            [
                Job(
                    task,
                    method,
                    best[task, label, budget],
                    budget,
                    settings,
                    seed=seed,
                    steps=STEPS[task],
                    label=label,
                )
                for label, method, budget, settings in variants
                for task in tasks
                if (task, label, budget) in best
            ],
            path,
        )
        _write(options)


def _found(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The finished searches by task."""
    files = {task: options.out / f"design_space_{task}.json" for task in options.search_tasks}
    return {task: json.loads(file.read_text()) for task, file in files.items() if file.exists()}


def _spent(found: dict[str, dict[str, Any]]) -> float:
    """Whole trainings that the searches were worth."""
    return sum(result["equivalents"] for result in found.values())


def _write(
    options: argparse.Namespace,
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]], list[str]]:
    """The page from whatever is there; the searches, the scored runs, their tasks."""
    found = _found(options)
    lines = read(options.out / "design_space.jsonl")
    rows = [row for row in lines if row["split"] == "validation" and row["seed"] >= FIRST_SEED]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    write_atomic(options.out / "design_space.md", _page(options, found, _spent(found), rows, tasks))
    return found, rows, tasks


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--search-tasks", nargs="+", default=["mrpc", "cola"])
    parser.add_argument("--tasks", nargs="+", default=["mrpc", "cola", "sst2", "stsb"], help="to score on")
    parser.add_argument("--budget", default="0.5%")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, help="of a search")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES))
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "design_space", help="study files")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--page-only", action="store_true", help="run nothing; write the page")
    return parser.parse_args()


def _search(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The search on one task; goes on where it was."""

    def show(progress: Progress) -> None:
        left = f"{progress.ahead} trials, {progress.seconds / 60:.0f} min left"
        choice, score = progress.trial.choice, progress.scored.score
        print(f"{name} {progress.stage}: {choice} {score} ({left})", flush=True)

    result = search(
        load_task(name, 0),
        options.budget,
        options.runs / name,
        limits=Limits(options.trials, workers=options.workers),
        groups=options.groups,
        strategies=options.strategies,
        recipe=Recipe(lr=1.0, steps=STEPS[name], precision="amp"),
        say=print,
        show=show,
    )
    write_atomic(options.out / f"design_space_{name}.json", json.dumps(result, indent=1) + "\n")
    return result


def _tune_singles(options: argparse.Namespace, path: Path, spent: float) -> list[Variant]:
    """Each single strategy's best settings by held-out score; all together cost what the searches cost."""
    chosen: list[Variant] = []
    share = spent / sum(
        len(settings) * len(METHODS[name].learning_rates) for name, settings in SINGLES.items()
    )
    seeds = max(1, math.floor(share / len(options.search_tasks)))
    for name, grid in SINGLES.items():
        budget = options.budget if METHODS[name].sized else None
        jobs = [
            Job(task, name, lr, budget, settings, [], seed, STEPS[task], "heldout", f"tune {name} {place}")
            for seed in range(seeds)
            for task in options.search_tasks
            for place, settings in enumerate(grid)
            for lr in METHODS[name].learning_rates
        ]
        rows = [row for row in run(jobs, path) if "failed" not in row]
        place = max(range(len(grid)), key=lambda i: _worth(rows, f"tune {name} {i}", options.search_tasks))
        chosen.append((name, name, budget, grid[place]))
    return chosen


def _worth(rows: list[dict[str, Any]], label: str, tasks: list[str]) -> float:
    """The mean over tasks of the best mean score over learning rates."""
    total = 0.0
    for task in tasks:
        scores: dict[float, list[float]] = {}
        for row in _of(rows, task, label):
            scores.setdefault(row["lr"], []).append(row["score"])
        total += max((statistics.mean(values) for values in scores.values()), default=-math.inf)
    return total / len(tasks)


def _as_settings(design: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in design.items() if value not in ({}, None)}


def _of(rows: list[dict[str, Any]], task: str, label: str) -> list[dict[str, Any]]:
    return [row for row in rows if (row["task"], row["label"]) == (task, label) and "failed" not in row]


def _page(
    options: argparse.Namespace,
    found: dict[str, dict[str, Any]],
    spent: float,
    rows: list[dict[str, Any]],
    tasks: list[str],
) -> str:
    """The page: what the search took, its stages, and the scores."""
    tuned = sum(row["label"].startswith("tune ") for row in read(options.out / "design_space.jsonl"))
    lines = [
        "# PEFT design spaces",
        "",
        f"Built-in encoder, {options.budget} of its weights, bf16 autocast; whole trainings of",
        f"{STEPS_SAID} steps of 32. The searches scored on held-out train only; no",
        "search and no rate saw the seeds of the scores below.",
        "`python -m experiments.design_space` makes this page.",
        "",
        "| searched on | trials | whole trainings | minutes | designs in the space |",
        "|---|---|---|---|---|",
    ]
    for task, result in found.items():
        cells = f"{result['trials']} | {result['equivalents']:.0f} | {result['seconds'] / 60:.0f}"
        lines.append(f"| {task} | {cells} | {result['designs_in_space']:,} |")
    lines += ["", "| searched on | grouping | allocation | tuned | strategies by group | ties in |"]
    lines += ["|---|---|---|---|---|---|", PUBLISHED]
    for task, result in found.items():
        design = result["design"]
        groups = " / ".join("+".join(names) or "-" for names in design["strategies"])
        whole = len(design["tuned"]) == len(design["strategies"])
        tuned_groups = "all" if whole else ", ".join(map(str, design["tuned"]))
        ties = ", ".join(result["ties"]) or "none"
        cells = f"{design['grouping']} | {design['allocation']} | {tuned_groups} | {groups} | {ties}"
        lines.append(f"| {task} | {cells} |")
    lines += [
        "",
        f"Tuning: {spent:.0f} whole trainings for the searches, {tuned} for the single strategies.",
        "",
    ]
    lines += ["## Scores on validation", "", *_scores(rows, tasks), ""]
    for task, result in found.items():
        lines += [f"## The stages on {task}", "", "```"]
        metric = metric_name(task)
        lines += [stage_table(Outcome.from_document(stage), metric) for stage in result["stages"]]
        lines += ["```", "", "Found:", "", "```", json.dumps(result["design"], indent=1), "```", ""]
    return "\n".join(lines)


def _scores(rows: list[dict[str, Any]], tasks: list[str]) -> list[str]:
    """Mean (lowest to highest) over seeds, times 100, of every method on every task."""
    heads = " | ".join(f"{task} {metric_name(task)}" for task in tasks)
    lines = [f"| method | trained | {heads} |", "|---|---|" + "---|" * len(tasks)]
    for label in dict.fromkeys(row["label"] for row in rows):
        cells, trained = [], 0
        for task in tasks:
            of = _of(rows, task, label)
            scores = [100 * row["score"] for row in of]
            trained = max([trained, *(row["trained"] for row in of)])
            spread = f" ({min(scores):.1f} to {max(scores):.1f})" if scores else ""
            ran = any((row["task"], row["label"]) == (task, label) for row in rows)
            none = "failed" if ran else "-"
            cells.append(f"{statistics.mean(scores):.1f}{spread}, {len(scores)} seeds" if scores else none)
        lines.append(f"| {label} | {trained:,} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
