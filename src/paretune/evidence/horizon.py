"""Look at a model while it trains for a little while, then put it back: nothing of the training is kept."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from paretune.errors import DivergedError, PareError
from paretune.evidence.check import requiring_gradients
from paretune.evidence.state import undisturbed
from paretune.progress import track
from paretune.task import Task

__all__ = ["during_training", "restored"]

Found = TypeVar("Found")
Probe = Callable[[int, torch.optim.Optimizer], Found]


def during_training(
    model: nn.Module,
    task: Task,
    parameters: Sequence[nn.Parameter],
    probe: Probe[Found],
    *,
    steps: int,
    probes: int,
    lr: float,
    batch_size: int = 32,
    seed: int = 0,
) -> list[Found]:
    """Train with AdamW at a constant rate, probe every few steps, then rewind.

    Weights, buffers, gradients, modes, flags and random state are bit-equal afterwards, also after an error.
    The weights are kept twice meanwhile.

    Args:
        model: The model.
        task: Trained on its training part.
        parameters: What is trained.
        probe: Called after the step of each probe with its number and the optimiser, in train mode; it must
            leave both as they are.
        steps: How many steps are made.
        probes: How many times to look, evenly over the steps; the last is after the last step.
        lr: The learning rate.
        batch_size: Examples a step.
        seed: Order of the data, dropout.

    Returns:
        What the probes returned.

    Raises:
        PareError: Fewer steps than probes or fewer examples than a step takes.
        DivergedError: The loss is not finite.
    """
    if not 1 <= probes <= steps:
        raise PareError(
            f"{probes} probes in {steps} steps of training: ask for 1 to {steps}, or a longer horizon"
        )
    due = {round((number + 1) * steps / probes) for number in range(probes)}
    found: list[Found] = []
    device = next(model.parameters()).device
    with restored(model), undisturbed(model), requiring_gradients(parameters), torch.enable_grad():
        torch.manual_seed(seed)
        model.train()
        optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
        batches = _batches(task, steps, batch_size, seed, device)
        for number, batch in enumerate(track(batches, "horizon", steps), start=1):
            loss = task.example_losses(model, batch).mean()
            if not torch.isfinite(loss):
                raise DivergedError(
                    f"the loss of the horizon's step {number} is {float(loss)}; lower its rate ({lr:g})"
                )
            gradients = torch.autograd.grad(loss, list(parameters), allow_unused=True)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimiser.step()
            optimiser.zero_grad()
            if number in due:
                found.append(probe(len(found), optimiser))
    return found


def _batches(
    task: Task, steps: int, batch_size: int, seed: int, device: torch.device
) -> Iterator[dict[str, Tensor]]:
    """Batches in a seeded order, epoch after epoch."""
    size = min(batch_size, len(task.train))
    generator = np.random.default_rng([seed, 1])
    order: list[int] = []
    for _ in range(steps):
        if len(order) < size:
            order = generator.permutation(len(task.train)).tolist()
        taken, order = order[:size], order[size:]
        yield next(task.batches("train", size, taken, device))


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Put every weight, buffer and gradient back bit for bit afterwards."""
    held = [*model.parameters(), *model.buffers()]
    before = [tensor.detach().clone() for tensor in held]
    gradients = [parameter.grad for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, values in zip(held, before, strict=True):
                tensor.copy_(values)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
