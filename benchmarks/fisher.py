"""Fisher scores in batches, against the published loop and against a plain pass.

    python -m benchmarks.fisher --quick

The same examples are gone through in three ways, in turns, on the built-in encoder with a fresh head:

* loop: as FISH Mask's published code does: one example at a time, the gradient of every parameter, squared
  and added;
* plain: forward and backward of every parameter in batches and nothing else: no scores, what any gradient
  costs;
* paretune: `paretune.evidence.fisher` with all that it checks.

The ratios are medians over rounds of the ratio within a round, so that other load on the machine hits both
sides. The last line is JSON.

    python -m benchmarks.fisher --growth

Time and peak memory of scoring and of choosing 0.5 % on Llama-shaped random models in bfloat16, each in a
process of its own, which prints one line of JSON; the lines are also written to
docs/results/fisher_growth.jsonl and their table into docs/performance.md. `--shapes 25M 100M` takes some of
them and writes nothing.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from benchmarks.machine import builtin_encoder, describe, peak_resident, reset_peak, resident
from paretune.evidence import fisher, top_k
from paretune.files import write_atomic
from paretune.progress import set_quiet
from paretune.task.kinds import find_kind

# Llama-shaped models: width, blocks (the vocabulary is 32000, heads are 64 wide, grouped by four).
SHAPES = {
    "25M": (256, 12),
    "100M": (640, 14),
    "400M": (1024, 24),
    "1100M": (2048, 22),
}
SHARE = 0.005  # of the weights that are chosen
DOCS = Path(__file__).parents[1] / "docs"
TABLE = ("<!-- growth: python -m benchmarks.fisher --growth -->", "<!-- end of growth -->")


class Tokens:
    """A task of random token ids, all of one length, as far as evidence needs one."""

    def __init__(self, kind: str, examples: int, length: int, vocabulary: int) -> None:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(5, vocabulary, (examples, length), generator=generator)
        labels = ids if kind == "causal-lm" else torch.arange(examples) % 2
        self.kind, self.labels = kind, ("no", "yes") if kind == "classification" else ()
        self.tokenizer = range(vocabulary)
        self.tensors = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        self.data = datasets.Dataset.from_dict({"labels": labels.tolist(), "length": [length] * examples})

    def rows(self, split: str) -> datasets.Dataset:
        """The rows, without their tokens."""
        return self.data

    def batches(
        self, split: str, batch_size: int, indices: Sequence[int], device: Any = None
    ) -> Iterator[dict[str, Tensor]]:
        """Batches in the order of the indices."""
        for start in range(0, len(indices), batch_size):
            chosen = torch.as_tensor(indices[start : start + batch_size])
            yield {name: values[chosen].to(device) for name, values in self.tensors.items()}

    def example_losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """As a task's."""
        kind = find_kind(self.kind)
        return kind.losses(kind.logits(model, batch), batch["labels"])


def loop(model: nn.Module, task: Tokens, indices: Sequence[int]) -> dict[str, Tensor]:
    """The published way: the gradient of each example apart, squared, summed."""
    sums = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for batch in task.batches("train", 1, indices):
        labels = batch.pop("labels")
        cross_entropy(model(**batch).logits, labels).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                sums[name] += torch.square(parameter.grad)
        model.zero_grad()
    return sums


