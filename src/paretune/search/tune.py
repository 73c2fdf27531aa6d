"""``tune``: choose, train, score, and save the delta, in one resumable run folder."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from paretune.budget import Budget, HeadRule
from paretune.errors import PareError
from paretune.methods import METHODS, choose, learning_rates, make_method, rechoose
from paretune.plan import Plan
from paretune.ranks import is_first, refuse_sharded, wait
from paretune.search.run_folder import RunFolder
from paretune.search.sweep import best_rate, sweep, sweep_table
from paretune.search.trial import run_trial
from paretune.task import Task
from paretune.tuning import Recipe, Reselection
from paretune.tuning.reporting import check_reporting
from paretune.tuning.train import check_model

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def values_dtype(name: str | None) -> torch.dtype | None:
    """The dtype of the shipped values that a name stands for; None keeps the base's.

    Raises:
        PareError: There is no such name.
    """
    if name is None:
        return None
    if name not in DTYPES:
        raise PareError(f"delta_dtype {name!r} is none of {', '.join(DTYPES)}")
    return DTYPES[name]


def rates_of(plan: Plan) -> tuple[float, ...]:
    """The learning rates that suit a plan's method under its settings and at its size, ascending.

    The size is without the head, under either head rule: its weights do not thin out a mask's.
    """
    kind = METHODS[plan.method]
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    method = kind(**{name: value for name, value in plan.settings.items() if name in known})
    count = sum(s.count for s in plan.selections) + sum(a.count for a in plan.additions)
    return learning_rates(method, count / plan.weights if plan.weights else None)


def middle(rates: Sequence[float]) -> float:
    """The learning rate when none is asked for: the middle of the range."""
    return rates[len(rates) // 2]


def tune(
    task: Task,
    method: str,
    budget: str | int | None,
    out: str | Path,
    *,
    lr: float | Literal["sweep"] | None = None,
    recipe: Recipe | None = None,
    seed: int = 0,
    head: HeadRule = "outside",
    exclude: Sequence[str] = (),
    delta_dtype: Literal["fp32", "bf16"] | None = None,
    settings: dict[str, Any] | None = None,
    plan: Plan | None = None,
    reselect: int | None = None,
    chosen_by: dict[str, Any] | None = None,
    say: Callable[[object], None] = lambda message: None,
    **train_settings: Any,
) -> dict[str, Any]:
    """Choose what to train, train it, score it once on validation, and write everything into a folder.

    The folder holds ``request.json`` (what was asked), ``plan/``, ``lr.json`` (the learning rate, where no
    number was asked for), ``sweep.json`` (with ``lr="sweep"``), checkpoints while it trains,
    ``delta.safetensors``, ``result.json``, and ``logs/`` with what TensorBoard reads
    (``report_to="tensorboard"``). With ``reselect`` the plan that training begins with is in
    ``first-plan/``, and the last one, the delta's, in ``plan/`` at the end. Called again with the same
    request, a finished run is read back and an interrupted one goes on where it was. One process at a time
    trains in a folder, or all those of one distributed run, of which the first writes.

    Args:
        task: The data, with a validation part.
        method: Name of the method.
        budget: See :func:`paretune.choose`.
        out: The run folder.
        lr: A learning rate, ``"sweep"``, or None for the middle of the method's range.
        recipe: Everything else about training; its ``lr`` is replaced.
        seed: Head initialisation, order of the data, dropout and everything the method draws.
        head: Whether the head is ``outside`` or ``inside`` the budget.
        exclude: Patterns of tensors that may not be selected.
        delta_dtype: Precision of the shipped values; None keeps the base's. The score is of what ships.
        settings: The method's settings.
        plan: Train this plan instead of choosing one; ``method`` is then the plan's.
        chosen_by: What decided for it, kept in the result under its own name; a folder of that name may be
            in the run folder already.
        reselect: Choose the mask again every so many steps, see :class:`paretune.Reselection`.
        say: Called with the plan before anything trains, and with the table of a sweep.
        train_settings: ``callbacks`` and ``report_to`` of :func:`paretune.tuning.train`.

    Returns:
        The content of ``result.json``.

    Raises:
        PareError: Anything about the request that cannot work, before work is spent where that can be known;
            or another process trains in the folder.
    """
    out = Path(out)
    recipe = recipe or Recipe(lr=1.0)
    if isinstance(lr, str) and lr != "sweep":
        raise PareError(f"lr {lr!r}: give a number such as 1e-3, or 'sweep'")
    if not (lr is None or isinstance(lr, str)):
        recipe = replace(recipe, lr=lr)  # refuses a number that cannot be one
    method = plan.method if plan else method
    make_method(method, settings)  # a typo is told before anything is loaded
    if budget is not None:
        Budget.parse(budget)
    again = Reselection(reselect, rechoose) if reselect is not None else None
    values = values_dtype(delta_dtype)
    task.require_validation()
    refuse_sharded()
    check_reporting(train_settings.get("report_to", "none"))
    request = {
        "method": method,
        "settings": settings or {},
        "budget": None if budget is None else str(budget),
        "plan": plan.digest if plan else None,
        "model": task.model_id,
        "data": task.fingerprint,
        "seed": seed,
        "lr": lr,
        "head": head,
        "exclude": list(exclude),
        "delta_dtype": delta_dtype,
        "reselect": reselect,
        "recipe": {name: value for name, value in asdict(recipe).items() if name != "lr"},
    }
    folder = RunFolder(out, request, tuple(chosen_by or ()))
    with folder.held() as finished:
        if finished:
            return finished

        model = task.load_model(seed=seed, dtype=recipe.dtype)
        check_model(model, recipe)
        start = time.perf_counter()
        begun = out / ("first-plan" if again else "plan")
        if (begun / "plan.json").exists():
            plan = Plan.load(begun)
        elif plan is None:
            plan = choose(
                method,
                model,
                task,
                budget,
                seed=seed,
                head=head,
                exclude=exclude,
                delta_dtype=values,
                **(settings or {}),
            )
        if again:
            again.refuse(plan)
        folder.begin()
        if is_first():
            plan.save(begun)
        say(plan)
        seconds = {"choose": time.perf_counter() - start}

        start = time.perf_counter()
        if lr is None:
            recipe = replace(recipe, lr=folder.rate(lambda: middle(rates_of(plan))))
        elif lr == "sweep":
            find = partial(_swept, model, task, plan, recipe, seed, out / "sweep.json", again, say)
            recipe = replace(recipe, lr=folder.rate(find))
        seconds["sweep"] = time.perf_counter() - start

        outcome = run_trial(
            model,
            task,
            plan,
            recipe,
            seed=seed,
            split="validation",
            output_dir=out / "checkpoints",
            values=values,
            reselect=again,
            **train_settings,
        )
        if again and is_first():
            outcome.plan.save(out / "plan")
        delta = outcome.delta.with_info(scores=outcome.scores, lr=recipe.lr, budget=plan.asked)
        if is_first():
            delta.save(out / "delta.safetensors")
        wait()
        result = {
            "method": method,
            "metric": task.metric,
            "score": outcome.scores[task.metric],
            "scores": outcome.scores,
            "trained": plan.count,
            "head": plan.head_count,
            "head_rule": plan.head_rule,
            "budget": plan.asked,
            "lr": recipe.lr,
            "steps": outcome.training.steps,
            "losses": outcome.training.losses,
            "seconds": seconds | {"train": outcome.training.seconds, "score": outcome.seconds_scoring},
            "peak_bytes": outcome.peak_bytes,
            "delta_bytes": (out / "delta.safetensors").stat().st_size,
            "seed": seed,
            "versions": plan.versions,
            "device": str(next(model.parameters()).device),
            **(chosen_by or {}),
        }
        folder.finish(result)
        return result


def _swept(
    model: nn.Module,
    task: Task,
    plan: Plan,
    recipe: Recipe,
    seed: int,
    table: Path,
    again: Reselection | None,
    say: Callable[[object], None],
) -> float:
    rows = sweep(model, task, plan, recipe, rates_of(plan), seed=seed, table=table, reselect=again)
    best = best_rate(rows, task)
    say(sweep_table(rows, task.metric, best))
    return best
