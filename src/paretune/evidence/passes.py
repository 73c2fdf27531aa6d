"""One pass of evidence over drawn examples: batches of like length, shared out over processes."""

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.utils import gather_object, reduce
from torch import Tensor, nn

from paretune.errors import PareError
from paretune.evidence.collector import Collector
from paretune.evidence.consumers import Consumer, ExampleNorms
from paretune.evidence.draw import name_of
from paretune.evidence.labels import Contrasts, Form, Labels, contrasts, losses_for, with_noise
from paretune.evidence.precision import Precision
from paretune.progress import track
from paretune.ranks import state
from paretune.task import Task
from paretune.task.kinds import find_kind

__all__ = ["evidence_pass"]


def evidence_pass(
    model: nn.Module,
    task: Task,
    consumers: Sequence[Consumer],
    indices: Sequence[int] | np.ndarray,
    *,
    split: str | datasets.Dataset = "train",
    batch_size: int = 32,
    labels: Labels | Contrasts = "data",
    form: Form = "squared",
    seed: int = 0,
    precision: Precision = "fp32",
) -> Tensor:
    """Feed the per-example gradients of chosen examples to consumers.

    Under `accelerate launch` each process takes a share of the batches and the consumers' totals are summed
    over the processes, so that all end with the same.

    Args:
        model: The model; it is in eval mode meanwhile and afterwards as it was.
        task: The task.
        consumers: Who is fed; an example's position is its place in `indices` (its contrast r: r times the
            number of examples later).
        indices: Which examples of the split, distinct.
        split: The task's split, or a data set of its own.
        batch_size: Most examples in a forward; a language model gets fewer where their logits would be too
            large. The result depends on it by rounding only.
        labels: Where the labels come from, see `paretune.evidence.labels.losses_for`.
        form: What will be summed; matters for exact labels only.
        seed: Seed of sampled labels.
        precision: "fp32": products as precise as the model's weights are; "bf16": in bfloat16 (autocast),
            which is faster where the processor has it. Sums over examples are float32 in both.

    Returns:
        The loss of each example (examples,), float64; for exact labels the sum of the weighted losses; the
        contrasts themselves (contrasts, examples).

    Raises:
        PareError: A loss or a gradient is not finite (the example is named), the model's forward or the data
            is random, an index is out of range, the model cannot have the precision.
    """
    chosen = np.asarray(indices, np.int64)
    evidence = _Pass(model, task, chosen, split, batch_size, labels, form, seed, precision)
    processes = state()
    failure: list[str] = []
    try:
        losses = evidence.run(consumers, processes.process_index, processes.num_processes)
    except PareError as error:
        if processes.num_processes == 1:
            raise
        failure.append(str(error))
    if processes.num_processes > 1:
        for text in gather_object(failure):  # every process fails, none waits for the others for ever
            raise PareError(text)
        for total in (losses, *(total for consumer in consumers for total in consumer.totals())):
            total.copy_(reduce(total.to(processes.device), "sum"))
    return losses if labels == "contrasts" else losses[0]


class _Pass:
    """What stays the same over the batches of a pass."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        indices: np.ndarray,
        split: str | datasets.Dataset,
        batch_size: int,
        labels: Labels | Contrasts,
        form: Form,
        seed: int,
        precision: Precision,
    ) -> None:
        self._precision = precision
        self._model, self._task, self._split, self._indices = model, task, split, indices
        self._labels, self._seed = labels, seed
        self._rows = (contrasts(task) or 1) if labels == "contrasts" else 1
        self._losses = losses_for(task, labels, form)
        self._device = next(model.parameters()).device
        rows = task.rows(split)
        if batch_size < 1:
            raise PareError(f"batch_size={batch_size}: a batch needs at least one example")
        if not len(indices) or indices.min() < 0 or indices.max() >= len(rows):
            raise PareError(
                f"indices of {name_of(split)} go from 0 to {len(rows) - 1}, and there must be one at least"
            )
        lengths = np.asarray(rows["length"])[indices]
        size = min(batch_size, find_kind(task.kind).most_rows(int(lengths.max()), len(task.tokenizer)))
        order = np.argsort(-lengths, kind="stable")  # the longest first: what is too large fails at once
        self._batches = [order[start : start + size] for start in range(0, len(order), size)]

    def run(self, consumers: Sequence[Consumer], rank: int, ranks: int) -> Tensor:
        """Feed one process's share of the batches; the losses (rows, examples) of the others are zero."""
        losses = torch.zeros(self._rows, len(self._indices), dtype=torch.float64)
        later = len(self._indices) * torch.arange(self._rows)[:, None]
        share = self._batches[rank::ranks]
        if rank == 0:
            self._refuse_random_data()
        with Collector(self._model, consumers, self._precision) as collector:
            for positions in track(share, "evidence"):
                places = later + torch.as_tensor(positions)
                found = collector.run(self._losses, self._batch(positions), places)
                found = found.reshape(self._rows, -1, len(positions)).double().sum(1).cpu()
                losses[:, positions] = found
                self._refuse_infinite(losses.sum(0), positions)
        if not all(_finite(total) for consumer in consumers for total in consumer.totals()):
            self._name_example(share, consumers)
        return losses

    def _batch(self, positions: np.ndarray) -> dict[str, Any]:
        """The batch of some positions."""
        chosen = self._indices[positions]
        batch = next(self._task.batches(self._split, len(chosen), chosen, self._device))
        return with_noise(self._task, self._labels, batch, chosen, self._seed)

    def _refuse_random_data(self) -> None:
        """Take one batch twice."""
        first, second = self._batch(self._batches[0]), self._batch(self._batches[0])
        for key, value in first.items():
            if isinstance(value, Tensor) and not value.equal(second[key]):
                raise PareError(
                    f"the data is random: {key!r} of the same examples differed the second time; take out "
                    "what draws random numbers, or draw once and save"
                )

    def _refuse_infinite(self, losses: Tensor, positions: np.ndarray) -> None:
        """Name the first example of a batch whose loss is not finite."""
        for position in positions:
            if not losses[position].isfinite():
                raise PareError(
                    f"example {self._indices[position]} of {name_of(self._split)} has the loss "
                    f"{float(losses[position])}; look at it, and load the model in float32"
                )

    def _name_example(self, batches: Sequence[np.ndarray], consumers: Sequence[Consumer]) -> None:
        """Say which example's gradient of which tensor is not finite."""
        names = [name for name, _ in self._model.named_parameters() if any(c.wants(name) for c in consumers)]
        for positions in batches:
            norms = [ExampleNorms(len(positions), {name: None}) for name in names]
            with Collector(self._model, norms, self._precision) as collector:
                collector.run(self._losses, self._batch(positions), range(len(positions)))
            for name, norm in zip(names, norms, strict=True):
                for place in (~norm.values.isfinite()).nonzero().flatten().tolist():
                    raise PareError(
                        f"example {self._indices[positions[place]]} of {name_of(self._split)} has a gradient "
                        f"that is not finite, in {name}; look at it, leave it out, or load in float32"
                    )
        raise PareError("sums over the examples leave float32's range; load the model in float64")


def _finite(values: Tensor) -> bool:
    """Whether all values are finite, without a copy of them."""
    if not values.numel():
        return True
    low, high = values.aminmax()
    return bool(low.isfinite() and high.isfinite())
