"""Successive halving over the steps of a training: how many candidates, rates, shares and seeds."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from paretune.search.schedule import Cost


@dataclass(frozen=True)
class Ladder:
    """Three rungs: every rate of every candidate, the better half, the finalists.

    Args:
        rates: How many learning rates a candidate has on the first rung, at most.
        first: Share of the steps there.
        carried: How many of its rates a candidate of the better half takes to the second rung.
        second: Share of the steps there; 0 leaves it out.
        finalists: How many go to the last rung, beside the references.
        seeds: Of every finalist and reference, at least.
        last: Share of the steps there.
    """

    rates: int
    first: float
    carried: int
    second: float
    finalists: int
    seeds: int
    last: float = 1.0

    def cost(self, rates: Sequence[int], references: int) -> Cost:
        """Trials and whole trainings that it takes.

        Args:
            rates: How many learning rates each candidate has.
            references: How many of the candidates are references.
        """
        looks = sum(min(count, self.rates) for count in rates)
        survivors = self.survivors(len(rates), references) if self.second else 0
        seconds = survivors * self.carried
        finals = (min(self.finalists, len(rates) - references) + references) * self.seeds
        return (
            Cost(looks, looks * self.first)
            + Cost(seconds, seconds * self.second)
            + Cost(finals, finals * self.last)
        )

    def survivors(self, candidates: int, references: int) -> int:
        """How many candidates the second rung has, references included: all of these, half of the others."""
        others = candidates - references
        return min(others, max(self.finalists, -(-others // 2))) + references

    def document(self) -> dict[str, Any]:
        """The ladder as JSON."""
        return asdict(self)


# From generous to meagre; the first that is affordable is taken. Fewer rates come before shorter looks: after
# a sixteenth of the steps most candidates still answer by chance, and what is let go then, by chance too.
FRONT_LADDERS = (
    Ladder(4, 1 / 4, 2, 1 / 2, 4, 3),
    Ladder(4, 1 / 4, 2, 1 / 2, 3, 3),
    Ladder(4, 1 / 4, 1, 1 / 2, 3, 3),
    Ladder(3, 1 / 4, 2, 1 / 2, 3, 3),
    Ladder(3, 1 / 4, 1, 1 / 2, 3, 3),
    Ladder(2, 1 / 4, 1, 1 / 2, 3, 3),
    Ladder(2, 1 / 4, 1, 1 / 2, 2, 3),
    Ladder(2, 1 / 4, 1, 1 / 2, 2, 2),
    Ladder(2, 1 / 8, 1, 1 / 4, 2, 3),
    Ladder(2, 1 / 16, 1, 1 / 4, 2, 2),
    Ladder(1, 1 / 4, 1, 1 / 2, 2, 2),
    Ladder(1, 1 / 8, 1, 1 / 4, 2, 2),
    Ladder(1, 1 / 16, 1, 1 / 8, 2, 1),
    Ladder(1, 1 / 16, 0, 0.0, 1, 1),
)
# Of a choice that ends in one training. There are tasks on which nobody does better than chance before the
# steps are nearly over, so three candidates are compared at all of them before rates are tried for longer.
AUTO_LADDERS = (
    Ladder(4, 1 / 4, 2, 1 / 2, 3, 1),
    Ladder(2, 1 / 4, 0, 0.0, 3, 1),
    Ladder(2, 1 / 8, 0, 0.0, 3, 1),
    Ladder(1, 1 / 8, 0, 0.0, 3, 1),
    Ladder(2, 1 / 8, 0, 0.0, 2, 1),
    Ladder(2, 1 / 8, 0, 0.0, 2, 1, 1 / 2),
    Ladder(2, 1 / 16, 0, 0.0, 2, 1, 1 / 4),
    Ladder(1, 1 / 16, 0, 0.0, 1, 1, 1 / 8),
)


def affordable(
    ladders: Iterable[Ladder],
    rates: Sequence[int],
    references: int,
    fits: Callable[[Cost], bool],
    seeds: int,
) -> Ladder | None:
    """The first ladder whose cost fits; None when there is none.

    Args:
        ladders: From generous to meagre.
        rates: How many learning rates each candidate has.
        references: How many of the candidates are references.
        fits: Whether a cost is within all limits.
        seeds: Wanted at least of finalists where a ladder has three, and at most of the others.
    """
    for ladder in ladders:
        wanted = seeds if ladder.seeds >= 3 else min(seeds, ladder.seeds)
        ladder = Ladder(**{**asdict(ladder), "seeds": wanted})
        if fits(ladder.cost(rates, references)):
            return ladder
    return None


def middle_first(rates: Sequence[float], count: int) -> list[float]:
    """At most so many of the rates, from the middle of the range outwards."""
    middle = len(rates) // 2
    order = sorted(range(len(rates)), key=lambda place: (abs(place - middle), -place))
    return [rates[place] for place in order[:count]]
