"""IRD's search for a sample-parameter pair: keep the samples, then the weights, of larger Fisher information.

With ``A_ij = g_ij^2`` of example i and weight j, a half-step keeps the examples with the largest
``sum_{j in T} A_ij``, the next one the weights with the largest ``sum_{i in S} A_ij``; a greedy search for a
dense submatrix of A (arXiv 2403.08484).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch

from paretune.evidence.consumers import ExampleEntries, ExampleNorms, SquaredSum
from paretune.evidence.labels import Labels
from paretune.evidence.passes import evidence_pass
from paretune.evidence.precision import Precision
from paretune.evidence.units import ExampleUnits, unit_sums
from paretune.selection import Granularity, Selection

Order = Literal["samples", "parameters", "together"]
Keep = Literal["top", "bottom", "random", "balanced"]
Pool = dict[str, np.ndarray]


@dataclass(frozen=True)
class Rung:
    """One pair: which examples (positions among those drawn) and which weights (positions in the pool).

    Where whole rows, columns or blocks are chosen, each of them stands for one weight of this module: its
    ``A_ij`` is the sum of its weights' squares.
    """

    samples: np.ndarray
    weights: np.ndarray


class Squares(Protocol):
    """The matrix A on the drawn examples and the pool of weights, however it is held."""

    def of_samples(self, samples: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """``sum_{j in weights} A_ij`` for each of the samples, float64, in their order."""
        ...

    def of_weights(self, samples: np.ndarray) -> np.ndarray:
        """``sum_{i in samples} A_ij`` for every weight of the pool, float64."""
        ...


class Cached:
    """A in memory: one more pass, then arithmetic.

    Args:
        entries: By tensor A's columns (examples, weights of the pool), the pool's tensors in its order.
    """

    def __init__(self, entries: Sequence[torch.Tensor]) -> None:
        self._entries = entries

    @classmethod
    def collect(
        cls, evidence: "Evidence", pool: Pool, dtype: torch.dtype, granularity: Granularity = "entries"
    ) -> "Cached":
        """Fill the cache by one pass over the drawn examples."""
        parameters = dict(evidence.model.named_parameters())
        devices = {name: parameters[name].device for name in pool}
        consumer: ExampleEntries | ExampleUnits
        if granularity == "entries":
            indices = {name: torch.from_numpy(chosen).to(devices[name]) for name, chosen in pool.items()}
            consumer = ExampleEntries(len(evidence.drawn), indices, squared=True, dtype=dtype)
        else:
            units = {
                name: Selection(name, tuple(parameters[name].shape), granularity, chosen)
                for name, chosen in pool.items()
            }
            consumer = ExampleUnits(len(evidence.drawn), units, devices, dtype)
        evidence.run([consumer], evidence.drawn)
        return cls([consumer.values[name] for name in pool])

    def of_samples(self, samples: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """See :class:`Squares`."""
        sums = np.zeros(len(samples))
        for entries, chosen in self._parts(weights):
            for place, sample in enumerate(samples):
                sums[place] += float(entries[int(sample)][chosen].double().sum())
        return sums

    def of_weights(self, samples: np.ndarray) -> np.ndarray:
        """See :class:`Squares`."""
        sums = []
        for entries in self._entries:
            total = torch.zeros(entries.shape[1], dtype=torch.float64, device=entries.device)
            for sample in samples:  # row by row: no copy of the cache in a wider type
                total += entries[int(sample)]
            sums.append(total.cpu().numpy())
        return np.concatenate(sums) if sums else np.zeros(0)

    def _parts(self, weights: np.ndarray) -> Any:
        ends = np.cumsum([entries.shape[1] for entries in self._entries])
        starts = ends - [entries.shape[1] for entries in self._entries]
        for entries, part, start in zip(
            self._entries, np.split(weights, np.searchsorted(weights, ends[:-1])), starts, strict=True
        ):
            if len(part):
                yield entries, torch.from_numpy(part - start).to(entries.device)


class Recomputed:
    """A held nowhere: a pass over the samples in question for every sum."""

    def __init__(self, evidence: "Evidence", pool: Pool, granularity: Granularity = "entries") -> None:
        self._evidence, self._pool, self._granularity = evidence, pool, granularity
        self._parameters = dict(evidence.model.named_parameters())

    def of_samples(self, samples: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """See :class:`Squares`."""
        indices: dict[str, torch.Tensor | None] = {}
        for name, chosen in of_pool(self._pool, weights).items():
            parameter = self._parameters[name]
            flat = Selection(name, tuple(parameter.shape), self._granularity, chosen).flat()
            indices[name] = torch.from_numpy(flat).to(parameter.device)
        consumer = ExampleNorms(len(samples), indices)
        self._evidence.run([consumer], self._evidence.drawn[samples])
        return consumer.values.numpy()

    def of_weights(self, samples: np.ndarray) -> np.ndarray:
        """See :class:`Squares`."""
        consumer = SquaredSum({name: self._parameters[name] for name in self._pool})
        self._evidence.run([consumer], self._evidence.drawn[samples])
        sums = []
        for name, chosen in self._pool.items():
            values = consumer.values[name]
            if self._granularity != "entries":
                values = unit_sums(values, self._granularity)
            sums.append(values.reshape(-1)[torch.from_numpy(chosen)])
        return torch.cat([part.double().cpu() for part in sums]).numpy()


@dataclass(frozen=True)
class Evidence:
    """How a pass is made: the model, the task, the drawn examples, and where labels come from."""

    model: torch.nn.Module
    task: Any
    drawn: np.ndarray
    batch_size: int
    labels: Labels
    seed: int
    precision: Precision = "fp32"

    def run(self, consumers: Sequence[Any], examples: np.ndarray) -> torch.Tensor:
        """One pass over some examples (indices into train); their losses."""
        return evidence_pass(
            self.model,
            self.task,
            consumers,
            examples,
            batch_size=self.batch_size,
            labels=self.labels,
            seed=self.seed,
            precision=self.precision,
        )


def decrease(
    squares: Squares,
    start: Rung,
    sizes: Sequence[tuple[int, int]],
    *,
    keep: Callable[[np.ndarray, np.ndarray, int], np.ndarray],
    pick: Callable[[np.ndarray, np.ndarray, int], np.ndarray],
    order: Order = "samples",
    nested: bool = True,
    pool: int,
) -> list[Rung]:
    """The ladder of pairs, from the widest to the narrowest.

    Args:
        squares: The matrix A.
        start: The widest pair.
        sizes: (examples, weights) of every further rung.
        keep: Which samples stay: given positions of samples, their scores and how many, the positions kept.
        pick: Which weights stay: the same for positions in the pool, ascending.
        order: In a step, ``samples`` first, ``parameters`` first, or both ``together`` from the pair before.
        nested: Choose weights among those of the rung before; False chooses among the whole pool again.
        pool: How many weights the pool has.
    """
    rungs = [start]
    everything = np.arange(pool)
    for examples, weights in sizes:
        before = rungs[-1]
        among = before.weights if nested else everything

        def narrowed(samples: np.ndarray, among: np.ndarray = among, count: int = weights) -> np.ndarray:
            return pick(among, squares.of_weights(samples)[among], count)

        def kept(chosen: np.ndarray, before: Rung = before, count: int = examples) -> np.ndarray:
            scores = squares.of_samples(before.samples, chosen)
            return np.sort(keep(before.samples, scores, count))

        if order == "parameters":
            after = narrowed(before.samples)
            rungs.append(Rung(kept(after), after))
        else:
            samples = kept(before.weights)
            rungs.append(Rung(samples, narrowed(samples if order == "samples" else before.samples)))
    return rungs


def of_pool(pool: Pool, places: np.ndarray) -> Pool:
    """By tensor the indices at some places of the pool (ascending); tensors without any are left out."""
    ends = np.cumsum([len(chosen) for chosen in pool.values()])
    parts = np.split(places, np.searchsorted(places, ends[:-1]))
    return {
        name: chosen[part - (end - len(chosen))]
        for (name, chosen), part, end in zip(pool.items(), parts, ends, strict=True)
        if len(part)
    }


def largest(scores: np.ndarray, count: int) -> np.ndarray:
    """Positions of the largest scores, increasing; of equal ones the earlier."""
    return np.sort(np.argsort(-scores, kind="stable")[:count])
