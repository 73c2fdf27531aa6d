"""Run a model over a split and leave it as it was."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from paretune.errors import PareError
from paretune.progress import track


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No dropout and no gradients inside; every module's mode and the random state are put back after."""
    modes = [(module, module.training) for module in model.modules()]
    device = device_of(model)
    try:
        model.eval()
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first parameter is (the CPU for a model without any)."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def judge_all(
    judge: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
    batches: Iterator[dict[str, Tensor]],
    order: np.ndarray,
    batch_size: int,
    name: str,
) -> dict[str, np.ndarray]:
    """Judge every example and put the verdicts back into the split's order.

    Args:
        judge: Verdicts of a batch, tensors of shape (B,), "finite" among them.
        batches: The batches, over the rows in `order`.
        order: The row that each place of the walk stands for, a permutation.
        batch_size: Rows of a batch.
        name: What an error calls the split.

    Returns:
        Arrays of shape (N,) in the split's order, without "finite".

    Raises:
        PareError: The outputs for an example are not finite; the message names the first such example.
    """
    found: list[dict[str, Tensor]] = []
    for batch in track(batches, "scoring", -(-len(order) // batch_size)):
        found.append({key: values.cpu() for key, values in judge(batch).items()})
    back = np.argsort(order)
    judged = {key: torch.cat([verdict[key] for verdict in found]).numpy()[back] for key in found[0]}
    broken = np.flatnonzero(~judged.pop("finite"))
    if len(broken):
        raise PareError(
            f"{name}: the model's output for example {broken[0]} is not finite "
            f"({len(broken)} of {len(order)} examples); lower the learning rate or train in fp32"
        )
    return judged
