"""Random designs with common random numbers: what every option of a stage is tried with."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from paretune.errors import PareError
from paretune.search.space import Point, Space

LOOKED_AT = 40  # random designs by which an option is judged possible
SELDOM = 0.05  # an option that fits the budget in fewer of them is left out
TRIES = 400  # random designs looked at until one fits with every option


@dataclass(frozen=True)
class Draw:
    """One random rest of a design, with the seed of its trials; the same for every option."""

    number: int
    seed: int
    rest: Point


@dataclass(frozen=True)
class Draws:
    """The random designs of a search.

    Args:
        space: Where they are drawn from.
        refusal: Why a point cannot be made within the budget; None when it can.
        seed: Of all of them.
    """

    space: Space
    refusal: Callable[[Point], str | None]
    seed: int

    def options(
        self, stage: int, component: str, settled: Mapping[str, str]
    ) -> tuple[list[str], dict[str, str]]:
        """The options that designs can be made with, and why not with the others.

        Raises:
            PareError: There is none.
        """
        generator = np.random.default_rng([self.seed, stage, 0])
        rests = [{**self.space.draw(generator), **settled} for _ in range(LOOKED_AT)]
        options: list[str] = []
        dropped: dict[str, str] = {}
        for option in self.space.components[component]:
            refused = [reason for rest in rests if (reason := self.refusal({**rest, component: option}))]
            if len(refused) > (1 - SELDOM) * LOOKED_AT:
                dropped[option] = refused[-1]
            else:
                options.append(option)
        if not options:
            raise PareError(f"no design of this space can be made: {next(iter(dropped.values()))}")
        return options, dropped

    def rests(
        self, stage: int, component: str, settled: Mapping[str, str], options: Sequence[str]
    ) -> Iterator[Draw]:
        """Random rests that can be made with every option, without end; draw i is always the same.

        Raises:
            PareError: None is found.
        """
        number = 0
        while True:
            generator = np.random.default_rng([self.seed, stage, 1 + number])
            seed = int(generator.integers(2**31))
            yield Draw(number, seed, self._rest(generator, component, settled, options))
            number += 1

    def _rest(
        self,
        generator: np.random.Generator,
        component: str,
        settled: Mapping[str, str],
        options: Sequence[str],
    ) -> Point:
        reason: str | None = None
        for _ in range(TRIES):
            rest = {**self.space.draw(generator), **settled}
            refusals = (self.refusal({**rest, component: option}) for option in options)
            reason = next((why for why in refusals if why), None)
            if reason is None:
                return rest
        raise PareError(
            f"no random design fits the budget with every choice of {component}; the last one: {reason}"
        )
