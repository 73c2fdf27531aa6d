"""AdaPEFT: the front it predicts beside the one it delivers, and whether its choice is stable.

``python -m experiments.adapeft`` writes ``docs/results/adapeft.jsonl`` and ``adapeft_choices.jsonl`` line by
line (it can be killed and goes on), and ``adapeft.md`` after every part; its last line is JSON. Rates are
tuned on held-out train under seed 0 at each budget, then fixed; what differs from adapeft only in how native
weights are chosen takes adapeft's. The parts come in this order, so
that what is there at any time compares like with like: the fronts' methods at the middle budget, its
controls, the other budgets, the stability of the choice, more seeds at the middle budget. Within a part all
tasks and methods of one seed come before the next seed.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.adapeft_choices import compared, looks, run_looks
from experiments.adapeft_page import page
from experiments.runner import FIRST_SEED, STEPS, Job, best_rates, rates_to_try, read, run
from paretune.files import write_atomic

RESULTS = Path(__file__).parents[1] / "docs" / "results"
Variant = tuple[str, str, str | None, dict[str, Any]]  # label, method, budget ("" for the job's), settings


def fronts() -> list[Variant]:
    """What is measured at every budget: LoRA's rank follows from it."""
    return [
        ("adapeft", "adapeft", "", {}),
        ("lora all linears", "lora", "", {"targets": "all"}),
        ("lora query+value", "lora", "", {"targets": "peft"}),
        ("random", "random", "", {}),
        ("adapeft joint", "adapeft", "", {"select": "joint"}),
    ]


def controls() -> list[Variant]:
    """What is measured at the middle budget only; the first three lack one thing that adapeft has."""
    return [
        ("slope/count, no curvature", "adapeft", "", {"score": "slope"}),
        ("|g|^2/count", "adapeft", "", {"score": "slope", "direction": "gradient"}),
        ("Fisher of tensors", "adapeft", "", {"score": "fisher", "items": "tensor"}),
        ("Fisher of row blocks", "adapeft", "", {"score": "fisher"}),
        ("adapeft prefix, tensors", "adapeft", "", {"select": "prefix", "items": "tensor"}),
        ("adapeft as published", "adapeft", "", PUBLISHED),
        ("adapeft, head not taken out", "adapeft", "", {"beyond_head": False}),
        ("adapeft, gradient", "adapeft", "", {"direction": "gradient"}),
        ("adapeft, horizon 10 %", "adapeft", "", {"horizon": 0.1}),
        ("adapeft with lora", "adapeft", "", {"added": "lora", "size": 4}),
        ("lora attention", "lora", "", {"targets": "attention"}),
        ("lora mlp", "lora", "", {"targets": "mlp"}),
        ("gradient", "gradient", "", {}),
        ("fish", "fish", "", {}),
        ("bitfit", "bitfit", None, {}),
        ("norm", "norm", None, {}),
        ("head", "head", None, {}),
        ("full", "full", None, {}),
    ]


PUBLISHED = {"items": "block-kind", "select": "prefix", "direction": "gradient", "beyond_head": False}


def main() -> None:
    """Run what is missing and write the page."""
    options = _options()
    path = options.results / "adapeft.jsonl"
    if options.page_only:
        _write(options)
    else:
        _run(options, path)
    rows = [row for row in read(path) if row["split"] == "validation"]
    stable = compared(read(options.results / "adapeft_choices.jsonl"))
    print(json.dumps({"runs": len(rows), "stability": stable}))


def _run(options: argparse.Namespace, path: Path) -> None:
    """Part after part; the page after each."""
    middle, others = options.budgets[0], options.budgets[1:]
    first, second = _wanted(fronts(), options), _wanted(controls(), options)
    both = [*options.tasks, *options.middle_tasks]
    parts = [
        (first, both, [middle], range(options.seeds)),
        (second, both, [middle], range(options.seeds)),
        (first, options.tasks, others, range(options.seeds)),
    ]
    for part in parts:
        _scores(options, path, *part)
    for task in options.tasks:
        for seed in range(options.stability_seeds):
            run_looks(looks(task, seed, middle, options.samples), options.results / "adapeft_choices.jsonl")
            _write(options)
    more = range(options.seeds, max(options.seeds, options.seeds_middle))
    _scores(options, path, [*first, *second], both, [middle], more)


def _scores(
    options: argparse.Namespace,
    path: Path,
    variants: Sequence[Variant],
    tasks: Sequence[str],
    budgets: Sequence[str],
    seeds: Iterable[int],
) -> None:
    """Tune the rates that are not known yet, then score."""
    tuned = {variant[0]: variant for variant in map(_tuned_as, variants)}
    tuning = [
        _job(task, variant, budget, lr, options, split="heldout")
        for budget in budgets
        for variant in tuned.values()
        for task in tasks
        for lr in rates_to_try(variant[1], variant[3], budget if variant[2] == "" else variant[2])
    ]
    rates = best_rates(run(tuning, path))
    jobs = [
        _job(task, variant, budget, rates[place], options, seed=FIRST_SEED + seed)
        for seed in seeds
        for budget in budgets
        for variant in variants
        for task in tasks
        if (place := (task, _tuned_as(variant)[0], budget if variant[2] == "" else variant[2])) in rates
    ]
    run(jobs, path)
    _write(options)


def _tuned_as(variant: Variant) -> Variant:
    """The variant whose rate it takes: the same sort of weights trains, so the same rates suit."""
    return fronts()[0] if variant[1] == "adapeft" and "added" not in variant[3] else variant


def _write(options: argparse.Namespace) -> None:
    """The page, from whatever is there."""
    rows = [row for row in read(options.results / "adapeft.jsonl") if row["split"] == "validation"]
    choices = compared(read(options.results / "adapeft_choices.jsonl"))
    write_atomic(options.results / "adapeft.md", page(rows, choices, options.budgets[0]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["mrpc", "cola"])
    parser.add_argument("--middle-tasks", nargs="*", default=["stsb"], help="at the middle budget only")
    parser.add_argument("--budgets", nargs="+", default=["0.5%", "0.02%", "0.1%", "2%"], help="middle first")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seeds-middle", type=int, default=5, help="at the middle budget")
    parser.add_argument("--stability-seeds", type=int, default=2, help="0 leaves this part out")
    parser.add_argument("--samples", type=int, help="examples of a probe")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--only", nargs="+", help="labels of the variants to run")
    parser.add_argument("--page-only", action="store_true", help="run nothing; write the page")
    return parser.parse_args()


def _wanted(variants: Iterable[Variant], options: argparse.Namespace) -> list[Variant]:
    return [variant for variant in variants if not options.only or variant[0] in options.only]


def _job(
    task: str, variant: Variant, budget: str, lr: float, options: argparse.Namespace, **rest: Any
) -> Job:
    label, method, own, settings = variant
    if method == "adapeft" and options.samples:
        settings = settings | {"samples": options.samples}
    own = budget if own == "" else own
    return Job(task, method, lr, own, settings, steps=STEPS[task], label=label, **rest)


if __name__ == "__main__":
    main()
