"""IRD against FISH and random masks: a grid of samples n and weights k, cell by cell.

``python -m experiments.ird`` writes ``docs/results/ird.jsonl`` line by line (it can be killed and goes on),
then ``docs/results/ird.md``; its last line is JSON. Rates are tuned on held-out train under seed 0 at the
middle n, budget by budget, then fixed. ``--page-only`` writes the page from the runs that there are.

In every cell FISH sees n examples, or the n0 that IRD starts from; IRD ends with n. Readings of both:
``published`` is the papers'; ``default`` is what the methods do when nothing is set.
"""

import argparse
import json
import statistics
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

from experiments.runner import (
    STARTS,
    STEPS,
    Job,
    Rates,
    add_start,
    best_rates,
    load_model,
    load_task,
    metric_name,
    rates_to_try,
    read,
    run,
)
from paretune.files import write_atomic
from paretune.methods import choose
from paretune.plan import Plan
from paretune.search.intervals import mean_interval

RESULTS = Path(__file__).parents[1] / "docs" / "results"
READINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "warm head": {"warm_head": 60},
    "published": {"reading": "published"},
    "published, warm head": {"reading": "published", "warm_head": 60},
}
HALVINGS = {32: 3, 128: 3, 512: 2}  # halvings: 512 of train's 3,300 rows allow two
MIDDLE = 128
RANDOM = "random"


def settings_of(method: str, n: int, reading: str) -> tuple[str, dict[str, Any]]:
    """The method's name and settings of a contender in a cell."""
    if method == "ird":
        return "ird", {"samples": n, "steps": HALVINGS[n], **READINGS[reading]}
    samples = n if method == "fish n" else n * 2 ** HALVINGS[n]
    return "fish", {"samples": samples, **READINGS[reading]}


CONTENDERS = ("fish n", "fish n0", "ird")


