"""Plans by arithmetic alone, before there is one: what budgets hold, and what methods make of them."""

import hashlib
from dataclasses import dataclass, replace

import torch

from paretune.budget import Budget, HeadRule
from paretune.delta import delta_bytes
from paretune.delta.estimate import DESCRIPTION, largest_within
from paretune.errors import PareError
from paretune.methods import Choice, Method, Question
from paretune.methods.base import whole
from paretune.plan import Base, Plan
from paretune.task import Task

_DIGEST = hashlib.sha256().hexdigest()  # of no model; it takes the bytes of any other


def sketch(choice: Choice, question: Question) -> Plan:
    """What a choice would train and ship, without the digest of the model.

    Args:
        choice: What is selected and added.
        question: What it answers.

    Raises:
        PareError: As :class:`~paretune.plan.Plan`.
    """
    dtype = str(next(question.model.parameters()).dtype).removeprefix("torch.")
    base = Base(str(getattr(question.task, "model_id", "")), _DIGEST, dtype)
    return Plan(base, choice.selections, choice.additions, whole(question.anatomy.head))


@dataclass(frozen=True)
class Sizing:
    """What budgets hold, and what methods make of them.

    Args:
        question: With the data unseen.
        task: The data's task.
        head: Whether the head is ``outside`` or ``inside`` the budget.
        dtype: Of the shipped values; None takes the base's.
    """

    question: Question
    task: Task
    head: HeadRule
    dtype: torch.dtype | None

    @property
    def width(self) -> int:
        """Bytes of a value."""
        return (self.dtype or next(self.question.model.parameters()).dtype).itemsize

    def weights(self, budget: Budget) -> int:
        """A budget in weights; one in bytes by a value and a byte of index a weight, beside the head.

        Raises:
            PareError: It has no room for a weight.
        """
        parts = self.question.anatomy
        if budget.unit != "bytes":
            return budget.resolve(parts.weights, parts.head_weights, self.head)
        left = (int(budget.value) - DESCRIPTION - self.width * parts.head_weights) // (self.width + 1)
        if left < 1:
            raise PareError(
                f"a delta of {budget} has no room beside the head's {parts.head_weights:,} weights; ask for "
                "more"
            )
        return min(left, parts.weights)

    def plan(self, method: Method, budget: Budget | None) -> Plan:
        """What a method does at a budget, by arithmetic alone.

        Raises:
            PareError: It cannot.
        """
        if budget is None or budget.unit != "bytes":
            return self._plan(method, None if budget is None else self.weights(budget))
        found = largest_within(
            int(budget.value),
            self.width,
            self.question.anatomy.head_weights,
            sum(tensor.count for tensor in self.question.candidates),
            lambda weights: self._plan(method, weights),
            self.dtype,
        )
        if found is None:
            raise PareError(f"a delta of {budget} has no room for it; raise the budget")
        return found

    def _plan(self, method: Method, weights: int | None) -> Plan:
        choice = method.choose(replace(self.question, budget=weights))
        return sketch(choice, replace(self.question, task=self.task))

    def holds(self, budget: Budget, plan: Plan) -> bool:
        """Whether a plan is within a budget."""
        if budget.unit == "bytes":
            return delta_bytes(plan, self.dtype) <= budget.value
        return plan.count <= self.weights(budget)
