"""AdaPEFT: the front it predicts beside the one it delivers, and whether its choice is stable.

``python -m experiments.adapeft`` writes ``docs/results/adapeft.jsonl`` line by line (it can be killed and
goes on), then ``docs/results/adapeft.md``; its last line is JSON. Learning rates are tuned on held-out train
under one seed at the first budget, then fixed. What does not fit a budget is left out, with a word.
"""

import argparse
import json
import statistics
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from experiments.runner import Job, best_rates, load_task, read, run
from paretune.errors import PareError
from paretune.files import write_atomic
from paretune.methods import METHODS, choose

RESULTS = Path(__file__).parents[1] / "docs" / "results"
MIDDLE = "0.5%"  # the budget that rates are tuned and variants compared at
Variant = tuple[str, str, str | None, dict[str, Any]]


def fronts() -> list[Variant]:
    """Label, method, budget, settings: what is measured at every budget."""
    return [
        ("adapeft", "adapeft", "", {}),
        ("adapeft joint", "adapeft", "", {"select": "joint"}),
        ("lora all linears", "lora", "", {"targets": "all"}),
        ("lora query+value", "lora", "", {"targets": "peft"}),
        ("random", "random", "", {}),
    ]


def controls() -> list[Variant]:
    """What is measured at one budget only."""
    return [
        ("adapeft prefix, tensors", "adapeft", MIDDLE, {"select": "prefix", "items": "tensor"}),
        ("adapeft as published", "adapeft", MIDDLE, PUBLISHED),
        ("adapeft, head not taken out", "adapeft", MIDDLE, {"beyond_head": False}),
        ("adapeft, gradient", "adapeft", MIDDLE, {"direction": "gradient"}),
        ("adapeft, horizon 10 %", "adapeft", MIDDLE, {"horizon": 0.1}),
        ("adapeft with lora", "adapeft", MIDDLE, {"added": "lora", "size": 4}),
        ("gradient", "gradient", MIDDLE, {}),
        ("fish", "fish", MIDDLE, {}),
        ("bitfit", "bitfit", None, {}),
        ("norm", "norm", None, {}),
        ("head", "head", None, {}),
        ("full", "full", None, {}),
    ]


PUBLISHED = {"items": "block-kind", "select": "prefix", "direction": "gradient", "beyond_head": False}
HORIZONS = (0.01, 0.05, 0.1, 0.5)
DEPTHS = (0.34, 0.67)


