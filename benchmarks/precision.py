"""How far a mask from scores in bf16 is the mask from scores in fp32.

    python -m benchmarks.precision

Fisher scores of the built-in encoder under a fresh head, on the same examples in both precisions, and in fp32
on another draw of as many examples; then the masks that `fish` takes from each, for both of its readings and
several budgets. `bf16` is the share of the fp32 mask that the bf16 mask has too, `other_draw` the same for
the other examples, and `fp32_again` for a second pass over the same examples in batches of another size,
which differs by rounding alone. `seconds` are processor time of one pass. The last line is JSON.
"""

import argparse
import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.machine import describe
from experiments.runner import load_task
from paretune.anatomy import anatomy
from paretune.evidence import draw, fisher
from paretune.methods.fish import Fish
from paretune.methods.ranking import competing
from paretune.progress import set_quiet
from paretune.task import Task

BUDGETS = (0.0005, 0.005, 0.02)  # of the weights below the head


def passes(model: nn.Module, task: Task, examples: int) -> tuple[dict[str, Any], dict[str, float]]:
    """The scores of each way and the processor seconds it took."""
    both = draw(task, 2 * examples, 0)
    first, second = both[::2], both[1::2]
    tensors = [tensor.name for tensor in anatomy(model).body]
    ways: dict[str, dict[str, Any]] = {
        "fp32": {"indices": first},
        "bf16": {"indices": first, "precision": "bf16"},
        "fp32_again": {"indices": first, "batch_size": 8},
        "other_draw": {"indices": second},
    }
    scores, seconds = {}, {}
    for name, way in ways.items():
        start = time.process_time()
        scores[name] = fisher(model, task, tensors=tensors, **way).scores
        seconds[name] = round(time.process_time() - start, 2)
    return scores, seconds


def mask(model: nn.Module, scores: Mapping[str, Tensor], reading: Any, budget: float) -> set[tuple[str, int]]:
    """The entries that `fish` takes."""
    parts, ranks = anatomy(model), Fish(reading=reading).ranks
    k = int(budget * sum(tensor.count for tensor in parts.body))
    among = {tensor.name: scores[tensor.name].clone() for tensor in competing(parts.body, ranks.within, k)}
    chosen = ranks.take(among, k, seed=0)
    return {(name, int(index)) for name, indices in chosen.items() for index in np.asarray(indices)}


def overlaps(name: str, examples: int) -> dict[str, Any]:
    """The shares of one task, and a line of each printed."""
    task = load_task(name, 0)
    torch.manual_seed(0)
    model = task.load_model()
    scores, seconds = passes(model, task, examples)
    found: dict[str, Any] = {"seconds": seconds}
    for reading in ("robust", "published"):
        for budget in BUDGETS:
            masks = {way: mask(model, values, reading, budget) for way, values in scores.items()}
            base = masks.pop("fp32")
            shares = {way: round(len(base & other) / len(base), 4) for way, other in masks.items()}
            found[f"{reading} {budget:.2%}"] = shares
            print(f"{name:6} {reading:10} {budget:6.2%} {shares}", flush=True)
    return found


def main() -> None:
    """Run the benchmark and print its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["cola", "mrpc"], help="development data")
    parser.add_argument("--examples", type=int, default=256)
    options = parser.parse_args()
    set_quiet(True)
    found = {name: overlaps(name, options.examples) for name in options.tasks}
    print(json.dumps(found | {"examples": options.examples, "machine": describe()}))


if __name__ == "__main__":
    main()
