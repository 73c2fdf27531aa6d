"""How much memory was needed."""

import resource
import sys

import torch


def peak_bytes() -> int:
    """Peak memory so far: of the CUDA device when one is in use, else of this process (resident set).

    The peak of a process covers everything it did, so a figure to compare is taken in a process of its own.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
