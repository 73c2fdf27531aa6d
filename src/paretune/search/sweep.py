"""The learning rate by short trials on the held-out part of train."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from paretune.errors import DivergedError, PareError
from paretune.files import write_atomic
from paretune.plan import Plan
from paretune.progress import track
from paretune.ranks import is_first
from paretune.search.trial import run_trial
from paretune.task import Task
from paretune.tuning import Recipe, Reselection

SHARE = 0.25  # of the run's steps, for each trial
FEWEST_STEPS = 50


def sweep(
    model: nn.Module,
    task: Task,
    plan: Plan,
    recipe: Recipe,
    learning_rates: tuple[float, ...],
    *,
    seed: int = 0,
    table: Path | None = None,
    reselect: Reselection | None = None,
) -> list[dict[str, Any]]:
    """Try learning rates for a quarter of the run's steps (50 at least) each.

    Args:
        model: The base model; left bit-equal.
        task: Scored on its held-out part, never on validation.
        plan: What to train.
        recipe: How to train; its ``lr`` and ``steps`` are replaced.
        learning_rates: What to try.
        seed: The same for all.
        table: JSON file to keep the rows in as they come; a rate found there is not tried again.
        reselect: As in the run itself.

    Returns:
        One row a rate: ``lr``, ``steps``, the scores, and ``diverged`` where the loss was not finite.
    """
    total = recipe.total_steps(len(task.train))
    steps = min(total, max(FEWEST_STEPS, round(SHARE * total)))
    rows: list[dict[str, Any]] = json.loads(table.read_text()) if table and table.exists() else []
    done = {row["lr"] for row in rows}
    for lr in track([lr for lr in learning_rates if lr not in done], "learning rates"):
        short = replace(recipe, lr=lr, steps=steps)
        row: dict[str, Any] = {"lr": lr, "steps": steps}
        try:
            outcome = run_trial(model, task, plan, short, seed=seed, reselect=reselect)
            rows.append(row | outcome.scores)
        except DivergedError as problem:  # an answer: this rate is too high
            rows.append(row | {"failed": str(problem)})
        if table and is_first():
            write_atomic(table, json.dumps(rows, indent=1))
    return sorted(rows, key=lambda row: row["lr"])


def best_rate(rows: list[dict[str, Any]], task: Task) -> float:
    """The rate of the best held-out score; the lower loss decides a tie.

    Raises:
        PareError: Every rate failed.
    """
    sign = 1 if task.higher_is_better else -1
    good = [row for row in rows if "failed" not in row]
    if not good:
        raise PareError(f"no learning rate worked; the last one said: {rows[-1]['failed']}")
    return max(good, key=lambda row: (sign * row[task.metric], -row["loss"]))["lr"]


def sweep_table(rows: list[dict[str, Any]], metric: str, chosen: float) -> str:
    """The rows as text."""
    lines = [f"{'lr':>10}{metric:>14}{'loss':>12}   on held-out train, {rows[0]['steps']} steps each"]
    for row in rows:
        if "failed" in row:
            lines.append(f"{row['lr']:>10g}   diverged")
        else:
            mark = " <- chosen" if row["lr"] == chosen else ""
            lines.append(f"{row['lr']:>10g}{row[metric]:>14.4f}{row['loss']:>12.4f}{mark}")
    return "\n".join(lines)
