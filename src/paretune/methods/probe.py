"""The gain of every item: the model is probed with the added modules attached, and given back as it was."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from paretune.errors import PareError
from paretune.evidence.curvature import (
    Average,
    Curvature,
    Estimator,
    average,
    beyond,
    curvature,
    probe_losses,
)
from paretune.evidence.groups import Group, Piece, Rule, find_direction
from paretune.evidence.horizon import during_training
from paretune.evidence.state import undisturbed
from paretune.evidence.uncurved import slopes, squares
from paretune.methods.items import Item
from paretune.progress import track
from paretune.strategies import attach_additions
from paretune.task import Task
from paretune.task.split import draw

__all__ = ["Looking", "Score", "halves", "look"]

Score = Literal["gain", "slope", "fisher"]

FEWEST = 4  # examples: two for the direction and two that it was not taken from


@dataclass(frozen=True)
class Looking:
    """How gains are taken.

    Attributes:
        samples: Training examples a probe: half for the direction, half for slope and curvature.
        score: "gain"; "slope" along the direction, without a curvature; "fisher", squared gradients.
        estimator: See `curvature`.
        direction: See `find_direction`.
        matrix: Whether the matrix between items is wanted.
        beyond_head: Leave out of every gain what the head, trained anyway, can do itself; for
            sampled-fisher only: the exact curvature may be negative, and forward-fit has no matrix.
        steps: Steps of training to look during; 0 looks at the pretrained weights.
        probes: How many times to look during these.
        lr: Learning rate of these.
        batch_size: Examples in a forward pass, and a step.
        seed: Of everything drawn.
    """

    samples: int
    score: Score
    estimator: Estimator
    direction: Rule
    matrix: bool
    beyond_head: bool
    steps: int
    probes: int
    lr: float
    batch_size: int
    seed: int


def look(
    model: nn.Module,
    task: Task,
    items: Sequence[Item],
    looking: Looking,
    kept: dict[str, torch.Tensor] | None = None,
) -> Average:
    """Probe every item, and average.

    LoRA and adapters start neutral and are attached together, so that one pass probes native weights and all
    of them. Prefixes change what the model computes: they are probed in a pass of their own, and what
    attaching one alone does to the loss is taken from its gain.

    Args:
        model: The plain model; left bit-equal.
        task: The task.
        items: What competes; in the order of the result.
        looking: How.
        kept: Is filled with what the last of the steps left: every tensor that was trained under its name in
            the plain model, or ``strategy:module:part``. Not where there are prefixes, or no steps.

    Returns:
        The gains in the order of the items; `matrix` has zeros between prefixes and the others.

    Raises:
        PareError: Too few examples, or as the passes.
    """
    if not FEWEST <= looking.samples <= len(task.train):
        raise PareError(
            f"samples={looking.samples}: a probe takes {FEWEST} examples or more, train has {len(task.train)}"
        )
    changing = [item.kind == "prefix" for item in items]
    if not any(changing):
        return _phase(model, task, items, looking, kept)
    prefixes = [item for item, prefix in zip(items, changing, strict=True) if prefix]
    others = [item for item, prefix in zip(items, changing, strict=True) if not prefix]
    second = _phase(model, task, prefixes, looking)
    second = replace(second, gain=second.gain - _attaching_costs(model, task, prefixes, looking))
    if not others:
        return second
    return _joined(_phase(model, task, others, looking), second, changing)


def halves(task: Task, samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of training examples with nothing in common, each with the classes in their proportions.

    Under a fresh head the gradient says first of all which class is the commoner: halves that differ in that
    would differ in direction.
    """
    classes = np.asarray(task.train["labels"]) if task.labels else None
    drawn = draw(len(task.train), samples, seed, None if classes is None else classes.tolist())
    some = draw(len(drawn), len(drawn) // 2, seed, None if classes is None else classes[drawn].tolist())
    return drawn[some], np.delete(drawn, some)


def _phase(
    model: nn.Module,
    task: Task,
    items: Sequence[Item],
    looking: Looking,
    kept: dict[str, torch.Tensor] | None = None,
) -> Average:
    """The probes of items that are attached together."""
    beyond_head = looking.beyond_head and (looking.score, looking.estimator) == ("gain", "sampled-fisher")
    with _attached(model, items) as (groups, keys):
        named = dict(model.named_parameters())
        head = [name for name in getattr(model, "paretune_head", ()) if name in named]
        mandatory = [Group(name, (Piece(name),)) for name in head if beyond_head]
        groups = [*groups, *mandatory]

        def probe(number: int, optimiser: torch.optim.Optimizer | None = None) -> Curvature:
            if kept is not None and optimiser is not None and number == looking.probes - 1:
                kept.update({keys[name]: named[name].detach().float().cpu().clone() for name in wanted})
            seed = looking.seed + 1000 * number
            first, second = halves(task, looking.samples, seed)
            if looking.score == "fisher":
                drawn = np.concatenate([first, second])
                return squares(model, task, groups, drawn, batch_size=looking.batch_size)
            direction = find_direction(
                model,
                task,
                groups,
                first,
                rule=looking.direction,
                optimiser=optimiser,
                batch_size=looking.batch_size,
                seed=seed,
            )
            if looking.score == "slope":
                return slopes(model, task, groups, direction, second, batch_size=looking.batch_size)
            found = curvature(
                model,
                task,
                groups,
                direction,
                second,
                estimator=looking.estimator,
                matrix=looking.matrix or bool(mandatory),
                batch_size=looking.batch_size,
                seed=seed,
            )
            return beyond(found, len(mandatory)) if mandatory else found

        wanted = {piece.tensor for group in groups for piece in group.pieces} | set(head)
        if not looking.steps:
            return average([probe(0)])
        found = during_training(
            model,
            task,
            [parameter for name, parameter in named.items() if name in wanted],
            probe,
            steps=looking.steps,
            probes=looking.probes,
            lr=looking.lr,
            batch_size=looking.batch_size,
            seed=looking.seed,
        )
        return average(found)


@contextmanager
def _attached(model: nn.Module, items: Sequence[Item]) -> Iterator[tuple[list[Group], dict[str, str]]]:
    """The items as groups of the model's tensors, with their added modules attached meanwhile.

    Gives the groups, and for each tensor's name in the model as it is now the one in the plain model, or its
    `strategy:module:part`.
    """
    before = {id(parameter): name for name, parameter in model.named_parameters()}
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    additions = [item.addition for item in items if item.addition is not None]
    with torch.random.fork_rng(devices=[]):
        mixture = attach_additions(model, additions, name="probe") if additions else None
    try:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        now = {before[key]: name for key, name in names.items() if key in before}
        added = mixture.tensors if mixture else {}
        keys = {name: before[key] for key, name in names.items() if key in before}
        keys |= {names[id(tensor)]: key for key, tensor in added.items()}
        yield [Group(item.name, _pieces(item, now, names, added)) for item in items], keys
    finally:
        if mixture:
            mixture.detach()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags[name])


