"""Cores shared out over trials that run at the same time."""

import os

import torch

from paretune.search.engines import Cluster


def threads_of(workers: int, engine: str | Cluster | None = None) -> int | None:
    """Threads of each of several trials at a time; None, which leaves them as they are, for one here."""
    if engine == "ray":
        engine = Cluster()
    if isinstance(engine, Cluster):
        return engine.threads
    return None if workers == 1 else max(1, min(torch.get_num_threads(), (os.cpu_count() or 1) // workers))
