"""Rows of token ids to a padded batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

IGNORED = -100  # a label that no loss counts


@dataclass(frozen=True)
class Collator:
    """Pads the rows of a batch to its longest, on the right; a `data_collator` for any trainer.

    Fields that no model takes (``length``) are dropped. Padded labels of language models are -100.

    Attributes:
        pad_token_id: What `input_ids` are padded with.
    """

    pad_token_id: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Make the batch: ids and masks (B, T) int64; labels (B,) int64 or float32, or (B, T') int64.

        Args:
            rows: Rows of a split of a task.
        """
        fills = {"input_ids": self.pad_token_id, "attention_mask": 0, "token_type_ids": 0}
        batch = {
            name: _padded([row[name] for row in rows], fill)
            for name, fill in fills.items()
            if name in rows[0]
        }
        if "labels" in rows[0]:
            labels = [row["labels"] for row in rows]
            listed = isinstance(labels[0], Sequence)
            batch["labels"] = _padded(labels, IGNORED) if listed else torch.tensor(labels)
        return batch


def _padded(lists: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    """One int64 row a list, filled up on the right."""
    longest = max(len(values) for values in lists)
    return torch.tensor([[*values, *[fill] * (longest - len(values))] for values in lists], dtype=torch.int64)
