"""Operations with a partly trained weight that need no dense gradient of it: linear layers and look-ups.

Each computes what PyTorch's own does; its backward hands the trained values their gradient directly.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from paretune.tuning.writethrough import Slot


def linear(input: Tensor, weight: "Slot", bias: Tensor | None = None) -> Tensor | None:
    """:func:`torch.nn.functional.linear`; None where it does not apply.

    Args:
        input: (..., columns).
        weight: Of a matrix (rows, columns).
        bias: Shape (rows,).
    """
    return _product(input, weight, bias, transposed=False)


def addmm(bias: Tensor, input: Tensor, weight: "Slot", *, beta: float = 1, alpha: float = 1) -> Tensor | None:
    """:func:`torch.addmm` as GPT-2's Conv1D calls it; None where it does not apply.

    Args:
        bias: Shape (columns,).
        input: (tokens, rows).
        weight: Of a matrix (rows, columns).
        beta: One, or it does not apply.
        alpha: Likewise.
    """
    if beta != 1 or alpha != 1 or bias.dim() != 1:
        return None
    return _product(input, weight, bias, transposed=True)


def embedding(
    tokens: Tensor,
    weight: "Slot",
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor | None:
    """:func:`torch.nn.functional.embedding`; None where it does not apply."""
    if max_norm is not None or scale_grad_by_freq or weight.index is None:
        return None
    rows = _Rows.apply(tokens.reshape(-1), weight.weight.detach(), weight.values, weight, padding_idx)
    return rows.view(*tokens.shape, rows.shape[-1])


# What is called with a weight, where the weight stands, and what does it here.
OPERATIONS: dict[Callable, tuple[int, Callable[..., Tensor | None]]] = {
    F.linear: (1, linear),
    torch.addmm: (2, addmm),
    F.embedding: (1, embedding),
}


def _product(input: Tensor, weight: "Slot", bias: Tensor | None, transposed: bool) -> Tensor | None:
    if weight.pattern is None:
        return None
    device = input.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        input, bias = input.to(dtype), None if bias is None else bias.to(dtype)
    # Matrices: a batched product of more dimensions is slower where memory is not in order, and its result is
    # a view, which a model may not change in place when it comes out of a Function.
    rows = input.reshape(-1, input.shape[-1])
    found = _Product.apply(rows, weight.weight.detach(), bias, weight.values, weight, transposed)
    return found.view(*input.shape[:-1], found.shape[-1])


class _Product(torch.autograd.Function):
    """``input @ weight^T + bias``; ``weight`` instead of its transpose where it is stored transposed.

    Under autocast the weight is cast in both passes, so that no copy of it waits between them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        values: Tensor,
        slot: "Slot",
        transposed: bool,
    ) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.slot, ctx.transposed = slot, transposed
        if torch.is_autocast_enabled(input.device.type):
            weight = weight.to(input.dtype)
        return F.linear(input, weight.t() if transposed else weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        slot, twice = ctx.slot, torch.is_grad_enabled()  # to be differentiated again: only plain operations
        of_input = of_bias = None
        if ctx.needs_input_grad[0]:
            weight = (slot.alias() if twice else weight).to(gradient.dtype)
            of_input = gradient @ (weight.t() if ctx.transposed else weight)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum(0)
        left, right = (input, gradient) if ctx.transposed else (gradient, input)
        of_values = slot.pattern.gradient(left, right, "dense" if twice else None).to(slot.values.dtype)
        return of_input, None, of_bias, of_values, None, None


class _Rows(torch.autograd.Function):
    """A look-up without a dense gradient: sums over the tokens of the batch, then picks the entries."""

    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, weight: Tensor, values: Tensor, slot: "Slot", padding_idx: int | None
    ) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.slot = slot
        ctx.padding_idx = None if padding_idx is None else padding_idx % len(weight)
        return F.embedding(tokens, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor, None, None]:
        (tokens,), slot = ctx.saved_tensors, ctx.slot
        width = gradient.shape[-1]
        rows, place = tokens.unique(return_inverse=True)
        summed = gradient.new_zeros(len(rows), width, dtype=slot.values.dtype)
        summed.index_add_(0, place, gradient.to(summed.dtype))
        if ctx.padding_idx is not None:
            summed[rows == ctx.padding_idx] = 0
        index = slot.index_here()
        row, column = index // width, index % width
        at = torch.searchsorted(rows, row).clamp_(max=len(rows) - 1)
        found = rows[at] == row
        return None, None, torch.where(found, summed[at, column], 0), None, None
