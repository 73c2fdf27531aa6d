"""One thread for the tests and for the processes they start: tiny models are fastest so."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for child processes

import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # where a plugin has imported torch already
