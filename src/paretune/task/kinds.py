"""The kinds of task: how rows are tokenised, which model is loaded, each example's loss, and the scores."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerBase,
)

from paretune.errors import PareError, near
from paretune.task import metrics
from paretune.task.collate import IGNORED
from paretune.task.fields import Family, Fields
from paretune.task.files import Rows
from paretune.task.labels import class_indices, targets
from paretune.task.language import encode_language
from paretune.task.tokenise import Encoded, encode_targets, encode_texts

LARGEST_LOGITS = 2**28  # scores of one batch: 1 GiB in fp32


@dataclass(frozen=True)
class Shape:
    """How the rows of a task become tokens and labels.

    Attributes:
        fields: Which fields hold what.
        classes: The class names in the order of their numbers; empty unless the task has classes.
        max_length: Most tokens of a row.
        separator: What goes between a prompt and its completion.
        types: Whether the model tells the texts of a pair apart by `token_type_ids`.
    """

    fields: Fields
    classes: tuple[str, ...]
    max_length: int
    separator: str
    types: bool


class Kind(ABC):
    """A kind of task.

    Attributes:
        name: What it is called.
        auto: The `transformers` class that loads its model.
        families: The model families it fits.
        metrics: What it is scored by; the first is the main one unless another is asked for.
        scores_tokens: Whether there is a logit for every token of the vocabulary at every position.
    """

    name: ClassVar[str]
    auto: ClassVar[Any]
    families: ClassVar[tuple[Family, ...]] = ("encoder", "decoder", "encoder-decoder")
    metrics: ClassVar[tuple[str, ...]]
    scores_tokens: ClassVar[bool] = False

    @abstractmethod
    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Rows, shape: Shape, training: bool) -> Encoded:
        """Tokenise rows and add their `labels`.

        Raises:
            PareError: A row cannot be used; the message names its line.
        """

    @abstractmethod
    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each example, shape (B,), differentiable, in fp32 or better."""

    @abstractmethod
    def judge(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """What `measure` needs of each example, every tensor of shape (B,); "finite" among them."""

    @abstractmethod
    def measure(self, judged: Mapping[str, np.ndarray], positive: int | None) -> dict[str, float]:
        """The metrics over all examples from what `judge` said of them, arrays of shape (N,)."""

    def prior(self, labels: Sequence[Any], classes: int) -> np.ndarray | None:
        """The outputs that answer best without reading: shape (classes,), or (1,) for a number.

        None for language models: their outputs come with the checkpoint.
        """
        return None

    def most_rows(self, tokens: int, vocabulary: int) -> int:
        """The most rows whose logits stay below `LARGEST_LOGITS`."""
        return max(1, LARGEST_LOGITS // (tokens * vocabulary if self.scores_tokens else 1))

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """The model's logits for a batch; its own loss is not computed, and no cache is kept."""
        inputs: dict[str, Any] = {name: values for name, values in batch.items() if name != "labels"}
        if "use_cache" in inspect.signature(getattr(model, "forward", model)).parameters:
            inputs["use_cache"] = False
        return _wide(model(**inputs).logits)


class Classification(Kind):
    """One of several classes; the loss is the cross-entropy."""

    name = "classification"
    auto = AutoModelForSequenceClassification
    metrics = ("accuracy", "f1", "matthews", "loss")

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Rows, shape: Shape, training: bool) -> Encoded:
        """Tokenise the texts; the label is the number of the class."""
        labels = class_indices(rows, _label(shape), shape.classes)
        encoded = encode_texts(tokenizer, rows, shape.fields.text, shape.max_length, shape.types)
        encoded.columns["labels"] = labels
        return encoded

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy; logits (B, C), labels (B,)."""
        return functional.cross_entropy(logits, labels, reduction="none")

    def prior(self, labels: Sequence[int], classes: int) -> np.ndarray:
        """Log frequencies, each class counted once more than it is there, around zero."""
        logs = np.log(np.bincount(np.asarray(labels), minlength=classes) + 1.0)
        return logs - logs.mean()

    def judge(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss, prediction (the lowest class among equals) and target."""
        return {
            "finite": logits.isfinite().all(dim=-1),
            "losses": self.losses(logits, labels),
            "predictions": logits.argmax(dim=-1),
            "targets": labels,
        }

    def measure(self, judged: Mapping[str, np.ndarray], positive: int | None) -> dict[str, float]:
        """Accuracy, F1, Matthews' correlation and loss."""
        return metrics.classification(judged["predictions"], judged["targets"], judged["losses"], positive)


class Regression(Kind):
    """A number; the loss is the squared error."""

    name = "regression"
    auto = AutoModelForSequenceClassification
    metrics = ("pearson", "spearman", "loss")

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Rows, shape: Shape, training: bool) -> Encoded:
        """Tokenise the texts; the label is the number itself."""
        labels = targets(rows, _label(shape), vary=training)
        encoded = encode_texts(tokenizer, rows, shape.fields.text, shape.max_length, shape.types)
        encoded.columns["labels"] = labels
        return encoded

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Squared error (without a half, as transformers has it); logits (B, 1), labels (B,)."""
        return (logits.squeeze(-1) - labels) ** 2

    def prior(self, labels: Sequence[float], classes: int) -> np.ndarray:
        """Their mean."""
        return np.asarray([np.mean(np.asarray(labels))])

    def judge(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss, prediction and target."""
        return {
            "finite": logits.isfinite().all(dim=-1),
            "losses": self.losses(logits, labels),
            "predictions": logits.squeeze(-1),
            "targets": labels,
        }

    def measure(self, judged: Mapping[str, np.ndarray], positive: int | None) -> dict[str, float]:
        """Pearson's and Spearman's correlation and loss."""
        return metrics.regression(judged["predictions"], judged["targets"], judged["losses"])