def main() -> None:
    """Run what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=["mrpc", "cola"])
    parser.add_argument("--budgets", nargs="+", default=["0.5%", "0.02%", "0.1%", "2%"], help="middle first")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tuning-steps", type=int, default=150)
    parser.add_argument("--stability-seeds", type=int, default=2, help="0 leaves this part out")
    parser.add_argument("--samples", type=int, help="examples of a probe")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--only", nargs="+", help="labels of the variants to run")
    options = parser.parse_args()
    path = options.results / "adapeft.jsonl"

    tuning = [
        _job(task, variant, options.budgets[0], lr, options, steps=options.tuning_steps, split="heldout")
        for task in options.tasks
        for variant in _wanted([*fronts(), *controls()], options)
        for lr in METHODS[variant[1]].learning_rates
    ]
    run_possible(tuning, path)
    rates = best_rates(read(path))
    final = [
        _job(task, variant, budget, rates[task, variant[0]], options, seed=seed, steps=options.steps)
        for seed in range(options.seeds)
        for task in options.tasks
        for budget in options.budgets
        for variant in _wanted([*fronts(), *(controls() if budget == options.budgets[0] else [])], options)
        if (task, variant[0]) in rates
    ]
    rows = run_possible(final, path)
    stable = [stability(task, options) for task in options.tasks if options.stability_seeds]
    write_atomic(options.results / "adapeft.md", page(rows, options, stable))
    print(json.dumps({"runs": len(rows), "stability": stable, "seeds": options.seeds}))


def run_possible(jobs: Iterable[Job], path: Path) -> list[dict[str, Any]]:
    """The rows of the jobs whose method fits its budget."""
    rows = []
    for job in jobs:
        try:
            rows += run([job], path)
        except PareError as refusal:
            print(f"left out: {job.task} {job.label} {job.budget}: {refusal}")
    return rows


def _wanted(variants: Iterable[Variant], options: argparse.Namespace) -> list[Variant]:
    return [variant for variant in variants if not options.only or variant[0] in options.only]


def _job(
    task: str, variant: Variant, budget: str, lr: float, options: argparse.Namespace, **rest: Any
) -> Job:
    label, method, own, settings = variant
    if method == "adapeft" and options.samples:
        settings = settings | {"samples": options.samples}
    return Job(task, method, lr, budget if own == "" else own, settings, label=label, **rest)


def stability(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """How far the choice agrees across seeds, horizons and depths, with that at the pretrained weights.

    Returns:
        By what differs: the mean Spearman correlation of the gains per weight and the mean overlap of what is
        taken at the middle budget (weights in both over the budget).
    """
    task, seeds = load_task(name, 0), range(options.stability_seeds)
    extra = {"samples": options.samples} if options.samples else {}

    def chosen(seed: int, **settings: Any) -> dict[str, tuple[float, int, bool]]:
        model = task.load_model(seed=seed)
        plan = choose("adapeft", model, task, options.budgets[0], seed=seed, **(extra | settings))
        table = plan.notes["table"]["rows"]
        return {item: ((gain or 0) / count, count, bool(mark)) for _, mark, item, count, gain, _ in table}

    base = [chosen(seed) for seed in seeds]
    found = {"seeds": _agreement(list(combinations(base, 2)))}
    for share in HORIZONS:
        found[f"horizon {share:.0%}"] = _agreement(
            [(base[seed], chosen(seed, horizon=share)) for seed in seeds]
        )
    for depth in DEPTHS:
        found[f"depth {depth:.0%}"] = _agreement(
            [(base[seed], chosen(seed, probe_depth=depth)) for seed in seeds]
        )
    return {"task": name, "agreement": found}


def _agreement(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> list[float]:
    """Mean rank correlation and mean overlap of pairs of choices; empty without a pair."""
    if not pairs:
        return []
    ranks, overlaps = [], []
    for one, other in pairs:
        ranks.append(float(spearmanr([one[i][0] for i in one], [other[i][0] for i in one])[0]))
        both = sum(one[i][1] for i in one if one[i][2] and other[i][2])
        overlaps.append(both / max(1, max(sum(v[1] for v in each.values() if v[2]) for each in (one, other))))
    return [statistics.mean(ranks), statistics.mean(overlaps)]


def page(rows: list[dict[str, Any]], options: argparse.Namespace, stable: list[dict[str, Any]]) -> str:
    """Markdown: scores by budget, the predicted beside the measured front, stability."""
    lines = [
        "# AdaPEFT: predicted and measured",
        "",
        f"Built-in encoder, {options.steps} steps of 32 examples, bf16 autocast, {options.seeds} seeds;",
        f"rates swept on held-out train at {options.budgets[0]} (seed 0), then fixed. Score times 100:",
        "F1 (mrpc), Matthews correlation (cola): mean (lowest to highest).",
        "`python -m experiments.adapeft` makes this page.",
    ]
    for task in options.tasks:
        lines += ["", f"## {task}", "", "| method | budget | trained | predicted gain | train loss | score |"]
        lines += ["|---|---|---|---|---|---|"]
        of_task = [row for row in rows if row["task"] == task]
        for place in dict.fromkeys((row["label"], row["budget"]) for row in of_task):
            lines.append(_line(place, [r for r in of_task if (r["label"], r["budget"]) == place]))
    for found in stable:
        lines += ["", f"## Does the choice hold? {found['task']} at {options.budgets[0]}", ""]
        lines += ["Against the choice at the pretrained weights; across seeds for the first line.", ""]
        lines += ["| what differs | rank correlation | overlap |", "|---|---|---|"]
        for what, values in found["agreement"].items():
            cells = [f"{value:.2f}" for value in values] or ["-", "-"]
            lines.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _line(place: tuple[str, str | None], rows: list[dict[str, Any]]) -> str:
    """One row of the table of scores."""
    label, budget = place
    good = [row for row in rows if "failed" not in row]
    if not good:
        return f"| {label} | {budget or '-'} | - | - | - | {rows[0]['failed'][:60]} |"
    scores = [100 * row["score"] for row in good]
    gains = [row["notes"]["gain"] for row in good if "gain" in row["notes"]]
    gain = f"{statistics.mean(gains):.3g}" if gains else "-"
    loss = statistics.mean(row["losses"][-1][1] for row in good)
    score = f"{statistics.mean(scores):.1f} ({min(scores):.1f} to {max(scores):.1f})"
    return f"| {label} | {budget or '-'} | {good[0]['trained']:,} | {gain} | {loss:.3f} | {score} |"


if __name__ == "__main__":
    main()
