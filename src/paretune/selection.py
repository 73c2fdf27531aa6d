"""Which part of one existing tensor is trained."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from paretune.errors import PareError

Granularity = Literal["all", "rows", "columns", "entries"]


@dataclass(frozen=True, eq=False)
class Selection:
    """The trained part of one existing tensor.

    Args:
        tensor: Its name in ``model.named_parameters()``; a tied tensor has one name, the first.
        shape: The tensor's shape.
        granularity: ``all``, or what ``indices`` count: ``rows`` (first dimension), ``columns`` (last
            dimension) or ``entries`` (flat, C order).
        indices: int64, strictly increasing; None exactly when the granularity is ``all``.

    Raises:
        PareError: Unknown granularity, indices out of order or out of range.
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
        if self.granularity != "entries" and not self.shape:
            raise PareError(f"{self.tensor}: a tensor without dimensions has no {self.granularity}")
        indices = np.ascontiguousarray(self.indices, dtype=np.int64)
        object.__setattr__(self, "indices", indices)
        if indices.ndim != 1 or (indices.size > 1 and not (np.diff(indices) > 0).all()):
            raise PareError(f"{self.tensor}: indices must be one strictly increasing list")
        if indices.size and (indices[0] < 0 or indices[-1] >= self.bound):
            raise PareError(
                f"{self.tensor}: index {indices[0] if indices[0] < 0 else indices[-1]} is outside "
                f"0..{self.bound - 1} ({self.granularity} of shape {tuple(self.shape)})"
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
        match self.granularity:
            case "rows":
                return self.shape[0]
            case "columns":
                return self.shape[-1]
            case _:
                return self.numel

    @property
    def count(self) -> int:
        """Number of weights selected."""
        if self.indices is None:
            return self.numel
        return len(self.indices) * (1 if self.granularity == "entries" else self.numel // max(self.bound, 1))

    def flat(self) -> np.ndarray:
        """Flat C-order indices of the selected weights, int64, strictly increasing, shape (count,)."""
        if self.indices is None:
            return np.arange(self.numel, dtype=np.int64)
        if self.granularity == "entries":
            return self.indices
        width = self.numel // max(self.bound, 1)
        if self.granularity == "rows":
            return (self.indices[:, None] * width + np.arange(width, dtype=np.int64)).reshape(-1)
        starts = np.arange(width, dtype=np.int64)[:, None] * self.shape[-1]
        return (starts + self.indices).reshape(-1)