class CausalLM(Kind):
    """The next token; an example's loss is the mean over its own target tokens."""

    name = "causal-lm"
    auto = AutoModelForCausalLM
    families = ("decoder",)
    metrics = ("perplexity", "loss")
    scores_tokens = True

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Rows, shape: Shape, training: bool) -> Encoded:
        """Tokenise texts, prompts with completions, or conversations; see `encode_language`."""
        return encode_language(tokenizer, rows, shape.fields.text, shape.max_length, shape.separator)

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean negative log-likelihood of an example's target tokens; logits (B, T, V), labels (B, T)."""
        return _token_losses(logits, _next(labels))[0]

    def judge(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss and number of target tokens."""
        return _judge_tokens(logits, _next(labels))

    def measure(self, judged: Mapping[str, np.ndarray], positive: int | None) -> dict[str, float]:
        """Perplexity and loss over all target tokens."""
        return metrics.language(judged["losses"], judged["tokens"])


class Seq2Seq(Kind):
    """A target written for a source; an example's loss is the mean over its own target tokens."""

    name = "seq2seq"
    auto = AutoModelForSeq2SeqLM
    families = ("encoder-decoder",)
    metrics = ("perplexity", "loss")
    scores_tokens = True

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Rows, shape: Shape, training: bool) -> Encoded:
        """Tokenise source and target, each to at most `max_length` tokens."""
        source, target = shape.fields.text
        encoded = encode_texts(tokenizer, rows, [source], shape.max_length, shape.types)
        encoded.columns["labels"], cut = encode_targets(tokenizer, rows, target, shape.max_length)
        encoded.truncated = [either or other for either, other in zip(encoded.truncated, cut, strict=True)]
        return encoded

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """The decoder sees the labels moved right by one, as the model itself would move them."""
        move = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        if move is None:
            return _wide(model(**batch).logits)
        return super().logits(model, {**batch, "decoder_input_ids": move(labels=batch["labels"])})

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean negative log-likelihood of an example's target tokens; logits (B, T, V), labels (B, T)."""
        return _token_losses(logits, labels)[0]

    def judge(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss and number of target tokens."""
        return _judge_tokens(logits, labels)

    def measure(self, judged: Mapping[str, np.ndarray], positive: int | None) -> dict[str, float]:
        """Perplexity and loss over all target tokens."""
        return metrics.language(judged["losses"], judged["tokens"])


KINDS: dict[str, Kind] = {kind.name: kind for kind in (Classification(), Regression(), CausalLM(), Seq2Seq())}


def find_kind(name: str) -> Kind:
    """The kind of that name.

    Raises:
        PareError: There is none.
    """
    if name not in KINDS:
        raise PareError(f"no kind of task {name!r}; there are {', '.join(KINDS)}{near(name, KINDS)}")
    return KINDS[name]


def _label(shape: Shape) -> str:
    """The label field of a task that has one."""
    assert shape.fields.label is not None
    return shape.fields.label


def _wide(logits: Tensor) -> Tensor:
    """Logits in fp32 where they come in half precision; a loss in half precision is too coarse."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _next(labels: Tensor) -> Tensor:
    """The label that each position predicts, (B, T): that of the position after it."""
    return functional.pad(labels[:, 1:], (0, 1), value=IGNORED)


def _token_losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the counted tokens of each example, and how many they are; logits (B, T, V)."""
    losses = functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    counts = (labels != IGNORED).sum(dim=1)
    return losses.view_as(labels).sum(dim=1) / counts.clamp(min=1), counts


def _judge_tokens(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Loss of each example, whether it is finite, and its number of target tokens."""
    losses, counts = _token_losses(logits, labels)
    return {"finite": losses.isfinite(), "losses": losses, "tokens": counts}


def check_metric(kind: Kind, asked: str | None) -> str:
    """The main metric: the one asked for, or the first of the kind.

    Raises:
        PareError: The kind has no such metric.
    """
    if asked is not None and asked not in kind.metrics:
        raise PareError(
            f"no metric {asked!r} for {kind.name}; "
            f"there are {', '.join(kind.metrics)}{near(asked, kind.metrics)}"
        )
    return asked or kind.metrics[0]


def check_family(kind: Kind, family: Family, model_id: str) -> None:
    """Refuse a kind that the model cannot do.

    Raises:
        PareError: With the kinds that fit the model.
    """
    if family not in kind.families:
        fit = ", ".join(name for name, other in KINDS.items() if family in other.families)
        raise PareError(f"{model_id}: a model of the {family} family does not fit {kind.name}; it fits {fit}")


def class_number(classes: Sequence[str], name: str | None) -> int | None:
    """The number of a class, or None for None."""
    return None if name is None else list(classes).index(name)
