"""What is made of per-example gradients: each consumer takes every tensor's gradients once a batch.

A consumer is handed the blocks of `paretune.evidence.gradients`, or, through `whole`, the factors themselves
where it knows something cheaper than forming the gradients. Several consumers share one set of blocks.
Another consumer is a subclass with the abstract methods; what it holds is its own affair.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from paretune.errors import PareError
from paretune.evidence.gradients import (
    Block,
    ExampleGradients,
    Outer,
    Scatter,
    accumulation_dtype,
    matrix_shape,
)

__all__ = ["AbsSum", "Consumer", "Dots", "ExampleEntries", "ExampleNorms", "SquaredSum", "Sum"]


class Consumer(ABC):
    """Takes the gradients of every example, tensor by tensor.

    `positions` (int64) numbers the examples of the batch within the whole pass: the row of each example in
    what a consumer keeps per example.
    """

    @abstractmethod
    def wants(self, name: str) -> bool:
        """Whether the tensor of this name is of interest."""

    def whole(self, gradients: ExampleGradients, positions: Tensor) -> bool:
        """Take a tensor's gradients from their factors, if there is a cheaper way than blocks.

        Returns:
            Whether they were taken; if not, `block` is called.
        """
        return False

    def block(self, name: str, block: Block, positions: Tensor) -> None:
        """Take one block of a tensor's gradients; never called where `whole` takes every tensor."""
        raise NotImplementedError

    @abstractmethod
    def totals(self) -> Iterable[Tensor]:
        """What is held; it adds up over processes that each saw a share of the examples."""


class _Sums(Consumer):
    """One number for every weight, summed over the examples."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Start from zero.

        Args:
            tensors: The tensors to sum for; only name, shape, dtype and device are used.
        """
        self.values = {
            name: torch.zeros(tensor.shape, dtype=accumulation_dtype(tensor.dtype), device=tensor.device)
            for name, tensor in tensors.items()
        }

    def wants(self, name: str) -> bool:
        """See `Consumer`."""
        return name in self.values

    def totals(self) -> Iterable[Tensor]:
        """See `Consumer`."""
        return self.values.values()

    def _matrix(self, name: str) -> Tensor:
        """The sums of a tensor as a matrix."""
        return self.values[name].view(matrix_shape(self.values[name].shape))

    def block(self, name: str, block: Block, positions: Tensor) -> None:
        """See `Consumer`."""
        sums = self._matrix(name)
        if isinstance(block.rows, slice):
            self._add(sums[block.rows], block.values)
        else:
            some = sums[block.rows]
            self._add(some, block.values)
            sums[block.rows] = some

    @abstractmethod
    def _add(self, sums: Tensor, values: Tensor) -> None:
        """Add values (b, r, columns) of b examples to sums (r, columns)."""


class _PowerSum(_Sums):
    """`sum_i f(g_ij)` for an f with f(ab) = f(a) f(b)."""

    @abstractmethod
    def _power(self, values: Tensor) -> Tensor:
        """Values to f of them, in new memory."""

    def whole(self, gradients: ExampleGradients, positions: Tensor) -> bool:
        """See `Consumer`: one position an example, and embeddings, need no blocks."""
        factor, sums = gradients.factor, self._matrix(gradients.name)
        if isinstance(factor, Outer) and factor.left.shape[1] == 1:
            left, right = (self._power(part[:, 0].to(sums.dtype)) for part in (factor.left, factor.right))
            sums.addmm_(left.T, right)
        elif isinstance(factor, Scatter):
            _, rows, values = factor.merged()
            sums.index_add_(0, rows, self._power(values))
        else:
            return False
        return True

    def _add(self, sums: Tensor, values: Tensor) -> None:
        sums += self._power(values).sum(0)


class SquaredSum(_PowerSum):
    """`sum_i g_ij^2` for every weight j.

    Attributes:
        values: The sums by tensor, of the tensor's shape, float32 (float64 for float64 models).
    """

    def _power(self, values: Tensor) -> Tensor:
        return values.square()

    def _add(self, sums: Tensor, values: Tensor) -> None:
        if len(values) > 16:
            super()._add(sums, values)
        else:
            for one in values:
                sums.addcmul_(one, one)  # no new memory: what is in cache stays there


class AbsSum(_PowerSum):
    """`sum_i |g_ij|` for every weight j.

    Attributes:
        values: As in `SquaredSum`.
    """

    def _power(self, values: Tensor) -> Tensor:
        return values.abs()


class Sum(_Sums):
    """`sum_i g_ij` for every weight j: the batch gradient, unnormalised.

    Attributes:
        values: As in `SquaredSum`.
    """

    def whole(self, gradients: ExampleGradients, positions: Tensor) -> bool:
        """See `Consumer`: a linear layer's sum is one product."""
        factor, sums = gradients.factor, self._matrix(gradients.name)
        if isinstance(factor, Outer):
            sums += factor.sum()
        elif isinstance(factor, Scatter):
            sums.index_add_(0, factor.rows.flatten(), factor.values.flatten(0, 1).to(sums.dtype))
        else:
            return False
        return True

    def _add(self, sums: Tensor, values: Tensor) -> None:
        sums += values.sum(0)


