"""``tune --method auto``: evidence narrows the field, short trials decide, the winner is trained."""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from paretune.anatomy import anatomy, base_digest
from paretune.budget import Budget, HeadRule
from paretune.errors import PareError
from paretune.files import write_atomic
from paretune.methods import choose, make_method
from paretune.plan import Plan
from paretune.progress import track
from paretune.search.book import Book
from paretune.search.engines import Cluster, make_engine
from paretune.search.field import Candidate, Skipped, make_field
from paretune.search.front import JOURNAL, Progress, Recorder, refuse_other
from paretune.search.front_file import Words
from paretune.search.front_trial import FrontTrial
from paretune.search.ladder import AUTO_LADDERS
from paretune.search.predict import predicted_gain
from paretune.search.race import Race
from paretune.search.ration import Limits
from paretune.search.room import room_for
from paretune.search.shelf import Shelf
from paretune.search.threads import threads_of
from paretune.search.tune import tune
from paretune.task import Task
from paretune.tuning import Recipe, attach, detach, train

EQUIVALENTS = 6.0  # whole trainings in all, the winner's included
FOLDER = "auto"  # below the run folder
KEPT = 5  # candidates that go to trials
# Of one kind only the best by evidence is tried before the others; each with the passes over its examples
# that choosing takes (a pass: forward and backward).
KINDS: tuple[tuple[tuple[str, float], ...], ...] = (
    (("mixture", 4.0), ("mixture:added=", 4.0)),
    (("lora:targets=all", 0.0), ("lora:targets=peft", 0.0), ("adapter", 0.0), ("prefix", 0.0), ("s4", 0.0)),
    (("fish", 1.0), ("fish:power=0", 1.0), ("gradient", 1.0)),
    (("random", 0.0),),
    (("adapeft", 1.5),),
    (("bitfit", 0.0),),
)
CONTROLS = ("random",)  # evidence has nothing to say about these: trials have
PREDICTING = 0.9  # passes over its examples that the prediction for a plan takes: half of them, then forwards
EVIDENCE = 40.0  # one pass looks at such a part of the examples of a whole training
FEWEST, MOST = 16, 512  # examples
LEAST = 0.5  # whole trainings that must be left for trials
WARM, WARM_RATE = 0.05, 1e-2  # share of the steps, and rate, at which the head is trained before predictions


@dataclass(frozen=True)
class Evidence:
    """What the evidence takes.

    Args:
        samples: Examples of one pass.
        equivalents: Whole trainings that all passes are worth.
    """

    samples: int
    equivalents: float


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
        "recipe": {name: value for name, value in asdict(recipe).items() if name != "lr"},
    }
    refuse_other(folder, "auto")
    book = Book(folder / JOURNAL, identity, task.higher_is_better)
    try:
        if budget is None:
            assert memory is not None
            budget = book.noted("budget") or room_for(task, recipe, memory, folder / "plans", say)
            book.note("budget", budget)
        if memory is not None:
            say(f"budget {budget}, and at most {memory / 2**30:.2f} GiB of memory")
        objective = FrontTrial(
            task, recipe, folder / "plans", head, tuple(exclude), memory, threads_of(limits.workers, engine)
        )
        candidates, skipped, evidence = _field(
            task, recipe, parts, budget, seed=seed, head=head, exclude=exclude
        )
        for each in skipped:
            say(f"skipped {each.method} {each.budget}: {each.reason}")
        trials = EQUIVALENTS - 1 - evidence.equivalents
        say(
            f"at most {EQUIVALENTS:g} whole trainings: evidence on {evidence.samples} examples for "
            f"{len(candidates)} candidates {evidence.equivalents:.2f}, trials {trials:.2f}, the winner 1"
        )
        predicted = _predictions(candidates, evidence.samples, objective, book, seed)
        narrowed = _narrowed(candidates, predicted)
        request: dict[str, Any] = identity | {"higher_is_better": task.higher_is_better, "seeds": 2}
        request |= {"methods": [each.label for each in narrowed], "budgets": [budget]}
        request |= {"trials": limits.trials, "minutes": limits.minutes}
        write_atomic(folder / "request.json", json.dumps(request, indent=1, sort_keys=True))
        words = task_words or ["--model", task.model_id, "--train", "TRAIN", "--validation", "VALIDATION"]
        recorder = Recorder(
            folder,
            request,
            parts.weights,
            skipped,
            Words(words, recipe, head, exclude, seed),
            task,
            show,
            predicted,
        )
        say(_prediction_table(candidates, predicted, narrowed))
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
        best = next(each for each in race.standings if each.candidate.name not in race.impossible)
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


