"""What the three ways to a gradient at selected entries cost, and whether the cost model picks the cheapest.

``python -m benchmarks.ways`` prints, for fp32 and bf16, the constants of `paretune.tuning.pattern.COSTS` as
measured here, in multiply-adds of a dense product, and for many shapes the time of every way. Its last line
is JSON: `constants`, and `regret`, the time of the ways picked over that of the best ways, over all cases.
"""

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch

from benchmarks.machine import describe
from paretune.selection import Granularity, Selection
from paretune.tuning.pattern import CHUNK, Pattern, Way

WAYS: tuple[Way, ...] = ("dense", "restricted", "sampled")
MATRICES = ((384, 384), (1536, 384), (384, 1536), (2048, 2048))
TOKENS = (256, 1536)
SHARES = (0.0002, 0.001, 0.005, 0.02, 0.05)
UNITS: tuple[Granularity, ...] = ("rows", "columns", "blocks")
UNIT_SHARE = 0.005
DTYPES = (torch.float32, torch.bfloat16)


def seconds(work: Callable[[], Any], repeats: int = 9) -> float:
    """Median processor time of all threads."""
    work()
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def drawn(shape: tuple[int, int], granularity: Granularity, share: float) -> Pattern:
    """The pattern of units drawn uniformly."""
    bound = Selection("w", shape, granularity, np.arange(0)).bound
    count = max(1, round(share * bound))
    chosen = np.sort(np.random.default_rng(0).choice(bound, count, replace=False))
    flat = Selection("w", shape, granularity, chosen).flat()
    return Pattern(torch.from_numpy(flat.astype(np.int32)), shape)


def constants(dtype: torch.dtype) -> dict[str, float]:
    """The costs on this machine, from one matrix of 1536 x 384 and 1536 tokens."""
    rows, columns, tokens = 1536, 384, 1536
    left, right = (torch.randn(tokens, size).to(dtype) for size in (rows, columns))
    unit = seconds(lambda: left.t() @ right) / (rows * columns * tokens)
    exact = [part.t().float().contiguous() for part in (left[:CHUNK], right[:CHUNK])]

    def sampled(pattern: Pattern) -> float:
        """Seconds a token of the sampled product alone."""
        entries = torch.sparse_csr_tensor(
            pattern._row_starts,
            pattern._column,
            torch.zeros(pattern.count),
            size=pattern._kept,
            check_invariants=False,
        )
        return seconds(lambda: torch.sparse.sampled_addmm(entries, exact[0], exact[1].t()), 25) / CHUNK

    few, many = (drawn((rows, columns), "entries", share) for share in (0.02, 0.06))
    copy = seconds(lambda: [part.t().contiguous().float() for part in left.split(CHUNK)])
    dense = torch.randn(rows, columns, dtype=dtype)
    found = {
        "sampled": (sampled(many) - sampled(few)) / (many.count - few.count) / unit,
        "copied": copy / (rows * tokens) / unit,
        "picked": seconds(lambda: dense.reshape(-1)[many.flat], 25) / many.count / unit,
        "started": seconds(lambda: drawn((8, 8), "entries", 0.1).gradient(left[:, :8], right[:, :8])) / unit,
    }
    return {name: float(f"{value:.3g}") for name, value in found.items()}


def compared(dtype: torch.dtype, shape: tuple[int, int], tokens: int) -> tuple[float, float]:
    """Seconds of the ways picked and of the best ways, over shares and units; each is printed."""
    left, right = (torch.randn(tokens, size).to(dtype) for size in shape)
    picked = best = 0.0
    cases: list[tuple[Granularity, float]] = [("entries", share) for share in SHARES]
    for granularity, share in [*cases, *((unit, UNIT_SHARE) for unit in UNITS)]:
        pattern = drawn(shape, granularity, share)
        times = {way: seconds(partial(pattern.gradient, left, right, way)) for way in WAYS}
        way = pattern.cheapest(left)
        picked, best = picked + times[way], best + min(times.values())
        said = ", ".join(f"{name} {1e3 * value:.2f}" for name, value in times.items())
        name = str(dtype).removeprefix("torch.")
        print(f"{name:<9}{tokens:>5} x {shape} {share:.2%} {granularity}: {said} ms; {way}", flush=True)
    return picked, best


def main() -> None:
    """Measure and print."""
    sums = [compared(*case) for case in product(DTYPES, MATRICES, TOKENS)]
    regret = sum(picked for picked, _ in sums) / sum(best for _, best in sums)
    found = {str(dtype).removeprefix("torch."): constants(dtype) for dtype in DTYPES}
    print(json.dumps({"constants": found, "regret": round(regret, 3), "machine": describe()}))


if __name__ == "__main__":
    main()
