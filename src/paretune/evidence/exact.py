"""Exact curvature along a direction: one double backward a group."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from paretune.errors import PareError
from paretune.evidence.check import requiring_gradients
from paretune.evidence.groups import Direction, Group
from paretune.evidence.state import undisturbed
from paretune.progress import track
from paretune.task import Task

__all__ = ["exact"]


def exact(
    model: nn.Module,
    task: Task,
    groups: Sequence[Group],
    direction: Direction,
    indices: Sequence[int] | np.ndarray,
    matrix: bool,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Slope (K,), curvature (K,) and, if asked for, the matrix (K, K), over training examples.

    Attention runs on its math kernel, since the fused ones have no double backward.

    Raises:
        PareError: The model has an operation without a double backward, or a value is not finite.
    """
    named = dict(model.named_parameters())
    parameters = {name: named[name] for name in direction.vectors}
    slope, between = np.zeros(len(groups)), np.zeros((len(groups), len(groups)))
    batches = task.batches("train", batch_size, np.asarray(indices), next(iter(named.values())).device)
    total = -(-len(indices) // batch_size)
    with undisturbed(model), requiring_gradients(parameters.values()), torch.enable_grad():
        for batch in track(batches, "exact curvature", total):
            with sdpa_kernel(SDPBackend.MATH):
                loss = task.example_losses(model, batch).sum() / len(indices)
                try:
                    _add(loss, parameters, groups, direction.vectors, matrix, slope, between)
                except RuntimeError as problem:
                    raise PareError(
                        f"exact curvature needs a double backward, which this model has not ({problem}); "
                        'load it with attn_implementation="eager" or take sampled-fisher'
                    ) from problem
    return slope, np.diagonal(between).copy(), between if matrix else None


def _add(
    loss: Tensor,
    parameters: dict[str, nn.Parameter],
    groups: Sequence[Group],
    vectors: dict[str, Tensor],
    matrix: bool,
    slope: np.ndarray,
    between: np.ndarray,
) -> None:
    """Add one batch's share."""
    names = list(parameters)
    first = _gradients(loss, names, parameters, create_graph=True)
    for number, group in enumerate(groups):
        along = group.dot(first, vectors)
        slope[number] += float(along.detach())
        if not along.requires_grad:
            continue
        wanted = names if matrix else [piece.tensor for piece in group.pieces]
        second = _gradients(along, wanted, parameters, create_graph=False)
        for other in range(len(groups)) if matrix else (number,):
            between[number, other] += float(groups[other].dot(second, vectors))


def _gradients(
    value: Tensor, names: Sequence[str], parameters: dict[str, nn.Parameter], create_graph: bool
) -> dict[str, Tensor]:
    """Gradients by tensor; zero where the value does not depend on one."""
    wanted = [parameters[name] for name in names]
    found = torch.autograd.grad(
        value, wanted, retain_graph=True, create_graph=create_graph, allow_unused=True
    )
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for name, parameter, gradient in zip(names, wanted, found, strict=True)
    }
