"""Directional curvature of every tensor: cost and agreement of the estimators, on the built-in encoder.

    python -m benchmarks.curvature --quick

One group a tensor, raw curvature: what the head can do is not taken out. On the same direction and the same
examples, which are not the direction's own:

* sampled-fisher in float32, its time in units of one plain forward and backward of every parameter over the
  same examples (median over rounds; slope and curvature of all groups), beside the 4 K + 1 forwards of the
  paper, which are (4 K + 1) / 3 such units;
* forward-fit in float32;
* exact in float64, on the same weights: what the other two are ranked against, over the groups that are
  usable in both, by influence per parameter `b^2 / (q d)` (`spearman_*`, what the selection sorts by) and by
  gain alone (`spearman_gain_*`);
* the Gauss-Newton matrix in float64: `spearman_gauss_newton_to_exact` is what an estimator that leaves the
  residuals' curvature out can reach, `spearman_sampled_fisher_to_gauss_newton` what noise and rounding cost.

The look is taken under a head that is calibrated (a logistic regression on what it reads), as it soon is in
training; without `--quick` also under a fresh head (`fresh`). The last line is JSON.
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
from sklearn.linear_model import LogisticRegression
from torch import nn

from benchmarks.machine import describe
from experiments.runner import load_task
from paretune.anatomy import anatomy
from paretune.evidence.curvature import Curvature, curvature
from paretune.evidence.groups import Direction, Group, Piece, find_direction
from paretune.evidence.horizon import restored
from paretune.methods.probe import halves
from paretune.progress import set_quiet
from paretune.task import Task

CALIBRATION = 400  # examples


def shortest(task: Task, indices: np.ndarray, count: int) -> np.ndarray:
    """The examples of fewest tokens, the classes in proportion: exact takes a double backward a tensor."""
    lengths, labels = np.asarray(task.train["length"]), np.asarray(task.train["labels"])
    order = indices[np.argsort(lengths[indices], kind="stable")]
    if not task.labels:
        return order[:count]
    shares = [round(count * float((labels[indices] == label).mean())) for label in range(len(task.labels))]
    return np.concatenate([order[labels[order] == label][:share] for label, share in enumerate(shares)])


def plain_pass(model: nn.Module, task: Task, indices: np.ndarray) -> float:
    """Seconds of a forward and backward of every parameter, in batches of like length."""
    order = indices[np.argsort(-np.asarray(task.train["length"])[indices], kind="stable")]
    start = time.perf_counter()
    for batch in task.batches("train", 32, order):
        loss = task.example_losses(model, batch).sum()
        torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return time.perf_counter() - start


@torch.no_grad()
def calibrate(model: nn.Module, task: Task, head: str, indices: np.ndarray) -> None:
    """Give the head the values of a logistic regression on what it reads, as far as training soon has it."""
    read, labels = [], []
    handle = model.get_submodule(head).register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    for batch in task.batches("train", 50, indices):
        task.example_losses(model, batch)
        labels.append(batch["labels"])
    handle.remove()
    found = LogisticRegression(max_iter=1000).fit(torch.cat(read).numpy(), torch.cat(labels).numpy())
    weight, bias = torch.from_numpy(found.coef_), torch.from_numpy(found.intercept_)
    if len(weight) == 1:
        weight, bias = torch.cat([-weight / 2, weight / 2]), torch.cat([-bias / 2, bias / 2])
    model.get_parameter(f"{head}.weight").copy_(weight)
    model.get_parameter(f"{head}.bias").copy_(bias)


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


def compare(
    model: nn.Module,
    task: Task,
    groups: list[Group],
    direction: Direction,
    indices: np.ndarray,
    counts: np.ndarray,
) -> dict[str, Any]:
    """The estimators against each other on one direction and the same examples."""
    wide = copy.deepcopy(model).double()
    double = Direction({name: u.double() for name, u in direction.vectors.items()}, direction.dead)
    found = {
        "sampled_fisher": curvature(model, task, groups, direction, indices),
        "gauss_newton": curvature(wide, task, groups, double, indices),
        "exact": curvature(wide, task, groups, double, indices, estimator="exact"),
        "forward_fit": curvature(model, task, groups, direction, indices, estimator="forward-fit"),
    }
    for name, one in found.items():
        states = {state: one.state.count(state) for state in sorted(set(one.state))}
        print(f"{name:<18}{one.usable.mean():>6.0%}  {states}")
    truth = found["exact"]
    result: dict[str, Any] = {"usable": {name: float(one.usable.mean()) for name, one in found.items()}}
    for name in ("sampled_fisher", "forward_fit"):
        result[f"spearman_{name}"] = agreement(found[name], truth, counts)
        result[f"spearman_gain_{name}"] = agreement(found[name], truth, np.ones_like(counts))
    result["spearman_gauss_newton_to_exact"] = agreement(found["gauss_newton"], truth, counts)
    result["spearman_sampled_fisher_to_gauss_newton"] = agreement(
        found["sampled_fisher"], found["gauss_newton"], counts
    )
    return result


def main() -> None:
    """Run the benchmark and print its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute on two cores")
    parser.add_argument("--task", default="cola", help="a folder of the development data")
    parser.add_argument("--examples", type=int, help="for the estimators (16, or 64 when not quick)")
    parser.add_argument("--timed", type=int, help="examples for the time and the direction (32, or 256)")
    parser.add_argument("--rounds", type=int, help="of the time (2, or 9)")
    parser.add_argument("--rule", default="adamw", choices=["adamw", "gradient"], help="the direction")
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 9)
    options.examples = options.examples or (16 if options.quick else 64)
    options.timed = options.timed or (32 if options.quick else 256)
    set_quiet(True)
    task = load_task(options.task, 0)
    model = task.load_model()
    parts = anatomy(model)
    groups = [Group(tensor.name, (Piece(tensor.name),)) for tensor in parts.body]
    counts = np.array([tensor.count for tensor in parts.body])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    first, second = halves(task, 512, 0)
    second = shortest(task, second, options.examples)
    result: dict[str, Any] = {}

    model.eval()
    # Which direction does not matter for the time.
    some = find_direction(model, task, groups, first[:8], rule=options.rule)
    result["passes_sampled_fisher"] = passes(model, task, groups, some, options)

    def look() -> dict[str, Any]:
        direction = find_direction(model, task, groups, first[: options.timed], rule=options.rule)
        return compare(model, task, groups, direction, second, counts)

    if not options.quick:
        result["fresh"] = look()
    with restored(model):
        calibrate(model, task, parts.head[0].module, shortest(task, halves(task, 2048, 5)[0], CALIBRATION))
        calibrated = look()
    after = model.state_dict()
    equal = all(torch.equal(value, after[name]) for name, value in before.items())
    result |= calibrated
    result["usable_share"] = calibrated["usable"]["sampled_fisher"]
    result["state_bit_equal"] = equal and torch.equal(random, torch.get_rng_state())
    result["passes_of_the_paper"] = (4 * len(groups) + 1) / 3
    result |= {"groups": len(groups), "examples": len(second)}
    print(json.dumps(result | {"direction": options.rule, "task": options.task, "machine": describe()}))


if __name__ == "__main__":
    main()
