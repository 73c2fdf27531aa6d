"""FISH Mask (Sung, Nair, Raffel; arXiv 2111.09839): the entries of largest Fisher information."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from paretune.evidence import Fisher, fisher, top_k
from paretune.methods.base import Choice, Question
from paretune.methods.entries import entries
from paretune.methods.warm import Warm

DEFAULT_SAMPLES = 1024


@dataclass(frozen=True)
class Fish(Warm):
    """The k entries with the largest ``sum_i (d loss_i / d w_j)^2`` over n training examples (equation 3).

    Args:
        samples: n; None takes the paper's 1024, or all of a smaller training set.
        labels: ``data`` (empirical Fisher, as published), ``exact`` (true Fisher) or ``sampled``.
        form: ``squared`` or ``absolute`` gradients.
        balanced: Draw as many examples of each class.
        batch_size: Examples in a forward pass; no influence but rounding.

    ``warm_head``, ``warm_lr`` and ``normalise``: see :class:`paretune.methods.warm.Warm`.
    """

    name: ClassVar[str] = "fish"
    summary: ClassVar[str] = "single weights of largest Fisher information (FISH Mask)"
    learning_rates: ClassVar[tuple[float, ...]] = (5e-5, 2e-4, 5e-4, 1.5e-3)
    sized: ClassVar[bool] = True

    samples: int | None = None
    labels: Literal["data", "exact", "sampled"] = "data"
    form: Literal["squared", "absolute"] = "squared"
    balanced: bool = False
    batch_size: int = 32

    def choose(self, question: Question) -> Choice:
        """Score every candidate entry and keep the k largest.

        Raises:
            PareError: As :func:`paretune.evidence.fisher`.
        """
        k = question.k
        evidence = self.under_warm_head(question, lambda: self._evidence(question))
        notes: dict[str, Any] = {"samples": len(evidence.indices), "mean_loss": float(evidence.losses.mean())}
        return Choice(
            entries(question, top_k(evidence.scores, k, scale=self.scales(evidence.scores))), notes=notes
        )

    def _evidence(self, question: Question) -> Fisher:
        return fisher(
            question.model,
            question.task,
            samples=self.samples or min(DEFAULT_SAMPLES, len(question.task.train)),
            batch_size=self.batch_size,
            labels=self.labels,
            form=self.form,
            tensors=[tensor.name for tensor in question.candidates],
            seed=question.seed,
            balanced=self.balanced,
        )
