"""Size of a delta on disk, and time to swap one for another in memory, on the built-in encoder.

    python -m benchmarks.delta --quick

The last line is JSON. `bytes_per_weight` is the whole file over all weights in it, for a random 0.5 % of
all weights with bf16 values; `swap_ms` reverts one such delta and applies another; `swap_vs_full_copy` is
that time over the time to copy a whole checkpoint into the model (what swapping without deltas takes), in
turns on one thread; `revert_bit_exact` says that the base has its digest again, in fp32 and in bf16.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoModel
from transformers.utils import logging

from benchmarks.machine import builtin_encoder, describe
from paretune.anatomy import base_digest
from paretune.delta import Delta, Values
from paretune.plan import Base

SHARES = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02)
SHARE = 0.005


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions (under 60 s)")
    options = parser.parse_args()
    repetitions = 30 if options.quick else 200
    torch.set_num_threads(1)  # copies this small only wait for a second thread

    model = load()
    sizes = {f"{share:.2%}": file_size(random_delta(model, share, 0)) for share in SHARES}
    for share, size in sizes.items():
        print(f"{share:>6} of the weights: {size:.2f} bytes a weight")
    times = swap_times(model, repetitions)
    for name, milliseconds in times.items():
        print(f"{name:<10} {milliseconds:8.2f} ms")
    exact = all(comes_back(load().to(dtype)) for dtype in (torch.float32, torch.bfloat16))
    print(f"the base comes back bit for bit: {exact}")
    result = {
        "bytes_per_weight": round(sizes[f"{SHARE:.2%}"], 4),
        "bytes_per_weight_at": {share: round(size, 4) for share, size in sizes.items()},
        "swap_ms": round(times["swap"], 3),
        "full_copy_ms": round(times["full copy"], 3),
        "swap_vs_full_copy": round(times["swap"] / times["full copy"], 4),
        "save_ms": round(times["save"], 3),
        "load_ms": round(times["load"], 3),
        "revert_bit_exact": exact,
        "machine": describe(),
    }
    print(json.dumps(result))


def load() -> nn.Module:
    """The encoder that comes as a package, in fp32."""
    logging.disable_progress_bar()
    return AutoModel.from_pretrained(builtin_encoder())


def random_delta(model: nn.Module, share: float, seed: int, dtype: torch.dtype = torch.bfloat16) -> Delta:
    """Random values at random places, drawn over all weights (the few drawn twice count once)."""
    parameters = dict(model.named_parameters())
    total = sum(parameter.numel() for parameter in parameters.values())
    rng = np.random.default_rng(seed)
    flat = np.unique(rng.integers(0, total, int(total * share)))
    starts = np.cumsum([0, *(parameter.numel() for parameter in parameters.values())])
    tensors = {}
    for (name, parameter), start, end in zip(parameters.items(), starts, starts[1:], strict=False):
        places = flat[np.searchsorted(flat, start) : np.searchsorted(flat, end)] - start
        if len(places):
            values = torch.from_numpy(rng.standard_normal(len(places))).to(dtype)
            tensors[name] = Values(tuple(parameter.shape), "entries", places, values)
    precision = str(next(model.parameters()).dtype).removeprefix("torch.")
    return Delta(
        base=Base("sentence-transformers/all-MiniLM-L6-v2", base_digest(model, ()), precision),
        plan_digest=f"{seed:064x}",
        task={"kind": "classification", "labels": ["no", "yes"], "text": ["sentence1", "sentence2"]},
        tensors=tensors,
        info={"method": "random", "seed": seed, "scores": {"f1": 0.8275, "accuracy": 0.7402}},
    )


def file_size(delta: Delta) -> float:
    """Bytes of the file for each weight in it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "delta.safetensors"
        delta.save(path)
        return path.stat().st_size / delta.count


def swap_times(model: nn.Module, repetitions: int) -> dict[str, float]:
    """Median milliseconds, measured in turns."""
    deltas = [random_delta(model, SHARE, seed) for seed in (0, 1)]
    checkpoints = [{name: t.clone() for name, t in model.state_dict().items()} for _ in deltas]
    other = load()
    applied = deltas[0].apply(model)
    seconds: dict[str, list[float]] = {"swap": [], "full copy": [], "save": [], "load": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "delta.safetensors"
        for turn in range(repetitions):
            start = time.perf_counter()
            applied.revert()
            applied = deltas[(turn + 1) % 2].apply(model)
            seconds["swap"].append(time.perf_counter() - start)
            seconds["save"].append(timed(lambda: deltas[0].save(path)))
            seconds["load"].append(timed(lambda: Delta.load(path)))
            state = checkpoints[turn % 2]
            seconds["full copy"].append(timed(lambda state=state: other.load_state_dict(state)))
    applied.revert()
    return {name: 1000 * statistics.median(values) for name, values in seconds.items()}


def timed(action: Callable[[], object]) -> float:
    """Seconds that an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def comes_back(model: nn.Module) -> bool:
    """Whether three overlapping deltas, reverted out of order, leave the base's digest."""
    before = base_digest(model, ())
    dtype = next(model.parameters()).dtype
    applied = [random_delta(model, 0.02, seed, dtype) for seed in range(3)]
    handles = [delta.apply(model) for delta in applied]
    changed = base_digest(model, ()) != before
    for turn in (1, 0, 2):
        handles[turn].revert()
    return changed and base_digest(model, ()) == before


if __name__ == "__main__":
    main()
