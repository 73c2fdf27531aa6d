"""transformers' Trainer with checkpoints that hold the delta instead of the base model."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Sampler
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from paretune.delta import Delta
from paretune.errors import DivergedError, PareError
from paretune.files import write_atomic
from paretune.tuning.moments import OwnAge

DELTA = "delta.safetensors"
PLAN = "plan"  # in a checkpoint whose plan may differ from the one that the run began with
COMPLETE = "complete.json"


class DeltaTrainer(Trainer):
    """A Trainer for a tunable model.

    A checkpoint is a folder with the delta (fp32 masters), the optimiser, scheduler and random states; not
    the base. It counts as complete once ``complete.json`` is in it, which is written last and whole.

    Args:
        run: What identifies the run (JSON); a checkpoint of another run is not resumed.
        changing: Whether the plan changes meanwhile: checkpoints hold it, and new entries step by their age.
        args, kwargs: As for ``transformers.Trainer``.
    """

    def __init__(self, *args: Any, run: dict[str, Any], changing: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.run, self.changing = run, changing
        # Trainer believes every model with **kwargs; BERT, T5 and others ignore the number and would get the
        # gradients of all accumulated batches added up instead of averaged.
        assert isinstance(self.model, nn.Module)
        self.model_accepts_loss_kwargs = _divides_by_items(self.model, self.data_collator, self.train_dataset)
        self.add_callback(_StopWhenNotFinite())
        self.remove_callback(PrinterCallback)
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(_Bar())

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        model = self.accelerator.unwrap_model(self.model)
        delta = model.paretune.delta(model, {"step": self.state.global_step}, masters=True)
        folder = Path(output_dir or self.args.output_dir or ".")
        delta.save(folder / DELTA)
        if self.changing:
            model.paretune.plan.save(folder / PLAN)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        sampler = super()._get_train_sampler(train_dataset)
        return _OrderByEpoch(sampler, self) if isinstance(sampler, LengthGroupedSampler) else sampler

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As Trainer's, with the correction for entries that join later."""
        there = self.optimizer is not None
        optimiser = super().create_optimizer(model)
        if self.changing and not there:
            OwnAge(optimiser)
        return optimiser

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self.args.output_dir or ".") / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            write_atomic(folder / COMPLETE, json.dumps(self.run, sort_keys=True))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        model = self.accelerator.unwrap_model(model or self.model)
        model.paretune.load(Delta.load(Path(resume_from_checkpoint) / DELTA))  # type: ignore[operator,union-attr]


class _OrderByEpoch(Sampler):
    """Draws the order of each epoch after the first from the seed and the epoch's number.

    Trainer draws all from the global random state, which a run resumed in a later epoch cannot know.
    """

    def __init__(self, sampler: LengthGroupedSampler, trainer: Trainer) -> None:
        self.sampler, self.trainer = sampler, trainer

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        args, epoch = self.trainer.args, int(self.trainer.state.epoch or 0)
        seed = args.seed if args.data_seed is None else args.data_seed
        drawn = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
        self.sampler.generator = torch.Generator().manual_seed(drawn) if epoch else None
        return iter(self.sampler)


@torch.no_grad()
def _divides_by_items(model: nn.Module, collate: Any, rows: Any) -> bool:
    """Whether the model's loss is a sum divided by ``num_items_in_batch``: asked twice, with 1 and with 2."""
    device = next(model.parameters()).device
    batch = {name: values.to(device) for name, values in collate([rows[0]]).items()}
    training = model.training
    model.eval()
    try:
        one, two = (model(**batch, num_items_in_batch=torch.tensor(items)).loss for items in (1, 2))
    except TypeError:  # the model's forward does not know the argument
        return False
    finally:
        model.train(training)
    return bool(torch.isclose(one, 2 * two, rtol=1e-3) and one != 0)


class _StopWhenNotFinite(TrainerCallback):
    """Training that has diverged stops at once."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(float(loss)):
            raise DivergedError(
                f"the training loss is {loss} at step {state.global_step}: it diverged; use a smaller --lr"
            )


class _Bar(ProgressCallback):
    """The progress bar with the loss beside it, instead of a line a log."""

    def on_log(self, *args: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if self.training_bar is not None and "loss" in (logs or {}):
            self.training_bar.set_postfix(loss=f"{float((logs or {})['loss']):.4f}")


def last_checkpoint(folder: Path, run: dict[str, Any]) -> Path | None:
    """The newest complete checkpoint in a folder, None when there is none.

    Raises:
        PareError: The checkpoints there belong to another run.
    """
    complete = sorted(
        (path.parent for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{COMPLETE}")),
        key=lambda path: int(path.name.rsplit("-", 1)[1]),
    )
    if not complete:
        return None
    found = json.loads((complete[-1] / COMPLETE).read_text())
    run = json.loads(json.dumps(run))
    differing = sorted(key for key in run.keys() | found.keys() if run.get(key) != found.get(key))
    if differing:
        raise PareError(
            f"{folder} holds checkpoints of another run (different: "
            + ", ".join(f"{key} {found.get(key)} there, {run.get(key)} now" for key in differing)
            + "); use another folder, or remove it"
        )
    return complete[-1]
