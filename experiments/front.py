"""``auto`` against every single method with its own tuned rate, and against full fine-tuning.

``python -m experiments.front`` writes docs/results/front.md and front.jsonl; stopped, the same command goes
on. Single methods get every one of their learning rates on held-out train (seed 0), then
the seeds of the report; the best of them is known in hindsight alone. ``auto`` is run anew under every seed
of the report, its choice included, with six whole trainings each.
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.runner import (
    FIRST_SEED,
    STEPS,
    Job,
    Rates,
    append,
    best_rates,
    load_task,
    metric_name,
    rates_to_try,
    read,
    run,
)
from paretune.errors import PareError
from paretune.files import write_atomic
from paretune.methods import METHODS
from paretune.progress import set_quiet
from paretune.search.auto import auto
from paretune.search.field import read_method
from paretune.tuning import Recipe

ROOT = Path(__file__).parents[1]
# LoRA over ranks is LoRA over budgets: its rank is solved from the budget, so targets are what is left.
SINGLES = (
    "lora:targets=all",
    "lora:targets=attention",
    "lora:targets=peft",
    "lora:targets=all:rank=1",
    "adapter",
    "prefix",
    "bitfit",
    "random",
    "fish",
    "ird",
    "adapeft",
    "s4",
    "full",
)
AUTO = "auto"


def main() -> None:
    """Run what is missing and write the page."""
    options = _options()
    set_quiet(True)
    path = options.out / "front.jsonl"
    budgets = [(task, options.budget) for task in options.tasks]
    budgets += [(task, options.small) for task in options.small_tasks]
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)  # that no rate was settled under
    for task, budget in budgets:
        rates = best_rates(run(_rate_jobs(task, budget, options), path))
        for seed in seeds:  # seed by seed, so that a page made meanwhile compares like with like
            _auto(task, budget, seed, options, path)
            run(_final_jobs(task, budget, seed, rates, options), path)
        write_atomic(options.out / "front.md", page(read(path), budgets, options.methods))
    rows = [row for row in read(path) if row["split"] == "validation"]
    print(json.dumps({"runs": len(rows), "summary": summary(rows, budgets)}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=["mrpc", "cola", "stsb", "qnli9k"])
    parser.add_argument("--budget", default="0.5%")
    parser.add_argument("--small-tasks", nargs="*", default=["mrpc"], help="also at the small budget")
    parser.add_argument("--small", default="0.1%", help="(%(default)s)")
    parser.add_argument("--methods", nargs="+", default=list(SINGLES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "front")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    return parser.parse_args()


def _label(text: str, budget: str) -> str:
    return f"{text} {budget}"


def _asked(text: str, budget: str) -> str | None:
    """The budget, for a method that has no size of its own."""
    return budget if METHODS[read_method(text)[0]].sized else None


def _rates_of(text: str, budget: str) -> tuple[float, ...]:
    name, settings = read_method(text)
    return rates_to_try(name, settings, _asked(text, budget))


def _job(task: str, text: str, budget: str, lr: float, seed: int, split: str) -> Job:
    name, settings = read_method(text)
    asked, label = _asked(text, budget), _label(text, budget)
    return Job(task, name, lr, asked, settings, seed=seed, steps=STEPS[task], split=split, label=label)


def _rate_jobs(task: str, budget: str, options: argparse.Namespace) -> list[Job]:
    return [
        _job(task, text, budget, lr, 0, "heldout")
        for text in options.methods
        for lr in _rates_of(text, budget)
    ]


def _final_jobs(
    task: str,
    budget: str,
    seed: int,
    rates: Rates,
    options: argparse.Namespace,
) -> list[Job]:
    """Those whose rate is known: a method that no rate worked for has no score."""
    return [
        _job(task, text, budget, rates[place], seed, "validation")
        for text in options.methods
        if (place := (task, _label(text, budget), _asked(text, budget))) in rates
    ]


def _auto(task: str, budget: str, seed: int, options: argparse.Namespace, path: Path) -> None:
    """One whole ``auto``, its line in the results file."""
    # Its rate is its own.
    job = Job(task, AUTO, 0.0, budget, seed=seed, steps=STEPS[task], label=_label(AUTO, budget))
    if any(row["key"] == job.key for row in read(path)):
        return
    out = options.runs / f"{task}-{budget}-{STEPS[task]}-{seed}"
    recipe = Recipe(lr=1.0, steps=STEPS[task], precision="amp")
    try:
        result = auto(load_task(task, 0), out, budget=budget, recipe=recipe, seed=seed, say=print)
    except PareError as problem:
        append({"key": job.key, **asdict(job), "failed": str(problem)}, path)
        return
    row = {name: result[name] for name in ("score", "scores", "losses", "trained", "head", "seconds")}
    row |= {"chosen": result["auto"]["candidate"], "chosen_lr": result["lr"], "auto": result["auto"]}
    append({"key": job.key, **asdict(job), **row}, path)
    print(f"{task} auto {budget} s{seed}: {row['chosen']} {row['score']:.4f}", flush=True)


def summary(rows: Sequence[dict[str, Any]], budgets: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Mean over the tasks at the first budget: ``auto``, the best single method in hindsight, full."""
    first = budgets[0][1] if budgets else ""
    tasks = [task for task, budget in budgets if budget == first]
    texts = {row["label"].rpartition(" ")[0] for row in rows if row["label"].endswith(f" {first}")}
    means: dict[str, float] = {}
    for text in texts:
        each = [_scores(rows, task, _label(text, first)) for task in tasks]
        if all(each):
            means[text] = statistics.mean(statistics.mean(scores) for scores in each)
    single = {text: mean for text, mean in means.items() if text not in (AUTO, "full")}
    best = max(single, key=lambda text: single[text]) if single else None
    return {
        "tasks": tasks,
        AUTO: means.get(AUTO),
        "best_single": [best, single.get(best or "")],
        "full": means.get("full"),
    }


