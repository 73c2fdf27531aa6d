"""How many trials a cluster's nodes have room for."""

from collections.abc import Mapping, Sequence
from typing import Any

from paretune.errors import PareError
from paretune.search.engines.cluster import Cluster

_ROUNDING = 1e-6  # three times a third of a GPU is one


def refuse_without_room(nodes: Sequence[Mapping[str, Any]], cluster: Cluster, workers: int) -> None:
    """Refuse more trials at a time than all nodes have room for, were they free.

    Args:
        nodes: As ``ray.nodes`` gives them.
        cluster: What each trial holds.
        workers: Trials at a time.

    Raises:
        PareError: There is too little room.
    """
    alive = [node for node in nodes if node["Alive"]]
    rooms = sum(_rooms(node["Resources"], cluster) for node in alive)
    if rooms >= workers:
        return
    found = ", ".join(_said(node) for node in alive)
    if not rooms:
        raise PareError(
            f"no node of the cluster has {cluster} ({found}); give a smaller --trial-cpus or --trial-gpus, "
            "or start larger nodes"
        )
    raise PareError(
        f"--workers {workers}: the cluster has room for {rooms} at {cluster} ({found}); give "
        f"--workers {rooms}, a smaller --trial-cpus or --trial-gpus, or start more nodes"
    )


def _rooms(resources: Mapping[str, float], cluster: Cluster) -> int:
    rooms = resources.get("CPU", 0.0) / cluster.cpus
    if cluster.gpus:
        rooms = min(rooms, resources.get("GPU", 0.0) / cluster.gpus)
    return int(rooms + _ROUNDING)


def _said(node: Mapping[str, Any]) -> str:
    gpus = node["Resources"].get("GPU", 0)
    return f"{node['NodeManagerAddress']}: {node['Resources'].get('CPU', 0):g} CPU" + (
        f" {gpus:g} GPU" if gpus else ""
    )
