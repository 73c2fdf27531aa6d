"""Select by the mean gradient over a batch: signal, where Fisher information also counts noise."""

from dataclasses import dataclass
from typing import Any, ClassVar

from paretune.errors import PareError
from paretune.evidence import Sum, draw, evidence_pass
from paretune.evidence.precision import Precision
from paretune.methods.base import Choice, Question
from paretune.methods.entries import entries
from paretune.methods.ranking import Ranking
from paretune.methods.rates import MASK_POWER

DEFAULT_SAMPLES = 1024


@dataclass(frozen=True)
class Gradient(Ranking):
    """k entries by ``(sum_i d loss_i / d w_j)^2`` over n training examples.

    Args:
        samples: n; None takes 1024, or all of a smaller training set.
        batch_size: Examples in a forward pass; no influence but rounding.
        precision: As for :class:`paretune.methods.fish.Fish`.

    Further settings: see :class:`paretune.methods.ranking.Ranking`.
    """

    name: ClassVar[str] = "gradient"
    summary: ClassVar[str] = "single weights by mean gradient"
    learning_rates: ClassVar[tuple[float, ...]] = (5e-4, 1.5e-3, 5e-3, 1e-2)
    rate_power: ClassVar[float] = MASK_POWER
    sized: ClassVar[bool] = True

    samples: int | None = None
    batch_size: int = 32
    precision: Precision = "fp32"

    def choose(self, question: Question) -> Choice:
        """Score what competes and take k weights of it.

        Raises:
            PareError: Every gradient is zero, the budget holds not one unit, or as
                :func:`paretune.evidence.evidence_pass`.
        """
        k = question.k
        parameters = dict(question.model.named_parameters())
        consumer = Sum({tensor.name: parameters[tensor.name] for tensor in self.ranks.competing(question, k)})
        samples = self.samples or min(DEFAULT_SAMPLES, len(question.task.train))
        drawn = draw(question.task, samples, question.seed)
        losses = self.under_warm_head(
            question,
            lambda: evidence_pass(
                question.model,
                question.task,
                [consumer],
                drawn,
                batch_size=self.batch_size,
                seed=question.seed,
                precision=self.precision,
            ),
        )
        scores = {name: values.square_() for name, values in consumer.values.items()}
        if not any(bool(values.any()) for values in scores.values()):
            raise PareError(f"every gradient is zero on the {samples} examples; no weight can be preferred")
        notes: dict[str, Any] = {"samples": samples, "mean_loss": float(losses.mean())}
        chosen = self.ranks.take(scores, k, question.seed)
        return Choice(entries(question, chosen, self.granularity), notes=notes)
