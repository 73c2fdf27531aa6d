"""The folder of one ``tune`` run: what was asked, whether it is finished, and what it goes on with."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paretune.errors import PareError
from paretune.files import write_atomic
from paretune.ranks import is_first, rank
from paretune.search.lock import Lock

REQUEST, RATE, RESULT, LOCK = "request.json", "lr.json", "result.json", "tune{}.lock"


class RunFolder:
    """A run folder and the request that it is for.

    Args:
        path: The folder.
        request: What was asked (JSON); a folder that holds another run is refused.
        beside: Names that may be in the folder before the run is.
    """

    def __init__(self, path: Path, request: dict[str, Any], beside: Sequence[str] = ()) -> None:
        self.path = path
        self._request: dict[str, Any] = json.loads(json.dumps(request))
        self._beside = beside

    @contextmanager
    def held(self) -> Iterator[dict[str, Any] | None]:
        """Keep other processes out; gives the result where the run is finished, else None.

        Nothing is left of a folder into which nothing was written meanwhile.

        Raises:
            PareError: The folder holds another run, or something else, or another process is training there.
        """
        finished = self._result()
        if finished is not None:
            yield finished
            return
        # The processes of one distributed run share the folder.
        with Lock(self.path / LOCK.format(rank() or ""), "training"):
            yield self._result()  # it may have come to its end in between

    def _result(self) -> dict[str, Any] | None:
        if not (self.path / REQUEST).exists():
            locks = {path.name for path in self.path.glob(LOCK.format("*"))}
            if self.path.exists() and {entry.name for entry in self.path.iterdir()} - locks - {*self._beside}:
                raise PareError(f"{self.path} is not empty and holds no run; give another --out")
            return None
        before = json.loads((self.path / REQUEST).read_text())
        differing = sorted(key for key in self._request if before.get(key) != self._request[key])
        if differing:
            key = differing[0]
            raise PareError(
                f"{self.path} holds another run ({key} was {before.get(key)!r}, now {self._request[key]!r}); "
                "give another --out, or remove that folder"
            )
        result = self.path / RESULT
        return json.loads(result.read_text()) if result.exists() else None

    def begin(self) -> None:
        """Write down what was asked."""
        if is_first():
            write_atomic(self.path / REQUEST, json.dumps(self._request, indent=1, sort_keys=True))

    def rate(self, find: Callable[[], float]) -> float:
        """The learning rate of the run, found once.

        An update may bring other defaults; a run that was interrupted goes on as it began.

        Args:
            find: Finds it, where none is kept in the folder.
        """
        path = self.path / RATE
        if path.exists():
            return json.loads(path.read_text())["lr"]
        lr = find()
        if is_first():
            write_atomic(path, json.dumps({"lr": lr}))
        return lr

    def finish(self, result: dict[str, Any]) -> None:
        """Write the result, and drop the checkpoints; what ``report_to`` wrote beside them is kept."""
        if not is_first():
            return
        write_atomic(self.path / RESULT, json.dumps(result, indent=1))
        checkpoints, logs = self.path / "checkpoints", self.path / "logs"
        if (checkpoints / "runs").exists():
            shutil.rmtree(logs, ignore_errors=True)
            (checkpoints / "runs").rename(logs)
        shutil.rmtree(checkpoints, ignore_errors=True)
