"""Why FISH Mask fails under a fresh head: where its mask lies, and what leaning less on the scores does.

``python -m experiments.fish_mask`` writes ``docs/results/fish_mask.jsonl`` line by line (it can be killed and
goes on), then ``docs/results/fish_mask.md``; its last line is JSON. All scores are on held-out train.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.runner import STARTS, STEPS, Job, add_start, load_model, load_task, metric_name, read, run
from paretune.evidence import Sum, draw, evidence_pass
from paretune.files import write_atomic
from paretune.methods import choose
from paretune.plan import Plan
from paretune.task import Task

RESULTS = Path(__file__).parents[1] / "docs" / "results"
BUDGET, SAMPLES = "0.5%", 1024
FEW = 5  # columns that are called few
RATES = (5e-4, 1.5e-3, 5e-3)
Variant = tuple[str, str, dict[str, Any], list[str]]
VARIANTS: tuple[Variant, ...] = (
    ("published", "fish", {"reading": "published"}, []),
    ("published, warm head", "fish", {"reading": "published", "warm_head": 60}, []),
    ("published, without the pooler", "fish", {"reading": "published"}, ["*pooler*"]),
    ("blocks, even shares, largest", "fish", {"power": 0.0}, []),
    ("blocks, even shares, power 0.5", "fish", {"power": 0.5}, []),
    ("blocks, even shares, power 0.25", "fish", {"power": 0.25}, []),
    ("blocks, even shares, power 0.1", "fish", {"power": 0.1}, []),
    ("random in the blocks", "random", {}, []),
    ("random everywhere", "random", {"within": "all"}, []),
)


def main() -> None:
    """Run what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=["cola"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--page-only", action="store_true")
    add_start(parser)
    options = parser.parse_args()
    path = RESULTS / "fish_mask.jsonl"
    jobs = [
        Job(task, method, lr, BUDGET, settings, exclude, seed, STEPS[task], "heldout", label, options.start)
        for seed in range(options.seeds)
        for task in options.tasks
        for lr in reversed(RATES)
        for label, method, settings, exclude in VARIANTS
    ]
    rows = read(path) if options.page_only else run(jobs, path)
    rows = [row for row in rows if row["start"] == options.start]
    shapes = {
        task: [shape(load_task(task, 0), variant, options.start) for variant in VARIANTS]
        for task in options.tasks
    }
    write_atomic(path.with_suffix(".md"), page(rows, shapes, options.start))
    print(json.dumps({"runs": len(rows), "shapes": shapes}))


def shape(task: Task, variant: Variant, start: str) -> dict[str, Any]:
    """Where a mask lies, and how much its weights move the loss together at the start (seed 0)."""
    label, method, settings, exclude = variant
    model = load_model(task, 0, start)
    plan = choose(method, model, task, BUDGET, seed=0, exclude=exclude, **settings)
    matrices = [s for s in plan.selections if len(s.shape) == 2 and ".layer." in s.tensor]
    inside = sum(s.count for s in matrices)
    crowded = sum(int(np.sort(np.bincount(s.flat() % s.shape[1]))[-FEW:].sum()) for s in matrices)
    return {
        "label": label,
        "pooler": sum(s.count for s in plan.selections if "pooler" in s.tensor) / plan.count,
        "few columns": crowded / inside,
        "slope": slope(task, model, plan),
    }


def slope(task: Task, model: torch.nn.Module, plan: Plan) -> float:
    """``sum |d loss / d w|`` over a mask: what the loss changes by when every weight makes one equal step."""
    total = Sum({s.tensor: model.get_parameter(s.tensor) for s in plan.selections})
    evidence_pass(model, task, [total], draw(task, SAMPLES, 0), seed=0)
    return sum(
        float(total.values[s.tensor].flatten()[torch.from_numpy(s.flat())].abs().sum()) / SAMPLES
        for s in plan.selections
    )


def page(rows: list[dict[str, Any]], shapes: dict[str, list[dict[str, Any]]], start: str) -> str:
    """Markdown: the masks, and their scores by rate."""
    lines = [
        "# Why the published mask fails under a fresh head",
        "",
        f"Built-in encoder, {BUDGET}, {SAMPLES} examples, batches of 32, bf16 autocast; scores and losses on",
        f"held-out train, times 100. The bias of a new head begins at {STARTS[start]}.",
        f"`python -m experiments.fish_mask --start {start}` makes this page. Slope: the",
        "sum of |d loss / d w| over the mask at the start, which is how fast the loss moves when an",
        "optimiser such as Adam gives all weights steps of one size.",
    ]
    for task, masks in shapes.items():
        here = [row for row in rows if row["task"] == task]
        if not here:
            continue
        rates = sorted({row["lr"] for row in here})
        steps, seeds = here[0]["steps"], len({row["seed"] for row in here})
        title = f"## {task} ({metric_name(task)}), {steps} steps"
        lines += ["", f"{title}, mean of {seeds} seed(s): score (loss) by learning rate", ""]
        head = " | ".join(f"{rate:g}" for rate in rates)
        lines += [f"| mask | in the pooler | in the {FEW} fullest columns | slope | {head} |"]
        lines += ["|---" * (4 + len(rates)) + "|"]
        for mask in masks:
            cells = [_cell(here, mask["label"], rate) for rate in rates]
            shares = f"{mask['pooler']:.0%} | {mask['few columns']:.0%} | {mask['slope']:.1f}"
            lines.append(f"| {mask['label']} | {shares} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(rows: list[dict[str, Any]], label: str, rate: float) -> str:
    of = [row for row in rows if row["label"] == label and row["lr"] == rate]
    good = [row for row in of if "failed" not in row]
    if not good:
        return "diverged" if of else "-"
    score = 100 * float(np.mean([row["score"] for row in good]))
    return f"{score:.1f} ({np.mean([row['scores']['loss'] for row in good]):.3f})"


if __name__ == "__main__":
    main()
