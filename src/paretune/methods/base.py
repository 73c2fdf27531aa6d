"""What a method is: it turns (model, task, budget) into a choice of weights and added modules."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
from torch import nn

from paretune.anatomy import Anatomy, Tensor
from paretune.errors import PareError
from paretune.plan import Addition, Selection
from paretune.task import Task


@dataclass(frozen=True)
class Question:
    """What a method is asked.

    Args:
        model: The pretrained model, in eval mode; a method leaves it bit-equal.
        task: The data; methods look at ``task.train`` only.
        anatomy: What the model is made of.
        candidates: The existing tensors that may be selected: the body less what the user excluded.
        budget: How many weights may be trained, the head not counted; None when no budget was given.
        seed: For everything drawn.
    """

    model: nn.Module
    task: Task
    anatomy: Anatomy
    candidates: tuple[Tensor, ...]
    budget: int | None
    seed: int

    @property
    def k(self) -> int:
        """The budget of a method that cannot do without one.

        Raises:
            PareError: None was given, or fewer tensors are left than it needs.
        """
        if self.budget is None:
            raise PareError("this method needs a budget, such as --budget 0.5%, 120k or 2MiB")
        left = sum(tensor.count for tensor in self.candidates)
        if self.budget > left:
            raise PareError(f"a budget of {self.budget:,} weights is above the {left:,} that may be selected")
        return self.budget


@dataclass(frozen=True)
class Choice:
    """What a method answers.

    Args:
        selections: Existing weights to train.
        additions: Modules to add.
        notes: What there is to say about the choice (JSON), kept in the plan.
        others: Further choices that came with it, of other sizes; each is kept as a plan of its own.
        start: Values to begin training with, as in :class:`~paretune.plan.Plan`.
    """

    selections: tuple[Selection, ...] = ()
    additions: tuple[Addition, ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)
    others: tuple["Choice", ...] = ()
    start: dict[str, np.ndarray] = field(default_factory=dict)


class Method(Protocol):
    """One way to choose; a frozen dataclass whose fields are its settings, validated where it is made.

    Attributes:
        name: What people type.
        summary: One line for ``paretune methods``.
        learning_rates: The range that is sensible for it at 0.5 % of a model, ascending.
        rate_power: How the range moves with the share, see :func:`paretune.methods.rates.learning_rates`.
        sized: Whether it fits itself into any budget (or has a size of its own).
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    learning_rates: ClassVar[tuple[float, ...]]
    rate_power: ClassVar[float]
    sized: ClassVar[bool]

    def choose(self, question: Question) -> Choice:
        """Choose what to train.

        Raises:
            PareError: Nothing fits the budget, or the evidence cannot be taken.
        """


def whole(tensors: tuple[Tensor, ...]) -> tuple[Selection, ...]:
    """Selections of whole tensors."""
    return tuple(Selection(tensor.name, tensor.shape, "all") for tensor in tensors)
