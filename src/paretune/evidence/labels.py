"""Which loss of an example is differentiated: with its own label, with each label, with a sampled one."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from paretune.errors import PareError
from paretune.evidence.check import Batch, Losses
from paretune.task import Task
from paretune.task.collate import IGNORED
from paretune.task.kinds import Kind, find_kind

__all__ = ["Form", "Labels", "contrasts", "losses_for", "with_noise"]

Labels = Literal["data", "exact", "sampled"]
Form = Literal["squared", "absolute"]
Contrasts = Literal["contrasts"]

_NOISE = "evidence_noise"


def losses_for(task: Task, labels: Labels | Contrasts, form: Form = "squared") -> Losses:
    """The function whose per-example gradients make the evidence.

    * "data": the task's loss, labels from the data (empirical Fisher; what FISH publishes).
    * "exact": the true Fisher's expectation over labels in full. Classification: a loss for each class c,
      weighted so that its squared (absolute) gradient counts p(c|x) times. Regression under a Gaussian of
      variance one: the outputs themselves, since the expected square of `(f - y) df` is `df^2`.
    * "contrasts": what the loss depends on (contrasts, examples): the logit of each class but the first less
      the first's, or a regression's output. Not losses: data gradient and Gauss-Newton matrix come from them.
    * "sampled": the true Fisher with one label drawn from the model for each example (each target token).

    Args:
        task: The task.
        labels: Where labels come from.
        form: What will be summed.

    Raises:
        PareError: There is no such choice, or "exact" or "contrasts" is asked for a language model.
    """
    if labels not in ("data", "exact", "sampled", "contrasts") or form not in ("squared", "absolute"):
        raise PareError(
            f"labels {labels!r}, form {form!r}: there are data, exact and sampled; squared and absolute"
        )
    if labels == "data":
        return task.example_losses
    kind = find_kind(task.kind)
    if kind.name == "regression":
        return _SampledOutput(kind) if labels == "sampled" else _Outputs(kind)
    if labels == "sampled":
        return _SampledClasses(kind)
    if kind.name == "classification" and labels == "contrasts":
        return _Contrasts(kind)
    if kind.name == "classification":
        return _EachClass(kind, 0.5 if form == "squared" else 1.0)
    raise PareError(
        f"exact labels would need a loss for every sequence; for a {kind.name} task take data or sampled"
    )


def contrasts(task: Task) -> int | None:
    """How many numbers of an example its loss depends on; None for a language model, which has too many."""
    if find_kind(task.kind).scores_tokens:
        return None
    return len(task.labels) - 1 if task.labels else 1


def with_noise(
    task: Task, labels: Labels | Contrasts, batch: Mapping[str, Any], indices: np.ndarray, seed: int
) -> dict[str, Any]:
    """The batch with the random numbers for sampled labels: each example has its own, however batched.

    Args:
        task: The task.
        labels: Where labels come from.
        batch: The batch, with its labels.
        indices: The examples' indices in the data set.
        seed: The seed.
    """
    if labels != "sampled":
        return dict(batch)
    target = batch["labels"]
    width = max(1, target[0].numel())
    generators = [np.random.default_rng([seed, int(index)]) for index in indices]
    if task.kind == "regression":
        noise = np.stack([generator.standard_normal(width) for generator in generators])
    else:
        noise = np.stack([generator.random(width) for generator in generators])
    return {**batch, _NOISE: torch.from_numpy(noise).to(target.device)}


class _FromLogits(ABC):
    """Losses made from a model's logits."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = self.kind.logits(model, {key: value for key, value in batch.items() if key != _NOISE})
        return self.losses(logits, batch)

    @abstractmethod
    def losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """Losses (examples,) or (several, examples)."""


class _EachClass(_FromLogits):
    """A loss for each class (classes, examples), times p(c|x) to a power."""

    def __init__(self, kind: Kind, power: float) -> None:
        super().__init__(kind)
        self._power = power

    def losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """See `_FromLogits`."""
        log = logits.log_softmax(-1)
        return -(log * (log.detach() * self._power).exp()).T


class _Contrasts(_FromLogits):
    """Each class's logit less the first's (classes - 1, examples)."""

    def losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """See `_FromLogits`."""
        return (logits[:, 1:] - logits[:, :1]).T


class _SampledClasses(_FromLogits):
    """The kind's own loss with a class drawn for each example, or a token for each target token.

    Tokens are drawn given the text before them, as the model reads it.
    """

    def losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """See `_FromLogits`."""
        labels, noise = batch["labels"], batch[_NOISE]
        drawn = labels.clone()
        with torch.no_grad():
            if labels.ndim == 1:
                drawn[:] = _inverse(logits, noise[:, 0])
            else:
                # A causal model says at each position what comes next.
                late = 1 if self.kind.name == "causal-lm" else 0
                wanted = labels[:, late:] != IGNORED
                # The number of a token among its example's targets: padding does not change it.
                order = (wanted.cumsum(1) - 1).clamp(min=0)
                said = logits[:, : logits.shape[1] - late]
                drawn[:, late:][wanted] = _inverse(said[wanted], noise.gather(1, order)[wanted])
        return self.kind.losses(logits, drawn)


class _Outputs(_FromLogits):
    """The outputs of a regression (outputs, examples)."""

    def losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """See `_FromLogits`."""
        return logits.reshape(len(logits), -1).T


class _SampledOutput(_FromLogits):
    """What has the gradient `(f - y) df` for y drawn around the output f (examples,)."""

    def losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """See `_FromLogits`."""
        return (logits.reshape(len(logits), -1) * batch[_NOISE].to(logits.dtype)).sum(1)


def _inverse(logits: Tensor, uniform: Tensor) -> Tensor:
    """Classes (n,) drawn from logits (n, classes) by uniform numbers (n,)."""
    cumulative = logits.double().softmax(-1).cumsum(-1)
    place = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)[:, 0]
    return place.clamp(max=logits.shape[-1] - 1)
