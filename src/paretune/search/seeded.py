"""The model that trials of one seed share: they give it back bit-equal."""

from typing import Any

import torch
from torch import nn

from paretune.progress import set_quiet
from paretune.task import Task


class SeededModel:
    """A task's model with a seeded head, loaded when it is first asked for; pickled without it.

    Args:
        task: Loads it.
        dtype: Of the base.
        threads: Of this process, and no progress bars: it is one of several. None leaves both alone.
    """

    def __init__(self, task: Task, dtype: torch.dtype, threads: int | None = None) -> None:
        self._task, self._dtype, self._threads = task, dtype, threads
        self._held: tuple[int, nn.Module] | None = None

    def of(self, seed: int) -> nn.Module:
        """The model of a seed; another seed's is let go first, so that there are never two."""
        if self._threads is not None:
            torch.set_num_threads(self._threads)
            set_quiet(True)
        if self._held is None or self._held[0] != seed:
            self._held = None
            self._held = (seed, self._task.load_model(seed=seed, dtype=self._dtype))
        return self._held[1]

    def drop(self) -> None:
        """Load it anew next time: a trial broke it."""
        self._held = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_held": None}
