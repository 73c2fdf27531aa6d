"""FISH Mask (Sung, Nair, Raffel; arXiv 2111.09839): the entries of largest Fisher information."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from paretune.evidence import fisher, top_k
from paretune.methods.base import Choice, Question
from paretune.methods.entries import entries

DEFAULT_SAMPLES = 1024


@dataclass(frozen=True)
class Fish:
    """The k entries with the largest ``sum_i (d loss_i / d w_j)^2`` over n training examples (equation 3).

    Args:
        samples: n; None takes the paper's 1024, or all of a smaller training set.
        labels: ``data`` (empirical Fisher, as published), ``exact`` (true Fisher) or ``sampled``.
        form: ``squared`` or ``absolute`` gradients.
        balanced: Draw as many examples of each class.
        batch_size: Examples in a forward pass; no influence but rounding.
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
        evidence = fisher(
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
        notes: dict[str, Any] = {"samples": len(evidence.indices), "mean_loss": float(evidence.losses.mean())}
        return Choice(entries(question, top_k(evidence.scores, k)), notes=notes)
