"""Scores of whole rows, columns or blocks: the sums of their weights' scores."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from paretune.evidence.consumers import Consumer
from paretune.evidence.gradients import Block, matrix_shape
from paretune.selection import SIDE, Granularity, Selection

__all__ = ["ExampleUnits", "unit_sums"]


def unit_sums(values: Tensor, granularity: Granularity) -> Tensor:
    """The sum of a tensor's values over each of its units.

    Args:
        values: Of any shape that has such units.
        granularity: ``rows``, ``columns`` or ``blocks``, see :class:`paretune.selection.Selection`.

    Returns:
        One sum a unit, in the order of their indices, in the dtype of the values.
    """
    rows = torch.arange(values.shape[0], device=values.device)
    matrix = values.detach().reshape(1, *matrix_shape(values.shape))
    _, sums = _sums(matrix, rows, values.shape, granularity)
    return sums[0]


class ExampleUnits(Consumer):
    """`sum_{j in u} g_ij^2` for every example i and chosen unit u.

    Attributes:
        values: By tensor (examples, chosen units), on the tensor's device. Several losses of one example
            (the classes of the exact Fisher) add up.
    """

    def __init__(
        self,
        examples: int,
        chosen: Mapping[str, Selection],
        devices: Mapping[str, torch.device],
        dtype: torch.dtype,
    ) -> None:
        """Start from zero.

        Args:
            examples: How many examples the whole pass has.
            chosen: By tensor the units.
            devices: By tensor where it is.
            dtype: What the sums are kept in.
        """
        self._chosen = dict(chosen)
        self._places: dict[str, Tensor] = {}
        self.values: dict[str, Tensor] = {}
        for name, selection in chosen.items():
            indices = torch.from_numpy(selection.indices).to(devices[name])
            places = torch.full((selection.bound,), -1, dtype=torch.int64, device=devices[name])
            places[indices] = torch.arange(len(indices), device=devices[name])
            self._places[name] = places
            self.values[name] = torch.zeros(examples, len(indices), dtype=dtype, device=devices[name])

    def wants(self, name: str) -> bool:
        """See `Consumer`."""
        return name in self._chosen

    def block(self, name: str, block: Block, positions: Tensor) -> None:
        """See `Consumer`."""
        rows = block.rows
        if isinstance(rows, slice):
            rows = torch.arange(rows.start, rows.stop, device=block.values.device)
        selection, kept = self._chosen[name], self.values[name]
        units, sums = _sums(block.values.square(), rows, selection.shape, selection.granularity)
        places = self._places[name][units]
        there = places >= 0
        where = positions[block.examples].to(kept.device)
        kept[where[:, None], places[there]] += sums[:, there].to(kept.dtype)

    def totals(self) -> Sequence[Tensor]:
        """See `Consumer`."""
        return list(self.values.values())


def _sums(
    values: Tensor, rows: Tensor, shape: Sequence[int], granularity: Granularity
) -> tuple[Tensor, Tensor]:
    """Sums over what some rows hold of each unit.

    Args:
        values: (b, r, columns) of a tensor seen as a matrix, see `matrix_shape`.
        rows: Which rows these are (r,), increasing.
        shape: Of the tensor.
        granularity: Of the units.

    Returns:
        The units (m,), each once and increasing, and their sums (b, m).
    """
    if granularity == "rows" or len(shape) == 1:  # a vector is one column here: each row is one weight
        return rows, values.sum(2)
    if granularity == "columns":
        last = shape[-1]
        return torch.arange(last, device=rows.device), values.unflatten(2, (-1, last)).sum((1, 2))
    across = -(-shape[1] // SIDE)
    parts = pad(values, (0, across * SIDE - shape[1])).unflatten(2, (across, SIDE)).sum(3)
    lines, line = torch.unique(rows // SIDE, return_inverse=True)
    sums = parts.new_zeros(len(parts), len(lines), across).index_add_(1, line, parts)
    units = lines[:, None] * across + torch.arange(across, device=rows.device)
    return units.flatten(), sums.flatten(1)
