"""Plans kept in a folder: what a candidate chose under a seed is chosen once, by whichever process."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from paretune.delta import delta_bytes
from paretune.files import write_atomic
from paretune.plan import Plan


@dataclass(frozen=True)
class Kept:
    """A plan on the shelf.

    Args:
        plan: The plan.
        folder: Its folder below the shelf's.
        delta_bytes: Of its delta, at most.
        seconds: Wall seconds that choosing it took, then.
    """

    plan: Plan
    folder: str
    delta_bytes: int
    seconds: float


@dataclass(frozen=True)
class Shelf:
    """A folder of plans that every process of a front reads and writes.

    Args:
        folder: Holds one folder a plan, named by its digest, and ``index``.
        delta_dtype: Of the values that its plans ship; None takes the base's.
    """

    folder: Path
    delta_dtype: torch.dtype | None = None

    def get(self, key: str, make: Callable[[], Plan]) -> Kept:
        """The plan of a key; made now when it is not there.

        Raises:
            PareError: As ``make``.
        """
        index = self.folder / "index" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
        if index.exists():
            entry = json.loads(index.read_text())
            folder = entry["plan"]
            return Kept(Plan.load(self.folder / folder), folder, entry["delta_bytes"], entry["seconds"])
        start = time.perf_counter()
        plan = make()
        seconds = time.perf_counter() - start
        folder = plan.digest[:24]
        plan.save(self.folder / folder)
        size = delta_bytes(plan, self.delta_dtype)
        entry = {"key": key, "plan": folder, "delta_bytes": size, "seconds": seconds}
        write_atomic(index, json.dumps(entry))
        return Kept(plan, folder, size, seconds)
