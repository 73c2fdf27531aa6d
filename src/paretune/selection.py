"""Which part of one existing tensor is trained."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from paretune.errors import PareError

Granularity = Literal["all", "rows", "columns", "blocks", "entries"]
SIDE = 16  # rows and columns of a block


def unit_bound(tensor: str, shape: Sequence[int], granularity: Granularity) -> int:
    """How many units of a granularity a tensor has: rows, columns, blocks or entries.

    Args:
        tensor: Its name, for the message.
        shape: The tensor's shape.
        granularity: Of the units; under ``all`` the entries are counted.

    Raises:
        PareError: Rows or columns of a tensor without dimensions, or blocks of what is no matrix.
    """
    match granularity:
        case "rows" | "columns" if not shape:
            raise PareError(f"{tensor}: a tensor without dimensions has no {granularity}")
        case "rows":
            return shape[0]
        case "columns":
            return shape[-1]
        case "blocks" if len(shape) != 2:
            raise PareError(
                f"{tensor}: blocks of {SIDE} x {SIDE} are parts of a matrix, which shape {tuple(shape)} is "
                "not; take entries, rows or columns of it"
            )
        case "blocks":
            return math.prod(-(-size // SIDE) for size in shape)
        case _:
            return math.prod(shape)


@dataclass(frozen=True, eq=False)
class Selection:
    """The trained part of one existing tensor.

    Args:
        tensor: Its name in ``model.named_parameters()``; a tied tensor has one name, the first.
        shape: The tensor's shape.
        granularity: ``all``, or what ``indices`` count: ``rows`` (first dimension), ``columns`` (last
            dimension), ``blocks`` (tiles of 16 x 16 of a matrix, numbered row by row; those at the lower and
            right edge are cut off) or ``entries`` (flat, C order).
        indices: int64, strictly increasing; None exactly when the granularity is ``all``.

    Raises:
        PareError: Unknown granularity, one that the shape does not have, indices out of order or
            out of range.
    """

    tensor: str
    shape: tuple[int, ...]
    granularity: Granularity
    indices: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.granularity not in get_args(Granularity):
            known = ", ".join(get_args(Granularity))
            raise PareError(f"{self.tensor}: granularity {self.granularity!r} is none of {known}")
        if (self.indices is None) != (self.granularity == "all"):
            raise PareError(f"{self.tensor}: granularity 'all' has no indices, every other has some")
        if self.indices is None:
            return
        bound = self.bound
        indices = np.ascontiguousarray(self.indices, dtype=np.int64)
        object.__setattr__(self, "indices", indices)
        if indices.ndim != 1 or (indices.size > 1 and not (np.diff(indices) > 0).all()):
            raise PareError(f"{self.tensor}: indices must be one strictly increasing list")
        if indices.size and (indices[0] < 0 or indices[-1] >= bound):
            raise PareError(
                f"{self.tensor}: index {indices[0] if indices[0] < 0 else indices[-1]} is outside "
                f"0..{bound - 1} ({self.granularity} of shape {tuple(self.shape)})"
            )

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Selection)
            and (self.tensor, tuple(self.shape), self.granularity)
            == (other.tensor, tuple(other.shape), other.granularity)
            and (self.indices is None) == (other.indices is None)
            and (self.indices is None or other.indices is None or np.array_equal(self.indices, other.indices))
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def numel(self) -> int:
        """Number of weights of the whole tensor."""
        return math.prod(self.shape)

    @property
    def bound(self) -> int:
        """One above the largest index there can be."""
        return unit_bound(self.tensor, self.shape, self.granularity)

    @property
    def sizes(self) -> np.ndarray:
        """Number of weights of each selected unit, int64, shape (len(indices),); (1,) under ``all``."""
        if self.indices is None:
            return np.array([self.numel], dtype=np.int64)
        if self.granularity == "blocks":
            rows, columns = self.shape
            down, right = np.divmod(self.indices, -(-columns // SIDE))
            return np.minimum(SIDE, rows - SIDE * down) * np.minimum(SIDE, columns - SIDE * right)
        each = 1 if self.granularity == "entries" else self.numel // max(self.bound, 1)
        return np.full(len(self.indices), each, dtype=np.int64)

    @property
    def count(self) -> int:
        """Number of weights selected."""
        if self.indices is None:
            return self.numel
        if self.granularity == "blocks":
            return int(self.sizes.sum())
        return len(self.indices) * (1 if self.granularity == "entries" else self.numel // max(self.bound, 1))

    def flat(self) -> np.ndarray:
        """Flat C-order indices of the selected weights, int64, strictly increasing, shape (count,)."""
        if self.indices is None:
            return np.arange(self.numel, dtype=np.int64)
        if self.granularity == "entries":
            return self.indices
        if self.granularity == "blocks":
            return self._flat_of_blocks(self.indices)
        width = self.numel // max(self.bound, 1)
        if self.granularity == "rows":
            return (self.indices[:, None] * width + np.arange(width, dtype=np.int64)).reshape(-1)
        starts = np.arange(width, dtype=np.int64)[:, None] * self.shape[-1]
        return (starts + self.indices).reshape(-1)

    def _flat_of_blocks(self, indices: np.ndarray) -> np.ndarray:
        """Flat indices of blocks: each line of blocks gives its rows one after the other."""
        if not len(indices):
            return indices
        rows, columns = self.shape
        down, right = np.divmod(indices, -(-columns // SIDE))
        lines, starts = np.unique(down, return_index=True)
        parts = []
        for line, chosen in zip(lines.tolist(), np.split(right, starts[1:]), strict=True):
            across = (SIDE * chosen[:, None] + np.arange(SIDE)).reshape(-1)
            across = across[across < columns]
            inside = np.arange(SIDE * line, min(SIDE * (line + 1), rows))
            parts.append((inside[:, None] * columns + across).reshape(-1))
        return np.concatenate(parts)
