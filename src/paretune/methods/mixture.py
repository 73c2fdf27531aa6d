"""A mixture: single weights, rows, vectors and added modules, all bought by predicted gain per weight."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from paretune.anatomy import Tensor
from paretune.errors import BudgetError, PareError
from paretune.evidence.curvature import beyond, curvature
from paretune.evidence.groups import Direction, Group, Piece, find_direction
from paretune.methods.adapeft import row_selections
from paretune.methods.base import Choice, Question
from paretune.methods.items import Item, added_items, native_items, rivals
from paretune.methods.probe import Looking, halves, look
from paretune.methods.subset import Problem, knapsack
from paretune.plan import Selection

DEFAULT_SAMPLES = 512
LISTED = 40  # rows of the table


@dataclass(frozen=True)
class Entries:
    """The steepest entries of one matrix, as something to buy."""

    tensor: Tensor
    times: int
    indices: np.ndarray

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{len(self.indices):,} entries of {self.tensor.name}"


@dataclass(frozen=True)
class Mixture:
    """The parts of largest predicted gain per weight, whatever kind they are, within the budget.

    Every part is moved along the optimiser's first step, and its gain is taken on examples that the step was
    not taken from, less what the head can do by itself (:mod:`paretune.evidence.curvature`): one currency for
    the steepest entries of a matrix, blocks of rows, vectors (biases, norms) and added modules. The best
    subset is a knapsack. Of a matrix either entries are taken, or rows, or a LoRA is added to it.

    Args:
        entries: How dense the entries of a matrix are: so many times the share that would spread the budget
            evenly over all matrices; ``+`` between several, empty for none.
        row_blocks: Into how many blocks of rows a matrix is cut.
        added: Modules that compete, as in ``lora+adapter+prefix``; empty for none.
        size: Their rank, width and length.
        samples: Training examples looked at, half of them for the step; None takes 512 or all there are.
        batch_size: Examples in a forward pass.

    Raises:
        PareError: A setting out of range.
    """

    name: ClassVar[str] = "mixture"
    summary: ClassVar[str] = "entries, rows, vectors and added modules by predicted gain per weight"
    learning_rates: ClassVar[tuple[float, ...]] = (5e-4, 1e-3, 2e-3, 5e-3)
    rate_power: ClassVar[float] = 0.0
    sized: ClassVar[bool] = True

    entries: str = "1+4"
    row_blocks: int = 8
    added: str = "lora+adapter"
    size: int = 2
    samples: int | None = None
    batch_size: int = 32

    def __post_init__(self) -> None:
        for setting in ("row_blocks", "size", "batch_size"):
            if getattr(self, setting) < 1:
                raise PareError(f"mixture: {setting} {getattr(self, setting)} is below 1")
        if any(times < 1 for times in self._times):
            raise PareError(f"mixture: entries {self.entries!r} must be whole numbers of at least 1")

    @property
    def _times(self) -> list[int]:
        try:
            return [int(times) for times in str(self.entries).split("+") if times]
        except ValueError:
            raise PareError(
                f"mixture: entries {self.entries!r}: write whole numbers such as 1+4, or nothing"
            ) from None

    def choose(self, question: Question) -> Choice:
        """Probe everything, and buy the best subset.

        Raises:
            PareError: A probe is not finite, or nothing has a gain.
            BudgetError: The budget is below the smallest part.
        """
        k = question.k
        items = [
            *native_items(question.anatomy, question.candidates, "rows", self.row_blocks),
            *added_items(
                question.model,
                question.anatomy,
                question.candidates,
                [name for name in self.added.split("+") if name],
                self.size,
                question.seed,
            ),
        ]
        smallest = min(items, key=lambda item: item.count)
        if smallest.count > k and not self._times:
            raise BudgetError(
                f"mixture: the smallest part, {smallest.name}, has {smallest.count:,} weights, the budget is "
                f"{k:,}; raise the budget, or let entries compete"
            )
        samples = self.samples or min(DEFAULT_SAMPLES, len(question.task.train))
        looking = Looking(
            samples=samples,
            score="gain",
            estimator="sampled-fisher",
            direction="adamw",
            matrix=False,
            beyond_head=True,
            steps=0,
            probes=1,
            lr=1.0,  # nothing is trained
            batch_size=self.batch_size,
            seed=question.seed,
        )
        seen = look(question.model, question.task, items, looking)
        entries, gains = self._entries(question, samples)
        problem = Problem(
            np.concatenate([seen.gain, gains]),
            np.array([[item.count for item in items] + [len(each.indices) for each in entries]]),
            np.array([k]),
            (*rivals(items), *_exclusions(items, entries)),
        )
        found = knapsack(problem, front=False)
        if not found.chosen:
            raise BudgetError(
                f"mixture: no part with a predicted gain fits the budget of {k:,} weights; raise it, or look "
                "at more samples"
            )
        return _choice(items, entries, problem, found.chosen)

    def _entries(self, question: Question, samples: int) -> tuple[list[Entries], np.ndarray]:
        """The entries that compete, and their gains (K,)."""
        model, task = question.model, question.task
        matrices = [tensor for tensor in question.candidates if len(tensor.shape) >= 2]
        if not matrices or not self._times:
            return [], np.zeros(0)
        first, second = halves(task, samples, question.seed)
        head = [tensor.name for tensor in question.anatomy.head]
        groups = [Group(name, (Piece(name),)) for name in [*(tensor.name for tensor in matrices), *head]]
        size, seed = self.batch_size, question.seed
        found = find_direction(model, task, groups, first, rule="gradient", batch_size=size, seed=seed)
        share = question.k / sum(tensor.count for tensor in matrices)
        entries: list[Entries] = []
        gains: list[np.ndarray] = []
        for times in self._times:
            dense = [min(tensor.count, max(1, round(times * share * tensor.count))) for tensor in matrices]
            chosen = [
                Entries(tensor, times, _steepest(found.vectors[tensor.name], count))
                for tensor, count in zip(matrices, dense, strict=True)
            ]
            moved = {each.tensor.name: each.indices for each in chosen}
            vectors = {name: _step(g, moved.get(name)) for name, g in found.vectors.items()}
            direction = Direction(vectors, found.dead)
            probe = curvature(model, task, groups, direction, second, matrix=True, batch_size=size, seed=seed)
            entries += chosen
            gains.append(beyond(probe, len(head)).gain)
        return entries, np.concatenate(gains)


def _steepest(gradient: torch.Tensor, count: int) -> np.ndarray:
    """Flat indices of the largest absolute gradients, ascending."""
    found = torch.topk(gradient.abs().flatten(), count, sorted=False).indices
    return np.sort(found.cpu().numpy().astype(np.int64))


def _step(gradient: torch.Tensor, indices: np.ndarray | None) -> torch.Tensor:
    """AdamW's first step, of some entries alone."""
    step = gradient.sign()
    if indices is None:
        return step
    kept = torch.zeros_like(step).flatten()
    place = torch.from_numpy(indices).to(step.device)
    kept[place] = step.flatten()[place]
    return kept.view_as(step)