def _pieces(
    item: Item, now: dict[str, str], names: dict[int, str], added: dict[str, nn.Parameter]
) -> tuple[Piece, ...]:
    """An item's weights by their names in the model as it is now; A and B of a LoRA belong together."""
    if item.addition is None:
        return tuple(Piece(now[part.tensor.name], part.rows) for part in item.parts)
    start = f"{item.addition.strategy}:{item.addition.module}:"
    return tuple(Piece(names[id(tensor)]) for key, tensor in added.items() if key.startswith(start))


def _attaching_costs(model: nn.Module, task: Task, items: Sequence[Item], looking: Looking) -> np.ndarray:
    """How much each addition raises the loss by being there, (K,), on a probe's examples."""
    _, drawn = halves(task, looking.samples, looking.seed)
    with undisturbed(model):
        plain = probe_losses(model, task, drawn, looking.batch_size)
    costs = []
    for item in track(items, "attaching"):
        with _attached(model, [item]), undisturbed(model):
            costs.append(probe_losses(model, task, drawn, looking.batch_size) - plain)
    return np.array(costs)


def _joined(first: Average, second: Average, from_second: Sequence[bool]) -> Average:
    """Two averages in the order of the items."""
    places = np.array(from_second)

    def merged(a: Any, b: Any) -> np.ndarray:
        values = np.empty(len(places))
        values[~places], values[places] = a, b
        return values

    matrix = None
    if first.matrix is not None and second.matrix is not None:
        matrix = np.zeros((len(places), len(places)))
        matrix[np.ix_(~places, ~places)] = first.matrix
        matrix[np.ix_(places, places)] = second.matrix
    names = iter(first.names), iter(second.names)
    return Average(
        tuple(next(names[int(place)]) for place in from_second),
        merged(first.gain, second.gain),
        merged(first.slope, second.slope),
        matrix,
        merged(first.share, second.share),
        {
            state: first.states.get(state, 0) + second.states.get(state, 0)
            for state in (*first.states, *(s for s in second.states if s not in first.states))
        },
    )
