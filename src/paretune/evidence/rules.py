"""How the gradients of one call of a layer come from its input and its output's gradient, by type of layer.

A layer is recognised by what it does with a real input, not by its name: a function that computes `x W^T + b`
is linear whatever its class is called. What is recognised is then checked against autograd once
(`paretune.evidence.check`), so a layer that only looks like another costs speed and nothing else.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from paretune.evidence.gradients import Dense, Factor, Outer, Scatter, accumulation_dtype

__all__ = ["Call", "Rule", "find_rule"]


@dataclass(frozen=True)
class Call:
    """One call of a module.

    Attributes:
        module: The module.
        args: Positional arguments.
        kwargs: Keyword arguments.
        input: The tensor among them that the layer works on: its first.
        autocast: What products were cast to by autocast; None where it was off.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    input: Tensor
    autocast: torch.dtype | None = None

    @classmethod
    def of(cls, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> "Call | None":
        """The call, or None where no argument is a tensor."""
        tensors = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        first = next(tensors, None)
        if first is None:
            return None
        kind = first.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        return cls(module, args, kwargs, first.detach(), autocast)

    def again(self, weight: Tensor) -> Tensor:
        """The output with another weight and no bias, as precise as the call's own."""
        own = self.module.named_parameters(recurse=False)
        values = {name: torch.zeros_like(held) if name == "bias" else weight for name, held in own}
        with torch.autocast(self.input.device.type, self.autocast, enabled=self.autocast is not None):
            return functional_call(self.module, values, self.args, dict(self.kwargs))


class Rule(Protocol):
    """What one type of layer does with a call."""

    def factors(self, call: Call, gradient: Tensor) -> dict[str, Callable[[], Factor]]:
        """What makes the factors of the gradients of "weight" and "bias".

        Args:
            call: The call; first dimension of its input: examples.
            gradient: Gradient of the losses' sum with respect to the call's output.
        """


def find_rule(call: Call, output: Any) -> Rule | None:
    """The rule that explains a call's output, None where none does.

    A layer has one parameter, whatever its name, and may have another by the name of "bias".
    """
    if not isinstance(output, Tensor) or any(True for _ in call.module.children()):
        return None
    own = dict(call.module.named_parameters(recurse=False))
    bias = own.pop("bias", None)
    if len(own) != 1:
        return None
    (weight,) = own.values()
    for rule in (Linear, Embedding, Convolution, Scale):
        found = rule.explaining(call, output, weight, bias)
        if found is not None:
            return found
    return None


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal up to rounding in the lower of two precisions."""
    if a.shape != b.shape:
        return False
    tolerance = max(torch.finfo(x.dtype).eps for x in (a, b)) ** 0.5 + 1e-4
    a, b = a.double(), b.double()
    return bool((a - b).norm() <= tolerance * b.norm().clamp(min=1e-300) + 1e-300)


def _positions(x: Tensor) -> Tensor:
    """Everything between examples and features as one dimension: (examples, positions, features)."""
    return x.unsqueeze(1) if x.ndim == 2 else x.flatten(1, -2)


def _summed(values: Tensor) -> Dense:
    """Values (examples, positions, features) summed over the positions."""
    return Dense(values.sum(1, dtype=accumulation_dtype(values.dtype)).unsqueeze(2))


@dataclass(frozen=True)
class Linear:
    """`y = x W^T + b`, or `y = x W + b` (GPT-2's Conv1D): `G_i = sum_t g_it x_it^T`.

    Attributes:
        transposed: The weight is (in, out).
    """

    transposed: bool

    @classmethod
    def explaining(cls, call: Call, output: Tensor, weight: Tensor, bias: Tensor | None) -> "Linear | None":
        """See `find_rule`."""
        x = call.input
        if type(call.module) is nn.Linear:
            return cls(transposed=False)
        if weight.ndim != 2 or x.dtype != weight.dtype or x.ndim < 2:
            return None
        for transposed in (False, True):
            matrix = weight.T if transposed else weight
            if x.shape[-1] == matrix.shape[1] and _close(functional.linear(x, matrix, bias), output):
                return cls(transposed)
        return None

    def factors(self, call: Call, gradient: Tensor) -> dict[str, Callable[[], Factor]]:
        """See `Rule`."""
        g = _positions(gradient)

        def outer() -> Factor:
            x = _positions(call.input.to(g.dtype))  # autocast may have cast it for the product
            return Outer(x, g) if self.transposed else Outer(g, x)

        return {"weight": outer, "bias": lambda: _summed(g)}


@dataclass(frozen=True)
class Embedding:
    """`y = scale W[rows]`: each position adds to the row it looks up; the padding row has no gradient.

    Attributes:
        height: How many rows the table has.
        scale: What the rows are multiplied by.
        direct: The input is the rows' numbers; else they are looked up in a table of numbers.
    """

    height: int
    scale: float
    direct: bool

    @classmethod
    def explaining(
        cls, call: Call, output: Tensor, weight: Tensor, bias: Tensor | None
    ) -> "Embedding | None":
        """See `find_rule`."""
        if type(call.module) is nn.Embedding:
            return cls(len(weight), 1.0, direct=True)
        if weight.ndim != 2 or bias is not None or not isinstance(call.module, nn.Embedding):
            return None
        ones = call.again(torch.ones_like(weight))
        if ones.shape[-1:] != weight.shape[1:]:
            return None
        scale = float(ones.flatten()[0])
        rows = cls(len(weight), scale, direct=False)._rows(call)
        found = functional.embedding(rows.clamp(0, len(weight) - 1), weight)
        return cls(len(weight), scale, direct=False) if _close(found * scale, output) else None

    def _rows(self, call: Call) -> Tensor:
        """Which row each position looks up (examples, positions...)."""
        if self.direct:
            return call.input.long()
        weight = next(call.module.parameters(recurse=False))
        numbers = torch.arange(self.height, dtype=torch.float64, device=weight.device)
        return (call.again(numbers[:, None].expand(weight.shape))[..., 0] / self.scale).round().long()

    def factors(self, call: Call, gradient: Tensor) -> dict[str, Callable[[], Factor]]:
        """See `Rule`."""

        def scatter() -> Factor:
            rows, g = self._rows(call), gradient if self.scale == 1 else gradient * self.scale
            padding = getattr(call.module, "padding_idx", None)
            if padding is not None:
                g = g.masked_fill((rows == padding).unsqueeze(-1), 0)
            g = g.reshape(len(g), -1, g.shape[-1])
            return Scatter(rows.reshape(-1, g.shape[1]).expand(len(g), -1), g, self.height)

        return {"weight": scatter}


@dataclass(frozen=True)
class Convolution:
    """A 2-d convolution in one group: a linear layer on patches."""

    @classmethod
    def explaining(
        cls, call: Call, output: Tensor, weight: Tensor, bias: Tensor | None
    ) -> "Convolution | None":
        """See `find_rule`."""
        conv, x = call.module, call.input
        if not isinstance(conv, nn.Conv2d) or x.ndim != 4 or conv.groups != 1 or conv.padding_mode != "zeros":
            return None
        return None if isinstance(conv.padding, str) else cls()

    def factors(self, call: Call, gradient: Tensor) -> dict[str, Callable[[], Factor]]:
        """See `Rule`."""
        conv = call.module
        assert isinstance(conv, nn.Conv2d) and not isinstance(conv.padding, str)
        settings = (conv.kernel_size, conv.dilation, conv.padding, conv.stride)
        g = gradient.flatten(2).transpose(1, 2)

        def outer() -> Factor:
            patches = functional.unfold(call.input.to(g.dtype), *settings)
            return Outer(g, patches.transpose(1, 2))

        return {"weight": outer, "bias": lambda: _summed(g)}


@dataclass(frozen=True)
class Scale:
    """`y = c(x) + n(x) w + b` with a vector w: LayerNorm, RMSNorm and its variants (`1 + w`), layer scale.

    `G_i = sum_t g_it n(x_it)`; n and c come from the module itself, called with w = 1 and w = 0.

    Attributes:
        axis: The dimension of the output that w runs along: the last, or the second (a norm of channels).
        offset: c(x) is not zero.
    """

    axis: int
    offset: bool

    @classmethod
    def explaining(cls, call: Call, output: Tensor, weight: Tensor, bias: Tensor | None) -> "Scale | None":
        """See `find_rule`."""
        if weight.ndim != 1 or not call.input.is_floating_point() or output.shape != call.input.shape:
            return None
        if bias is not None and bias.shape != weight.shape:
            return None
        constant = call.again(torch.zeros_like(weight))
        slope = call.again(torch.ones_like(weight)) - constant
        for axis in (output.ndim - 1, 1):
            if axis >= output.ndim or output.shape[axis] != len(weight):
                continue
            expected = constant + slope * _along(weight, axis, output.ndim)
            if bias is not None:
                expected = expected + _along(bias, axis, output.ndim)
            if _close(expected, output):
                return cls(axis, bool(constant.any()))
        return None

    def factors(self, call: Call, gradient: Tensor) -> dict[str, Callable[[], Factor]]:
        """See `Rule`."""

        def weight() -> Factor:
            own = call.module.named_parameters(recurse=False)
            held = next(parameter for name, parameter in own if name != "bias")
            slope = call.again(torch.ones_like(held))
            if self.offset:
                slope = slope - call.again(torch.zeros_like(held))
            return self._summed(gradient.to(accumulation_dtype(gradient.dtype)) * slope)

        return {"weight": weight, "bias": lambda: self._summed(gradient)}

    def _summed(self, values: Tensor) -> Dense:
        """Values summed over all but examples and the axis."""
        values = values.movedim(self.axis, -1)
        return _summed(values.reshape(len(values), -1, values.shape[-1]))


def _along(vector: Tensor, axis: int, ndim: int) -> Tensor:
    """A vector shaped to run along one axis of a tensor."""
    return vector.view([-1 if dimension == axis else 1 for dimension in range(ndim)])
