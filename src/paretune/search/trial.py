"""A trial: one plan trained and scored under one seed at one fidelity."""

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn

from paretune.delta import Delta
from paretune.memory import peak_bytes
from paretune.plan import Plan
from paretune.task import Task
from paretune.tuning import Recipe, Training, attach, detach, train


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Args:
        scores: Every metric of the task.
        training: Steps, seconds, losses.
        delta: What was trained, in the precision it was scored in.
        seconds_scoring: Wall seconds of the scoring.
        peak_bytes: Peak memory of this process (CPU) or of the device so far.
        plan: What was trained at the end; another than at the beginning where the mask was chosen again.
    """

    scores: dict[str, float]
    training: Training
    delta: Delta
    seconds_scoring: float
    peak_bytes: int
    plan: Plan


def folders_of(task: Task) -> tuple[Path, ...]:
    """Folders that a trial reads: the checkpoint's, unless it comes from the Hub."""
    folder = Path(task.model_id)
    return (folder,) if folder.is_dir() else ()


def run_trial(
    model: nn.Module,
    task: Task,
    plan: Plan,
    recipe: Recipe,
    *,
    seed: int = 0,
    split: str = "heldout",
    output_dir: Path | None = None,
    examples: Dataset | None = None,
    values: torch.dtype | None = None,
    **train_settings: Any,
) -> Outcome:
    """Attach, train, score, and give the model back bit-equal.

    Args:
        model: The base model the plan was made for; it was checked against the plan's digest by the caller.
        task: The data.
        plan: What to train.
        recipe: How to train it.
        seed: Order of the data and dropout.
        split: What to score on: ``heldout`` for every choice, ``validation`` once at the end.
        output_dir: Where checkpoints go; None keeps none.
        examples: Train on these rows instead of all.
        values: Round the trained values to this dtype before scoring, so that what ships is what is scored.
        train_settings: Further arguments of :func:`paretune.tuning.train`.

    Raises:
        PareError: As :func:`paretune.tuning.train` and ``task.score``.
    """
    attach(model, plan, check=False)
    try:
        with tempfile.TemporaryDirectory(prefix="paretune-") as nowhere:
            if output_dir is None:
                recipe = replace(recipe, checkpoints=0)
            training = train(
                model,
                task,
                output_dir or nowhere,
                recipe,
                seed=seed,
                examples=examples,
                **train_settings,
            )
        delta = model.delta()  # type: ignore[operator]
        last: Plan = model.paretune.plan  # type: ignore[assignment,union-attr]
        if values is not None:
            delta = delta.to(values)
            model.paretune.load(delta)  # type: ignore[operator,union-attr]
        start = time.perf_counter()
        scores = task.score(model, split)
        return Outcome(scores, training, delta, time.perf_counter() - start, peak_bytes(), last)
    finally:
        detach(model)