def main() -> None:
    """Run what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=["mrpc", "cola"])
    parser.add_argument("--samples", nargs="+", type=int, default=sorted(HALVINGS))
    parser.add_argument("--budgets", nargs="+", default=["0.5%", "0.2%", "0.05%"])
    parser.add_argument("--readings", nargs="+", default=list(READINGS)[:1], choices=list(READINGS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--more-seeds", type=int, default=5, help="at the first of the budgets and the middle n"
    )
    parser.add_argument("--page-only", action="store_true")
    add_start(parser)
    options = parser.parse_args()
    path = RESULTS / "ird.jsonl"
    if not options.page_only:
        for budget in options.budgets:
            run(tuning(options, budget), path)
            run(final(options, budget, best_rates(_of(options.start, path))), path)
        overlaps(options)
    rows = _of(options.start, path)
    rows = reported(rows, best_rates(rows))
    verdicts = write_page(rows, path, options.start)
    print(json.dumps({"runs": len(rows), "cells": verdicts}))


def _of(start: str, path: Path) -> list[dict[str, Any]]:
    return [row for row in read(path) if row["start"] == start]


def tuning(options: argparse.Namespace, budget: str) -> list[Job]:
    """Rates of every contender at a budget and the middle n."""
    contenders: list[tuple[str, str, dict[str, Any]]] = [(RANDOM, RANDOM, {})]
    for reading in options.readings:
        for method in ("ird", "fish n"):
            name, settings = settings_of(method, MIDDLE, reading)
            contenders.append((_label(name, reading), name, settings))
    return [
        Job(
            task,
            name,
            lr,
            budget,
            settings,
            steps=STEPS[task],
            split="heldout",
            label=label,
            start=options.start,
        )
        for task in options.tasks
        for label, name, settings in contenders
        for lr in rates_to_try(name, settings, budget)
    ]


def final(options: argparse.Namespace, budget: str, rates: Rates) -> Iterable[Job]:
    """Every cell of a budget under every seed: a seed is complete before the next begins."""
    seeds = max(options.seeds, options.more_seeds) if budget == options.budgets[0] else options.seeds
    start = options.start
    for seed, task in product(range(seeds), options.tasks):
        rate = rates[task, RANDOM, budget]
        yield Job(task, RANDOM, rate, budget, seed=seed, steps=STEPS[task], label=RANDOM, start=start)
        for n, reading in product(options.samples, options.readings):
            if seed >= options.seeds and n != MIDDLE:
                continue
            for method in CONTENDERS:
                name, settings = settings_of(method, n, reading)
                rate = rates[task, _label(name, reading), budget]
                label = f"{method}|{n}|{reading}"
                yield Job(
                    task,
                    name,
                    rate,
                    budget,
                    settings,
                    seed=seed,
                    steps=STEPS[task],
                    label=label,
                    start=start,
                )


def reported(rows: Iterable[dict[str, Any]], rates: Rates) -> list[dict[str, Any]]:
    """The runs on validation at the best rate of their method, reading and budget."""

    def best(row: dict[str, Any]) -> float | None:
        reading = row["label"].rpartition("|")[2]
        label = _label(row["method"], reading) if "|" in row["label"] else row["label"]
        return rates.get((row["task"], label, row["budget"]))

    return [row for row in rows if row["split"] == "validation" and row["lr"] == best(row)]


def _label(method: str, reading: str) -> str:
    return f"{method}|{reading}"


def overlaps(options: argparse.Namespace) -> None:
    """How much the masks of a cell have in common (seed 0), a line a cell."""
    path = RESULTS / "ird_overlap.jsonl"
    done = {(row["task"], row["n"], row["budget"], row["reading"]) for row in _of(options.start, path)}
    for task, n, reading in product(options.tasks, options.samples, options.readings):
        for budget in options.budgets:
            if (task, n, budget, reading) in done:
                continue
            masks = {method: _mask(task, method, n, reading, budget, options.start) for method in CONTENDERS}
            size = len(masks["ird"])
            row = {"task": task, "n": n, "budget": budget, "reading": reading, "start": options.start} | {
                f"ird and {other}": len(masks["ird"] & masks[other]) / size for other in CONTENDERS[:2]
            }
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")


def _mask(task: str, method: str, n: int, reading: str, budget: str, start: str) -> set[tuple[str, int]]:
    loaded = load_task(task, 0)
    name, settings = settings_of(method, n, reading)
    plan: Plan = choose(name, load_model(loaded, 0, start), loaded, budget, seed=0, **settings)
    return {(selection.tensor, int(index)) for selection in plan.selections for index in selection.flat()}


def write_page(rows: list[dict[str, Any]], path: Path, start: str) -> dict[str, int]:
    """The page, a table for each task and reading; how many cells IRD wins, ties and loses."""
    found = _of(start, path.with_name("ird_overlap.jsonl"))
    counts = {"wins": 0, "ties": 0, "losses": 0}
    lines = [
        "# IRD against FISH and random masks",
        "",
        "Built-in encoder, batches of 32, bf16 autocast; rates swept on held-out train (seed 0,",
        f"n = {MIDDLE}) budget by budget, then fixed. Score times 100, mean over seeds. n0 is what",
        "IRD starts from (8 n; 4 n for n = 512). Differences are paired by seed, with their 95 % t",
        "interval; a cell is won or lost where the interval leaves zero out. Overlap: of IRD's mask",
        f"with FISH n's / FISH n0's. The bias of a new head begins at {STARTS[start]}.",
        f"`python -m experiments.ird --start {start}` makes this page from `ird.jsonl`.",
    ]
    keys = dict.fromkeys((row["task"], row["label"].split("|")[2]) for row in rows if "|" in row["label"])
    for task, reading in keys:
        here = [row for row in rows if row["task"] == task]
        lines += ["", f"## {task} ({metric_name(task)}), {here[0]['steps']} steps, {reading}", "", *_HEADS]
        cells = dict.fromkeys(
            (row["budget"], int(row["label"].split("|")[1]))
            for row in here
            if row["method"] == "ird" and row["label"].endswith(f"|{reading}")
        )
        for budget, n in sorted(cells, key=lambda cell: (-float(cell[0].rstrip("%")), cell[1])):
            scores = {
                label: {row["seed"]: 100 * row["score"] for row in here if _is(row, label, budget)}
                for label in (RANDOM, *(f"{method}|{n}|{reading}" for method in CONTENDERS))
            }
            overlap = next(
                (
                    f
                    for f in found
                    if (f["task"], f["n"], f["budget"], f["reading"]) == (task, n, budget, reading)
                ),
                {},
            )
            lines.append(_cell(budget, n, scores, overlap, counts))
        lines += ["", f"Learning rates: {_rates(here, reading)}."]
    lines += ["", f"IRD against FISH with n, over all cells: {_said(counts)}."]
    write_atomic(path.with_suffix(".md"), "\n".join(lines) + "\n")
    return counts


_HEADS = (
    "| budget | n | seeds | random | FISH n | FISH n0 | IRD | IRD - FISH n | IRD - FISH n0 | overlap |",
    "|---|---|---|---|---|---|---|---|---|---|",
)


def _rates(rows: list[dict[str, Any]], reading: str) -> str:
    """The rates that the rows of a table were trained at, budget by budget."""
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        if row["label"] == RANDOM or row["label"].endswith(f"|{reading}"):
            found.setdefault(row["budget"], {})[row["method"]] = f"{row['method']} {row['lr']:g}"
    return "; ".join(f"at {budget} {', '.join(found[budget].values())}" for budget in found)


def _is(row: dict[str, Any], label: str, budget: str) -> bool:
    return row["label"] == label and row["budget"] == budget and "failed" not in row


def _cell(
    budget: str, n: int, scores: dict[str, dict[int, float]], overlap: dict[str, Any], counts: dict[str, int]
) -> str:
    """One row of a table; counts the verdict on IRD against FISH with n."""
    *_, few, wide, ird = scores.values()
    means = [f"{statistics.mean(of.values()):.1f}" if of else "-" for of in scores.values()]
    differences = []
    for other in (few, wide):
        pairs = [ird[seed] - other[seed] for seed in sorted(ird.keys() & other.keys())]
        differences.append(mean_interval(pairs) if len(pairs) > 1 else None)
    if differences[0]:
        low, high = differences[0].low, differences[0].high
        counts["wins" if low > 0 else "losses" if high < 0 else "ties"] += 1
    said = [f"{d.mean:+.1f} ({d.low:+.1f} to {d.high:+.1f})" if d else "-" for d in differences]
    shared = " / ".join(
        f"{overlap[key]:.2f}" for key in ("ird and fish n", "ird and fish n0") if key in overlap
    )
    return f"| {budget} | {n} | {len(ird)} | {' | '.join(means)} | {' | '.join(said)} | {shared or '-'} |"


def _said(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items())


if __name__ == "__main__":
    main()
