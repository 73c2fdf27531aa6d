"""``search``: the best design of fine-tuning for a task and a budget, found stage by stage."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from paretune.budget import Budget, HeadRule
from paretune.errors import PareError
from paretune.files import write_atomic
from paretune.methods.designed import Designed
from paretune.search.book import Book
from paretune.search.designs import DesignTrial, Feasible, read_prices
from paretune.search.engines import Cluster, make_engine
from paretune.search.outcome import Outcome, stage_table
from paretune.search.ration import Limits
from paretune.search.space import RATE, Space, make_space
from paretune.search.staged import Progress, Staged
from paretune.search.threads import threads_of
from paretune.strategies import STRATEGIES
from paretune.task import Task
from paretune.tuning import Recipe

JOURNAL = "study.journal"


def search(
    task: Task,
    budget: str | int,
    out: str | Path,
    *,
    limits: Limits | None = None,
    engine: str | Cluster | None = None,
    rates: Sequence[float] = Designed.learning_rates,
    groups: int = 4,
    strategies: Sequence[str] = tuple(STRATEGIES),
    settings: dict[str, dict[str, Any]] | None = None,
    recipe: Recipe | None = None,
    seed: int = 0,
    head: HeadRule = "outside",
    exclude: Sequence[str] = (),
    say: Callable[[object], None] = lambda message: None,
    show: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Any]:
    """Refine a design space in stages and write what was found into a folder.

    The folder holds ``study.journal`` (an Optuna study of every trial), ``search.json`` (the stages) and
    ``design.yaml`` (the design, for the method ``design``). Called again with the same arguments, a
    finished search is read back and an interrupted one goes on; the number of workers may differ.

    Args:
        task: The data; its held-out part decides, its validation part is never looked at.
        budget: See :func:`paretune.choose`.
        out: The run folder.
        limits: Trials, minutes and workers.
        engine: Who runs trials, see :func:`paretune.search.engines.make_engine`.
        rates: Learning rates; several are the first stage.
        groups: Number of groups of blocks.
        strategies: What a group can have any subset of.
        settings: Further settings by strategy, as in :class:`~paretune.methods.design.Design`.
        recipe: A whole training; its ``lr`` is replaced, and trials take a share of its steps.
        seed: Of everything drawn.
        head: Whether the head is ``outside`` or ``inside`` the budget.
        exclude: Patterns of tensors that may not be touched.
        say: Called with what there is to say: what is left out, the total, each stage's table.
        show: Called after every trial.

    Returns:
        The content of ``search.json``.

    Raises:
        PareError: Anything about the request that cannot work; or the folder belongs to another search.
    """
    out, limits, recipe = Path(out), limits or Limits(), recipe or Recipe(lr=1.0)
    Budget.parse(budget)
    for rate in rates:
        replace(recipe, lr=rate)  # refuses one that cannot be
    task.rows("heldout")
    model = task.load_model(seed=seed, dtype=recipe.dtype)
    prices = read_prices(model, task, budget, head=head, exclude=exclude, settings=settings)
    space = make_space(prices, rates, groups, strategies)
    request = {
        "model": task.model_id,
        "data": task.fingerprint,
        "metric": task.metric,
        "budget": str(budget),
        "seed": seed,
        "head": head,
        "exclude": list(exclude),
        "recipe": {name: value for name, value in asdict(recipe).items() if name != "lr"},
        "trials": limits.trials,
        "minutes": limits.minutes,
        "components": {name: list(options) for name, options in space.components.items()},
        "settings": space.settings,
    }
    for reason in space.left_out:
        say(f"left out: {reason}")
    threads = threads_of(limits.workers, engine)
    objective = DesignTrial(task, budget, space, recipe, head, tuple(exclude), threads)
    book = Book(out / JOURNAL, request, task.higher_is_better)
    try:
        running = make_engine(objective, engine, limits.workers)
        try:
            staged = Staged(
                space=space,
                book=book,
                engine=running,
                refusal=Feasible(space, prices, Budget.parse(budget), head),
                limits=limits,
                higher=task.higher_is_better,
                seed=seed,
                say=lambda said: say(stage_table(said, task.metric) if isinstance(said, Outcome) else said),
                show=show,
            )
            outcomes = staged.run()
            return _write(out, request, space, outcomes, book)
        finally:
            running.close()
    finally:
        book.close()


def _write(
    out: Path, request: dict[str, Any], space: Space, outcomes: Sequence[Outcome], book: Book
) -> dict[str, Any]:
    """The found design and the stages, each file whole."""
    point = {outcome.component: outcome.winner for outcome in outcomes}
    design = space.design(point)
    trials = list(book.trials())
    result = {
        "schema": 1,
        "request": request,
        "design": design.document(),
        "lr": float(point[RATE]),
        "stages": [outcome.document() for outcome in outcomes],
        "ties": [outcome.name for outcome in outcomes if outcome.ties],
        "trials": len(trials),
        "equivalents": sum(job.share for _, job, _ in trials),
        "seconds": book.noted("seconds") or 0.0,
        "trial_seconds": sum(scored.seconds for *_, scored in trials),
        "designs_in_space": space.designs,
    }
    design.save(out / "design.yaml")
    content = json.dumps(result, indent=1)
    write_atomic(out / "search.json", content)
    return json.loads(content)


def read_search(out: str | Path) -> dict[str, Any]:
    """What a finished search wrote.

    Raises:
        PareError: There is none in the folder.
    """
    path = Path(out) / "search.json"
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as problem:
        raise PareError(f"{path}: no finished search there ({problem}); run `paretune search`") from problem
