"""From scores to a mask: which tensors compete, how the budget is shared out, what is left to chance.

The largest scores of all tensors together, as FISH Mask takes them, are a poor mask under a head that knows
nothing yet: they crowd into the layer below the head and, elsewhere, into the few columns whose input is
large and nearly the same for every token, where a weight does what a bias does. So the default only leans
towards large scores; the published way has a name.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from paretune.anatomy import Tensor
from paretune.errors import PareError
from paretune.evidence import top_k
from paretune.evidence.decreasing import largest, of_pool
from paretune.evidence.units import unit_sums
from paretune.methods.base import Question
from paretune.methods.units import UnitPicker, check_budget, check_granularity, having_units
from paretune.methods.warm import Warm
from paretune.selection import Granularity, Selection, unit_bound

Within = Literal["blocks", "all"]
Share = Literal["even", "scaled", "global"]
LOW_RATES = (5e-5, 2e-4, 5e-4, 1.5e-3)
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Ranking(Warm):
    """Settings shared by the methods that rank weights.

    Args:
        reading: ``robust``, our default: ``within="blocks"``, ``share="even"``, ``power=0.25``; or
            ``published``, FISH Mask's own: ``within="all"``, ``share="global"``, ``power=0``, which stands
            for the largest scores. A setting given beside it wins.
        within: ``blocks``: only the matrices of the model's blocks compete (all, where these hold less than
            the budget); ``all``: every tensor that may be selected.
        share: ``even``: every tensor gets the same share of its weights; ``scaled``: scores are divided by
            their tensor's mean, then ranked together; ``global``: ranked together as they are.
        power: Weights are drawn without replacement, each with a chance in proportion to its squared-gradient
            score to this power (Efraimidis and Spirakis 2006); 0 takes the largest scores.
        granularity: ``entries``: single weights; or whole units: ``rows``, ``columns`` or ``blocks`` (tiles
            of 16 x 16 of a matrix). A unit scores the sum of its weights' scores: of squared gradients, the
            trace of the unit's Fisher information. Units are compared and drawn by the mean over their
            weights, and taken in order while they fit the budget, which counts weights; one that does not is
            passed over, until no smaller one fits. ``share="even"`` gives every tensor the same share of its
            units.

    ``warm_head`` and ``warm_lr``: see :class:`paretune.methods.warm.Warm`.

    Raises:
        PareError: A setting out of range.
    """

    reading: Literal["robust", "published"] = "robust"
    within: Within | None = None
    share: Share | None = None
    power: float | None = None
    granularity: Granularity = "entries"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_granularity(self.granularity)
        known = {
            "reading": ("robust", "published"),
            "within": (None, "blocks", "all"),
            "share": (None, "even", "scaled", "global"),
        }
        for setting, values in known.items():
            if getattr(self, setting) not in values:
                raise PareError(
                    f"{setting}={getattr(self, setting)!r} is none of {', '.join(filter(None, values))}"
                )
        if self.power is not None and not 0 <= self.power <= 8:
            raise PareError(f"power={self.power} is outside 0 to 8")
        if not self.ranks.power:  # steep weights move the loss ten times as fast: this one's range is lower
            object.__setattr__(self, "learning_rates", LOW_RATES)

    @property
    def ranks(self) -> "Ranks":
        """How scores become a mask under these settings."""
        within, share, power = ("blocks", "even", 0.25) if self.reading == "robust" else ("all", "global", 0)
        return Ranks(
            self.within or within,  # type: ignore[arg-type]
            self.share or share,  # type: ignore[arg-type]
            power if self.power is None else self.power,
            self.granularity,
        )


@dataclass(frozen=True)
class Ranks:
    """How scores become a mask; see :class:`Ranking`."""

    within: Within
    share: Share
    power: float
    granularity: Granularity = "entries"

    def competing(self, question: Question, least: int) -> tuple[Tensor, ...]:
        """The tensors that compete for ``least`` weights or more.

        Raises:
            PareError: As :func:`competing` and, of the budget, :func:`paretune.methods.units.check_budget`.
        """
        tensors = competing(question.candidates, self.within, least, self.granularity)
        check_budget(tensors, self.granularity, question.k)
        return tensors

    def take(self, scores: dict[str, torch.Tensor], k: int, seed: int) -> dict[str, np.ndarray]:
        """The flat indices of ``k`` weights by tensor; of whole units their indices, at most ``k`` weights.

        Args:
            scores: By tensor, squared gradients or like them, none below zero. Overwritten.
            k: How many.
            seed: Of what is left to chance.

        Raises:
            PareError: A score is NaN, or not one unit fits.
        """
        if self.granularity != "entries":
            return self._take_units(scores, k, seed)
        scale = self.scales(scores)
        if self.power:
            for name, values in scores.items():
                self._draw_keys(name, values, seed)
        if self.share != "even":
            return top_k(scores, k, scale=scale)
        counts = even_counts([values.numel() for values in scores.values()], k)
        chosen: dict[str, np.ndarray] = {}
        for (name, values), count in zip(scores.items(), counts, strict=True):
            chosen |= top_k({name: values}, count)
        return chosen

    def _take_units(self, scores: dict[str, torch.Tensor], k: int, seed: int) -> dict[str, np.ndarray]:
        """See :meth:`take`."""
        shapes = {name: tuple(values.shape) for name, values in scores.items()}
        pool = {name: np.arange(unit_bound(name, shape, self.granularity)) for name, shape in shapes.items()}
        sums = []
        for name, values in scores.items():
            found = unit_sums(values, self.granularity).double().cpu().numpy()
            if np.isnan(found).any():
                raise PareError(f"{name}: a score is NaN; look for gradients that overflowed")
            # Scaling comes before the power here, and after it in `scales`: the same.
            sums.append(found / (found.sum() / values.numel() or 1) if self.share == "scaled" else found)
        every = np.concatenate(sums)
        places = self.pick_units(shapes, pool, seed)(np.arange(len(every)), every, k)
        return of_pool(pool, places)

    def scales(self, scores: dict[str, torch.Tensor]) -> dict[str, float] | None:
        """What the keys of each tensor are multiplied by before they are ranked together."""
        if self.share != "scaled":
            return None
        means = {name: float(values.double().mean()) for name, values in scores.items()}
        return {name: mean ** -(self.power or 1) if mean > 0 else 1.0 for name, mean in means.items()}

    def _draw_keys(self, name: str, values: torch.Tensor, seed: int) -> None:
        """Scores to keys ``score^power / e`` with e exponential: the largest are a draw by weight."""
        flat = values.view(-1)
        for start, waits in _waits(name, flat.numel(), seed):
            part = flat[start : start + len(waits)]
            part.pow_(self.power).div_(torch.from_numpy(waits).to(part))

    def pick(self, sizes: Mapping[str, int], pool: Mapping[str, np.ndarray], seed: int) -> "Picker":
        """The same choice among weights whose scores change: what is left to chance stays as it was drawn.

        Args:
            sizes: Number of weights of every tensor of the pool.
            pool: By tensor flat indices, ascending; positions in the pool count through all of them.
            seed: As for :meth:`take`.
        """
        waits = [_waits_of(name, sizes[name], indices, seed) for name, indices in pool.items()]
        owner = np.repeat(np.arange(len(pool)), [len(indices) for indices in pool.values()])
        return Picker(self, np.concatenate(waits), owner, [sizes[name] for name in pool])

    def pick_units(
        self, shapes: Mapping[str, tuple[int, ...]], pool: Mapping[str, np.ndarray], seed: int
    ) -> UnitPicker:
        """As :meth:`pick`, among whole rows, columns or blocks.

        Args:
            shapes: Of every tensor of the pool.
            pool: By tensor indices of units, ascending.
            seed: As for :meth:`take`.
        """
        parts = [Selection(name, shapes[name], self.granularity, indices) for name, indices in pool.items()]
        waits = [_waits_of(s.tensor, s.bound, pool[s.tensor], seed) for s in parts]
        return UnitPicker(
            even=self.share == "even",
            power=self.power,
            waits=np.concatenate(waits),
            owner=np.repeat(np.arange(len(parts)), [len(indices) for indices in pool.values()]),
            sizes=np.concatenate([part.sizes for part in parts]),
            units=np.array([part.bound for part in parts]),
            weights=sum(part.numel for part in parts),
        )


@dataclass(frozen=True)
class Picker:
    """Chooses again and again among the weights of a pool.

    Attributes:
        ranks: How.
        waits: The exponential number of each weight of the pool.
        owner: The number of each weight's tensor.
        sizes: Weights of each tensor.
    """

    ranks: Ranks
    waits: np.ndarray
    owner: np.ndarray
    sizes: list[int]

    def __call__(self, among: np.ndarray, scores: np.ndarray, count: int) -> np.ndarray:
        """Which of some positions stay.

        Args:
            among: Positions in the pool (m,), ascending.
            scores: Their scores (m,).
            count: How many stay.

        Returns:
            The positions that stay, ascending.
        """
        keys = scores**self.ranks.power / self.waits[among] if self.ranks.power else scores
        if self.ranks.share != "even":
            return among[largest(keys, count)]
        owner = self.owner[among]
        there = np.bincount(owner, minlength=len(self.sizes)).tolist()
        kept = []
        for number, some in enumerate(even_counts(self.sizes, count, there)):
            mine = np.flatnonzero(owner == number)
            kept.append(mine[largest(keys[mine], some)])
        return among[np.sort(np.concatenate(kept))]


def competing(
    candidates: tuple[Tensor, ...], within: Within, least: int, granularity: Granularity = "entries"
) -> tuple[Tensor, ...]:
    """The candidates that compete for ``least`` weights or more, see ``within`` of :class:`Ranking`.

    Raises:
        PareError: None has units of this granularity.
    """
    candidates = having_units(candidates, granularity)
    inside = tuple(
        tensor
        for tensor in candidates
        if tensor.block is not None and tensor.kind in ("attention", "mlp") and len(tensor.shape) > 1
    )
    enough = sum(tensor.count for tensor in inside) >= least
    return inside if within == "blocks" and enough else candidates


def even_counts(sizes: Sequence[int], k: int, most: Sequence[int] | None = None) -> list[int]:
    """``k`` shared out in proportion to sizes: whole numbers, the largest remainders first.

    Args:
        sizes: What it is in proportion to.
        k: At most the sum of ``most``.
        most: The largest count of each; the sizes when None.
    """
    total, most = sum(sizes), sizes if most is None else most
    counts = [min(k * size // total, end) for size, end in zip(sizes, most, strict=True)]
    order = sorted(range(len(sizes)), key=lambda i: -(k * sizes[i] % total))
    while sum(counts) < k:
        for i in order:
            if counts[i] < most[i] and sum(counts) < k:
                counts[i] += 1
    return counts


def _waits_of(name: str, size: int, indices: np.ndarray, seed: int) -> np.ndarray:
    """The exponential numbers of some of a tensor's weights (flat indices, ascending)."""
    found = np.empty(len(indices), dtype=np.float32)
    for start, waits in _waits(name, size, seed):
        low, high = np.searchsorted(indices, [start, start + len(waits)])
        found[low:high] = waits[indices[low:high] - start]
    return found


def _waits(name: str, size: int, seed: int) -> Iterator[tuple[int, np.ndarray]]:
    """Exponential numbers (float32) for a tensor's weights, chunk by chunk: (start, numbers)."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    for start in range(0, size, _CHUNK):
        waits = rng.standard_exponential(min(_CHUNK, size - start), dtype=np.float32)
        yield start, np.maximum(waits, np.float32(1e-30))