class _Indexed(Consumer):
    """Something about chosen weights of each example: by tensor, flat indices or all of it."""

    def __init__(self, indices: Mapping[str, Tensor | None]) -> None:
        for name, chosen in indices.items():
            if chosen is not None and bool((chosen[1:] <= chosen[:-1]).any()):
                raise PareError(
                    f"{name}: flat indices must be strictly increasing; sort them and drop repeats"
                )
        self._indices = dict(indices)
        self._ranges: dict[tuple[str, int, int], tuple[slice, Tensor]] = {}

    def wants(self, name: str) -> bool:
        """See `Consumer`."""
        return name in self._indices

    def _chosen(self, name: str, block: Block) -> tuple[Tensor, slice | Tensor]:
        """The chosen weights of a block: values (b, m) and their places in the tensor's list of indices."""
        indices, columns = self._indices[name], block.values.shape[2]
        values = block.values.flatten(1)
        if isinstance(block.rows, slice):
            start, stop = block.rows.start * columns, block.rows.stop * columns
            if indices is None:
                return values, slice(start, stop)
            places, inside = self._range(name, indices, start, stop)
            return values.index_select(1, inside), places
        flat = (block.rows[:, None] * columns + torch.arange(columns, device=values.device)).flatten()
        if indices is None or not len(indices):
            return (values, flat) if indices is None else (values[:, :0], flat[:0])
        near = torch.searchsorted(indices, flat).clamp_(max=len(indices) - 1)
        found = (indices[near] == flat).nonzero()[:, 0]
        return values[:, found], near[found]

    def _range(self, name: str, indices: Tensor, start: int, stop: int) -> tuple[slice, Tensor]:
        """Places of the indices in a range and their distance from its start; batches repeat it."""
        key = (name, start, stop)
        if key not in self._ranges:
            ends = torch.tensor([start, stop], device=indices.device)
            low, high = torch.searchsorted(indices, ends).tolist()
            self._ranges[key] = slice(low, high), indices[low:high] - start
        return self._ranges[key]


class ExampleNorms(_Indexed):
    """`sum_{j in T} g_ij^2` for every example i.

    Attributes:
        values: (examples,), float64.
    """

    def __init__(self, examples: int, indices: Mapping[str, Tensor | None]) -> None:
        """Start from zero.

        Args:
            examples: How many examples the whole pass has.
            indices: T: by tensor its flat indices (int64, strictly increasing, on the tensor's device), None
                for all of the tensor.

        Raises:
            PareError: Indices are not strictly increasing.
        """
        super().__init__(indices)
        self.values = torch.zeros(examples, dtype=torch.float64)

    def block(self, name: str, block: Block, positions: Tensor) -> None:
        """See `Consumer`."""
        values, _ = self._chosen(name, block)
        self.values.index_add_(0, positions[block.examples], values.square().sum(1).double().cpu())

    def totals(self) -> Iterable[Tensor]:
        """See `Consumer`."""
        return [self.values]


class ExampleEntries(_Indexed):
    """`g_ij`, or `g_ij^2`, for every example i at chosen weights j.

    Attributes:
        values: By tensor (examples, chosen weights), on the tensor's device. Several losses of one example
            (the classes of the exact Fisher) add up.
    """

    def __init__(
        self,
        examples: int,
        indices: Mapping[str, Tensor],
        *,
        squared: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Start from zero.

        Args:
            examples: How many examples the whole pass has.
            indices: By tensor the flat indices of the chosen weights (int64, strictly increasing, on the
                tensor's device).
            squared: Keep squares.
            dtype: What the entries are kept in. For half the memory take bfloat16: gradients, and more so
                their squares, leave float16's range.

        Raises:
            PareError: Indices are not strictly increasing.
        """
        super().__init__(indices)
        self._squared = squared
        self.values = {
            name: torch.zeros(examples, len(chosen), dtype=dtype, device=chosen.device)
            for name, chosen in indices.items()
        }

    def block(self, name: str, block: Block, positions: Tensor) -> None:
        """See `Consumer`."""
        values, places = self._chosen(name, block)
        kept = self.values[name]
        where = positions[block.examples].to(kept.device)
        values = (values.square() if self._squared else values).to(kept.dtype)
        if isinstance(places, slice):
            kept[where, places] += values
        else:
            kept[where[:, None], places] += values

    def totals(self) -> Iterable[Tensor]:
        """See `Consumer`."""
        return self.values.values()


class Dots(Consumer):
    """`<g_i, u>` for every example i and tensor: the gradient along a direction, without forming it.

    Attributes:
        names: The tensors, in the order of the columns.
        values: (examples, tensors), float64.
    """

    def __init__(self, examples: int, directions: Mapping[str, Tensor]) -> None:
        """Start from zero.

        Args:
            examples: How many examples the whole pass has.
            directions: By tensor a direction of the tensor's shape, on its device.
        """
        self.names = tuple(directions)
        self.values = torch.zeros(examples, len(directions), dtype=torch.float64)
        self._directions = dict(directions)
        self._column = {name: column for column, name in enumerate(self.names)}

    def wants(self, name: str) -> bool:
        """See `Consumer`."""
        return name in self._column

    def whole(self, gradients: ExampleGradients, positions: Tensor) -> bool:
        """See `Consumer`: never needs blocks."""
        dots = gradients.dot(self._directions[gradients.name]).double().cpu()
        self.values[positions, self._column[gradients.name]] += dots
        return True

    def totals(self) -> Iterable[Tensor]:
        """See `Consumer`."""
        return [self.values]