def _field(
    task: Task,
    recipe: Recipe,
    parts: Any,
    budget: str,
    *,
    seed: int,
    head: HeadRule,
    exclude: Sequence[str],
) -> tuple[list[Candidate], list[Skipped], Evidence]:
    """What competes, and what looking at it takes; evidence gets a fixed part of a whole training.

    Raises:
        PareError: Nothing is possible, or a whole training is too short to be looked into.
    """
    examples = recipe.total_steps(len(task.train)) * recipe.batch_size * recipe.accumulation
    samples = max(FEWEST, min(MOST, len(task.train), round(examples / EVIDENCE)))
    model = task.load_model(seed=seed, dtype=recipe.dtype)
    texts = {text: passes for kind in KINDS for text, passes in kind}
    candidates, skipped = make_field(model, task, parts, list(texts), [budget], head=head, exclude=exclude)
    if not candidates:
        raise PareError(f"nothing can be tried: {skipped[0].method}: {skipped[0].reason}")
    passes = sum(PREDICTING + texts[_text(each)] for each in candidates)
    cost = passes * samples / examples + WARM
    if cost > EQUIVALENTS - 1 - LEAST:
        raise PareError(
            f"auto: a whole training of {examples} examples is too short to be looked into: the evidence "
            f"alone would be worth {cost:.1f} of it; give more --steps or --epochs, or name a --method"
        )
    sized = [
        replace(each, settings=each.settings | {"samples": samples}) if texts[_text(each)] else each
        for each in candidates
    ]
    return sized, skipped, Evidence(samples, cost)


def _text(candidate: Candidate) -> str:
    """A candidate as it is written in ``KINDS``."""
    settings = [f"{name}={value}" for name, value in candidate.settings.items() if name != "samples"]
    return ":".join([candidate.method, *settings])


def _predictions(
    candidates: Sequence[Candidate], samples: int, objective: FrontTrial, book: Book, seed: int
) -> dict[str, float]:
    """The predicted gain of every candidate's plan; those that cannot be chosen are left out."""
    found: dict[str, float] = dict(book.noted("predicted") or {})
    task, recipe = objective.task, objective.recipe
    missing = [each for each in candidates if each.name not in found]
    if not missing:
        return found
    model = task.load_model(seed=seed, dtype=recipe.dtype)
    # A model of its own: its head is trained, and half precision is too coarse to look to both sides.
    fine = task.load_model(seed=seed)
    _warm(fine, task, recipe, seed)
    shelf = Shelf(objective.plans)
    for each in track(missing, "evidence"):
        try:
            kept = shelf.get(
                f"{each.name}|{seed}",
                lambda each=each: choose(  # type: ignore[misc]
                    make_method(each.method, each.settings),
                    model,
                    task,
                    each.budget,
                    seed=seed,
                    head=objective.head,
                    exclude=objective.exclude,
                ),
            )
        except PareError:
            found[each.name] = -1.0  # a trial says why
            continue
        found[each.name] = predicted_gain(
            fine, task, kept.plan, samples=samples, batch_size=recipe.batch_size, seed=seed
        )
        book.note("predicted", found)
    return found


def _warm(model: torch.nn.Module, task: Task, recipe: Recipe, seed: int) -> None:
    """Train the head a little: a fresh one's gradients say hardly more than which class is the commoner."""
    if not anatomy(model).head:
        return
    plan = choose("head", model, task, seed=seed)
    attach(model, plan, check=False)
    steps = max(2, round(WARM * recipe.total_steps(len(task.train))))
    with tempfile.TemporaryDirectory(prefix="paretune-") as nowhere:
        short = replace(recipe, lr=WARM_RATE, steps=steps, precision="fp32", checkpoints=0)
        train(model, task, nowhere, short, seed=seed)
    head = {name: parameter.detach().clone() for name, parameter in model.paretune.trained.items()}  # type: ignore[operator,union-attr]
    detach(model)
    with torch.no_grad():
        for name, values in head.items():
            model.get_parameter(name).copy_(values)


def _narrowed(candidates: Sequence[Candidate], predicted: dict[str, float]) -> list[Candidate]:
    """Controls, then the best of every kind, then the best of the rest, by predicted gain."""
    able = [each for each in candidates if predicted[each.name] >= 0]
    if not able:
        raise PareError("no candidate could be chosen on these data; give more rows, or name a method")
    kind_of = {text: number for number, kind in enumerate(KINDS) for text, _ in kind}
    ranked = sorted(able, key=lambda each: -predicted[each.name])
    first: dict[int, Candidate] = {}
    for each in ranked:
        first.setdefault(kind_of[_text(each)], each)
    controls = [each for each in able if each.method in CONTROLS]
    order = [*controls, *(each for each in first.values() if each not in controls)]
    order += [each for each in ranked if each not in order]
    return [each for each in candidates if each in order[:KEPT]]


def _prediction_table(
    candidates: Sequence[Candidate], predicted: dict[str, float], kept: Sequence[Candidate]
) -> str:
    """The evidence as text."""
    lines = [f"{'predicted gain':>16}  candidate (* goes to trials)"]
    for each in sorted(candidates, key=lambda each: -predicted[each.name]):
        mark = "*" if each in kept else " "
        gain = predicted[each.name]
        lines.append(f"{gain:>16.3g}{mark} {each.name}" if gain >= 0 else f"{'none':>16}  {each.name}")
    return "\n".join(lines)
