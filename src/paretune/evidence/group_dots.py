"""Each example's gradient along a direction, for groups that may be parts of tensors."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from paretune.evidence.consumers import Consumer
from paretune.evidence.gradients import Dense, ExampleGradients, Factor, Outer, Scatter
from paretune.evidence.groups import Group

__all__ = ["GroupDots"]


class GroupDots(Consumer):
    """`<g_i, u>` over each group for every example i, without forming a gradient.

    Attributes:
        values: (examples, groups), float64.
    """

    def __init__(self, examples: int, groups: Sequence[Group], direction: Mapping[str, Tensor]) -> None:
        """Start from zero.

        Args:
            examples: How many examples the whole pass has.
            groups: The groups; a row of a tensor belongs to one of them at most.
            direction: u by tensor, of the tensor's shape.
        """
        self.values = torch.zeros(examples, len(groups), dtype=torch.float64)
        self._direction = direction
        self._column: dict[str, int] = {}
        self._columns: dict[str, Tensor] = {}
        for number, group in enumerate(groups):
            for piece in group.pieces:
                if piece.rows is None:
                    self._column[piece.tensor] = number
                    continue
                # Rows of no group go to a column after the last, which is not kept.
                none = torch.full((len(direction[piece.tensor]),), len(groups))
                self._columns.setdefault(piece.tensor, none)[slice(*piece.rows)] = number

    def wants(self, name: str) -> bool:
        """See `Consumer`."""
        return name in self._column or name in self._columns

    def whole(self, gradients: ExampleGradients, positions: Tensor) -> bool:
        """See `Consumer`: never needs blocks."""
        direction = self._direction[gradients.name]
        if gradients.name in self._column:
            column = self._column[gradients.name]
            self.values[positions, column] += gradients.dot(direction).double().cpu()
            return True
        matrix = direction.reshape(gradients.rows, gradients.columns)
        columns, count = self._columns[gradients.name], self.values.shape[1]
        for factor in gradients.factors:
            by_row = _row_dots(factor, matrix).double().cpu()
            found = by_row.new_zeros(len(by_row), count + 1).index_add_(1, columns, by_row)
            self.values[positions] += found[:, :count]
        return True

    def totals(self) -> Iterable[Tensor]:
        """See `Consumer`."""
        return [self.values]


def _row_dots(factor: Factor, direction: Tensor) -> Tensor:
    """Inner products of each row of each example's gradient with a direction's row: (examples, rows)."""
    if isinstance(factor, Outer):
        return (factor.left * (factor.right @ direction.to(factor.right.dtype).T)).sum(1)
    if isinstance(factor, Scatter):
        product = (factor.values * direction[factor.rows].to(factor.values.dtype)).sum(2)
        return product.new_zeros(len(product), factor.height).scatter_add_(1, factor.rows, product)
    assert isinstance(factor, Dense)
    return (factor.values * direction).sum(2)