def _scores(rows: Sequence[dict[str, Any]], task: str, label: str) -> list[float]:
    return [
        100 * row["score"]
        for row in rows
        if (row["task"], row["label"], row["split"]) == (task, label, "validation") and "failed" not in row
    ]


def page(rows: Sequence[dict[str, Any]], budgets: Sequence[tuple[str, str]], methods: Sequence[str]) -> str:
    """The page of whatever there is."""
    steps = ", ".join(f"{STEPS[task]} ({task})" for task in dict.fromkeys(task for task, _ in budgets))
    lines = [
        "# auto against every single method",
        "",
        f"Built-in encoder, bf16 autocast, whole trainings of {steps} steps of 32. Mean",
        "(lowest to highest, number of seeds) on validation, times 100. Every single method has its own",
        "learning rate, the best of its four on held-out train (seed 0); `auto` chooses anew under each",
        "seed, with six whole trainings in all. The length of its trials, and its order of kinds where the",
        "first of them tell nothing, were settled on cola, mrpc and the demo's task.",
        "`python -m experiments.front` makes this page from front.jsonl.",
        "",
    ]
    for budget in dict.fromkeys(budget for _, budget in budgets):
        tasks = [task for task, asked in budgets if asked == budget]
        heads = " | ".join(f"{task} {metric_name(task)}" for task in tasks)
        lines += [f"## At {budget}", "", f"| method | {heads} | mean |", "|---|" + "---|" * (len(tasks) + 1)]
        for text in (AUTO, *methods):
            each = [_scores(rows, task, _label(text, budget)) for task in tasks]
            if any(each):
                mean = statistics.mean(statistics.mean(scores) for scores in each) if all(each) else math.nan
                shown = "" if math.isnan(mean) else f"{mean:.1f}"
                lines.append(f"| {text} | {' | '.join(map(_cell, each))} | {shown} |")
        chosen = [row for row in rows if row["label"] == _label(AUTO, budget) and "failed" not in row]
        if chosen:
            lines += ["", "What `auto` chose:", ""]
            lines += ["| task | seed | chosen | rate | whole trainings |", "|---|---|---|---|---|"]
        for row in chosen:
            spent = row["auto"]["equivalents"]["total"]
            what = f"{row['chosen']} | {row['chosen_lr']:g} | {spent:.1f}"
            lines.append(f"| {row['task']} | {row['seed']} | {what} |")
        lines.append("")
    return "\n".join(lines)


def _cell(scores: Sequence[float]) -> str:
    if not scores:
        return "none"
    return f"{statistics.mean(scores):.1f} ({min(scores):.1f} to {max(scores):.1f}, {len(scores)})"


if __name__ == "__main__":
    main()
