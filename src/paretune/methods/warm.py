"""Evidence under a head that has been trained a little: a fresh head's gradients say more of itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from paretune.errors import PareError
from paretune.evidence.horizon import during_training
from paretune.methods.base import Question

Found = TypeVar("Found")


@dataclass(frozen=True)
class Warm:
    """Settings shared by the methods that rank weights by gradients.

    Args:
        warm_head: Train the head alone for so many steps before looking; afterwards it is as fresh as before.
            Default 0. A model without a head new to the task is looked at as it is.
        warm_lr: The rate of these steps.

    Raises:
        PareError: A setting out of range.
    """

    warm_head: int = 0
    warm_lr: float = 1e-2

    def __post_init__(self) -> None:
        if self.warm_head < 0 or not self.warm_lr > 0:
            raise PareError(f"warm_head={self.warm_head} and warm_lr={self.warm_lr} must not be below 0")

    def under_warm_head(self, question: Question, look: Callable[[], Found]) -> Found:
        """Call ``look`` with the head trained; every weight is put back bit for bit."""
        head = [question.model.get_parameter(tensor.name) for tensor in question.anatomy.head]
        if not self.warm_head or not head:
            return look()
        (found,) = during_training(
            question.model,
            question.task,
            head,
            lambda number, optimiser: look(),
            steps=self.warm_head,
            probes=1,
            lr=self.warm_lr,
            seed=question.seed,
        )
        return found
