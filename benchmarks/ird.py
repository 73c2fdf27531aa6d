"""IRD's ladder against one FISH pass over the same first samples.

``python -m benchmarks.ird --quick`` (last line JSON): ``cost_vs_fish_pass`` is the whole ladder's time over
that of choosing by FISH with as many examples as the ladder starts from, interleaved, median over rounds;
``bf16_vs_fp32`` the time of the ladder with ``precision="bf16"`` over that of the ladder in fp32, and
``bf16_weights_shared`` and ``bf16_samples_shared`` the share of the last pair that both find;
``cache_bytes`` what the matrix of squares took; ``pairs_equal_to_bruteforce`` whether, on a small model in
float64, the pair is the one that plain arithmetic on the whole matrix gives.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from benchmarks.machine import builtin_encoder, describe
from paretune.evidence.decreasing import largest
from paretune.methods import choose
from paretune.plan import Plan
from paretune.progress import set_quiet
from paretune.task import Task

WORDS = ("the", "of", "a", "model", "data", "first", "second", "large", "small", "value", "layer", "weight")


def task_for(model: Path, examples: int, words: int) -> Task:
    """A made-up classification task: random words, two classes."""
    rng = np.random.default_rng(0)
    rows = [
        {"text": " ".join(rng.choice(WORDS, words)), "label": ("no", "yes")[number % 2]}
        for number in range(examples)
    ]
    return Task.from_rows(rows, model=model, heldout=0.0)


def weights(plan: Plan) -> set[tuple[str, int]]:
    """The entries of a plan."""
    return {(part.tensor, int(index)) for part in plan.selections for index in part.flat()}


def kept(plan: Plan) -> set[int]:
    """The samples of a plan."""
    return {sample["index"] for sample in plan.notes["kept"]}


def shared(first: Set[Any], second: Set[Any]) -> float:
    """The share of the first that is in the second."""
    return len(first & second) / len(first)


def clock() -> float:
    """Seconds: of the processor with one thread, which other work does not count into; else the clock's."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def cost(samples: int, steps: int, rounds: int, words: int) -> dict[str, float]:
    """Seconds of the ladder and of a FISH choice with the same first samples, in turns."""
    first = samples * 2**steps
    task = task_for(builtin_encoder(), first, words)
    model = task.load_model()
    ratios, ladders, passes, halves = [], [], [], []
    held, cache = "", 0
    for number in range(rounds + 1):
        start = clock()
        choose("fish", model, task, "0.1%", samples=first)
        middle = clock()
        plan = choose("ird", model, task, "0.1%", samples=samples, steps=steps)
        end = clock()
        half = choose("ird", model, task, "0.1%", samples=samples, steps=steps, precision="bf16")
        halves.append((clock() - end) / (end - middle))
        held, cache = plan.notes["held"], plan.notes["cache_bytes"]
        if number:  # the first round warms up
            passes.append(middle - start)
            ladders.append(end - middle)
            ratios.append((end - middle) / (middle - start))
    return {
        "cost_vs_fish_pass": statistics.median(ratios),
        "bf16_vs_fp32": statistics.median(halves[1:]),
        "bf16_weights_shared": shared(weights(plan), weights(half)),
        "bf16_samples_shared": shared(kept(plan), kept(half)),
        "fish_seconds": statistics.median(passes),
        "ladder_seconds": statistics.median(ladders),
        "cache_bytes": cache,
        "first_samples": first,
        "held": held,  # type: ignore[dict-item]
    }


def equal_to_brute_force(samples: int = 6, steps: int = 3, k: int = 200) -> bool:
    """Whether the small model's pair is that of plain arithmetic on the whole matrix."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = AutoTokenizer.from_pretrained(builtin_encoder())
        tokenizer.save_pretrained(folder)
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
        task = task_for(Path(folder), samples * 2**steps, 8)
        model = task.load_model(dtype=torch.float64)
        plan = choose("ird", model, task, k, samples=samples, steps=steps, exclude=["*word_embeddings*"])
        names = [
            name
            for name, _ in model.named_parameters()
            if not name.startswith("classifier") and "word_embeddings" not in name
        ]
        rows = []
        for batch in task.batches("train", 1):
            model.zero_grad()
            task.example_losses(model, batch).sum().backward()
            rows.append(torch.cat([model.get_parameter(name).grad.reshape(-1) for name in names]) ** 2)
        squares = torch.stack(rows).numpy()
        kept, among = np.arange(len(squares)), largest(squares.sum(0), k * 2**steps)
        for step in reversed(range(steps)):
            kept = kept[largest(squares[kept][:, among].sum(1), samples * 2**step)]
            among = among[largest(squares[kept][:, among].sum(0), k * 2**step)]
        starts = np.cumsum([0] + [model.get_parameter(name).numel() for name in names])
        place = dict(zip(names, starts[:-1], strict=True))
        found = np.sort(np.concatenate([place[s.tensor] + s.flat() for s in plan.selections]))
        edge = squares[kept].sum(0)[among].min()  # equal sums at the edge may fall either way by rounding
        outside = np.setdiff1d(found, among)
        same = {sample["index"] for sample in plan.notes["kept"]} == set(kept.tolist())
        return same and bool(np.allclose(squares[kept].sum(0)[outside], edge, rtol=1e-9))


def main() -> None:
    """Run the benchmark and print its JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer examples and rounds: under a minute")
    options = parser.parse_args()
    set_quiet(True)
    found = cost(16, 3, 2, 44) if options.quick else cost(128, 3, 5, 44)
    found |= {"pairs_equal_to_bruteforce": equal_to_brute_force()}
    print("{ladder_seconds:.2f} s the ladder, {fish_seconds:.2f} s the FISH pass, {held}".format(**found))
    print(json.dumps({**found, "machine": describe()}))


if __name__ == "__main__":
    main()