def _exclusions(items: list[Item], entries: list[Entries]) -> list[tuple[int, ...]]:
    """Of a matrix either entries of one density, or rows, or a LoRA."""
    by_tensor: dict[str, list[int]] = {}
    by_module: dict[str, int] = {}
    for number, item in enumerate(items):
        for part in item.parts:
            by_tensor.setdefault(part.tensor.name, []).append(number)
        if item.addition is not None and item.addition.strategy == "lora":
            by_module[item.addition.module] = number
    same: dict[str, list[int]] = {}
    pairs: list[tuple[int, ...]] = []
    for number, each in enumerate(entries, start=len(items)):
        pairs += [(number, other) for other in by_tensor.get(each.tensor.name, [])]
        if each.tensor.module in by_module:
            pairs.append((number, by_module[each.tensor.module]))
        same.setdefault(each.tensor.name, []).append(number)
    return [*pairs, *(tuple(numbers) for numbers in same.values() if len(numbers) > 1)]


def _choice(items: list[Item], entries: list[Entries], problem: Problem, chosen: tuple[int, ...]) -> Choice:
    """The plan's parts, what was spent on which kind, and the table."""
    bought = [items[number] for number in chosen if number < len(items)]
    single = [entries[number - len(items)] for number in chosen if number >= len(items)]
    spent: dict[str, int] = {}
    for item in bought:
        kind = item.kind if item.addition is not None else "rows" if item.parts[0].rows else "vectors"
        spent[kind] = spent.get(kind, 0) + item.count
    if single:
        spent["entries"] = sum(len(each.indices) for each in single)
    names = [item.name for item in items] + [each.name for each in entries]
    density = np.nan_to_num(problem.gains, nan=0.0) / problem.costs[0]
    rows: list[list[Any]] = [
        ["*" if n in chosen else "", names[n], int(problem.costs[0, n]), float(problem.gains[n])]
        for n in map(int, np.argsort(-density, kind="stable")[:LISTED])
        if density[n] > 0
    ]
    title = f"{len(chosen)} of {len(names)} parts taken (*), by predicted gain per weight"
    columns = ["", "part", "weights", "gain"]
    notes: dict[str, Any] = {
        "gain": float(problem.gains[list(chosen)].sum()),
        "spent": spent,
        "table": {"title": title, "columns": columns, "rows": rows},
    }
    picks = [Selection(each.tensor.name, each.tensor.shape, "entries", each.indices) for each in single]
    additions = tuple(item.addition for item in bought if item.addition is not None)
    return Choice((*row_selections(bought), *picks), additions, notes)
