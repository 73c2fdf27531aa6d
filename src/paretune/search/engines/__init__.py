"""Who runs trials: this process, several of this machine, the nodes of a Ray cluster."""

from paretune.errors import PareError, near
from paretune.search.engines.base import ATTEMPTS, Desk, Engine
from paretune.search.engines.cluster import Cluster
from paretune.search.engines.here import Here
from paretune.search.engines.workers import Workers
from paretune.search.jobs import Objective

ENGINES = ("here", "workers", "ray")

__all__ = ["ATTEMPTS", "ENGINES", "Cluster", "Desk", "Engine", "Here", "Workers", "make_engine"]


def make_engine(objective: Objective, engine: str | Cluster | None = None, workers: int = 1) -> Engine:
    """An engine.

    Args:
        objective: What a trial is.
        engine: One of ``ENGINES``, or a cluster; None takes this process for one trial at a time, else
            worker processes.
        workers: Trials at a time.

    Raises:
        PareError: There is no such engine, or it cannot run so many at a time.
    """
    name = engine or ("here" if workers == 1 else "workers")
    if isinstance(name, Cluster) or name == "ray":
        from paretune.search.engines.ray import Ray

        return Ray(objective, workers, name if isinstance(name, Cluster) else None)
    if name == "here":
        return Here(objective, workers)
    if name == "workers":
        return Workers(objective, workers)
    raise PareError(f"--engine {name}: there are {', '.join(ENGINES)}{near(name, ENGINES)}")
