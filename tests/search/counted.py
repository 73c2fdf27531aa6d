"""A cheap objective for the tests of the search; it imports little, so that worker processes start fast."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paretune.errors import PareError
from paretune.search.jobs import Scored

BEST = {
    "rate": "0.01",
    "grouping": "spindle",
    "allocation": "decreasing",
    "tuned": "1+2",
    "group 1": "adapter+lora",
    "group 2": "bias",
}


@dataclass(frozen=True)
class Counted:
    """A score that says how much of a point is as in `BEST`, with noise by seed; each call leaves a line.

    Args:
        log: File that every call is written to.
        noise: Of the score, the same for every point under a seed unless `own`.
        own: Whether each point has noise of its own.
        seconds: That a call takes.
        deadly: The n-th call ends its process; 0 for none, -1 for every call.
        bad: Options that diverge.
    """

    log: Path
    noise: float = 0.0
    own: bool = False
    seconds: float = 0.0
    deadly: int = 0
    bad: tuple[str, ...] = ()
    refused: str = ""

    def __call__(self, spec):
        point, share, seed = spec["point"], spec["share"], spec["seed"]
        with self.log.open("a") as file:
            file.write(f"{os.getpid()} {sorted(point.items())} {share:g} {seed}\n")
        if self.refused and self.refused in point.values():
            raise PareError(f"{self.refused} cannot be trained; leave it out")
        time.sleep(self.seconds * share)
        if self.deadly in (-1, len(self.log.read_text().splitlines())):
            os.kill(os.getpid(), signal.SIGKILL)
        if set(self.bad) & set(point.values()):
            return Scored(None, 0.1, 0.1, "the training loss is nan; use a smaller --lr")
        entropy = [seed, *(str(sorted(point.items())) * self.own).encode()]
        noise = float(np.random.default_rng(entropy).normal(0, self.noise)) if self.noise else 0.0
        score = sum(point.get(name) == option for name, option in BEST.items()) / len(BEST)
        return Scored(score + noise, 0.02 + 0.1 * share, 0.1 * share, loss=-score)
