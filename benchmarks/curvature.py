"""Directional curvature of every tensor: cost and agreement of the estimators, on the built-in encoder.

    python -m benchmarks.curvature --quick

One group a tensor, raw curvature: what the head can do is not taken out. `--steps` looks after so many steps
of training instead of at the pretrained weights. On the same direction and the same examples, which are not
the direction's own:

* sampled-fisher in float32, its time in units of one plain forward and backward of every parameter over the
  same examples (median over rounds; slope and curvature of all groups), beside the 4 K + 1 forwards of the
  paper, which are (4 K + 1) / 3 such units;
* forward-fit in float32;
* exact in float64, on the same weights: what the other two are ranked against, over the groups that are
  usable in both, by influence per parameter `b^2 / (q d)` (`spearman_*`, what the selection sorts by) and by
  gain alone (`spearman_gain_*`).

The last line is JSON.
"""

import argparse
import copy
import json
import statistics
import time
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

from benchmarks.machine import describe
from experiments.runner import load_task
from paretune.anatomy import anatomy
from paretune.evidence.curvature import Curvature, curvature
from paretune.evidence.groups import Direction, Group, Piece, find_direction
from paretune.evidence.horizon import during_training
from paretune.methods.probe import halves
from paretune.progress import set_quiet
from paretune.task import Task


def shortest(task: Task, indices: np.ndarray, count: int) -> np.ndarray:
    """The examples of fewest tokens: exact curvature takes a double backward a tensor."""
    lengths = np.asarray(task.train["length"])[indices]
    return indices[np.argsort(lengths, kind="stable")[:count]]


def plain_pass(model: nn.Module, task: Task, indices: np.ndarray) -> float:
    """Seconds of a forward and backward of every parameter, in batches of like length."""
    order = indices[np.argsort(-np.asarray(task.train["length"])[indices], kind="stable")]
    start = time.perf_counter()
    for batch in task.batches("train", 32, order):
        loss = task.example_losses(model, batch).sum()
        torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return time.perf_counter() - start


def passes(model: nn.Module, task: Task, groups: list[Group], direction: Direction, options: Any) -> float:
    """Time of the sampled Fisher in units of a plain pass."""
    indices, _ = halves(task, 2 * options.timed, 1)
    ratios = []
    for _ in range(options.rounds):
        plain = plain_pass(model, task, indices)
        start = time.perf_counter()
        curvature(model, task, groups, direction, indices)
        ratios.append((time.perf_counter() - start) / plain)
    return statistics.median(ratios)


def agreement(found: Curvature, truth: Curvature, counts: np.ndarray) -> float:
    """Spearman's correlation of `b^2 / (q d)` over the groups usable in both."""
    both = found.usable & truth.usable
    influences = [(each.slope[both] ** 2 / each.curvature[both]) / counts[both] for each in (found, truth)]
    return float(spearmanr(*influences)[0])


def main() -> None:
    """Run the benchmark and print its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute on two cores")
    parser.add_argument("--task", default="mrpc", help="a folder of the development data")
    parser.add_argument("--examples", type=int, help="for the estimators (6, or 64 when not quick)")
    parser.add_argument("--timed", type=int, default=64, help="examples for the time")
    parser.add_argument("--rounds", type=int, help="of the time (2, or 9)")
    parser.add_argument("--steps", type=int, default=0, help="steps of training before the look")
    parser.add_argument("--rule", default="adamw", choices=["adamw", "gradient"], help="the direction")
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 9)
    options.examples = options.examples or (6 if options.quick else 64)
    set_quiet(True)
    task = load_task(options.task, 0)
    model = task.load_model()
    groups = [Group(tensor.name, (Piece(tensor.name),)) for tensor in anatomy(model).body]
    counts = np.array([tensor.count for tensor in anatomy(model).body])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    first, second = halves(task, 512, 0)
    second = shortest(task, second, options.examples)
    result: dict[str, Any] = {}

    def probe(number: int, optimiser: torch.optim.Optimizer | None = None) -> None:
        direction = find_direction(
            model, task, groups, first[: options.timed], rule=options.rule, optimiser=optimiser
        )
        result["passes_sampled_fisher"] = passes(model, task, groups, direction, options)
        fisher = curvature(model, task, groups, direction, second)
        fit = curvature(model, task, groups, direction, second, estimator="forward-fit")
        wide = copy.deepcopy(model).double()
        vectors = {name: vector.double() for name, vector in direction.vectors.items()}
        double = Direction(vectors, direction.dead)
        truth = curvature(wide, task, groups, double, second, estimator="exact")
        print(f"{'':<18}usable  states")
        for name, found in (("sampled-fisher", fisher), ("forward-fit", fit), ("exact", truth)):
            states = {state: found.state.count(state) for state in sorted(set(found.state))}
            print(f"{name:<18}{found.usable.mean():>6.0%}  {states}")
        for name, found in (("sampled_fisher", fisher), ("forward_fit", fit)):
            result[f"spearman_{name}"] = agreement(found, truth, counts)
            result[f"spearman_gain_{name}"] = agreement(found, truth, np.ones_like(counts))
        result["usable_share"] = float(fisher.usable.mean())
        result["usable"] = {
            "forward_fit": float(fit.usable.mean()),
            "exact": float(truth.usable.mean()),
        }

    if options.steps:
        trained = list(model.parameters())
        during_training(model, task, trained, probe, steps=options.steps, probes=1, lr=5e-5)
    else:
        probe(0)
    after = model.state_dict()
    equal = all(torch.equal(value, after[name]) for name, value in before.items())
    result["state_bit_equal"] = equal and torch.equal(random, torch.get_rng_state())
    result["passes_of_the_paper"] = (4 * len(groups) + 1) / 3
    result |= {"groups": len(groups), "examples": options.examples, "steps": options.steps}
    print(json.dumps(result | {"direction": options.rule, "task": options.task, "machine": describe()}))


if __name__ == "__main__":
    main()
