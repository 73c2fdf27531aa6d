"""A trained vector added to the output of a layer that has no bias (T5, Llama); BitFit (arXiv 2106.10199).

A bias that the model does have is no addition: select it in the plan.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from paretune.errors import PareError
from paretune.plan import Addition
from paretune.strategies.base import Attached, check_additions, check_size, read_settings
from paretune.strategies.blocks import check_called, plain_anatomy, width_of
from paretune.strategies.outputs import AttachedOutputs, Place, add_output, has_output
from paretune.strategies.paths import plain, slot


class AddedBias(nn.Module):
    """``y + bias`` with a zero start.

    Args:
        width: Size of the last dimension of the output.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, output: torch.Tensor) -> torch.Tensor:
        """Add the vector to (..., width), in the output's dtype."""
        return (output + self.bias).to(output.dtype)


class Bias:
    """Added bias of a Linear or norm layer without one; the only size is 1 (one vector).

    It starts at zero, so that attaching changes no output. It has no settings.
    """

    name: ClassVar[str] = "bias"
    unit: ClassVar[str] = "number of vectors"
    defaults: ClassVar[Mapping[str, Any]] = {}

    def count(self, model: nn.Module, module: str, size: int, settings: Mapping[str, Any]) -> int:
        """The layer's output width."""
        check_size(self, module, size)
        if size != 1:
            raise PareError(f"bias on {module}: {size} vectors; a layer gets one (size 1)")
        return self._width(model, module, settings)

    def size(self, model: nn.Module, module: str, count: int, settings: Mapping[str, Any]) -> int:
        """1 when the vector fits, else 0."""
        return int(count >= self._width(model, module, settings))

    def attach(self, model: nn.Module, additions: Sequence[Addition], name: str = "paretune") -> Attached:
        """Add the vectors; see :class:`~paretune.strategies.base.Strategy`."""
        check_additions(self, model, additions, name)
        places = tuple(Place(addition.module, "", addition.module) for addition in additions)
        for place in places:
            if has_output(model, place.path, self.name, name):
                raise PareError(f"{place.path} has a bias named {name!r} already; take another name")
        reason = "an added bias cannot be merged: the model has no bias there; keep the delta beside it"
        attached = AttachedOutputs(model, name, "bias", places, reason)
        try:
            for addition in additions:
                added = AddedBias(self._width(model, addition.module, addition.settings))
                add_output(model, addition.module, self.name, name, added)
        except BaseException:
            attached.detach()
            raise
        return attached

    def _width(self, model: nn.Module, module: str, settings: Mapping[str, Any]) -> int:
        """Output width of a layer that can carry an added bias."""
        read_settings(self, module, settings)
        target = plain(slot(model, module))
        if getattr(target, "bias", None) is not None:
            raise PareError(
                f"{module} has a bias already; select {module}.bias in the plan instead of adding one"
            )
        if isinstance(target, nn.Linear | Conv1D):
            check_called(model, module)
            return width_of(target)[1]
        weights = [t for t in plain_anatomy(model).tensors if t.module == module]
        if len(weights) == 1 and weights[0].kind == "norm":
            return weights[0].count
        raise PareError(f"a bias fits Linear and norm layers; {module} is a {type(target).__name__}")
