"""One pass of evidence over drawn examples: batches of like length, shared out over processes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn

from paretune.errors import PareError
from paretune.evidence.check import Losses
from paretune.evidence.collector import Collector
from paretune.evidence.consumers import Consumer, ExampleNorms
from paretune.evidence.labels import Form, Labels, losses_for, with_noise
from paretune.progress import track

__all__ = ["evidence_pass"]


def evidence_pass(
    model: nn.Module,
    task: Any,
    consumers: Sequence[Consumer],
    indices: np.ndarray,
    *,
    split: str = "train",
    batch_size: int = 32,
    labels: Labels = "data",
    form: Form = "squared",
    seed: int = 0,
) -> Tensor:
    """Feed the per-example gradients of chosen examples to consumers.

    Under `torch.distributed` (`accelerate launch`) each process takes a share of the batches and the
    consumers' totals are summed over the processes, so that all end with the same.

    Args:
        model: The model; it is in eval mode meanwhile and afterwards as it was.
        task: The task.
        consumers: Who is fed; an example's position is its place in `indices`.
        indices: Which examples of the data set, distinct.
        split: Name of the task's data set.
        batch_size: Examples in a forward. The result depends on it by rounding only.
        labels: Where the labels come from, see `paretune.evidence.labels.losses_for`.
        form: What will be summed; matters for exact labels only.
        seed: Seed of sampled labels.

    Returns:
        The loss of each example (examples,), float64; the sum over classes of the weighted losses for exact
        labels.

    Raises:
        PareError: A loss or a gradient is not finite (the example is named), the model's forward or the data
            is random, an index is out of range.
    """
    return _Pass(model, task, np.asarray(indices, np.int64), split, batch_size, labels, form, seed).run(
        consumers
    )


class _Pass:
    """What stays the same over the batches of a pass."""

    def __init__(
        self,
        model: nn.Module,
        task: Any,
        indices: np.ndarray,
        split: str,
        batch_size: int,
        labels: Labels,
        form: Form,
        seed: int,
    ) -> None:
        self.model, self.task, self.split, self.labels, self.seed = model, task, split, labels, seed
        self.indices = indices
        self.losses: Losses = losses_for(task, labels, form)
        self.device = next(model.parameters()).device
        data = getattr(task, split)
        if batch_size < 1:
            raise PareError(f"batch_size: {batch_size} must be 1 or more")
        if not len(indices) or indices.min() < 0 or indices.max() >= len(data):
            raise PareError(
                f"indices of {split} must be 0 to {len(data) - 1}, at least one; got {indices.tolist()[:5]}"
            )
        self.batches = _buckets(data, indices, batch_size)

    def run(self, consumers: Sequence[Consumer]) -> Tensor:
        """See `evidence_pass`."""
        rank, ranks = _rank()
        losses = torch.zeros(len(self.indices), dtype=torch.float64)
        mine = self.batches[rank::ranks]
        failure = ""
        try:
            self._refuse_random_data()
            with Collector(self.model, consumers) as collector:
                for positions in track(mine, "evidence"):
                    values = collector.run(self.losses, self._batch(positions), positions.tolist())
                    losses[positions] = self._checked(
                        values.reshape(-1, len(positions)).double().sum(0).cpu(), positions
                    )
            if not all(_finite(total) for consumer in consumers for total in consumer.totals()):
                self._name_bad_example(mine, consumers)
        except PareError as error:
            failure = str(error)
            if ranks == 1:
                raise
        _fail_together(failure, ranks)
        for total in (losses, *(total for consumer in consumers for total in consumer.totals())):
            _add_over_ranks(total, self.device, ranks)
        return losses

    def _batch(self, positions: np.ndarray) -> dict[str, Any]:
        """The batch of some positions."""
        chosen = self.indices[positions]
        batch = next(
            iter(self.task.batches(self.split, len(chosen), indices=chosen.tolist(), device=self.device))
        )
        return with_noise(self.task, self.labels, batch, chosen, self.seed)

    def _refuse_random_data(self) -> None:
        """Collate one batch twice."""
        first, second = self._batch(self.batches[0]), self._batch(self.batches[0])
        for key, value in first.items():
            if isinstance(value, Tensor) and not (
                value.shape == second[key].shape and value.equal(second[key])
            ):
                raise PareError(f"the data is random: {key!r} of the same examples differed the second time")

    def _checked(self, losses: Tensor, positions: np.ndarray) -> Tensor:
        """The losses, if they are finite."""
        bad = (~losses.isfinite()).nonzero().flatten().tolist()
        if bad:
            index = int(self.indices[positions[bad[0]]])
            raise PareError(
                f"{self.split}[{index}] has the loss {float(losses[bad[0]])}; look at this example, "
                "and load the model in float32 if it is in half precision"
            )
        return losses

    def _name_bad_example(self, batches: Sequence[np.ndarray], consumers: Sequence[Consumer]) -> None:
        """Say which example's gradient is not finite."""
        names = [name for name, _ in self.model.named_parameters() if any(c.wants(name) for c in consumers)]
        for positions in batches:
            norms = [ExampleNorms(len(positions), {name: None}) for name in names]
            with Collector(self.model, norms) as collector:
                collector.run(self.losses, self._batch(positions), range(len(positions)))
            for name, norm in zip(names, norms, strict=True):
                bad = (~norm.values.isfinite()).nonzero().flatten().tolist()
                if bad:
                    index = int(self.indices[positions[bad[0]]])
                    raise PareError(
                        f"{self.split}[{index}] has a gradient that is not finite, in {name}; look at this "
                        "example, leave it out, or load the model in float32"
                    )
        raise PareError("the sums over the examples are not finite; take fewer examples or float64")


def _buckets(data: Any, indices: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Positions in batches of like length, longest first: what does not fit in memory fails at once."""
    columns = getattr(data, "column_names", None) or []
    order = np.arange(len(indices))
    if "length" in columns:
        lengths = np.asarray(data["length"])[indices]
        order = np.argsort(-lengths, kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _finite(values: Tensor) -> bool:
    """Whether all values are finite, without a copy."""
    if not values.numel():
        return True
    low, high = values.aminmax()
    return bool(low.isfinite() and high.isfinite())


def _rank() -> tuple[int, int]:
    """This process's number and how many there are."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _fail_together(failure: str, ranks: int) -> None:
    """Raise in every process what one of them found, so that none waits for it."""
    if ranks == 1:
        return
    failures: list[str] = [""] * ranks
    distributed.all_gather_object(failures, failure)
    for text in filter(None, failures):
        raise PareError(text)


def _add_over_ranks(values: Tensor, device: torch.device, ranks: int) -> None:
    """Sum a tensor over the processes, in place."""
    if ranks == 1:
        return
    there = values.to(device) if distributed.get_backend() == "nccl" else values
    distributed.all_reduce(there)
    if there is not values:
        values.copy_(there)
