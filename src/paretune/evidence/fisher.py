"""The diagonal of the Fisher information at the pretrained weights: a score for every weight."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

import datasets
import numpy as np
import torch
from torch import nn

from paretune.errors import PareError
from paretune.evidence.consumers import AbsSum, SquaredSum
from paretune.evidence.draw import draw, name_of
from paretune.evidence.labels import Form, Labels
from paretune.evidence.passes import evidence_pass
from paretune.evidence.precision import Precision
from paretune.task import Task

__all__ = ["Fisher", "fisher"]


@dataclass(frozen=True)
class Fisher:
    """Scores of weights and where they come from.

    Attributes:
        scores: By tensor, of the tensor's shape, on its device: `sum_i g_ij^2`, or `sum_i |g_ij|`, over the
            examples; float32 (float64 for float64 models).
        indices: The examples drawn (n,), indices into the data set, int64.
        losses: The loss of each (n,), in the order of `indices`, float64.
        labels: Where the labels came from.
        form: "squared" or "absolute".
    """

    scores: dict[str, torch.Tensor]
    indices: np.ndarray
    losses: np.ndarray
    labels: Labels
    form: Form


def fisher(
    model: nn.Module,
    task: Task,
    *,
    samples: int = 1024,
    batch_size: int = 32,
    labels: Labels = "data",
    form: Form = "squared",
    tensors: Iterable[str] | None = None,
    seed: int = 0,
    balanced: bool = False,
    indices: Iterable[int] | None = None,
    split: str | datasets.Dataset = "train",
    precision: Precision = "fp32",
) -> Fisher:
    """Score every weight by its per-example gradients, as FISH Mask does (arXiv 2111.09839).

    The examples are drawn without replacement, the model is in eval mode and left as it was. Under
    `accelerate launch` every process takes a share and all end with the same scores.

    Args:
        model: The model.
        task: The task.
        samples: How many examples are drawn.
        batch_size: Examples in a forward; changes the scores by rounding only.
        labels: "data" (empirical Fisher), "exact" (true Fisher over all classes; the squared gradient of the
            output for regression) or "sampled" (true Fisher, one label drawn for each example).
        form: "squared", or "absolute" for the sum of absolute gradients.
        tensors: Names of the tensors to score, all by default.
        seed: Seed of the draw and of sampled labels.
        balanced: Draw the same number of examples of each class.
        indices: Take these examples instead of drawing.
        split: The task's split to draw from, or a data set of its own.
        precision: Of products, "fp32" or "bf16": see `paretune.evidence.passes.evidence_pass`.

    Raises:
        PareError: There are fewer examples than samples; a class has no example in the draw; a tensor does
            not exist; all gradients are zero; a loss or a gradient is not finite (the example is named); the
            model's forward or the data is random.
    """
    if labels not in get_args(Labels):
        raise PareError(f"labels {labels!r} is none of {', '.join(get_args(Labels))}")
    named = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    wanted = list(named if tensors is None else tensors)
    unknown = [name for name in wanted if name not in named]
    if unknown or not wanted:
        raise PareError(
            f"no tensor {', '.join(unknown) or 'named'}; names are those of model.named_parameters()"
        )
    if indices is None:
        chosen = draw(task, samples, seed, balanced=balanced, split=split)
        if labels == "data":
            _refuse_missing_class(task, chosen, split)
    else:
        chosen = np.asarray(list(indices), np.int64)
    consumer = (SquaredSum if form == "squared" else AbsSum)({name: named[name] for name in wanted})
    losses = evidence_pass(
        model,
        task,
        [consumer],
        chosen,
        split=split,
        batch_size=batch_size,
        labels=labels,
        form=form,
        seed=seed,
        precision=precision,
    )
    if not any(bool(values.any()) for values in consumer.values.values()):
        raise PareError(
            f"every gradient is zero on the {len(chosen)} examples: no weight can be preferred. Is the head "
            "all zeros, or do the wanted tensors not reach the loss?"
        )
    return Fisher(consumer.values, chosen, losses.numpy(), labels, form)


def _refuse_missing_class(task: Task, chosen: np.ndarray, split: str | datasets.Dataset) -> None:
    """A Fisher that never saw a class says nothing about it."""
    classes = np.asarray(task.rows(split)["labels"]) if task.labels else np.array([])
    for label, text in enumerate(task.labels):
        if label not in classes[chosen]:
            there = int((classes == label).sum())
            raise PareError(
                f"class {text!r} has none of the {len(chosen)} examples drawn ({there} of {name_of(split)}): "
                "draw more, draw balanced, or take labels from the model (exact or sampled)"
            )
