"""The options of who runs trials."""

import importlib
from argparse import Namespace

from paretune.errors import PareError
from paretune.search.engines import Cluster

_OF_RAY = ("address", "trial_cpus", "trial_gpus")


def engine_of(options: Namespace) -> str | Cluster | None:
    """The engine that was asked for; a cluster must answer now, before work is spent.

    Raises:
        PareError: It does not, or options of a cluster were given without one.
    """
    given = {name: getattr(options, name) for name in _OF_RAY if getattr(options, name) is not None}
    if options.engine != "ray":
        for name in given:
            raise PareError(f"--{name.replace('_', '-')} goes with --engine ray")
        return options.engine
    _require_ray()
    cluster = Cluster(**{name.removeprefix("trial_"): value for name, value in given.items()})
    cluster.probe()
    return cluster


def _require_ray() -> None:
    """Refuse where Ray is not installed.

    Raises:
        PareError: It is not.
    """
    importlib.import_module("paretune.search.engines.ray")
