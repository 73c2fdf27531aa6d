"""Train a tunable model on a task with transformers' Trainer."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from datasets import Dataset
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from paretune.errors import PareError
from paretune.plan import Plan
from paretune.progress import is_quiet
from paretune.ranks import device, has_bf16, processes, refuse_sharded
from paretune.task import Task
from paretune.tuning.attach import Tunable, attach, detach
from paretune.tuning.reporting import check_reporting
from paretune.tuning.reselect import Reselection, Reselector
from paretune.tuning.trainer import PLAN, DeltaTrainer, last_checkpoint

Precision = Literal["fp32", "bf16", "amp"]


@dataclass(frozen=True)
class Recipe:
    """How to train; the same words as transformers' TrainingArguments where it has one.

    Args:
        lr: Peak learning rate; linear warm-up and linear decay to zero.
        epochs: Passes over the training data; ignored when ``steps`` is given.
        steps: Number of optimiser steps.
        batch_size: Examples a device and forward pass.
        accumulation: Forward passes an optimiser step.
        warmup: Share of the steps that warm up.
        weight_decay: Decoupled weight decay of AdamW.
        max_grad_norm: Clip the gradient's norm to this.
        precision: ``fp32``; ``amp``, autocast over an fp32 base: in bf16, or in fp16 with the loss scaled on
            GPUs that have no bf16 (T4, V100); or ``bf16``, the base in bf16 with fp32 masters for what is
            trained (load the model with ``dtype=torch.bfloat16``).
        checkpoints: How many checkpoints a run writes; the last two are kept.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, more time.

    Raises:
        PareError: A value out of range.
    """

    lr: float
    epochs: float = 3.0
    steps: int | None = None
    batch_size: int = 32
    accumulation: int = 1
    warmup: float = 0.06
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: Precision = "fp32"
    checkpoints: int = 10
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in ("lr", "epochs", "batch_size", "accumulation", "max_grad_norm"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise PareError(f"{name} is {value}; it must be a number above 0")
        if self.steps is not None and self.steps < 1:
            raise PareError(f"steps is {self.steps}; it must be at least 1")
        if not 0 <= self.warmup <= 1:
            raise PareError(f"warmup is {self.warmup}; it is a share of the steps, from 0 to 1")
        if self.weight_decay < 0:
            raise PareError(f"weight_decay is {self.weight_decay}; it must not be below 0")
        if self.checkpoints < 0:
            raise PareError(f"checkpoints is {self.checkpoints}; use 0 for none")
        if self.precision not in get_args(Precision):
            raise PareError(f"precision {self.precision!r} is none of {', '.join(get_args(Precision))}")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype to load the base model in."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def total_steps(self, examples: int) -> int:
        """Optimiser steps on this many training examples; each process takes batches of its own."""
        if self.steps is not None:
            return self.steps
        batches = math.ceil(examples / (self.batch_size * processes()))
        return max(1, math.ceil(self.epochs * max(1, math.ceil(batches / self.accumulation))))


@dataclass(frozen=True)
class Training:
    """What a training run reports: steps, wall seconds, and the logged losses as (step, loss)."""

    steps: int
    seconds: float
    losses: list[tuple[int, float]] = field(default_factory=list)


def check_model(model: nn.Module, recipe: Recipe) -> None:
    """Refuse a recipe that a model cannot follow.

    Raises:
        PareError: It cannot recompute its activations.
    """
    if recipe.gradient_checkpointing and not getattr(model, "supports_gradient_checkpointing", False):
        raise PareError(
            f"{type(model).__name__} cannot recompute activations; leave --gradient-checkpointing out; "
            "a smaller --batch-size with --accumulation takes less memory too"
        )


def train(
    model: nn.Module,
    task: Task,
    output_dir: str | Path,
    recipe: Recipe | None = None,
    *,
    seed: int = 0,
    examples: Dataset | None = None,
    resume: bool = True,
    reselect: Reselection | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    report_to: str | Sequence[str] = "none",
    **settings: Any,
) -> Training:
    """Train what the attached plan selects, and nothing else.

    A run that was killed goes on from its last complete checkpoint in ``output_dir`` when called again with
    the same arguments; on a CPU it reaches the same bits as an uninterrupted one.

    Args:
        model: A model with a plan attached.
        task: The data; its held-out part is left alone.
        output_dir: Where checkpoints go.
        recipe: How to train; or give its fields as ``settings``, such as ``lr=1e-3, epochs=3``.
        seed: Order of the data and dropout.
        examples: Train on these rows instead of all of ``task.train`` (for short trials).
        resume: Go on from a checkpoint found in ``output_dir``.
        reselect: Choose the mask again every so many steps; ``model.paretune.plan`` is then the last one.
        callbacks: transformers callbacks.
        report_to: transformers integrations, such as ``"tensorboard"``.
        settings: Fields of :class:`Recipe`, instead of ``recipe``.

    Raises:
        PareError: No plan is attached, a setting is out of range, ``output_dir`` holds another run, the loss
            is not finite, training changed nothing, ``report_to`` cannot work, the plan's mask cannot be
            chosen again, the model cannot recompute activations, or the launcher splits weights over
            processes (FSDP, DeepSpeed).
    """
    tunable = getattr(model, "paretune", None)
    if not isinstance(tunable, Tunable):
        raise PareError("no plan is attached to this model; attach one with paretune.attach(model, plan)")
    refuse_sharded()
    check_reporting(report_to)
    recipe = recipe if recipe is not None else _recipe(settings)
    check_model(model, recipe)
    rows = examples if examples is not None else task.train
    output_dir = Path(output_dir)
    run = {"plan": tunable.plan.digest, "data": task.fingerprint, "rows": len(rows), "seed": seed}
    run |= asdict(recipe)
    if processes() > 1:
        run |= {"processes": processes()}
    arguments = _arguments(recipe, output_dir, len(rows), seed, report_to)
    if reselect is not None:
        run |= {"reselect": reselect.every}
        reselect.refuse(tunable.plan, arguments.world_size)
    checkpoint = last_checkpoint(output_dir, run) if resume else None
    if checkpoint and reselect is not None:
        detach(model)
        attach(model, Plan.load(checkpoint / PLAN), check=False)
    trainer = DeltaTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=task.collate,
        callbacks=list(callbacks),
        run=run,
        changing=reselect is not None,
    )
    if reselect is not None:
        trainer.add_callback(Reselector(trainer, task, reselect))
    start = time.perf_counter()
    was_training = model.training
    with _given_back(model):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    model.train(was_training)
    if not model.paretune.changed:  # type: ignore[union-attr]
        raise PareError(
            "training changed none of the selected weights; no gradient reaches them, or lr is too small"
        )
    losses = [(int(entry["step"]), entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    return Training(trainer.state.global_step, time.perf_counter() - start, losses)


@contextmanager
def _given_back(model: nn.Module) -> Iterator[None]:
    """Take off what accelerate leaves on a model: a forward under autocast, and the mark that it is there.

    Otherwise scores and evidence on this model would be in bf16 from then on.
    """
    names = ("forward", "_original_forward", "_is_accelerate_prepared")
    before = {name: model.__dict__[name] for name in names if name in model.__dict__}
    try:
        yield
    finally:
        for name in names:
            model.__dict__.pop(name, None)
        model.__dict__.update(before)


def _recipe(settings: dict[str, Any]) -> Recipe:
    known = [field.name for field in fields(Recipe)]
    unknown = sorted(settings.keys() - set(known))
    if unknown:
        raise PareError(f"unknown training setting {unknown[0]!r}; there are {', '.join(known)}")
    if "lr" not in settings:
        raise PareError("no learning rate: give lr=..., for instance lr=1e-3")
    return Recipe(**settings)


def _arguments(
    recipe: Recipe, output_dir: Path, rows: int, seed: int, report_to: str | Sequence[str]
) -> TrainingArguments:
    steps = recipe.total_steps(rows)
    here, amp = device(), recipe.precision == "amp"
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        learning_rate=recipe.lr,
        max_steps=steps,
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.accumulation,
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(recipe.warmup * steps),
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        bf16=amp and has_bf16(here),
        fp16=amp and not has_bf16(here),
        **_recomputation(recipe.gradient_checkpointing),
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        save_strategy="steps" if recipe.checkpoints else "no",
        save_steps=max(1, math.ceil(steps / recipe.checkpoints)) if recipe.checkpoints else 1,
        save_total_limit=2,
        logging_steps=max(1, steps // 20),
        logging_nan_inf_filter=False,
        seed=seed,
        data_seed=seed,
        disable_tqdm=is_quiet(),
        report_to=report_to if isinstance(report_to, str) else list(report_to),
        use_cpu=here.type == "cpu",
    )
    # Seeing several GPUs, Trainer would copy the model to all (nn.DataParallel), and the batch would grow.
    arguments._n_gpu = min(1, arguments.n_gpu)
    if not amp:  # accelerate launch has a precision of its own, and would give it to a recipe that says fp32
        arguments.mixed_precision = "no"
    return arguments


def _recomputation(wanted: bool) -> dict[str, Any]:
    """Gradient checkpointing under the name that this transformers knows it by."""
    names = {field.name for field in fields(TrainingArguments)}
    new, old = "activation_checkpointing", "gradient_checkpointing"
    return {new if new in names else old: True} if wanted else {}
