"""The task: a tokenised data set with its loss and its metric."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from paretune.errors import PareError, near
from paretune.ranks import device as own_device
from paretune.task.collate import Collator
from paretune.task.describe import describe
from paretune.task.fields import Fields
from paretune.task.files import Rows, from_dataset, from_mappings, is_hub, read_rows
from paretune.task.hub import has_split
from paretune.task.kinds import class_number, find_kind
from paretune.task.metrics import higher_is_better
from paretune.task.models import load_model_from_spec
from paretune.task.prepare import Settings, prepare
from paretune.task.prior import start_at_prior
from paretune.task.scoring import device_of, evaluating, judge_all
from paretune.task.split import draw

SPLITS = ("train", "heldout", "validation")


@dataclass(frozen=True, eq=False)
class Task:
    """A data set tokenised for a model, with what is learnt from it and how that is scored.

    Every split is a `datasets.Dataset` in memory with `input_ids`, `attention_mask`, perhaps
    `token_type_ids`, `labels` and `length` (tokens of the row). Make one with `from_files` or `from_rows`.

    Attributes:
        kind: "classification", "regression", "causal-lm" or "seq2seq".
        model_id: The checkpoint: a folder or a name on the Hub.
        tokenizer: The checkpoint's, with a padding token.
        fields: Which fields of the rows are read.
        labels: Class names in the order of their numbers: sorted. Empty unless the kind is classification.
        metric: The main metric.
        positive: The class whose F1 is reported; None stands for the mean over classes (macro F1).
        max_length: Most tokens of a row, after the model's own limit.
        separator: What goes between a prompt and its completion.
        train: What is trained on.
        heldout: The seeded part of the training rows that every choice looks at; None if none was asked for.
        heldout_seed: Seed of that draw.
        validation: What is scored once, at the end; None if none was given.
        truncated: How many rows of each split lost tokens.
        left_out: How many rows of the given train and validation had nothing to learn and were left out.
        notes: What else somebody should know, one sentence each.
        fingerprint: sha256 over the rows' fields that are read and the settings that shape them.
        collate: Rows to a padded batch; a picklable `data_collator`.
        revision: The checkpoint's revision on the Hub.
        trust_remote_code: Whether code that comes with the checkpoint may run.
    """

    kind: str
    model_id: str
    tokenizer: PreTrainedTokenizerBase
    fields: Fields
    labels: tuple[str, ...]
    metric: str
    positive: str | None
    max_length: int
    separator: str
    train: datasets.Dataset
    heldout: datasets.Dataset | None
    heldout_seed: int
    validation: datasets.Dataset | None
    truncated: dict[str, int]
    left_out: dict[str, int]
    notes: tuple[str, ...]
    fingerprint: str
    collate: Collator
    revision: str | None
    trust_remote_code: bool

    @classmethod
    def from_files(
        cls,
        train: str | Path,
        validation: str | Path | None = None,
        *,
        model: str | Path,
        kind: str | None = None,
        text: str | Sequence[str] | None = None,
        label: str | None = None,
        metric: str | None = None,
        positive: str | None = None,
        max_length: int = 128,
        heldout: float = 0.1,
        seed: int = 0,
        separator: str = "",
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> "Task":
        """Read the data and make it ready for the model; whatever cannot be used is refused here.

        Args:
            train: A file (JSON lines, JSON, CSV, TSV, Parquet) or a name on the Hub: ``org/name``,
                ``org/name:config`` or ``org/name:config:split``.
            validation: The same, scored once at the end. A name on the Hub as `train` brings its split
                "validation" along.
            model: The checkpoint: a folder or a name on the Hub.
            kind: "classification", "regression", "causal-lm" or "seq2seq"; None finds out. Labels that are
                numbers and not all whole, or more than 20 different ones, mean regression.
            text: The text field, or two: a pair under a label, else a prompt and its completion. None finds
                them by their usual names.
            label: The label field. None finds it by its usual names.
            metric: The main metric. None takes accuracy, Pearson's correlation or perplexity. Others are f1
                and matthews (classification), spearman (regression) and loss.
            positive: The class whose F1 counts. None takes, of two classes, the one that the other negates
                ("equivalent" against "not_equivalent"), else the last; the mean F1 of more than two.
            max_length: Most tokens of a row; never more than the model has positions for.
            heldout: Share of the training rows held out for choices; with classes in their proportions.
            seed: Seed of that draw.
            separator: What goes between a prompt and its completion where they are strings.
            revision: The checkpoint's revision on the Hub.
            trust_remote_code: Whether code that comes with the checkpoint may run.

        Raises:
            PareError: A file, line, field, label, setting or the model cannot be used; the message names it
                and the way out.
        """
        if validation is None and is_hub(train) and has_split(str(train), "validation"):
            validation = train
        return cls.from_rows(
            read_rows(train),
            None if validation is None else read_rows(validation, "validation"),
            model=model,
            kind=kind,
            text=text,
            label=label,
            metric=metric,
            positive=positive,
            max_length=max_length,
            heldout=heldout,
            seed=seed,
            separator=separator,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )

    @classmethod
    def from_rows(
        cls,
        train: Rows | datasets.Dataset | Iterable[Mapping[str, Any]],
        validation: Rows | datasets.Dataset | Iterable[Mapping[str, Any]] | None = None,
        *,
        model: str | Path,
        **settings: Any,
    ) -> "Task":
        """As `from_files`, from rows in memory.

        Args:
            train: Objects with the same fields, or a `datasets.Dataset`.
            validation: The same, scored once at the end.
            model: The checkpoint: a folder or a name on the Hub.
            **settings: The others of `from_files`.

        Raises:
            PareError: As `from_files`.
        """
        checked = None if validation is None else _rows(validation, "validation")
        return cls(**prepare(_rows(train, "train"), checked, Settings(str(model), **settings)))

    @property
    def higher_is_better(self) -> bool:
        """Whether more of the main metric is better (all but loss and perplexity)."""
        return higher_is_better(self.metric)

    def spec(self) -> dict[str, Any]:
        """What a delta must remember to load its model again, as JSON (see `load_model_from_spec`)."""
        return {
            "kind": self.kind,
            "labels": list(self.labels),
            "text": list(self.fields.text),
            "label": self.fields.label,
            "metric": self.metric,
            "positive": self.positive,
            "max_length": self.max_length,
            "separator": self.separator,
            "pad_token_id": self.tokenizer.pad_token_id,
            "revision": self.revision,
        }

    def load_model(
        self,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        attn_implementation: str | None = None,
        device: torch.device | str | None = None,
    ) -> PreTrainedModel:
        """Load the checkpoint with a head for this task; see `load_model_from_spec`.

        A head that is new starts at the best answer without reading: the mean of the labels, or how often
        each class comes (see `start_at_prior`).

        Args:
            seed: Seed of the head's weights.
            dtype: Of all weights.
            attn_implementation: As in `from_pretrained`; None takes the model's default.
            device: Where to; None takes this process's GPU where there is one, as `transformers.Trainer`
                does. The weights are the same on every device.

        Raises:
            PareError: The model cannot be loaded.
        """
        model = load_model_from_spec(
            self.model_id, self.spec(), seed, dtype, attn_implementation, self.trust_remote_code
        )
        start_at_prior(model, find_kind(self.kind), len(self.labels), self.train, self.collate)
        return model.to(own_device() if device is None else device)  # type: ignore[arg-type]

    def rows(self, split: str | datasets.Dataset) -> datasets.Dataset:
        """A split by name; a data set is returned as it is.

        Raises:
            PareError: There is no such split, or the task has none of that name.
        """
        if not isinstance(split, str):
            return split
        if split not in SPLITS:
            raise PareError(f"no split {split!r}; there are {', '.join(SPLITS)}{near(split, SPLITS)}")
        rows = getattr(self, split)
        if rows is None:
            way = (
                "give a validation file" if split == "validation" else "ask for a share above 0 with heldout="
            )
            raise PareError(f"the task has no {split} rows; {way}")
        return rows

    def require_validation(self) -> None:
        """Refuse a task without validation rows, before anything is done that ends in their score.

        Raises:
            PareError: There are none.
        """
        self.rows("validation")

    def subset(self, split: str | datasets.Dataset, count: int, seed: int = 0) -> datasets.Dataset:
        """Some rows of a split for a short trial, drawn without replacement, classes in their proportions.

        Args:
            split: A split's name or a data set.
            count: How many; a split that has no more comes back whole.
            seed: Seed of the draw.

        Raises:
            PareError: The count is below 1, or there is no such split.
        """
        rows = self.rows(split)
        if count < 1:
            raise PareError(f"count={count}: a subset needs at least one row")
        if count >= len(rows):
            return rows
        classes = rows["labels"] if self.labels else None
        return rows.select(draw(len(rows), count, seed, classes))

    def batches(
        self,
        split: str | datasets.Dataset,
        batch_size: int,
        indices: Sequence[int] | np.ndarray | None = None,
        device: torch.device | str | None = None,
    ) -> Iterator[dict[str, Tensor]]:
        """Padded batches in the given order; the last may be smaller.

        Args:
            split: A split's name or a data set.
            batch_size: Rows of a batch.
            indices: Which rows, in which order; None takes all as they stand.
            device: Where the batches go; None leaves them on the CPU.

        Raises:
            PareError: The batch size is below 1, or there is no such split.
        """
        rows = self.rows(split)
        if batch_size < 1:
            raise PareError(f"batch_size={batch_size}: a batch needs at least one row")
        order = [int(index) for index in (range(len(rows)) if indices is None else indices)]
        return self._batches(rows, batch_size, order, device)

    def _batches(
        self, rows: datasets.Dataset, size: int, order: Sequence[int], device: torch.device | str | None
    ) -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(order), size):
            columns = rows[order[start : start + size]]
            listed = [
                dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
            ]
            batch = self.collate(listed)
            yield {name: values.to(device) for name, values in batch.items()} if device is not None else batch

    def example_losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss of each example of a batch, shape (B,), differentiable.

        Classification: cross-entropy. Regression: squared error, without a half. The mean over the batch is
        the loss that transformers' models report. Language models: the mean over the example's own target
        tokens, so every example counts alike; transformers' models and Trainer take the mean over the
        target tokens of the whole batch, where long examples count more.

        Args:
            model: The model, in whatever mode it is.
            batch: What `collate` made, on the model's device.
        """
        kind = find_kind(self.kind)
        return kind.losses(kind.logits(model, batch), batch["labels"])

    def score(
        self, model: nn.Module, split: str | datasets.Dataset = "validation", batch_size: int = 64
    ) -> dict[str, float]:
        """Every metric of the kind over a split; the main one is `metric`.

        Rows are batched by length. The model's modes, the random state and the gradients are left as they
        were. The loss is the mean over examples, for language models over target tokens.

        Args:
            model: The model; rows go to the device of its first parameter.
            split: A split's name or a data set.
            batch_size: Most rows of a batch; language models get fewer where their logits would be too large.

        Raises:
            PareError: There is no such split, or an output is not finite; the message names the first
                example.
        """
        kind = find_kind(self.kind)
        rows = self.rows(split)
        lengths = np.asarray(rows["length"])
        size = min(batch_size, kind.most_rows(int(lengths.max()), len(self.tokenizer)))
        order = np.argsort(-lengths, kind="stable")
        with evaluating(model):
            judged = judge_all(
                lambda batch: kind.judge(kind.logits(model, batch), batch["labels"]),
                self.batches(rows, size, order, device_of(model)),
                order,
                size,
                split if isinstance(split, str) else "the data set",
            )
        return kind.measure(judged, class_number(self.labels, self.positive))

    def __str__(self) -> str:
        """What the task is, a line a topic."""
        return describe(self)


def _rows(given: Rows | datasets.Dataset | Iterable[Mapping[str, Any]], name: str) -> Rows:
    """Rows of any of the forms they are given in."""
    if isinstance(given, Rows):
        return given
    return from_dataset(given, name) if isinstance(given, datasets.Dataset) else from_mappings(given, name)
