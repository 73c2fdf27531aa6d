"""What runs trials on a node of a cluster: it holds the objective, and with it the loaded model."""

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paretune.errors import PareError
from paretune.search.jobs import Objective, Scored

COMPARED = ("paretune", "torch", "transformers", "peft", "numpy")


@dataclass(frozen=True)
class About:
    """What a machine has.

    Args:
        node: Its name.
        versions: Of Python and of the packages that scores depend on; empty for a missing one.
        missing: Which of the asked paths it does not see.
    """

    node: str
    versions: dict[str, str]
    missing: tuple[str, ...] = ()


def about(folder: str = ".", paths: Sequence[str] = ()) -> About:
    """What this machine has.

    Args:
        folder: Becomes the working directory where it exists, so that relative paths mean the same.
        paths: That must be here.
    """
    if Path(folder).is_dir():
        os.chdir(folder)
    versions = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for name in COMPARED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = ""
    return About(platform.node(), versions, tuple(path for path in paths if not Path(path).exists()))


class Seat:
    """Runs trials one after the other; an actor of the cluster.

    Args:
        box: Holds the reference of the objective, which is fetched with the first trial: what this node has
            is looked at before.
        gpus: Whether it holds any GPU; Ray hides those of others, but leaves all in sight of who has none.
    """

    def __init__(self, box: Sequence[Any], gpus: bool) -> None:
        if not gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self._box = box
        self._objective: Objective | None = None

    def about(self, folder: str, paths: Sequence[str]) -> About:
        """See :func:`about`."""
        return about(folder, paths)

    def run(self, spec: dict[str, Any]) -> Scored | str:
        """A trial: its result, or why it cannot be done at all."""
        if self._objective is None:
            import ray

            self._objective = ray.get(self._box[0])
        assert self._objective is not None
        try:
            return self._objective(spec)
        except PareError as problem:
            return str(problem)