def plain(model: nn.Module, task: Tokens, indices: Sequence[int], batch_size: int) -> None:
    """Forward and backward only."""
    for batch in task.batches("train", batch_size, indices):
        labels = batch.pop("labels")
        cross_entropy(model(**batch).logits, labels).backward()
        model.zero_grad()


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """How long something takes, and what it gives."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def compare(examples: int, length: int, batch_size: int, rounds: int, loop_examples: int) -> dict[str, float]:
    """Run the three ways in turns; seconds an example and their ratios.

    Args:
        examples: Examples of the batched ways.
        length: Tokens an example.
        batch_size: Examples a batch.
        rounds: How often each way is run.
        loop_examples: Examples of the loop, which is the slowest; times are per example.
    """
    model = encoder()
    task: Any = Tokens("classification", examples, length, model.config.vocab_size)
    every, some = range(examples), range(loop_examples)
    times: dict[str, list[float]] = {"loop": [], "plain": [], "paretune": []}
    loop(model, task, range(2))  # everything once, to warm up
    plain(model, task, range(batch_size), batch_size)
    fisher(model, task, indices=range(batch_size), batch_size=batch_size)
    for _ in range(rounds):
        times["loop"].append(seconds(lambda: loop(model, task, some))[0] / loop_examples)
        times["plain"].append(seconds(lambda: plain(model, task, every, batch_size))[0] / examples)
        took, _ = seconds(lambda: fisher(model, task, indices=every, batch_size=batch_size))
        times["paretune"].append(took / examples)
    ratios = {
        "speedup_vs_loop": [a / b for a, b in zip(times["loop"], times["paretune"], strict=True)],
        "cost_vs_plain_pass": [a / b for a, b in zip(times["paretune"], times["plain"], strict=True)],
    }
    found = fisher(model, task, indices=some, batch_size=batch_size).scores
    for name, values in times.items():
        print(f"{name:9} {1 / statistics.median(values):7.1f} examples/s")
    return {name: round(statistics.median(values), 3) for name, values in ratios.items()} | {
        "max_rel_err": error(found, loop(model, task, some))
    }


def error(found: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> float:
    """The largest error of a tensor, of the tensor's largest score.

    Tensors whose scores are rounding (the bias of attention's keys has gradient zero) are left out: those
    whose largest is below 1e-10 of the model's.
    """
    largest = {name: float(values.max()) for name, values in truth.items()}
    floor = max(largest.values()) * 1e-10
    return max(
        float((found[name] - values).abs().max()) / largest[name]
        for name, values in truth.items()
        if largest[name] > floor
    )


def encoder() -> Any:
    """The built-in six-layer encoder with a fresh head."""
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(builtin_encoder(), num_labels=2).eval()


def grow(name: str, examples: int = 16, length: int = 128, batch_size: int = 4) -> dict[str, Any]:
    """Score a Llama-shaped random model in bfloat16 and choose: time and peak memory of this process."""
    width, blocks = SHAPES[name]
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=blocks,
        num_attention_heads=width // 64,
        num_key_value_heads=max(1, width // 256),
        vocab_size=32000,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    count = sum(parameter.numel() for parameter in model.parameters())
    task: Any = Tokens("causal-lm", examples, length, config.vocab_size)
    before = resident()  # with the weights
    reset_peak()
    start = time.process_time()
    scoring, found = seconds(lambda: fisher(model, task, indices=range(examples), batch_size=batch_size))
    scored = time.process_time()
    choosing, _ = seconds(lambda: top_k(found.scores, int(count * SHARE)))
    chosen = time.process_time()
    return {
        "model": name,
        "parameters": count,
        "seconds_scoring": round(scoring, 2),
        "seconds_choosing": round(choosing, 2),
        "processor_seconds_scoring": round(scored - start, 2),
        "processor_seconds_choosing": round(chosen - scored, 2),
        "examples": examples,
        "tokens": length,
        "weights_bytes": 2 * count,
        "peak_over_weights_bytes": peak_resident() - before,
        "peak_over_weights_bytes_a_parameter": round((peak_resident() - before) / count, 2),
        "machine": describe(),
    }


def growth(names: Sequence[str]) -> list[dict[str, Any]]:
    """`grow` for each shape in a process of its own."""
    lines = []
    for name in names:
        command = [sys.executable, "-m", "benchmarks.fisher", "--grow", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=dict(os.environ))
        print(done.stdout.strip(), flush=True)
        lines.append(json.loads(done.stdout.splitlines()[-1]))
    return lines


def publish(lines: Sequence[dict[str, Any]]) -> None:
    """Write the lines of all shapes, and their table between its marks in docs/performance.md."""
    write_atomic(DOCS / "results" / "fisher_growth.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    page = DOCS / "performance.md"
    before, _, rest = page.read_text().partition(TABLE[0])
    _, _, after = rest.partition(TABLE[1])
    write_atomic(page, f"{before}{TABLE[0]}\n{growth_table(lines)}{TABLE[1]}{after}")


def growth_table(lines: Sequence[dict[str, Any]]) -> str:
    """The lines as a table in Markdown."""
    rows = [
        "| parameters | examples x tokens | scoring | choosing 0.5 % | memory over weights | a parameter |",
        "|---|---|---|---|---|---|",
    ]
    for line in lines:
        rows.append(
            f"| {line['parameters'] / 1e6:,.0f} M | {line['examples']} x {line['tokens']} "
            f"| {line['processor_seconds_scoring']:.1f} s | {line['processor_seconds_choosing']:.1f} s "
            f"| {line['peak_over_weights_bytes'] / 2**20:,.0f} MiB "
            f"| {line['peak_over_weights_bytes_a_parameter']:.2f} bytes |"
        )
    machine = lines[-1]["machine"]
    where = f"{machine['cpu']}, {machine['threads']} thread(s), PyTorch {machine['torch']}"
    note = f"Seconds of processor time, which other work on the machine does not count into. {where}."
    return "\n".join([*rows, "", note, ""])


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer examples and rounds: under a minute")
    parser.add_argument("--tokens", type=int, default=48, help="tokens an example")
    parser.add_argument("--growth", action="store_true", help="larger and larger models instead")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, help="of --growth (all)")
    parser.add_argument("--grow", choices=SHAPES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    set_quiet(True)
    if arguments.grow:
        print(json.dumps(grow(arguments.grow)))
        return
    if arguments.growth:
        lines = growth(arguments.shapes or list(SHAPES))
        if not arguments.shapes:
            publish(lines)
        return
    size = (
        {"examples": 128, "rounds": 3, "loop_examples": 16}
        if arguments.quick
        else {"examples": 512, "rounds": 7, "loop_examples": 64}
    )
    result: dict[str, Any] = compare(length=arguments.tokens, batch_size=32, **size)
    result |= {"tokens": arguments.tokens, **size, "machine": describe()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
