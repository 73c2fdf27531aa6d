"""What evidence says before any trial: a predicted gain for each candidate of ``auto``, and who is left."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from paretune.anatomy import Anatomy, anatomy
from paretune.errors import PareError
from paretune.methods import choose, make_method
from paretune.progress import track
from paretune.search.book import Book
from paretune.search.field import Candidate, Skipped, make_field
from paretune.search.front_trial import FrontTrial
from paretune.search.predict import predicted_gain
from paretune.search.shelf import Shelf
from paretune.task import Task
from paretune.tuning import Recipe, attach, detach, train

KEPT = 5  # candidates that go to trials
# Of one kind only the best by evidence is tried before the others; each with the passes over its examples
# that choosing takes (a pass: forward and backward). Trials that tell nothing leave them in this order: that
# of their scores on this project's own tasks (docs/results).
KINDS: tuple[tuple[tuple[str, float], ...], ...] = (
    (("random", 0.0),),
    (("fish", 1.0), ("fish:power=0", 1.0), ("fish:granularity=rows", 1.0), ("gradient", 1.0)),
    (("lora:targets=all", 0.0), ("lora:targets=peft", 0.0), ("adapter", 0.0), ("prefix", 0.0), ("s4", 0.0)),
    (("mixture", 4.0), ("mixture:added=", 4.0)),
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


def contenders(
    objective: FrontTrial,
    parts: Anatomy,
    budget: str,
    *,
    most: float,
    seed: int,
) -> tuple[list[Candidate], list[Skipped], Evidence]:
    """What competes, and what looking at it takes; evidence gets a fixed part of a whole training.

    Args:
        objective: What a trial is: the data, a whole training, what may be selected and how it ships.
        parts: The anatomy of the task's model.
        budget: See :func:`paretune.choose`.
        most: Whole trainings that evidence and trials may be worth together.
        seed: Of everything drawn.

    Raises:
        PareError: Nothing is possible, or a whole training is too short to be looked into.
    """
    task, recipe = objective.task, objective.recipe
    examples = recipe.total_steps(len(task.train)) * recipe.batch_size * recipe.accumulation
    samples = max(FEWEST, min(MOST, len(task.train), round(examples / EVIDENCE)))
    model = task.load_model(seed=seed, dtype=recipe.dtype)
    texts = {text: passes for kind in KINDS for text, passes in kind}
    candidates, skipped = make_field(
        model,
        task,
        parts,
        list(texts),
        [budget],
        head=objective.head,
        exclude=objective.exclude,
        delta_dtype=objective.delta_dtype,
    )
    if not candidates:
        raise PareError(f"nothing can be tried: {skipped[0].method}: {skipped[0].reason}")
    passes = sum(PREDICTING + texts[_text(each)] for each in candidates)
    cost = passes * samples / examples + WARM
    if cost > most - LEAST:
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


def predictions(
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
    shelf = Shelf(objective.plans, objective.delta_dtype)
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
                    delta_dtype=objective.delta_dtype,
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


def narrow(candidates: Sequence[Candidate], predicted: dict[str, float]) -> list[Candidate]:
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


def prediction_table(
    candidates: Sequence[Candidate], predicted: dict[str, float], kept: Sequence[Candidate]
) -> str:
    """The evidence as text."""
    lines = [f"{'predicted gain':>16}  candidate (* goes to trials)"]
    for each in sorted(candidates, key=lambda each: -predicted[each.name]):
        mark = "*" if each in kept else " "
        gain = predicted[each.name]
        lines.append(f"{gain:>16.3g}{mark} {each.name}" if gain >= 0 else f"{'none':>16}  {each.name}")
    return "\n".join(lines)
