"""The gain that a plan promises, in one currency for every kind of plan.

Everything that a plan trains is moved together along the optimiser's first step, found on some examples, and
the loss on others is looked at: it changes by `-step b + step^2 q / 2`, so the best step gains `b^2 / (2 q)`.
The head is trained under every plan; what it can do by itself is nobody's gain. Slope and curvature come from
the outputs a little to both sides, so that two forwards an example suffice, whatever a plan is made of.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from paretune.evidence.state import undisturbed
from paretune.methods.probe import halves
from paretune.plan import Plan
from paretune.task import Task
from paretune.task.collate import IGNORED
from paretune.task.kinds import find_kind
from paretune.tuning import attach, detach

EPSILON = 1e-8  # AdamW's own
REACH = 1e-4  # how far weights are moved to either side; fp32 outputs resolve it
LEAST_LEFT = 1e-6  # share of a curvature below which what the head leaves of it is rounding


@dataclass(frozen=True)
class _Outputs:
    """Of some examples: log-probabilities (or values) as rows, their weights, and the losses."""

    rows: Tensor
    weights: Tensor
    losses: Tensor


def predicted_gain(
    model: nn.Module, task: Task, plan: Plan, *, samples: int, batch_size: int = 32, seed: int = 0
) -> float:
    """How much the loss falls at the best step along a plan's first direction, beyond what the head can do.

    Args:
        model: The model in fp32, without a plan; left bit-equal.
        task: The data; its training part alone is looked at.
        plan: For this model (in whatever precision).
        samples: Training examples: half for the direction, half for slope and curvature.
        batch_size: Examples in a forward pass.
        seed: Of their draw.

    Returns:
        The gain; 0 where the loss rises along the direction, or nothing is left of it beside the head's.
    """
    first, second = halves(task, samples, seed)
    with undisturbed(model):
        plain = _outputs(model, task, second, batch_size).losses.mean()
        attach(model, plan, check=False)
        try:
            model.eval()
            step = _step(model, task, first, batch_size)
            head = {selection.tensor for selection in plan.head}
            parts = [{n: u for n, u in step.items() if (n in head) == of_head} for of_head in (False, True)]
            now = _outputs(model, task, second, batch_size)
            moved = [_derivative(model, task, part, second, batch_size) for part in parts if part]
        finally:
            detach(model)
    slope = np.array([-float(d.losses.mean()) for d in moved])
    curved = np.array([[_product(task, now, a, b) for b in moved] for a in moved])
    attaching = float(now.losses.mean() - plain)
    if not parts[0]:
        return 0.0
    b, q = slope[0], curved[0, 0]
    if len(moved) == 2 and curved[1, 1] > 0:
        b = b - curved[0, 1] / curved[1, 1] * slope[1]
        q = q - curved[0, 1] ** 2 / curved[1, 1]
    if not (b > 0 and q > LEAST_LEFT * curved[0, 0]):
        return 0.0
    return max(float(b**2 / (2 * q)) - max(attaching, 0.0), 0.0)


def _step(model: nn.Module, task: Task, indices: Sequence[int] | np.ndarray, size: int) -> dict[str, Tensor]:
    """AdamW's first step of everything that is trained, by name."""
    trained: dict[str, nn.Parameter] = model.paretune.trained  # type: ignore[union-attr,assignment]
    device = next(model.parameters()).device
    for parameter in trained.values():
        parameter.grad = None
    for batch in task.batches("train", size, indices, device):
        task.example_losses(model, batch).sum().backward()
    step = {}
    for name, parameter in trained.items():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad / len(indices)
        step[name] = (gradient / (gradient.abs() + EPSILON)).detach()
        parameter.grad = None
    return step


@torch.no_grad()
def _derivative(
    model: nn.Module, task: Task, step: dict[str, Tensor], indices: Sequence[int] | np.ndarray, size: int
) -> _Outputs:
    """The change of outputs and losses per unit of a step against the gradient; weights are put back."""
    trained: dict[str, nn.Parameter] = model.paretune.trained  # type: ignore[union-attr,assignment]
    before = {name: trained[name].detach().clone() for name in step}
    found = []
    for side in (1.0, -1.0):
        for name, direction in step.items():
            trained[name].copy_(before[name] - side * REACH * direction)
        found.append(_outputs(model, task, indices, size))
    for name, values in before.items():
        trained[name].copy_(values)
    ahead, back = found
    return _Outputs(
        (ahead.rows - back.rows) / (2 * REACH), ahead.weights, (ahead.losses - back.losses) / (2 * REACH)
    )


@torch.no_grad()
def _outputs(model: nn.Module, task: Task, indices: Sequence[int] | np.ndarray, size: int) -> _Outputs:
    """Outputs of examples, one row each, or one for each target token."""
    kind = find_kind(task.kind)
    device = next(model.parameters()).device
    rows, weights, losses = [], [], []
    for batch in task.batches("train", size, indices, device):
        logits = kind.logits(model, batch)
        losses.append(kind.losses(logits, batch["labels"]).double().cpu())
        if kind.scores_tokens:
            counted = batch["labels"] != IGNORED
            if task.kind == "causal-lm":
                counted = torch.nn.functional.pad(counted[:, 1:], (0, 1))
            share = counted / counted.sum(1, keepdim=True).clamp(min=1)
            rows.append(logits[counted].double().cpu())
            weights.append(share[counted].double().cpu())
        else:
            rows.append(logits.double().cpu())
            weights.append(torch.ones(len(logits), dtype=torch.float64))
    return _Outputs(torch.cat(rows), torch.cat(weights) / len(indices), torch.cat(losses))


def _product(task: Task, now: _Outputs, a: _Outputs, b: _Outputs) -> float:
    """The Gauss-Newton inner product of two changes of the outputs."""
    if task.kind == "regression":
        # The squared error without a half has twice the curvature of a Gaussian's likelihood.
        return float((2 * (a.rows * b.rows).sum(1) * now.weights).sum())
    p = now.rows.softmax(1)
    centred = a.rows - (p * a.rows).sum(1, keepdim=True)
    return float(((p * centred * b.rows).sum(1) * now.weights).sum())
