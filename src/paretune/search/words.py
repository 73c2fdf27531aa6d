"""The commands that train something again."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from paretune.search.field import Candidate
from paretune.search.front_trial import FrontSpec
from paretune.tuning import Recipe


@dataclass(frozen=True)
class Words:
    """Writes the commands that train something again.

    Args:
        task: The words that name the model and the data.
        recipe: A whole training.
        head: Whether the head is ``outside`` or ``inside`` the budget.
        exclude: Patterns of tensors that may not be selected.
        heldout_seed: Of the draw of the held-out part.
        delta_dtype: Precision of the shipped values, where it was asked for.
    """

    task: Sequence[str]
    recipe: Recipe
    head: str
    exclude: Sequence[str]
    heldout_seed: int
    delta_dtype: str | None = None

    def trial(self, spec: FrontSpec, steps: int, plan: Path) -> str:
        """Trains what a trial trained, in the same order, from the same start."""
        words = ["--plan", str(plan), *self._training(spec.lr, spec.seed, steps)]
        return self._command(words, f"{spec.candidate}-{spec.seed}")

    def candidate(self, candidate: Candidate, lr: float, seed: int) -> str:
        """Chooses and trains a candidate for all of the steps."""
        return self.chosen(
            candidate.method, candidate.settings, candidate.budget, lr, seed, name=candidate.name
        )

    def chosen(
        self,
        method: str,
        settings: Mapping[str, Any],
        budget: str | None,
        lr: float,
        seed: int,
        *,
        name: str,
    ) -> str:
        """Chooses by a method and trains for all of the steps; the run folder is called by the name."""
        words = ["--method", method]
        if settings:
            pairs = settings.items()
            words += ["--set", *(f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in pairs)]
        words += ["--budget", budget] if budget else []
        words += ["--head", self.head] if self.head != "outside" else []
        words += ["--exclude", *self.exclude] if self.exclude else []
        return self._command(words + self._training(lr, seed, None), name)

    def _training(self, lr: float, seed: int, steps: int | None) -> list[str]:
        words = ["--lr", f"{lr:g}", "--seed", str(seed), "--heldout-seed", str(self.heldout_seed)]
        words += ["--delta-dtype", self.delta_dtype] if self.delta_dtype else []
        for each in fields(Recipe):
            value = getattr(self.recipe, each.name)
            if each.name in ("lr", "checkpoints") or (each.name == "steps" and steps is not None):
                continue
            if value != each.default:
                option = f"--{each.name.replace('_', '-')}"
                words += [option] if value is True else [option, str(value)]
        return words + (["--steps", str(steps)] if steps is not None else [])

    def _command(self, words: Sequence[str], name: str) -> str:
        out = "".join(c if c.isalnum() or c in ".-" else "-" for c in name).strip("-")
        return shlex.join(["paretune", "tune", *self.task, *words, "--out", f"runs/{out}"])
