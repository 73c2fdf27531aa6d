"""The gradients of every example of a batch for one tensor: kept as small factors, formed block by block.

The gradient of example `i` for a linear layer is `G_i = sum_t g_it a_it^T`: the outputs' gradients `g` and
the inputs `a` are small, the gradients of all examples together are not. So a layer's rule hands over the
factors, and a consumer (`paretune.evidence.consumers`) sees `G_i` in blocks that fit a processor's cache.

A tensor is looked at as a matrix: its first dimension by all the others together, a vector as one column.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = [
    "Block",
    "Dense",
    "ExampleGradients",
    "Factor",
    "Outer",
    "Scatter",
    "accumulation_dtype",
    "matrix_shape",
]

# Numbers in one block: few enough for a CPU core's own cache, many enough to keep a GPU busy.
_BLOCK_CPU = 5 << 17
_BLOCK_GPU = 1 << 26
_HALF_PRODUCT_CPU = 1 << 21  # in half precision a product is so fast that starting it must pay


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """What gradients of a dtype are summed in: float64 in float64, anything else in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """The first dimension by all the others together; a scalar is one by one."""
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)


@dataclass(frozen=True)
class Block:
    """The gradients of some examples for some rows of a tensor; a row in no block has gradient zero.

    Attributes:
        examples: Which examples of the batch (b of them).
        rows: Which rows (r of them): a range, or increasing indices (int64).
        values: The gradients (b, r, columns) in `accumulation_dtype`. Read only: other consumers see the same
            memory, and it is used again for the next block.
    """

    examples: slice
    rows: slice | Tensor
    values: Tensor


class Factor(Protocol):
    """What the gradients of a batch for one tensor are made from."""

    @property
    def examples(self) -> int:
        """How many examples the batch has."""

    def blocks(self) -> Iterator[Block]:
        """The gradients, block by block."""

    def add_to(self, out: Tensor, examples: slice, rows: slice) -> None:
        """Add the gradients of some examples and rows to `out` (b, r, columns)."""

    def dot(self, direction: Tensor) -> Tensor:
        """The inner product of each example's gradient with a matrix of the tensor's size: (examples,)."""

    def is_zero(self, example: int) -> bool:
        """Whether an example's gradient is zero for want of anything that could make it so."""

    def regrouped(self, examples: int) -> "Factor":
        """The same with so many examples, each of which is a run of the present ones."""


def _block_size(device: torch.device) -> int:
    """How many numbers a block has at most."""
    return _BLOCK_CPU if device.type == "cpu" else _BLOCK_GPU


