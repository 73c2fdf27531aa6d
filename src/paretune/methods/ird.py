"""IRD: choose samples and weights together by Fisher information (arXiv 2403.08484)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from paretune.anatomy import Tensor
from paretune.errors import PareError
from paretune.evidence import fisher
from paretune.evidence.decreasing import (
    Cached,
    Evidence,
    Keep,
    Order,
    Recomputed,
    Rung,
    decrease,
    largest,
    of_pool,
)
from paretune.evidence.precision import Precision
from paretune.methods.base import Choice, Question
from paretune.methods.entries import entries
from paretune.methods.ranking import Ranking
from paretune.methods.rates import MASK_POWER
from paretune.methods.samples import describe_samples


@dataclass(frozen=True)
class Ird(Ranking):
    """A ladder of sample-parameter pairs; the last rung is the budget.

    With whole rows, columns or blocks (``granularity``) an example and a unit meet in the sum of the unit's
    squared gradients; a rung's size still counts weights.

    Args:
        samples: n of the last rung; the first has ``samples * factor ** steps``, drawn at random.
        steps: Rungs after the first.
        factor: How many times smaller samples and weights get in a step.
        order: In a step ``samples`` first, ``parameters`` first, or both ``together``.
        score: What ranks samples: the ``sum`` of squares, ``token`` (the sum over the number of tokens) or
            ``loss`` (the sum over the loss).
        labels: ``data`` (empirical Fisher), ``exact`` or ``sampled``.
        keep: Samples of ``top`` score; ``bottom``, ``random`` and ``balanced`` (the top of each class) are
            controls.
        nested: Weights are chosen among those of the rung before; False among the first rung's again.
        rung: Which rung is trained: -1, the last, is the budget; others are kept as plans of their own.
        cache_bytes: Memory for the matrix of squares; in half precision when it does not fit in full, and
            recomputed pass by pass when it does not fit at all.
        batch_size: Examples in a forward pass.
        precision: As for :class:`paretune.methods.fish.Fish`.

    Further settings: see :class:`paretune.methods.ranking.Ranking`.

    Raises:
        PareError: A setting out of range.
    """

    name: ClassVar[str] = "ird"
    summary: ClassVar[str] = "samples and single weights chosen together by Fisher information (IRD)"
    learning_rates: ClassVar[tuple[float, ...]] = (5e-4, 1.5e-3, 5e-3, 1e-2)
    rate_power: ClassVar[float] = MASK_POWER
    sized: ClassVar[bool] = True

    samples: int | None = None
    steps: int = 3
    factor: int = 2
    order: Order = "samples"
    score: Literal["sum", "token", "loss"] = "sum"
    labels: Literal["data", "exact", "sampled"] = "data"
    keep: Keep = "top"
    nested: bool = True
    rung: int = -1
    cache_bytes: int = 2**31
    batch_size: int = 32
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share == "scaled":
            raise PareError("ird: samples and weights are compared by one matrix: share cannot be scaled")
        for setting, least in (("samples", 1), ("steps", 1), ("factor", 2), ("cache_bytes", 0)):
            value = getattr(self, setting)
            if value is not None and value < least:
                raise PareError(f"ird: {setting}={value} is below {least}")
        if not -self.steps - 1 <= self.rung <= self.steps:
            raise PareError(f"ird: rung={self.rung}; with steps={self.steps} there are 0 to {self.steps}")

    def choose(self, question: Question) -> Choice:
        """Walk down the ladder; the choice of the asked rung, the others beside it.

        Raises:
            PareError: The first rung needs more examples than train has, or as
                :func:`paretune.evidence.fisher`.
        """
        return self.under_warm_head(question, lambda: self._walk(question))

    def _walk(self, question: Question) -> Choice:
        tensors = self.ranks.competing(question, question.k * self.factor**self.steps)
        sizes = self._sizes(question, tensors)
        first = fisher(
            question.model,
            question.task,
            samples=sizes[0][0],
            batch_size=self.batch_size,
            labels=self.labels,
            tensors=[tensor.name for tensor in tensors],
            seed=question.seed,
            balanced=self.keep == "balanced",
            precision=self.precision,
        )
        pool = self.ranks.take(first.scores, sizes[0][1], question.seed)
        first.scores.clear()  # as large as the model
        evidence = Evidence(
            question.model,
            question.task,
            first.indices,
            self.batch_size,
            self.labels,
            question.seed,
            self.precision,
        )
        count = sum(len(chosen) for chosen in pool.values())
        squares, held = self._squares(evidence, pool, count)
        rungs = decrease(
            squares,
            Rung(np.arange(sizes[0][0]), np.arange(count)),
            sizes[1:],
            keep=self._keeper(question, first.indices, first.losses),
            pick=self._picker(question, tensors, pool),
            order=self.order,
            nested=self.nested,
            pool=count,
        )
        notes = {"held": held, "cache_bytes": cache_size(len(first.indices), count, held)}
        choices = [self._choice(question, pool, rung, first, notes) for rung in rungs]
        chosen = choices[self.rung]
        others = tuple(choice for choice in choices if choice is not chosen)
        return Choice(chosen.selections, notes=chosen.notes, others=others)

    def _sizes(self, question: Question, tensors: tuple[Tensor, ...]) -> list[tuple[int, int]]:
        """(examples, weights) of every rung, widest first."""
        k, wide = question.k, self.factor**self.steps
        there = len(question.task.train)
        samples = self.samples or max(1, min(128, there // wide))
        if samples * wide > there:
            raise PareError(
                f"ird: {samples} samples at the end need {samples * wide:,} at the start, train has "
                f"{there:,}; use samples={max(1, there // wide)} or fewer steps"
            )
        left = sum(tensor.count for tensor in tensors)
        powers = [self.factor**step for step in reversed(range(self.steps + 1))]
        return [(samples * power, min(left, k * power)) for power in powers]

    def _squares(self, evidence: Evidence, pool: dict[str, np.ndarray], count: int) -> tuple[Any, str]:
        """The matrix of squares in the way that fits the memory bound."""
        for held, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            if cache_size(len(evidence.drawn), count, held) <= self.cache_bytes:
                return Cached.collect(evidence, pool, dtype, self.granularity), held
        return Recomputed(evidence, pool, self.granularity), "recomputed"

    def _picker(self, question: Question, tensors: tuple[Tensor, ...], pool: dict[str, np.ndarray]) -> Any:
        """How weights, or whole units of them, are kept, over positions in the pool."""
        if self.granularity != "entries":
            return self.ranks.pick_units({t.name: t.shape for t in tensors}, pool, question.seed)
        return self.ranks.pick({tensor.name: tensor.count for tensor in tensors}, pool, question.seed)

    def _keeper(self, question: Question, drawn: np.ndarray, losses: np.ndarray) -> Any:
        """How samples are kept, over positions among the drawn."""
        rows = question.task.train
        rng = np.random.default_rng(question.seed)
        lengths = np.asarray(rows["length"])[drawn]
        classes = np.asarray(rows["labels"])[drawn] if self.keep == "balanced" else None
        if self.keep == "balanced" and question.task.kind != "classification":
            raise PareError(f"ird: keep=balanced needs classes; this task is {question.task.kind}")

        def keep(samples: np.ndarray, scores: np.ndarray, count: int) -> np.ndarray:
            if self.keep == "random":
                return rng.choice(samples, count, replace=False)
            if self.score == "token":
                scores = scores / lengths[samples]
            elif self.score == "loss":
                scores = scores / np.maximum(losses[samples], 1e-12)
            if self.keep == "bottom":
                return samples[largest(-scores, count)]
            if classes is not None:
                return samples[_of_each(classes[samples], scores, count)]
            return samples[largest(scores, count)]

        return keep

    def _choice(
        self, question: Question, pool: dict[str, np.ndarray], rung: Rung, first: Any, notes: dict[str, Any]
    ) -> Choice:
        selections = entries(question, of_pool(pool, rung.weights), self.granularity)
        kept = describe_samples(question.task, first.indices, first.losses, rung.samples)
        pair = {"samples": len(rung.samples), "weights": sum(s.count for s in selections)}
        return Choice(selections, notes={**notes, **pair, **kept})


def cache_size(examples: int, weights: int, held: str) -> int:
    """Bytes of the matrix of squares: 4 a cell in fp32, 2 in bf16, none when it is recomputed."""
    return examples * weights * {"fp32": 4, "bf16": 2, "recomputed": 0}[held]


def _of_each(classes: np.ndarray, scores: np.ndarray, count: int) -> np.ndarray:
    """Positions of the best of every class in turn, so that classes stay as equal as they can."""
    order = np.argsort(-scores, kind="stable")
    turn = np.empty(len(order), dtype=np.int64)
    for label in np.unique(classes):
        of = order[classes[order] == label]
        turn[of] = np.arange(len(of))
    return np.sort(np.lexsort((-scores, turn))[:count])
