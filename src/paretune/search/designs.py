"""What a trial of a design search is: a design planned, trained for a share of the steps, and scored."""

import fnmatch
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from paretune.anatomy import anatomy
from paretune.budget import Budget, HeadRule
from paretune.delta.estimate import largest_within
from paretune.errors import BudgetError, DivergedError, PareError
from paretune.methods import Question, choose
from paretune.methods.design import Design
from paretune.methods.designed import Designed
from paretune.methods.prices import Prices
from paretune.plan import Plan
from paretune.search.jobs import Scored
from paretune.search.seeded import SeededModel
from paretune.search.sizing import sketch
from paretune.search.space import RATE, Point, Space
from paretune.search.trial import folders_of, run_trial
from paretune.task import Task
from paretune.tuning import Recipe

SPARE = 64  # bytes: digests that are not known yet may compress less well


@dataclass
class DesignTrial:
    """Trains points of a space on a task; scores come from its held-out part alone.

    It can be pickled; the model stays with the process that loaded it.

    Args:
        task: The data.
        budget: See :func:`paretune.choose`.
        space: Where points come from.
        recipe: A whole training; ``lr`` and ``steps`` are replaced.
        head: Whether the head is ``outside`` or ``inside`` the budget.
        exclude: Patterns of tensors that may not be touched.
        threads: Threads of a worker process; None leaves them as they are.
    """

    task: Task
    budget: str | int
    space: Space
    recipe: Recipe
    head: HeadRule = "outside"
    exclude: tuple[str, ...] = ()
    threads: int | None = None
    _models: SeededModel = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._models = SeededModel(self.task, self.recipe.dtype, self.threads)

    @property
    def reads(self) -> tuple[Path, ...]:
        """Folders that must be wherever it runs."""
        return folders_of(self.task)

    @property
    def writes(self) -> tuple[Path, ...]:
        """Nothing: all that comes of a trial is in its result."""
        return ()

    def __call__(self, spec: dict[str, Any]) -> Scored:
        """Train and score a point.

        Args:
            spec: That of a :class:`~paretune.search.stage_trial.StageTrial`.

        Raises:
            PareError: The design cannot be made or trained; a training that diverges is a result.
        """
        start = time.perf_counter()
        point, share, seed = spec["point"], spec["share"], spec["seed"]
        model = self._models.of(seed)
        plan = choose(
            Designed(**self.space.design(point).document()),
            model,
            self.task,
            self.budget,
            seed=seed,
            head=self.head,
            exclude=self.exclude,
        )
        # A single step would be a warm-up step at a rate of zero.
        steps = max(2, round(share * self.recipe.total_steps(len(self.task.train))))
        recipe = replace(self.recipe, lr=float(point[RATE]), steps=steps)
        try:
            outcome = run_trial(model, self.task, plan, recipe, seed=seed)
        except DivergedError as problem:
            seconds = time.perf_counter() - start
            return Scored(None, seconds, seconds, str(problem))
        score = outcome.scores[self.task.metric]
        seconds = time.perf_counter() - start
        return Scored(score, seconds, outcome.training.seconds, loss=outcome.scores["loss"])


@dataclass(frozen=True)
class Feasible:
    """Whether the designs of a space can be made within a budget: arithmetic on prices, no training.

    Args:
        space: Where points come from.
        prices: Of the model.
        budget: Number of weights, or bytes of delta.
        head: Rule for the head.
    """

    space: Space
    prices: Prices
    budget: Budget
    head: HeadRule = "outside"

    def __call__(self, point: Point) -> str | None:
        """Why the design of a point cannot be made; None when it can."""
        try:
            self._make(self.space.design(point))
        except PareError as problem:
            return str(problem)
        return None

    def _make(self, design: Design) -> None:
        """Size a design as `choose` will.

        Raises:
            PareError: It cannot be made.
        """
        parts = self.prices.question.anatomy
        if self.budget.unit != "bytes":
            weights = self.budget.resolve(parts.weights, parts.head_weights, self.head)
            self.prices.sizes(design, weights)
            return
        question = self.prices.question

        def attempt(weights: int) -> Plan:
            return sketch(self.prices.choice(*self.prices.sizes(design, weights)), question)

        limit, width = int(self.budget.value) - SPARE, next(question.model.parameters()).dtype.itemsize
        weights = sum(tensor.count for tensor in question.candidates)
        if largest_within(limit, width, parts.head_weights, weights, attempt, None) is None:
            raise BudgetError(f"a delta of {self.budget} has no room for it; raise the budget")


def read_prices(
    model: nn.Module,
    task: Task,
    budget: str | int,
    *,
    head: HeadRule = "outside",
    exclude: Sequence[str] = (),
    settings: dict[str, dict[str, Any]] | None = None,
) -> Prices:
    """The prices of a model.

    Raises:
        PareError: The budget does not fit the model.
    """
    parts = anatomy(model)
    asked = Budget.parse(budget)
    weights = None if asked.unit == "bytes" else asked.resolve(parts.weights, parts.head_weights, head)
    candidates = tuple(
        tensor for tensor in parts.body if not any(fnmatch.fnmatch(tensor.name, each) for each in exclude)
    )
    return Prices(Question(model, task, parts, candidates, weights, 0), settings or {})
