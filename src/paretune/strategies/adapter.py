"""Bottleneck adapters (arXiv 1902.00751): ``y + up(activation(down(y)))`` on the output of a sublayer."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from paretune.errors import PareError
from paretune.plan import Addition
from paretune.strategies.base import (
    Attached,
    check_additions,
    check_size,
    read_settings,
    seeded,
    tensor_key,
)
from paretune.strategies.blocks import attention_output, feed_forward_output, width_of
from paretune.strategies.outputs import AttachedOutputs, Place, add_output, has_output
from paretune.strategies.paths import plain, slot

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}


class Bottleneck(nn.Module):
    """``y + up(activation(down(y)))``; ``up`` starts at zero, so that it starts as the identity.

    Args:
        width: Size of the last dimension of the input and output.
        size: Width of the bottleneck.
        activation: A key of ``ACTIVATIONS``.
        generator: Source of ``down``'s initial values.
    """

    def __init__(self, width: int, size: int, activation: str, generator: torch.Generator) -> None:
        super().__init__()
        # Built without values: torch would draw them from the caller's random state.
        self.down = nn.utils.skip_init(nn.Linear, width, size)
        self.up = nn.utils.skip_init(nn.Linear, size, width)
        self.activation = activation
        bound = 1 / math.sqrt(width)
        with torch.no_grad():
            self.down.weight.uniform_(-bound, bound, generator=generator)
            for zero in (self.down.bias, self.up.weight, self.up.bias):
                zero.zero_()

    def forward(self, output: torch.Tensor) -> torch.Tensor:
        """Shape (..., width) in and out, in the input's dtype."""
        hidden = self.down(output.to(self.down.weight.dtype))
        change = self.up(ACTIVATIONS[self.activation](hidden))
        return (output + change).to(output.dtype)


class Adapter:
    """Bottleneck adapter in a block; the size m is the width of the bottleneck.

    It acts on the output of the layer that ends a sublayer, before dropout and the residual.

    Settings:
        after: "mlp" (default): the feed-forward alone; "both": the self-attention too, each with width m.
        activation: "relu" (default), "gelu", "silu" or "tanh".
        seed: Seed of ``down``'s initial values (uniform, bound ``1 / sqrt(d)``; its bias is zero). Default 0.
    """

    name: ClassVar[str] = "adapter"
    unit: ClassVar[str] = "width"
    defaults: ClassVar[Mapping[str, Any]] = {"after": "mlp", "activation": "relu", "seed": 0}

    def count(self, model: nn.Module, module: str, size: int, settings: Mapping[str, Any]) -> int:
        """``2 d m + m + d`` for each placement, with the sublayer's width d."""
        check_size(self, module, size)
        return sum(2 * d * size + size + d for d in self._widths(model, module, settings))

    def size(self, model: nn.Module, module: str, count: int, settings: Mapping[str, Any]) -> int:
        """The largest m whose count is at most ``count``."""
        widths = self._widths(model, module, settings)
        return max((count - sum(widths)) // sum(2 * d + 1 for d in widths), 0)

    def attach(self, model: nn.Module, additions: Sequence[Addition], name: str = "paretune") -> Attached:
        """Add the adapters; see :class:`~paretune.strategies.base.Strategy`."""
        check_additions(self, model, additions, name)
        places = {
            addition.module: self._places(model, addition.module, addition.settings) for addition in additions
        }
        for place in (place for group in places.values() for place in group):
            if has_output(model, place.path, self.name, name):
                raise PareError(f"{place.module} has an adapter named {name!r} already; take another name")
        reason = "an adapter cannot be merged: it is not linear; keep the delta beside the model"
        every = tuple(place for group in places.values() for place in group)
        attached = AttachedOutputs(model, name, "adapter", every, reason)
        try:
            for addition in additions:
                for place in places[addition.module]:
                    add_output(model, place.path, self.name, name, self._build(model, addition, place))
        except BaseException:
            attached.detach()
            raise
        return attached

    def _build(self, model: nn.Module, addition: Addition, place: Place) -> Bottleneck:
        settings = read_settings(self, addition.module, addition.settings)
        key = tensor_key(self.name, place.module, f"{place.label}down.weight")
        width = width_of(plain(slot(model, place.path)))[1]
        return Bottleneck(width, addition.size, settings["activation"], seeded(settings["seed"], key))

    def _widths(self, model: nn.Module, module: str, settings: Mapping[str, Any]) -> list[int]:
        """Width of each placement."""
        places = self._places(model, module, settings)
        return [width_of(plain(slot(model, place.path)))[1] for place in places]

    def _places(self, model: nn.Module, module: str, settings: Mapping[str, Any]) -> list[Place]:
        """The layers whose output the adapters of a block change."""
        full = read_settings(self, module, settings)
        if full["after"] not in ("mlp", "both"):
            raise PareError(f"adapter on {module}: after {full['after']!r} is neither 'mlp' nor 'both'")
        if full["activation"] not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise PareError(f"adapter on {module}: activation {full['activation']!r} is none of {known}")
        places = [Place(module, "mlp.", feed_forward_output(model, module))]
        if full["after"] == "both":
            places.append(Place(module, "attention.", attention_output(model, module)))
        return places
