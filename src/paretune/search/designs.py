"""What a trial of a design search is: a design planned, trained for a share of the steps, and scored."""

import fnmatch
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from paretune.anatomy import anatomy
from paretune.budget import Budget, HeadRule
from paretune.errors import DivergedError, PareError
from paretune.methods import Question, choose
from paretune.methods.designed import Designed
from paretune.methods.prices import Prices
from paretune.progress import set_quiet
from paretune.search.jobs import Scored
from paretune.search.space import RATE, Point, Space
from paretune.search.trial import run_trial
from paretune.task import Task
from paretune.tuning import Recipe


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
    _model: tuple[int, nn.Module] | None = field(default=None, init=False, repr=False)

    def __call__(self, spec: dict[str, Any]) -> Scored:
        """Train and score a point.

        Args:
            spec: That of a :class:`~paretune.search.stage_trial.StageTrial`.

        Raises:
            PareError: The design cannot be made or trained; a training that diverges is a result.
        """
        start = time.perf_counter()
        point, share, seed = spec["point"], spec["share"], spec["seed"]
        model = self._load(seed)
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

    def _load(self, seed: int) -> nn.Module:
        """The model with a seeded head; trials give it back bit-equal, so those of a draw share it."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
            set_quiet(True)
        if self._model is None or self._model[0] != seed:
            self._model = None  # never two models at a time
            self._model = (seed, self.task.load_model(seed=seed, dtype=self.recipe.dtype))
        return self._model[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_model": None}


@dataclass(frozen=True)
class Feasible:
    """Whether the designs of a space can be made within a budget: arithmetic on prices, no training.

    Args:
        space: Where points come from.
        prices: Of the model.
        budget: Number of weights.
    """

    space: Space
    prices: Prices
    budget: int

    def __call__(self, point: Point) -> str | None:
        """Why the design of a point cannot be made; None when it can."""
        try:
            self.prices.sizes(self.space.design(point), self.budget)
        except PareError as problem:
            return str(problem)
        return None


def read_prices(
    model: nn.Module,
    task: Task,
    budget: str | int,
    *,
    head: HeadRule = "outside",
    exclude: Sequence[str] = (),
    settings: dict[str, dict[str, Any]] | None = None,
) -> tuple[Prices, int]:
    """The prices of a model, and the budget in weights.

    Raises:
        PareError: The budget does not fit the model.
    """
    parts = anatomy(model)
    weights = Budget.parse(budget).resolve(parts.weights, parts.head_weights, head)
    candidates = tuple(
        tensor for tensor in parts.body if not any(fnmatch.fnmatch(tensor.name, each) for each in exclude)
    )
    return Prices(Question(model, task, parts, candidates, weights, 0), settings or {}), weights
