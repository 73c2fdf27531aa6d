"""Methods whose size is the model's: everything, the head alone, all biases, all norms."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from paretune.anatomy import Tensor
from paretune.errors import BudgetError, PareError
from paretune.methods.base import Choice, Question, whole


@dataclass(frozen=True)
class Full:
    """Full fine-tuning: every weight of the model."""

    name: ClassVar[str] = "full"
    summary: ClassVar[str] = "every weight (full fine-tuning)"
    learning_rates: ClassVar[tuple[float, ...]] = (2e-5, 5e-5, 1e-4, 2e-4)
    rate_power: ClassVar[float] = 0.0
    sized: ClassVar[bool] = False

    def choose(self, question: Question) -> Choice:
        """Select every candidate tensor."""
        return _all_of(question, self.name, lambda tensor: True)


@dataclass(frozen=True)
class Head:
    """The head alone, on a frozen model."""

    name: ClassVar[str] = "head"
    summary: ClassVar[str] = "the task's new head alone, the model frozen"
    learning_rates: ClassVar[tuple[float, ...]] = (1e-3, 3e-3, 1e-2, 3e-2)
    rate_power: ClassVar[float] = 0.0
    sized: ClassVar[bool] = False

    def choose(self, question: Question) -> Choice:
        """Select nothing beside the head.

        Raises:
            PareError: The model has no head new to the task.
        """
        if not question.anatomy.head:
            raise PareError(
                "this model has no new head, so there is nothing for 'head' to train; use another method"
            )
        return Choice()


@dataclass(frozen=True)
class BitFit:
    """All bias terms, those of the norms included (Ben Zaken et al., arXiv 2106.10199)."""

    name: ClassVar[str] = "bitfit"
    summary: ClassVar[str] = "all bias terms (BitFit)"
    learning_rates: ClassVar[tuple[float, ...]] = (3e-4, 1e-3, 3e-3, 1e-2)
    rate_power: ClassVar[float] = 0.0
    sized: ClassVar[bool] = False

    def choose(self, question: Question) -> Choice:
        """Select every bias vector.

        Raises:
            PareError: There is none.
        """
        if not any(map(_is_bias, question.candidates)):
            raise PareError(
                "bitfit: this model has no biases to train; the method 'bias' adds some where there are none"
            )
        return _all_of(question, self.name, _is_bias)


@dataclass(frozen=True)
class Norm:
    """All weights and biases of the normalisation layers."""

    name: ClassVar[str] = "norm"
    summary: ClassVar[str] = "the normalisation layers"
    learning_rates: ClassVar[tuple[float, ...]] = (3e-4, 1e-3, 3e-3, 1e-2)
    rate_power: ClassVar[float] = 0.0
    sized: ClassVar[bool] = False

    def choose(self, question: Question) -> Choice:
        """Select every tensor of a normalisation layer."""
        return _all_of(question, self.name, lambda tensor: tensor.kind == "norm")


def _is_bias(tensor: Tensor) -> bool:
    return tensor.kind == "bias" or (tensor.kind == "norm" and tensor.name.endswith("bias"))


def _all_of(question: Question, name: str, wanted: Callable[[Tensor], bool]) -> Choice:
    tensors = tuple(tensor for tensor in question.candidates if wanted(tensor))
    count = sum(tensor.count for tensor in tensors)
    if not count:
        raise PareError(f"this model has nothing for '{name}' to train; use another method")
    if question.budget is not None and count > question.budget:
        raise BudgetError(
            f"'{name}' trains {count:,} weights here, above the budget of {question.budget:,}; raise the "
            "budget or use a method that fits itself into one"
        )
    return Choice(whole(tensors))
