"""``tune --method auto``: evidence narrows the field, short trials decide, the winner is trained."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paretune.anatomy import anatomy, base_digest
from paretune.budget import Budget, HeadRule
from paretune.errors import PareError
from paretune.files import write_atomic
from paretune.plan import Plan
from paretune.search.book import Book
from paretune.search.engines import Cluster, make_engine
from paretune.search.front import JOURNAL, Progress, Recorder, refuse_other
from paretune.search.front_trial import FrontTrial
from paretune.search.ladder import AUTO_LADDERS
from paretune.search.narrowing import contenders, narrow, prediction_table, predictions
from paretune.search.race import Race
from paretune.search.ration import Limits
from paretune.search.room import room_for
from paretune.search.shelf import Shelf
from paretune.search.threads import threads_of
from paretune.search.tune import tune, values_dtype
from paretune.search.words import Words
from paretune.task import Task
from paretune.tuning import Recipe

EQUIVALENTS = 6.0  # whole trainings in all, the winner's included
FOLDER = "auto"  # below the run folder


def auto(
    task: Task,
    out: str | Path,
    *,
    budget: str | None = None,
    memory: int | None = None,
    limits: Limits | None = None,
    recipe: Recipe | None = None,
    engine: str | Cluster | None = None,
    seed: int = 0,
    head: HeadRule = "outside",
    exclude: Sequence[str] = (),
    delta_dtype: Any = None,
    task_words: Sequence[str] | None = None,
    say: Callable[[object], None] = lambda message: None,
    show: Callable[[Progress], None] = lambda progress: None,
    **train_settings: Any,
) -> dict[str, Any]:
    """Choose the method, its learning rate and what it trains, then train that.

    All of it is worth at most ``EQUIVALENTS`` whole trainings, stated before the trials start: gradient
    passes and trials counted by their examples, and the training of the winner. Beside the files of
    :func:`paretune.search.tune.tune` the folder holds ``auto``, with what :func:`paretune.search.front.front`
    writes. Called again with the same request it goes on where it was.

    Args:
        task: The data, with a validation part, which is scored once, at the end.
        out: The run folder.
        budget: See :func:`paretune.choose`; None asks for what ``memory`` has room for.
        memory: Most bytes that training may take; what needs more is left out.
        limits: Workers, and minutes for the trials.
        recipe: A whole training; its ``lr`` is replaced.
        engine: Who runs trials.
        seed: Of everything drawn.
        head: Whether the head is ``outside`` or ``inside`` the budget.
        exclude: Patterns of tensors that may not be selected.
        delta_dtype: See :func:`paretune.search.tune.tune`.
        task_words: The words of a command that name the model and the data.
        say: Called with what there is to say.
        show: Called after every trial.
        train_settings: As those of :func:`paretune.search.tune.tune`.

    Returns:
        The content of ``result.json``; ``auto`` in it says what was decided and what it took.

    Raises:
        PareError: Anything about the request that cannot work.
    """
    out, limits, recipe = Path(out), limits or Limits(), recipe or Recipe(lr=1.0)
    values = values_dtype(delta_dtype)
    task.require_validation()
    task.rows("heldout")
    if budget is None and memory is None:
        raise PareError("auto needs --budget, --for-bytes or --for-memory")
    if budget is not None:
        Budget.parse(budget)
    if (out / "request.json").exists() and not (out / FOLDER).exists():
        raise PareError(f"{out} holds a run that auto did not make; give another --out")
    folder = out / FOLDER
    model = task.load_model(seed=seed, dtype=recipe.dtype)
    parts = anatomy(model)
    digest = base_digest(model, [tensor.name for tensor in parts.head])
    del model
    identity = {
        "command": "auto",
        "model": task.model_id,
        "base": digest,
        "data": task.fingerprint,
        "metric": task.metric,
        "budget": budget,
        "memory": memory,
        "seed": seed,
        "head": head,
        "exclude": list(exclude),
        "delta_dtype": delta_dtype,
        "recipe": {name: value for name, value in asdict(recipe).items() if name != "lr"},
    }
    refuse_other(folder, "auto")
    book = Book(folder / JOURNAL, identity, task.higher_is_better)
    try:
        if budget is None:
            assert memory is not None
            budget = book.noted("budget") or room_for(task, recipe, memory, folder / "plans", say, head)
            book.note("budget", budget)
        if memory is not None:
            say(f"budget {budget}, and at most {memory / 2**30:.2f} GiB of memory")
        objective = FrontTrial(
            task,
            recipe,
            folder / "plans",
            head,
            tuple(exclude),
            memory,
            threads_of(limits.workers, engine),
            values,
        )
        candidates, skipped, evidence = contenders(objective, parts, budget, most=EQUIVALENTS - 1, seed=seed)
        for each in skipped:
            say(f"skipped {each.method} {each.budget}: {each.reason}")
        trials = EQUIVALENTS - 1 - evidence.equivalents
        say(
            f"at most {EQUIVALENTS:g} whole trainings: evidence on {evidence.samples} examples for "
            f"{len(candidates)} candidates {evidence.equivalents:.2f}, trials {trials:.2f}, the winner 1"
        )
        predicted = predictions(candidates, evidence.samples, objective, book, seed)
        narrowed = narrow(candidates, predicted)
        request: dict[str, Any] = identity | {"higher_is_better": task.higher_is_better, "seeds": 2}
        request |= {"methods": [each.label for each in narrowed], "budgets": [budget]}
        request |= {"trials": limits.trials, "minutes": limits.minutes}
        write_atomic(folder / "request.json", json.dumps(request, indent=1, sort_keys=True))
        named = task_words or ["--model", task.model_id, "--train", "TRAIN", "--validation", "VALIDATION"]
        recorder = Recorder(
            folder,
            request,
            parts.weights,
            skipped,
            Words(named, recipe, head, exclude, task.heldout_seed, delta_dtype),
            task,
            show,
            predicted,
        )
        say(prediction_table(candidates, predicted, narrowed))
        running = make_engine(objective, engine, limits.workers)
        try:
            race = Race(
                candidates=narrowed,
                book=book,
                engine=running,
                limits=limits,
                equivalents=trials,
                ladders=AUTO_LADDERS,
                seeds=2,
                seed=seed,
                higher=task.higher_is_better,
                say=say,
                watch=recorder,
            )
            found = recorder.record(race)
        finally:
            running.close()
        best = next((each for each in race.standings if each.candidate.name not in race.impossible), None)
        if best is None:
            raise PareError(f"nothing is left to train: {'; '.join(race.impossible.values())}")
        plan = Plan.load(folder / "plans" / best.results[0].details["plan"])
        chosen = best.candidate
        if plan.seed != seed:
            plan = Shelf(folder / "plans").get(f"{chosen.name}|{seed}", _missing).plan
    finally:
        book.close()
    spent = evidence.equivalents + found["cost"]["equivalents"] + 1
    decided = {
        "candidate": chosen.name,
        "candidates": [each.name for each in candidates],
        "predicted": predicted,
        "recommendation": found["recommendation"],
        "equivalents": {
            "evidence": evidence.equivalents,
            "trials": found["cost"]["equivalents"],
            "training": 1.0,
            "total": spent,
            "most": EQUIVALENTS,
        },
        "seconds": found["cost"]["seconds"],
        "trials": found["cost"]["trials"],
    }
    say(f"trained now: {chosen.name} at {best.lr:g}; {spent:.1f} whole trainings in all")
    return tune(
        task,
        chosen.method,
        chosen.budget,
        out,
        lr=best.lr,
        recipe=recipe,
        seed=seed,
        head=head,
        exclude=exclude,
        delta_dtype=delta_dtype,
        settings=chosen.settings,
        plan=plan,
        chosen_by={FOLDER: decided},
        say=say,
        **train_settings,
    )


def _missing() -> Plan:
    raise PareError("the plan of the winner is gone; remove the folder and begin again")