def _tiles(examples: int, rows: int, columns: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Whole gradients of as many examples as fit a size, or rows of one example where it is too large."""
    height = max(1, min(rows, size // columns))
    count = max(1, min(examples, size // (rows * columns)))
    for row in range(0, rows, height):
        for example in range(0, examples, count):
            yield slice(example, min(example + count, examples)), slice(row, min(row + height, rows))


def _within(outer: slice, inner: slice) -> slice:
    """A range counted from the start of another."""
    return slice(outer.start + inner.start, outer.start + inner.stop)


class _Room:
    """Memory that is used again for tensors of about one size."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._held = torch.empty(0, dtype=dtype, device=device)

    def of(self, *shape: int) -> Tensor:
        """A tensor of a shape, its values undefined."""
        count = math.prod(shape)
        if self._held.numel() < count:
            self._held = self._held.new_empty(count)
        return self._held[:count].view(shape)


@dataclass(frozen=True)
class Outer:
    """Gradients `G_i = sum_t left_it right_it^T`: what a linear layer or a convolution gives.

    Attributes:
        left: (examples, positions, rows).
        right: (examples, positions, columns).
    """

    left: Tensor
    right: Tensor

    @property
    def examples(self) -> int:
        """How many examples the batch has."""
        return self.left.shape[0]

    def blocks(self) -> Iterator[Block]:
        """See `Factor`."""
        columns, device = self.right.shape[2], self.left.device
        dtype, size = accumulation_dtype(self.left.dtype), _block_size(self.left.device)
        half = dtype != self.left.dtype
        most = max(size, _HALF_PRODUCT_CPU) if half else size
        # The memory of one product and of one block is used again and again so that it stays in cache.
        products, wide = _Room(self.left.dtype, device), _Room(dtype, device)
        for examples, rows in _tiles(self.examples, self.left.shape[2], columns, most):
            left, right = self.left[examples, :, rows].transpose(1, 2), self.right[examples]
            values = products.of(left.shape[0], left.shape[1], columns)
            if left.shape[0] == 1:
                torch.mm(left[0], right[0], out=values[0])
            else:
                torch.bmm(left, right, out=values)
            if not half:
                yield Block(examples, rows, values)
                continue
            for some, part in _tiles(values.shape[0], values.shape[1], columns, size):
                block = wide.of(some.stop - some.start, part.stop - part.start, columns)
                yield Block(_within(examples, some), _within(rows, part), block.copy_(values[some, part]))

    def add_to(self, out: Tensor, examples: slice, rows: slice) -> None:
        """See `Factor`."""
        out += torch.bmm(self.left[examples, :, rows].transpose(1, 2), self.right[examples])

    def dot(self, direction: Tensor) -> Tensor:
        """See `Factor`: `sum_t left_t^T (U right_t)` is one more product and forms no gradient."""
        image = self.right @ direction.to(self.right.dtype).T
        return (self.left * image).sum((1, 2), dtype=accumulation_dtype(image.dtype))

    def is_zero(self, example: int) -> bool:
        """See `Factor`."""
        return not (self.left[example].any() and self.right[example].any())

    def regrouped(self, examples: int) -> "Outer":
        """See `Factor`."""
        rows, columns = self.left.shape[2], self.right.shape[2]
        return Outer(self.left.reshape(examples, -1, rows), self.right.reshape(examples, -1, columns))

    def sum(self) -> Tensor:
        """The sum of the gradients over the examples (rows, columns), in one product."""
        product = self.left.flatten(0, 1).T @ self.right.flatten(0, 1)
        return product.to(accumulation_dtype(product.dtype))


@dataclass(frozen=True)
class Scatter:
    """Gradients that add `values_it` to row `rows_it`: what an embedding gives.

    Attributes:
        rows: (examples, positions), int64.
        values: (examples, positions, columns).
        height: How many rows the tensor has.
    """

    rows: Tensor
    values: Tensor
    height: int

    @property
    def examples(self) -> int:
        """How many examples the batch has."""
        return self.rows.shape[0]

    def merged(self) -> tuple[Tensor, Tensor, Tensor]:
        """The rows that each example touches, once each, ordered by example and then by row.

        Returns:
            Examples (m,) and rows (m,), both int64, and values (m, columns) in `accumulation_dtype`.
        """
        example = torch.arange(self.examples, device=self.rows.device)[:, None]
        keys, inverse = torch.unique(example * self.height + self.rows, return_inverse=True)
        values = self.values.flatten(0, 1).to(accumulation_dtype(self.values.dtype))
        merged = values.new_zeros(len(keys), values.shape[1]).index_add_(0, inverse.flatten(), values)
        return keys // self.height, keys % self.height, merged

    def blocks(self) -> Iterator[Block]:
        """See `Factor`: one block an example, of the rows that it touches."""
        example, rows, values = self.merged()
        counts = torch.bincount(example, minlength=self.examples).tolist()
        for index, (some, part) in enumerate(zip(rows.split(counts), values.split(counts), strict=True)):
            yield Block(slice(index, index + 1), some, part[None])

    def add_to(self, out: Tensor, examples: slice, rows: slice) -> None:
        """See `Factor`."""
        touched, values = self.rows[examples], self.values[examples]
        example, position = ((touched >= rows.start) & (touched < rows.stop)).nonzero(as_tuple=True)
        row = touched[example, position] - rows.start
        out.index_put_((example, row), values[example, position].to(out.dtype), accumulate=True)

    def dot(self, direction: Tensor) -> Tensor:
        """See `Factor`."""
        product = self.values * direction[self.rows].to(self.values.dtype)
        return product.sum((1, 2), dtype=accumulation_dtype(product.dtype))

    def is_zero(self, example: int) -> bool:
        """See `Factor`."""
        return not self.values[example].any()

    def regrouped(self, examples: int) -> "Scatter":
        """See `Factor`."""
        values = self.values.reshape(examples, -1, self.values.shape[2])
        return Scatter(self.rows.reshape(examples, -1), values, self.height)


@dataclass(frozen=True)
class Dense:
    """Gradients that are there already: of biases, norm weights, tensors without a rule.

    Attributes:
        values: (examples, rows, columns).
    """

    values: Tensor

    @property
    def examples(self) -> int:
        """How many examples the batch has."""
        return self.values.shape[0]

    def blocks(self) -> Iterator[Block]:
        """See `Factor`: one block."""
        values = self.values.to(accumulation_dtype(self.values.dtype))
        yield Block(slice(0, len(values)), slice(0, values.shape[1]), values)

    def add_to(self, out: Tensor, examples: slice, rows: slice) -> None:
        """See `Factor`."""
        out += self.values[examples, rows]

    def dot(self, direction: Tensor) -> Tensor:
        """See `Factor`."""
        return (self.values * direction).sum((1, 2), dtype=accumulation_dtype(self.values.dtype))

    def is_zero(self, example: int) -> bool:
        """See `Factor`."""
        return not self.values[example].any()

    def regrouped(self, examples: int) -> "Dense":
        """See `Factor`."""
        return Dense(self.values.unflatten(0, (examples, -1)).sum(1))


class ExampleGradients:
    """The gradients of every example of a batch for one tensor.

    Attributes:
        name: The tensor's name.
        rows: First dimension of the tensor.
        columns: Product of its other dimensions.
        examples: How many examples the batch has.
        factors: At most one of each type; the gradients are the sum over them.
    """

    def __init__(self, name: str, shape: Sequence[int], factors: Sequence[Factor]) -> None:
        """Join the uses of a tensor: they add up before anything is squared."""
        self.name = name
        self.rows, self.columns = matrix_shape(shape)
        self.factors = factors if len(factors) == 1 else _joined(factors)
        self.examples = factors[0].examples

    @property
    def factor(self) -> Factor | None:
        """The only factor; None where the tensor is used in several ways (a tied embedding)."""
        return self.factors[0] if len(self.factors) == 1 else None

    def add_to(self, out: Tensor, examples: slice, rows: slice) -> None:
        """Add the gradients of some examples and rows to `out` (b, r, columns)."""
        for factor in self.factors:
            factor.add_to(out, examples, rows)

    def is_zero(self, example: int) -> bool:
        """Whether an example's gradient is zero (False where its parts might cancel)."""
        return all(factor.is_zero(example) for factor in self.factors)

    def blocks(self) -> Iterator[Block]:
        """The gradients block by block, each example's every row once at most."""
        if self.factor is not None:
            yield from self.factor.blocks()
            return
        values = _tensor(self.factors[0])
        dtype = accumulation_dtype(values.dtype)
        for examples, rows in _tiles(self.examples, self.rows, self.columns, _block_size(values.device)):
            size = (examples.stop - examples.start, rows.stop - rows.start, self.columns)
            out = torch.zeros(size, dtype=dtype, device=values.device)
            self.add_to(out, examples, rows)
            yield Block(examples, rows, out)

    def dot(self, direction: Tensor) -> Tensor:
        """Inner product of each example's gradient with `direction` (of the tensor's shape): (examples,)."""
        matrix = direction.reshape(self.rows, self.columns)
        return torch.stack([factor.dot(matrix) for factor in self.factors]).sum(0)


def _tensor(factor: Factor) -> Tensor:
    """Some tensor of the gradients' dtype and device."""
    if isinstance(factor, Outer):
        return factor.left
    assert isinstance(factor, Scatter | Dense)
    return factor.values


def _joined(factors: Sequence[Factor]) -> list[Factor]:
    """The same sum as at most one factor of each type: positions side by side, dense values added."""
    joined: list[Factor] = []
    if outer := [factor for factor in factors if isinstance(factor, Outer)]:
        joined.append(Outer(torch.cat([f.left for f in outer], 1), torch.cat([f.right for f in outer], 1)))
    if scatter := [factor for factor in factors if isinstance(factor, Scatter)]:
        rows, values = torch.cat([f.rows for f in scatter], 1), torch.cat([f.values for f in scatter], 1)
        joined.append(Scatter(rows, values, scatter[0].height))
    if dense := [factor.values for factor in factors if isinstance(factor, Dense)]:
        joined.append(Dense(torch.stack(dense).sum(0)))
    return joined
