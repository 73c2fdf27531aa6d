"""What a trial of a front is: a candidate's plan trained at a rate, for a share of the steps, and scored."""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paretune.budget import HeadRule
from paretune.errors import DivergedError, PareError
from paretune.memory import reset_peak
from paretune.methods import choose, make_method
from paretune.search.jobs import Job, Scored
from paretune.search.seeded import SeededModel
from paretune.search.shelf import Kept, Shelf
from paretune.search.trial import folders_of, run_trial
from paretune.task import Task
from paretune.tuning import Recipe

FEWEST_STEPS = 2  # a single one would be a warm-up step at a rate of zero


@dataclass(frozen=True)
class FrontSpec:
    """What a trial of a front is about.

    Args:
        candidate: Name of the candidate.
        method: Its method.
        settings: Its settings.
        budget: As typed, or None.
        lr: Peak learning rate.
        share: Of the steps of a whole training, over as much of the data as they reach.
        seed: Of the head, the evidence, the data order, dropout and added modules.
    """

    candidate: str
    method: str
    settings: dict[str, Any]
    budget: str | None
    lr: float
    share: float
    seed: int

    @property
    def job(self) -> Job:
        """What an engine runs."""
        key = f"{self.candidate}|{self.lr:g}|{self.share:g}|{self.seed}"
        return Job(key, dict(self.__dict__), self.share)


@dataclass
class FrontTrial:
    """Trains candidates on a task; scores come from its held-out part alone.

    It can be pickled; the model stays with the process that loaded it.

    Args:
        task: The data.
        recipe: A whole training; ``lr`` and ``steps`` are replaced.
        plans: Folder for plans, the same for every process.
        head: Whether the head is ``outside`` or ``inside`` the budget.
        exclude: Patterns of tensors that may not be selected.
        most_bytes: A trial that needs more memory than this fails; None sets no limit.
        threads: Threads of a worker process; None leaves them as they are.
        delta_dtype: Of the shipped values, for budgets in bytes; None takes the base's.
    """

    task: Task
    recipe: Recipe
    plans: Path
    head: HeadRule = "outside"
    exclude: tuple[str, ...] = ()
    most_bytes: int | None = None
    threads: int | None = None
    delta_dtype: torch.dtype | None = None
    _models: SeededModel = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._models = SeededModel(self.task, self.recipe.dtype, self.threads)

    @property
    def reads(self) -> tuple[Path, ...]:
        """Folders that must be wherever it runs."""
        return folders_of(self.task)

    @property
    def writes(self) -> tuple[Path, ...]:
        """The folder of plans, which must be the same one wherever it runs."""
        return (self.plans,)

    def __call__(self, spec: dict[str, Any]) -> Scored:
        """Choose (once for each candidate and seed), train and score.

        Args:
            spec: That of a :class:`FrontSpec`.

        Returns:
            The result; without a score, and with the cause, where the method cannot be done on this model
            and budget (``details["impossible"]``), training diverged, or memory ran out.
        """
        start = time.perf_counter()
        asked = FrontSpec(**spec)
        model = self._models.of(asked.seed)
        loaded = time.perf_counter() - start
        try:
            kept = self._plan(model, asked)
        except PareError as problem:
            return Scored(None, time.perf_counter() - start, 0.0, str(problem), details={"impossible": True})
        except (MemoryError, RuntimeError) as problem:
            return self._failed(problem, start, {}, while_choosing=True)
        details = {
            "plan": kept.folder,
            "trained": kept.plan.count,
            "head": kept.plan.head_count,
            "delta_bytes": kept.delta_bytes,
            "choosing": kept.seconds,
            "loading": loaded,
        }
        steps = self.steps(asked.share)
        recipe = replace(self.recipe, lr=asked.lr, steps=steps)
        # Each trial's own peak: what choosing and earlier trials needed is given back before.
        reset_peak()
        begun = time.perf_counter()
        try:
            outcome = run_trial(model, self.task, kept.plan, recipe, seed=asked.seed)
        except (PareError, MemoryError, RuntimeError) as problem:
            return self._failed(problem, start, details, training=time.perf_counter() - begun)
        details |= {
            "scores": outcome.scores,
            "losses": [list(entry) for entry in outcome.training.losses],
            "steps": steps,
            "peak_bytes": outcome.peak_bytes,
            "step_seconds": outcome.training.seconds / steps,
        }
        seconds = time.perf_counter() - start
        if self.most_bytes is not None and outcome.peak_bytes > self.most_bytes:
            reason = f"needs {outcome.peak_bytes / 2**30:.2f} GiB, above {self.most_bytes / 2**30:.2f} GiB"
            details["impossible"] = True
            return Scored(None, seconds, outcome.training.seconds, reason, details=details)
        score = outcome.scores[self.task.metric]
        loss = outcome.scores["loss"]
        return Scored(score, seconds, outcome.training.seconds, loss=loss, details=details)

    def steps(self, share: float) -> int:
        """Optimiser steps of a share of a whole training."""
        return max(FEWEST_STEPS, round(share * self.recipe.total_steps(len(self.task.train))))

    def _plan(self, model: nn.Module, asked: FrontSpec) -> Kept:
        """The candidate's plan under a seed; chosen once."""

        def make() -> Any:
            return choose(
                make_method(asked.method, asked.settings),
                model,
                self.task,
                asked.budget,
                seed=asked.seed,
                head=self.head,
                exclude=self.exclude,
                delta_dtype=self.delta_dtype,
            )

        return Shelf(self.plans, self.delta_dtype).get(f"{asked.candidate}|{asked.seed}", make)

    def _failed(
        self,
        problem: Exception,
        start: float,
        details: dict[str, Any],
        training: float = 0.0,
        while_choosing: bool = False,
    ) -> Scored:
        """The result of a trial that broke; the next one loads the model anew."""
        self._models.drop()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        text = " ".join(str(problem).split())
        if isinstance(problem, DivergedError):
            cause = f"diverged: {text}"
        elif isinstance(problem, MemoryError | torch.OutOfMemoryError) or "memory" in text.lower():
            cause = f"out of memory: {text}"
        else:
            cause = text if isinstance(problem, PareError) else f"{type(problem).__name__}: {text}"
        if while_choosing:
            cause = f"while choosing: {cause}"
        return Scored(None, time.perf_counter() - start, training, cause, details=details)
