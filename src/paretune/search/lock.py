"""A folder that one process works in at a time."""

import fcntl
import os
from pathlib import Path
from typing import Self

from paretune.errors import PareError


class Lock:
    """A file that this process holds; the system frees it after a kill, whoever closes it removes it.

    The folders above it are made where they are absent, and go again with it when nothing came into them.

    Args:
        path: The file.
        doing: What the process that holds it does there, such as ``searching``.

    Raises:
        PareError: Another process holds it, or the file system has no locks.
    """

    def __init__(self, path: Path, doing: str) -> None:
        self._path = path
        self._made = [folder for folder in path.parents if not folder.exists()]
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = path.open("w")
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._handle.close()
                raise PareError(
                    f"{path.parent}: another process is {doing} here; wait for it, or give another --out"
                ) from None
            except OSError as problem:
                self.close()
                raise PareError(
                    f"{path.parent}: nothing can be locked on this file system ({problem}); "
                    "give an --out on another"
                ) from problem
            if self._is_at_its_path():
                return
            self._handle.close()  # who had it removed the file between the opening and the locking

    def _is_at_its_path(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._handle.fileno()), self._path.stat())
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Let another process have it."""
        if self._handle.closed:
            return
        self._path.unlink(missing_ok=True)
        self._handle.close()
        for folder in self._made:
            try:
                folder.rmdir()
            except OSError:  # something came into it
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
