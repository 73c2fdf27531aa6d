"""A Ray cluster of several nodes on this machine, for the tests, and what runs on it.

It imports little, so that the nodes' workers start fast.
"""

import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.search.planted import Planted

ROOT = Path(__file__).parents[2]
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_METRICS_COLLECTION": "0"}
SMALL = {"object_store_memory": 80 * 2**20}


@contextmanager
def ray_nodes(nodes):
    """A head that runs no trials, and nodes with a core each."""
    before = dict(os.environ)
    # Objectives of the tests are imported on the nodes.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    os.environ.update(SETTINGS)
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=0, include_dashboard=False, **SMALL)
        for _ in range(nodes):
            cluster.add_node(num_cpus=1, **SMALL)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def more(cluster, cpus=1, gpus=0):
    """One more node for a while; its GPUs are a number only."""
    node = cluster.add_node(num_cpus=cpus, num_gpus=gpus, **SMALL)
    try:
        yield
    finally:
        if node in cluster.worker_nodes:
            cluster.remove_node(node, allow_graceful=False)


def kill(cluster):
    """End a node as a power cut would: its workers go with it."""
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)


class Broken(Planted):
    """Fails as only a mistake in the code does."""

    def __call__(self, spec):
        if spec["method"] == "random":
            raise TypeError("no such thing")
        return super().__call__(spec)


@dataclass(frozen=True)
class InFolders(Planted):
    """Needs folders."""

    reads: tuple = ()
    writes: tuple = ()


class Sees(Planted):
    """Notes which GPUs it may use."""

    def __call__(self, spec):
        with self.log.with_suffix(".gpus").open("a") as file:
            file.write(f"{os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
        return super().__call__(spec)
