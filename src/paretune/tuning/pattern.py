"""The gradient of a matrix at its selected entries, without the rest of it.

For ``y = x W^T`` the gradient of ``W[i, j]`` is one dot product over tokens: column ``i`` of the gradient of
``y`` with column ``j`` of ``x``. There are three ways to have those of some entries, and which is the
cheapest follows from how many entries there are, where they lie and how many tokens:

* ``dense``: the whole matrix product, then pick. What libraries do.
* ``restricted``: the product of the columns in use, then pick. For whole rows, columns and blocks.
* ``sampled``: one dot product for each entry (PyTorch's SDDMM kernel), over transposed copies in which each
  column is contiguous. For single entries.
"""

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Way = Literal["dense", "restricted", "sampled"]


@dataclass(frozen=True)
class Costs:
    """What things cost, in multiply-adds of a dense matrix product on the same device in the same precision.

    Args:
        sampled: A multiply-add of the sampled product.
        copied: An element of a transposed or restricted copy.
        picked: An entry picked from a product.
        started: A call of one of the kernels beyond the dense product.
    """

    sampled: float
    copied: float
    picked: float
    started: float


# `python -m benchmarks.ways` measures these. Fixed numbers, so that a run gives the same bits every time. A
# device without them picks from the smaller of the two products.
COSTS: dict[tuple[str, bool], Costs] = {
    ("cpu", False): Costs(sampled=4, copied=40, picked=100, started=3e6),
    ("cpu", True): Costs(sampled=14, copied=110, picked=350, started=1.2e7),
}
CHUNK = 512  # tokens of the sampled product at a time: the copies stay in the cache


class Pattern:
    """Where the selected entries of a matrix lie.

    Args:
        flat: Flat C-order indices, strictly increasing, shape (count,), on the device of the matrix.
        shape: The matrix' shape (rows, columns).
    """

    def __init__(self, flat: Tensor, shape: tuple[int, int]) -> None:
        self.shape = shape
        self.flat = flat
        row = torch.div(flat, shape[1], rounding_mode="floor")
        self._rows, row = _in_use(row, shape[0])
        self._columns, self._column = _in_use(flat % shape[1], shape[1])
        kept = [
            size if some is None else len(some)
            for size, some in zip(shape, (self._rows, self._columns), strict=True)
        ]
        self._kept = (kept[0], kept[1])
        starts = torch.bincount(row, minlength=kept[0]).cumsum(0)
        self._row_starts = torch.cat([starts.new_zeros(1), starts]).int()

    @property
    def count(self) -> int:
        """Number of entries."""
        return len(self.flat)

    def gradient(self, left: Tensor, right: Tensor, way: Way | None = None) -> Tensor:
        """The selected entries of ``left^T right``.

        Args:
            left: (tokens, rows), of any floating dtype.
            right: (tokens, columns), of the same.
            way: How; the cheapest when None.

        Returns:
            Shape (count,): fp32 or fp64 from the sampled product, else the dtype of the matrix product.
        """
        match way or self.cheapest(left):
            case "dense":
                return (left.t() @ right).reshape(-1)[self.flat]
            case "restricted":
                return self._restricted(left, right)
            case _:
                return self._sampled(left, right)

    def cheapest(self, left: Tensor) -> Way:
        """The cheapest way for the tokens, device and dtype of such a tensor."""
        tokens, (rows, columns) = len(left), self.shape
        full, small = rows * columns * tokens, self._kept[0] * self._kept[1] * tokens
        costs = COSTS.get((left.device.type, left.dtype.itemsize < 4))
        if costs is None:
            return "restricted" if small < full else "dense"
        copied = sum(
            len(some) * tokens * costs.copied for some in (self._rows, self._columns) if some is not None
        )
        picked = self.count * costs.picked
        by_way: dict[Way, float] = {
            "dense": full + picked,
            "restricted": small + copied + picked + costs.started,
            "sampled": self.count * tokens * costs.sampled
            + sum(self._kept) * tokens * costs.copied
            + 2 * costs.started,
        }
        return min(by_way, key=lambda way: by_way[way])

    def _restricted(self, left: Tensor, right: Tensor) -> Tensor:
        if self._rows is None:  # the narrow factor first, in order: much the faster for a few columns
            product = (_kept(right, self._columns) @ left).t()
        else:
            product = _kept(left, self._rows) @ _kept(right, self._columns).t()
        if self.count == product.numel():
            return product.reshape(-1)
        starts = self._row_starts
        row = torch.repeat_interleave(torch.arange(len(starts) - 1, device=starts.device), starts.diff())
        return product[row, self._column]

    def _sampled(self, left: Tensor, right: Tensor) -> Tensor:
        exact = left.dtype if left.dtype.itemsize >= 4 else torch.float32  # the kernel knows no other
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*[Ss]parse", category=UserWarning)
            entries = torch.sparse_csr_tensor(
                self._row_starts,
                self._column,
                left.new_zeros(self.count, dtype=exact),
                size=self._kept,
                check_invariants=False,
            )
        # Room for the copies is taken once: given back after every chunk, it would be faulted in anew.
        room = [left.new_empty(size * CHUNK, dtype=exact) for size in self._kept]
        for some in zip(left.split(CHUNK), right.split(CHUNK), strict=True):
            first, second = (
                place[: size * len(part)].view(size, len(part)).copy_(_in_order(_kept(part, columns), exact))
                for place, size, part, columns in zip(
                    room, self._kept, some, (self._rows, self._columns), strict=True
                )
            )
            entries = torch.sparse.sampled_addmm(entries, first, second.t())
        return entries.values()


def _in_use(places: Tensor, size: int) -> tuple[Tensor | None, Tensor]:
    """The rows or columns in use, and each entry's place among them; None, where most are, for all."""
    used, place = places.unique(return_inverse=True)
    if 2 * len(used) > size:
        return None, places.int()
    return used, place.int()


def _kept(matrix: Tensor, columns: Tensor | None) -> Tensor:
    """Columns of a matrix as rows; None takes all, as a view."""
    return matrix.t() if columns is None else matrix.t().index_select(0, columns)


def _in_order(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Transposed first where the dtype changes as well: a copy that does both is several times as slow."""
    return matrix if matrix.dtype == dtype else matrix.contiguous()
