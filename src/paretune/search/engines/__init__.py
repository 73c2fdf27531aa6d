"""Who runs trials: this process, several of this machine; one line an engine."""

from paretune.errors import PareError, near
from paretune.search.engines.base import ATTEMPTS, Desk, Engine
from paretune.search.engines.here import Here
from paretune.search.engines.workers import Workers
from paretune.search.jobs import Objective

ENGINES: dict[str, type[Here] | type[Workers]] = {"here": Here, "workers": Workers}

__all__ = ["ATTEMPTS", "ENGINES", "Desk", "Engine", "Here", "Workers", "make_engine"]


def make_engine(objective: Objective, name: str | None = None, workers: int = 1) -> Engine:
    """An engine by name.

    Args:
        objective: What a trial is.
        name: One of ``ENGINES``; None takes this process for one trial at a time, else worker processes.
        workers: Trials at a time.

    Raises:
        PareError: There is no such engine, or it cannot run so many at a time.
    """
    name = name or ("here" if workers == 1 else "workers")
    if name not in ENGINES:
        raise PareError(f"--engine {name}: there are {', '.join(ENGINES)}{near(name, ENGINES)}")
    return ENGINES[name](objective, workers)
