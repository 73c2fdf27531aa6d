"""Choose the mask again while training: every so many steps, under the weights of that moment."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from paretune.budget import Budget
from paretune.errors import PareError
from paretune.plan import Plan
from paretune.task import Task
from paretune.tuning.attach import Tunable
from paretune.tuning.moments import follow

Rechoose = Callable[[Plan, nn.Module, Task, int], Plan]


@dataclass(frozen=True)
class Reselection:
    """When and how the mask is chosen again.

    Entries that stay keep their value and their optimiser moments. Dropped entries go back to their
    pretrained value, so that the delta never holds more than the budget; new ones begin there, with moments
    of zero. There is none after the last step.

    Args:
        every: Optimiser steps between two choices.
        rechoose: From the plan so far, the plain model with its current weights (to be left bit-equal), the
            task and the step to the next plan; :func:`paretune.rechoose` asks the plan's own method.

    Raises:
        PareError: ``every`` is below 1.
    """

    every: int
    rechoose: Rechoose

    def __post_init__(self) -> None:
        if self.every < 1:
            raise PareError(f"the mask cannot be chosen again every {self.every} steps; give 1 or more")

    def refuse(self, plan: Plan, processes: int = 1) -> None:
        """Say at once what cannot work.

        Raises:
            PareError: The plan has added modules, selects more than the entries, rows, columns or blocks
                that its method ranks, or holds values to begin with, its budget is in bytes, or the training
                has several processes.
        """
        kind = plan.settings.get("granularity", "entries")
        if plan.additions or any(s.granularity != kind for s in plan.selections) or not plan.selections:
            raise PareError(
                f"the plan of {plan.method!r} does not select {kind} only; choosing again is for "
                "masks (fish, ird, gradient, random, magnitude)"
            )
        if plan.start:
            raise PareError(
                "the plan says which values training begins with; with masks chosen again there are none"
            )
        if plan.asked is not None and Budget.parse(plan.asked).unit == "bytes":
            raise PareError(
                f"a budget in bytes ({plan.asked}) is kept by measuring one mask; for masks chosen again "
                f"give a number of weights, such as {plan.count}"
            )
        if processes > 1:
            raise PareError(f"choosing the mask again works in one process, not in {processes}")


class Reselector(TrainerCallback):
    """Carries out a :class:`Reselection` for a Trainer whose model has a plan attached."""

    def __init__(self, trainer: Trainer, task: Task, reselection: Reselection) -> None:
        self.trainer, self.task, self.reselection = trainer, task, reselection

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Choose again where it is due; checkpoints of this step are written afterwards."""
        if state.global_step % self.reselection.every or state.global_step >= state.max_steps:
            return
        trainer, model = self.trainer, self.trainer.model
        tunable = model.paretune  # type: ignore[union-attr]
        assert isinstance(model, nn.Module) and isinstance(tunable, Tunable) and trainer.optimizer is not None
        with tunable.plain(model), _unwrapped(model):
            plan = self.reselection.rechoose(tunable.plan, model, self.task, state.global_step)
        follow(trainer.optimizer, tunable.reselect(model, plan))
        # As Trainer makes them, so that a resumed run, which makes them anew, has the same order.
        decayed = set(trainer.get_decay_parameter_names(model))
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        for group, decays in zip(trainer.optimizer.param_groups, (True, False), strict=True):
            group["params"] = [p for name, p in trained if (name in decayed) == decays]


@contextmanager
def _unwrapped(model: nn.Module) -> Iterator[None]:
    """Without the autocast that accelerate puts around a model's forward: evidence is taken as before."""
    wrapped = model.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if wrapped is not None:
            model.__dict__["forward"] = wrapped
