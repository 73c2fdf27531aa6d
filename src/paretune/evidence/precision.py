"""How precise the products of an evidence pass are."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from paretune.errors import PareError
from paretune.ranks import has_bf16

__all__ = ["Precision", "casting", "check_precision"]

Precision = Literal["fp32", "bf16"]


def check_precision(model: nn.Module, precision: Precision) -> None:
    """Refuse what `casting` cannot do.

    Raises:
        PareError: There is no such precision, or the model or its device cannot have it.
    """
    if precision not in get_args(Precision):
        raise PareError(f"precision={precision!r} is none of {', '.join(get_args(Precision))}")
    if precision == "fp32":
        return
    if any(parameter.dtype == torch.float64 for parameter in model.parameters()):
        raise PareError("precision=bf16: autocast leaves a model in float64 as it is; take fp32")
    device = next(model.parameters()).device
    if not has_bf16(device):
        raise PareError(f"precision=bf16: {torch.cuda.get_device_name(device)} has no bfloat16; take fp32")


@contextmanager
def casting(model: nn.Module, precision: Precision) -> Iterator[None]:
    """What the forwards of an evidence pass run under.

    Args:
        model: The model.
        precision: "fp32": products as precise as the model's weights are; "bf16": products in bfloat16
            (autocast), each summed in float32 inside.
    """
    device = next(model.parameters()).device.type
    half = precision == "bf16"
    wide = _WideAttention() if half and device == "cpu" else nullcontext()
    with torch.autocast(device, torch.bfloat16, enabled=half), wide:
        yield


class _WideAttention(TorchFunctionMode):
    """Fused attention in float32: on a CPU its backward in bfloat16 takes four times as long."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not scaled_dot_product_attention:
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            return func(*map(_wide, args), **{name: _wide(value) for name, value in kwargs.items()})


def _wide(value: Any) -> Any:
    """A tensor of half precision in float32, anything else as it is."""
    half = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if half else value
