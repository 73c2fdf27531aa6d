"""A cheap objective for the tests of races; it imports little, so that worker processes start fast."""

import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from paretune.errors import PareError
from paretune.search.jobs import Scored

GOOD = {"fish": 0.9, "random": 0.8, "lora": 0.7, "adapter": 0.6, "head": 0.3, "full": 0.85}
TRAINED = {"head": 0, "lora": 90, "adapter": 95, "random": 100, "fish": 100, "full": 20000}


@dataclass(frozen=True)
class Planted:
    """A score by method, less for another rate than the planted one, with noise; each call leaves a line.

    Args:
        log: File that every call is written to.
        rate: Place of each method's best rate among its own, from the lowest.
        noise: Of the score, by method and seed.
        seconds: That a whole training takes.
        deadly: A call for this method ends its process.
        bad: By method, what its trials fail with.
        impossible: By method, why it cannot be.
        refused: By method, a refusal.
        good: By method, its score.
        fails: By (method, share, seed), a cause and details.
    """

    log: Path
    rates: dict[str, float] = field(default_factory=dict)
    noise: float = 0.0
    seconds: float = 0.0
    deadly: str = ""
    once: bool = False
    bad: dict[str, str] = field(default_factory=dict)
    impossible: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    good: dict[str, float] = field(default_factory=lambda: GOOD)
    fails: dict[tuple, tuple] = field(default_factory=dict)

    def __call__(self, spec):
        method, lr, share, seed = (spec[name] for name in ("method", "lr", "share", "seed"))
        with self.log.open("a") as file:
            file.write(f"{os.getpid()} {spec['candidate']}|{lr:g}|{share:g}|{seed}\n")
        time.sleep(self.seconds * share)
        if method == self.deadly and not (self.once and len(calls(self.log, method)) > 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if method in self.refused:
            raise PareError(self.refused[method])
        if method in self.impossible:
            return Scored(None, 0.01, 0.0, self.impossible[method], details={"impossible": True})
        if (method, share, seed) in self.fails:
            failed, more = self.fails[method, share, seed]
            return Scored(None, 0.01, 0.01, failed, details=more)
        details = {
            "plan": method,
            "trained": TRAINED[method],
            "head": 2,
            "delta_bytes": 4 * TRAINED[method] + 100,
            "peak_bytes": 1000 + TRAINED[method],
            "step_seconds": 0.1,
            "steps": 10,
            "scores": {},
            "losses": [[1, 0.5]],
        }
        if method in self.bad:
            return Scored(None, 0.01, 0.01, self.bad[method], details=details)
        off = abs(np.log10(lr / self.rates[method])) if method in self.rates else 0.0
        entropy = [seed, *method.encode()]
        noise = float(np.random.default_rng(entropy).normal(0, self.noise)) if self.noise else 0.0
        score = self.good[method] * (0.5 + share / 2) - 0.1 * off + noise
        return Scored(score, 0.01 + 0.1 * share, 0.1 * share, loss=1 - score, details=details)


def calls(log, method=""):
    """What was trained, without the process that did it."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [line.partition(" ")[2] for line in lines if method in line]
