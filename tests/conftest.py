"""One thread for the tests and for the processes they start: tiny models are fastest so."""

import gc
import os
import sys

import hypothesis

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for child processes

if "torch" in sys.modules:  # a plugin was first
    sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_collection_finish():
    """Tell the garbage collector that imports stay: each training ends with a search of all that lives."""
    gc.collect()
    gc.freeze()


# An example that takes long on a busy machine is no failure.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")
