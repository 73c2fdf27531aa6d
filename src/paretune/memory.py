"""How much memory was needed."""

import contextlib
import ctypes
import resource
import sys
from pathlib import Path

import torch

from paretune.ranks import device

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_PEAK_AGAIN = "5"  # what Linux takes as: the peak starts from what is resident now


def peak_bytes() -> int:
    """Peak memory since the start or :func:`reset_peak`: of the CUDA device, else of this process (RSS)."""
    if device().type == "cuda":
        return torch.cuda.max_memory_allocated()
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak() -> None:
    """Let the peak start from what is held now, after what is free was given back to the system.

    Where the system cannot (macOS, a kernel that forbids it), the peak goes on counting from the start of
    the process, and a figure to compare is taken in a process of its own.
    """
    if device().type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc keeps what it keeps
        ctypes.CDLL(None).malloc_trim(0)
    if _CLEAR.exists():
        with contextlib.suppress(OSError):
            _CLEAR.write_text(_PEAK_AGAIN)
