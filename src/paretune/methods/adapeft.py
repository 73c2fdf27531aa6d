"""AdaPEFT (arXiv 2505.12579): the subset of largest predicted gain, as a knapsack."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch

from paretune.errors import BudgetError, PareError
from paretune.evidence.curvature import Average, Estimator
from paretune.evidence.groups import Rule
from paretune.methods.base import Choice, Question, whole
from paretune.methods.items import Item, Level, added_items, native_items, rivals
from paretune.methods.probe import Looking, Score, look
from paretune.methods.subset import Problem, Subset, joint, knapsack, prefix
from paretune.methods.transfer import Small, probe_task, retarget, shallow
from paretune.plan import Selection

Select = Literal["prefix", "knapsack", "joint"]
DEFAULT_SAMPLES = 512
EPOCHS = 3  # the training that a horizon is a share of
OPTIMISER_BYTES, DELTA_BYTES = 12, 4  # a trained weight: gradient and two moments; a value in fp32
SELECTION_BYTES, ADDITION_BYTES = 80, 160  # what a delta says about each


@dataclass(frozen=True)
class AdaPeft:
    """The items whose best steps along the optimiser's direction gain the most, within the budget.

    Args:
        items: ``type`` (the paper's), ``block-kind``, ``tensor`` or ``rows`` (blocks of a matrix's rows).
        row_blocks: Into how many blocks ``rows`` cuts a matrix.
        added: Modules that compete too, such as ``lora`` or ``lora+adapter+prefix``; none by default.
        size: Their rank, width and length.
        select: ``prefix`` (sorted by influence per parameter, the paper's), ``knapsack`` (the best subset) or
            ``joint`` (greedy, with the curvature between items).
        score: ``gain``; or, to compare, ``slope`` (along the direction, without a curvature) or ``fisher``
            (the squared gradients of an item's weights).
        estimator: Of the curvature: ``sampled-fisher``, ``exact`` or ``forward-fit`` (the paper's).
        direction: ``adamw``'s preconditioned step, or the ``gradient``.
        beyond_head: Leave out of every gain what the head, which is trained anyway, can do by itself (the
            paper does not; ``sampled-fisher`` alone can, whose curvature is never negative).
        samples: Training examples a probe, half of them for the direction; None takes 512 or all there are.
        horizon: Share of a training of three epochs during which to look, at constant ``lr``; 0 looks at the
            pretrained weights. The paper's is 0.1.
        go_on: After the horizon, begin the training with what it made of the chosen weights, the head and the
            chosen modules, instead of the pretrained values; all other weights are rewound, since no delta
            of the chosen ones could hold them.
        probes: How many times to look during the horizon.
        lr: Learning rate of the horizon, everything trained.
        probe_depth: Look at a copy with this share of the blocks, and map by relative depth and kind.
        probe_model: Look at this smaller checkpoint with the same tokenizer, and map likewise.
        delta_bytes: A further limit: bytes of delta with values in fp32.
        optimiser_bytes: A further limit: bytes of gradients and AdamW's moments.
        batch_size: Examples in a forward pass.

    Raises:
        PareError: A setting out of range.
    """

    name: ClassVar[str] = "adapeft"
    summary: ClassVar[str] = "tensors of largest predicted gain, as a knapsack (AdaPEFT)"
    learning_rates: ClassVar[tuple[float, ...]] = (3e-4, 1e-3, 3e-3, 1e-2)
    rate_power: ClassVar[float] = 0.0
    sized: ClassVar[bool] = True

    items: Level = "rows"
    row_blocks: int = 8
    added: str = ""
    size: int = 8
    select: Select = "knapsack"
    score: Score = "gain"
    estimator: Estimator = "sampled-fisher"
    direction: Rule = "adamw"
    beyond_head: bool = True
    samples: int | None = None
    horizon: float = 0.0
    go_on: bool = False
    probes: int = 4
    lr: float = 5e-5
    probe_depth: float = 1.0
    probe_model: str | None = None
    delta_bytes: int | None = None
    optimiser_bytes: int | None = None
    batch_size: int = 32

    def __post_init__(self) -> None:
        choices = {
            "items": Level,
            "select": Select,
            "score": Score,
            "estimator": Estimator,
            "direction": Rule,
        }
        for setting, known in choices.items():
            if getattr(self, setting) not in get_args(known):
                raise PareError(
                    f"adapeft: {setting} {getattr(self, setting)!r} is none of {', '.join(get_args(known))}"
                )
        for setting in ("row_blocks", "size", "probes", "batch_size", "delta_bytes", "optimiser_bytes"):
            value = getattr(self, setting)
            if value is not None and value < 1:
                raise PareError(f"adapeft: {setting} {value} is below 1")
        for setting in ("horizon", "probe_depth", "lr"):
            value = getattr(self, setting)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise PareError(f"adapeft: {setting} {value!r} is not a number such as 0.1")
        if not 0 <= self.horizon <= 1 or not 0 < self.probe_depth <= 1:
            raise PareError(
                f"adapeft: horizon {self.horizon} must be a share from 0 to 1, probe_depth "
                f"{self.probe_depth} one above 0"
            )
        if not self.lr > 0:
            raise PareError(f"adapeft: lr {self.lr} is not above 0")
        if self.select == "joint" and (self.estimator != "sampled-fisher" or self._transfers):
            raise PareError(
                "adapeft: joint needs a curvature between the model's own items that is never negative: "
                "estimator=sampled-fisher, without probe_depth and probe_model; or take select=knapsack"
            )
        if self.score != "gain" and (
            self.select == "joint" or self.estimator != "sampled-fisher" or "prefix" in self.added
        ):
            raise PareError(
                f"adapeft: score={self.score} has no curvature: leave estimator out, take select=knapsack or "
                "prefix, and add no prefix modules, whose attaching costs are losses"
            )

        if self.go_on and (not self.horizon or self._transfers or "prefix" in self.added):
            raise PareError(
                "adapeft: go_on keeps what this model's horizon made of the chosen weights: give a horizon "
                "and no probe_depth or probe_model, and add no prefix modules, which are looked at apart"
            )

    @property
    def _transfers(self) -> bool:
        return self.probe_model is not None or self.probe_depth < 1

    def choose(self, question: Question) -> Choice:
        """Probe every item, predict the front, take the subset at the budget.

        Raises:
            PareError: No item has positive curvature, the budget is below the smallest item, a probe is not
                finite, or a probe model's blocks cannot be mapped.
        """
        k = question.k
        items = self._items(question)
        smallest = min(items, key=lambda item: item.count)
        if smallest.count > k:
            raise BudgetError(
                f"adapeft: the smallest item, {smallest.name}, has {smallest.count:,} weights, the budget is "
                f"{k:,}; raise the budget, or cut finer with items=rows and more row_blocks"
            )
        kept: dict[str, torch.Tensor] = {}
        seen = self._seen(question, items, kept)
        refuse_unusable(seen, items)
        problem = self._problem(items, seen.gain, k)
        found = self._select(problem, seen)
        if not found.chosen:
            raise BudgetError(_nothing_fits(problem, items, self.select))
        choice = _choice(items, seen, problem, found, self.select)
        return replace(choice, start=_start(choice, question, kept)) if self.go_on else choice

    def _items(self, question: Question) -> list[Item]:
        """What competes in the model that will be trained."""
        return [
            *native_items(question.anatomy, question.candidates, self.items, self.row_blocks),
            *added_items(
                question.model,
                question.anatomy,
                question.candidates,
                [name for name in self.added.split("+") if name],
                self.size,
                question.seed,
            ),
        ]

    def _seen(self, question: Question, items: list[Item], kept: dict[str, torch.Tensor]) -> Average:
        """The items' gains, looked at here or on a smaller model; what the horizon left goes to `kept`."""
        task, model = question.task, question.model
        steps = round(self.horizon * EPOCHS * len(task.train) / min(self.batch_size, len(task.train)))
        if self.horizon and not steps:
            raise PareError(f"adapeft: a horizon of {self.horizon} is no step of training; take a longer one")
        looking = Looking(
            samples=self.samples or min(DEFAULT_SAMPLES, len(task.train)),
            score=self.score,
            estimator=self.estimator,
            direction=self.direction,
            matrix=self.select == "joint",
            beyond_head=self.beyond_head,
            steps=steps,
            probes=min(self.probes, steps) if steps else 1,
            lr=self.lr,
            batch_size=self.batch_size,
            seed=question.seed,
        )
        if not self._transfers:
            return look(model, task, items, looking, kept if self.go_on else None)
        small = Small(model, task)
        if self.probe_model is not None:
            small = probe_task(task, self.probe_model, question.seed)
        if self.probe_depth < 1:
            small = shallow(small, self.probe_depth)
        probed = self._items(small.question(question))
        return retarget(look(small.model, small.task, probed, looking), probed, items)

    def _problem(self, items: list[Item], gains: np.ndarray, k: int) -> Problem:
        """The knapsack: the budget, and what else is limited."""
        counts = np.array([item.count for item in items])
        costs, limits = [counts], [k]
        if self.delta_bytes is not None:
            about = [ADDITION_BYTES if item.addition else SELECTION_BYTES * len(item.parts) for item in items]
            costs.append(DELTA_BYTES * counts + np.array(about))
            limits.append(self.delta_bytes)
        if self.optimiser_bytes is not None:
            costs.append(OPTIMISER_BYTES * counts)
            limits.append(self.optimiser_bytes)
        return Problem(gains, np.array(costs), np.array(limits), rivals(items))

    def _select(self, problem: Problem, seen: Average) -> Subset:
        if self.select == "joint":
            assert seen.matrix is not None
            return joint(problem, np.nan_to_num(seen.slope), seen.matrix)
        return prefix(problem) if self.select == "prefix" else knapsack(problem)


def _start(choice: Choice, question: Question, kept: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """What the horizon made of what a choice trains, and of the head."""
    added = tuple(f"{addition.strategy}:{addition.module}:" for addition in choice.additions)
    start = {key: values for key, values in kept.items() if added and key.startswith(added)}
    for selection in (*choice.selections, *whole(question.anatomy.head)):
        values = kept[selection.tensor].reshape(-1)
        start[selection.tensor] = values[torch.from_numpy(selection.flat())]
    return {name: values.numpy() for name, values in start.items()}


def refuse_unusable(seen: Average, items: list[Item]) -> None:
    """Refuse evidence that prefers nothing.

    Raises:
        PareError: No item has a gain; the message says why, with the numbers.
    """
    why = ", ".join(f"{count} {state}" for state, count in sorted(seen.states.items()))
    if not (seen.share > 0).any():
        raise PareError(
            f"adapeft: none of the {len(items)} items has a positive curvature and a gradient ({why}); take "
            "more samples, estimator=sampled-fisher, or another horizon"
        )
    if not np.nanmax(seen.gain) > 0:
        raise PareError(
            f"adapeft: none of the {len(items)} items lowers the loss on examples that its direction was not "
            f"taken from ({why}); take more samples or a horizon"
        )


def _nothing_fits(problem: Problem, items: list[Item], select: str) -> str:
    """Why no item was taken."""
    order = problem.worth()
    first = items[order[0] if select == "prefix" else min(order, key=lambda k: problem.costs[0, k])]
    what = "first of the order" if select == "prefix" else "smallest with a gain"
    return (
        f"adapeft: the budget is {problem.limits[0]:,} weights and the item {what}, {first.name}, has "
        f"{first.count:,} (limits {problem.limits.tolist()}); raise the budget or the limits, take "
        "select=knapsack, or cut finer with items=rows"
    )


def _choice(items: list[Item], seen: Average, problem: Problem, found: Subset, select: str) -> Choice:
    """The plan's parts, the table and the front."""
    order = np.argsort(-np.nan_to_num(problem.gains, nan=0.0) / problem.costs[0], kind="stable")
    rank = {int(number): place for place, number in enumerate(order, start=1)}
    rows = [
        [
            rank[number],
            "*" if number in found.chosen else "",
            items[number].name,
            items[number].count,
            None if np.isnan(seen.gain[number]) else float(seen.gain[number]),
            float(seen.share[number]),
        ]
        for number in map(int, order)
    ]
    notes: dict[str, Any] = {
        "gain": found.gain,
        "gap": found.gap,
        "usable_share": seen.usable_share,
        "states": dict(sorted(seen.states.items())),
        "front": [[step.weights, step.gain, step.items] for step in found.front],
        "table": {
            "title": f"{len(found.chosen)} of {len(items)} items taken (*), by predicted gain per weight",
            "columns": ["rank", "", "item", "weights", "gain", "usable"],
            "rows": rows,
        },
    }
    chosen = [items[number] for number in found.chosen]
    additions = tuple(item.addition for item in chosen if item.addition is not None)
    return Choice(row_selections(chosen), additions, notes)


def row_selections(chosen: list[Item]) -> tuple[Selection, ...]:
    """One selection a tensor: whole, or the rows that were taken of it."""
    rows: dict[str, list[tuple[int, int]]] = {}
    tensors = {}
    for item in chosen:
        for part in item.parts:
            tensors[part.tensor.name] = part.tensor
            shape = part.tensor.shape
            rows.setdefault(part.tensor.name, []).append(part.rows or (0, shape[0] if shape else 1))
    selections = []
    for name, tensor in tensors.items():
        taken = np.unique(np.concatenate([np.arange(*part) for part in rows[name]]))
        whole = len(taken) == (tensor.shape[0] if tensor.shape else 1)
        selections.append(
            Selection(name, tensor.shape, "all")
            if whole
            else Selection(name, tensor.shape, "rows", taken.astype(np.int64))
        )
    return tuple(selections)
