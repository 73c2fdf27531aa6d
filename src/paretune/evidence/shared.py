"""Values that a model uses once for all examples: each example gets its own copy, and so its own gradient."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from paretune.evidence.gradients import Dense, Factor, Scatter, matrix_shape

__all__ = ["Shared", "SharedBias", "SharedParameter", "Slot", "find_shared", "slots"]

Arrived = Callable[[str, Factor], None]


@dataclass(frozen=True, eq=False)
class Slot:
    """A parameter where a module holds it; a tied tensor has several.

    Attributes:
        module: The module.
        local: The parameter's name in the module.
        name: The tensor's name in the model, the first of a tied one's.
        parameter: The parameter.
    """

    module: nn.Module
    local: str
    name: str
    parameter: nn.Parameter


def slots(model: nn.Module, tensors: Iterable[str]) -> list[Slot]:
    """Every place in a model that holds one of the tensors."""
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    wanted = set(tensors)
    return [
        Slot(module, local, named[id(parameter)], parameter)
        for module in model.modules()
        for local, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
        if named[id(parameter)] in wanted
    ]


class Shared(Protocol):
    """A value of first dimension 1 that stands for all examples."""

    @property
    def slot(self) -> Slot:
        """The parameter that it comes from."""

    def begin(self, examples: int, used: Callable[[str], None], arrived: Arrived) -> None:
        """Give each example its copy, until `end`.

        Args:
            examples: How many.
            used: Is told the tensor's name at each use.
            arrived: Is handed each use's gradients in the backward.
        """

    def end(self) -> None:
        """Put things back."""


def find_shared(model: nn.Module, places: Iterable[Slot]) -> list[Shared]:
    """Parameters that look as if they stood for all examples; whether they do is checked afterwards."""
    biased = {
        child: (parent, method)
        for parent in model.modules()
        for method in ("compute_bias", "compute_position_bias")
        if callable(getattr(parent, method, None))
        for child in parent.children()
        if isinstance(child, nn.Embedding)
    }
    found: list[Shared] = []
    for slot in places:
        if slot.module in biased:
            found.append(SharedBias(slot, *biased[slot.module]))
        elif slot.local != "weight" and slot.parameter.ndim > 1 and slot.parameter.shape[0] == 1:
            found.append(SharedParameter(slot))
    return found


def _each(value: Tensor, examples: int) -> Tensor:
    """Views of a value for each example, part of a graph."""
    each = value.expand(examples, *value.shape[1:])
    return each if each.requires_grad else each.detach().requires_grad_()


@dataclass(frozen=True, eq=False)
class SharedParameter:
    """A class token, a table of positions that is added as it is: the parameter itself is the value.

    Attributes:
        slot: The parameter.
    """

    slot: Slot

    def begin(self, examples: int, used: Callable[[str], None], arrived: Arrived) -> None:
        """See `Shared`."""
        name, parameter = self.slot.name, self.slot.parameter
        each = _each(parameter, examples)
        shape = (examples, *matrix_shape(parameter.shape))
        each.register_hook(lambda gradient: arrived(name, Dense(gradient.reshape(shape))))
        self.slot.module._parameters[self.slot.local] = each  # type: ignore[assignment]
        used(name)

    def end(self) -> None:
        """See `Shared`."""
        self.slot.module._parameters[self.slot.local] = self.slot.parameter


@dataclass(frozen=True, eq=False)
class SharedBias:
    """T5's relative positions: a method looks up a score for each pair of positions and each head.

    Attributes:
        slot: The table (buckets, heads).
        owner: The module with the method.
        method: The method's name; it returns (1 or examples, ..., heads, positions, positions).
    """

    slot: Slot
    owner: nn.Module
    method: str

    def begin(self, examples: int, used: Callable[[str], None], arrived: Arrived) -> None:
        """See `Shared`."""
        compute = getattr(self.owner, self.method)

        def compute_each(*args: Any, **kwargs: Any) -> Tensor:
            value = compute(*args, **kwargs)
            rows = self._rows(compute, args, kwargs)
            each = _each(value, examples)
            each.register_hook(lambda gradient: arrived(self.slot.name, self._scattered(rows, gradient)))
            used(self.slot.name)
            return each

        setattr(self.owner, self.method, compute_each)

    def end(self) -> None:
        """See `Shared`."""
        vars(self.owner).pop(self.method, None)

    def _rows(self, compute: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Which row of the table each pair of positions looks up: looked up in a table of row numbers."""
        held, table = self.slot.module._parameters, self.slot.parameter
        numbers = torch.arange(len(table), dtype=torch.float32, device=table.device)
        try:
            held[self.slot.local] = numbers[:, None].expand(table.shape).contiguous()  # type: ignore[assignment]
            return compute(*args, **kwargs)[:1].select(-3, 0).detach().long().flatten()
        finally:
            held[self.slot.local] = table

    def _scattered(self, rows: Tensor, gradient: Tensor) -> Scatter:
        """The table's gradients from those of the scores."""
        values = gradient.movedim(-3, -1).flatten(1, -2)
        return Scatter(rows.expand(len(values), -1), values, len(self.slot.parameter))
