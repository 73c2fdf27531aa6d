"""Select by the weights themselves: the largest or the smallest."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from paretune.evidence import top_k
from paretune.methods.base import Choice, Question
from paretune.methods.entries import entries
from paretune.methods.rates import MASK_POWER


@dataclass(frozen=True)
class Magnitude:
    """The k entries of largest (or smallest) absolute value.

    Args:
        largest: Take the largest; False takes the smallest. Default True.
    """

    name: ClassVar[str] = "magnitude"
    summary: ClassVar[str] = "single weights of largest (or smallest) magnitude"
    learning_rates: ClassVar[tuple[float, ...]] = (5e-4, 1.5e-3, 5e-3, 1.5e-2)
    rate_power: ClassVar[float] = MASK_POWER
    sized: ClassVar[bool] = True

    largest: bool = True

    @torch.no_grad()
    def choose(self, question: Question) -> Choice:
        """Rank the entries of all candidates together."""
        parameters = dict(question.model.named_parameters())
        scores = {tensor.name: parameters[tensor.name].detach().abs() for tensor in question.candidates}
        return Choice(entries(question, top_k(scores, question.k, largest=self.largest)))
