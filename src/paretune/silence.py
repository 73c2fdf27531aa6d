"""Keep C code from printing where only the result of a command may stand."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STDOUT = 1


@contextmanager
def c_silent() -> Iterator[None]:
    """What C code prints to stdout in the block goes nowhere; what was printed before is not lost."""
    library = ctypes.CDLL("ucrtbase" if os.name == "nt" else None)
    sys.stdout.flush()
    library.fflush(None)
    kept = os.dup(_STDOUT)
    try:
        with Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), _STDOUT)
        yield
    finally:
        library.fflush(None)  # it waits in a buffer of C's own
        os.dup2(kept, _STDOUT)
        os.close(kept)
