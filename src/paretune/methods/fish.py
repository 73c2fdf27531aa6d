"""FISH Mask (Sung, Nair, Raffel; arXiv 2111.09839): the entries of largest Fisher information."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from paretune.anatomy import Tensor
from paretune.errors import PareError
from paretune.evidence import Fisher, fisher
from paretune.evidence.precision import Precision
from paretune.methods.base import Choice, Question
from paretune.methods.parts import dealt_choice, size_of_all
from paretune.methods.ranking import Ranking
from paretune.methods.rates import MASK_POWER

DEFAULT_SAMPLES = 1024


@dataclass(frozen=True)
class Fish(Ranking):
    """k entries by ``sum_i (d loss_i / d w_j)^2`` over n training examples (equation 3).

    As published (``reading="published"``) these are the k largest; by default the mask leans towards them.

    Args:
        samples: n; None takes the paper's 1024, or all of a smaller training set.
        labels: ``data`` (empirical Fisher, as published), ``exact`` (true Fisher) or ``sampled``.
        form: ``squared`` or ``absolute`` gradients.
        balanced: Draw as many examples of each class.
        batch_size: Examples in a forward pass; no influence but rounding.
        precision: ``fp32``: gradients as precise as the model's weights; ``bf16``: from products in bfloat16,
            faster where the processor has it. Squares are summed in fp32 in both.
        parts: Disjoint masks for so many workers: the best entries, as many as all masks hold, dealt out in
            turn. Each is a plan of the budget's size, ``other-0`` to ``other-(parts - 1)``; the plan itself
            is the first. ``paretune delta merge --overlap head`` puts their deltas together. Of entries only.

    Further settings: see :class:`paretune.methods.ranking.Ranking`.
    """

    name: ClassVar[str] = "fish"
    summary: ClassVar[str] = "single weights by Fisher information (FISH Mask)"
    learning_rates: ClassVar[tuple[float, ...]] = (5e-4, 1.5e-3, 5e-3, 1e-2)
    rate_power: ClassVar[float] = MASK_POWER
    sized: ClassVar[bool] = True

    samples: int | None = None
    labels: Literal["data", "exact", "sampled"] = "data"
    form: Literal["squared", "absolute"] = "squared"
    balanced: bool = False
    batch_size: int = 32
    precision: Precision = "fp32"
    parts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parts < 1:
            raise PareError(f"fish: parts={self.parts} is below 1")
        if self.parts > 1 and self.granularity != "entries":
            raise PareError(
                f"fish: parts={self.parts} deals out single entries, not {self.granularity}; leave parts or "
                "granularity out"
            )

    def choose(self, question: Question) -> Choice:
        """Score what competes and take k weights of it.

        Raises:
            PareError: The budget holds not one unit, or as :func:`paretune.evidence.fisher`.
        """
        k = size_of_all(question, self.parts)
        tensors = self.ranks.competing(question, k)
        evidence = self.under_warm_head(question, lambda: self._evidence(question, tensors))
        notes: dict[str, Any] = {"samples": len(evidence.indices), "mean_loss": float(evidence.losses.mean())}
        chosen = self.ranks.take(evidence.scores, k, question.seed)
        return dealt_choice(question, chosen, evidence.scores, self.parts, notes, self.granularity)

    def _evidence(self, question: Question, tensors: tuple[Tensor, ...]) -> Fisher:
        return fisher(
            question.model,
            question.task,
            samples=self.samples or min(DEFAULT_SAMPLES, len(question.task.train)),
            batch_size=self.batch_size,
            labels=self.labels,
            form=self.form,
            tensors=[tensor.name for tensor in tensors],
            seed=question.seed,
            balanced=self.balanced,
            precision=self.precision,
        )
