"""A task of tokenised rows without files or a tokenizer: what evidence needs of `paretune.task.Task`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import torch
from torch import Tensor, nn

from paretune.task.collate import Collator
from paretune.task.kinds import find_kind


class FakeTask:
    """Random rows of token ids of a kind, of different lengths, learnable or not."""

    def __init__(
        self, kind: str, rows: int = 24, classes: int = 2, vocabulary: int = 60, seed: int = 0
    ) -> None:
        generator = torch.Generator().manual_seed(seed)

        def ids(least: int, most: int) -> list[int]:
            length = int(torch.randint(least, most, (), generator=generator))
            return torch.randint(5, vocabulary, (length,), generator=generator).tolist()

        self.kind = kind
        self.labels = (
            tuple(f"class {number}" for number in range(classes)) if kind == "classification" else ()
        )
        columns: dict[str, list[Any]] = {"input_ids": [ids(3, 12) for _ in range(rows)]}
        columns["attention_mask"] = [[1] * len(row) for row in columns["input_ids"]]
        columns["length"] = [len(row) for row in columns["input_ids"]]
        if kind == "classification":
            columns["labels"] = [number % classes for number in range(rows)]
        elif kind == "regression":
            columns["labels"] = torch.rand(rows, generator=generator).tolist()
        elif kind == "causal-lm":
            columns["labels"] = [[-100, *row[1:]] for row in columns["input_ids"]]
        else:
            columns["labels"] = [ids(2, 6) for _ in range(rows)]
        self.train = datasets.Dataset.from_dict(columns)

    def batches(
        self, split: str, batch_size: int, indices: Sequence[int] | None = None, device: Any = None
    ) -> Iterator[dict[str, Tensor]]:
        """Batches in the order of the indices."""
        data = getattr(self, split)
        order = list(range(len(data))) if indices is None else list(indices)
        collate = Collator(pad_token_id=0)
        for start in range(0, len(order), batch_size):
            batch = collate([data[index] for index in order[start : start + batch_size]])
            yield {name: values.to(device) for name, values in batch.items()}

    def example_losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """As a task's."""
        kind = find_kind(self.kind)
        return kind.losses(kind.logits(model, batch), batch["labels"])
