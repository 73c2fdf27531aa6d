"""Fisher scores in batches, against the published loop and against a plain pass.

    python -m benchmarks.fisher --quick

The same examples are gone through in four ways, in turns, on the built-in encoder with a fresh head:

* loop: as FISH Mask's published code does: one example at a time, the gradient of every parameter, squared
  and added;
* plain: forward and backward of every parameter in batches and nothing else: no scores, what any gradient
  costs;
* fp32: `paretune.evidence.fisher` with all that it checks;
* bf16: the same with `precision="bf16"` (its ratios end in `_bf16`).

Loop and plain pass are in fp32. The ratios are medians over rounds of the ratio within a round, so that other
load on the machine hits both sides. With one thread times are processor time, which other work does not
count into; with several, or on a GPU, they are the clock's. `choosing_seconds` is what taking 0.02, 0.1, 0.5
and 2 % of the weights from the scores takes. The last line is JSON.

Without `--quick` there is a grid of batch sizes and lengths for the encoder and for a Llama-shaped model, on
the GPU where there is one.

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
from functools import partial
from typing import Any

import datasets
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from benchmarks.machine import builtin_encoder, describe, peak_resident, reset_peak, resident
from benchmarks.tables import RESULTS, publish
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
SHARE = 0.005  # of the weights that are chosen as models grow
SHARES = (0.0002, 0.001, 0.005, 0.02)


class Tokens:
    """A task of random token ids, all of one length, as far as evidence needs one."""

    def __init__(self, kind: str, examples: int, length: int, vocabulary: int, device: Any = "cpu") -> None:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(5, vocabulary, (examples, length), generator=generator)
        labels = ids if kind == "causal-lm" else torch.arange(examples) % 2
        self.kind, self.labels = kind, ("no", "yes") if kind == "classification" else ()
        self.tokenizer = range(vocabulary)
        tensors = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        self.tensors = {name: values.to(device) for name, values in tensors.items()}
        self.data = datasets.Dataset.from_dict({"labels": labels.tolist(), "length": [length] * examples})

    def rows(self, split: str) -> datasets.Dataset:
        """The rows, without their tokens."""
        return self.data

    def batches(
        self, split: str, batch_size: int, indices: Sequence[int], device: Any = None
    ) -> Iterator[dict[str, Tensor]]:
        """Batches in the order of the indices."""
        for start in range(0, len(indices), batch_size):
            chosen = torch.as_tensor(
                indices[start : start + batch_size], device=self.tensors["labels"].device
            )
            yield {name: values[chosen] for name, values in self.tensors.items()}

    def example_losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """As a task's."""
        kind = find_kind(self.kind)
        return kind.losses(kind.logits(model, batch), batch["labels"])


def loop(model: nn.Module, task: Tokens, indices: Sequence[int]) -> dict[str, Tensor]:
    """The published way: the gradient of each example apart, squared, summed."""
    sums = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for batch in task.batches("train", 1, indices):
        task.example_losses(model, batch).sum().backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                sums[name] += torch.square(parameter.grad)
        model.zero_grad()
    return sums


def plain(model: nn.Module, task: Tokens, indices: Sequence[int], batch_size: int) -> None:
    """Forward and backward only."""
    for batch in task.batches("train", batch_size, indices):
        task.example_losses(model, batch).sum().backward()
        model.zero_grad()


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """How long something takes, and what it gives."""
    if torch.cuda.is_available():
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        result = work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3, result
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    began = clock()
    result = work()
    return clock() - began, result


def compare(
    model: Any, kind: str, examples: int, length: int, batch_size: int, rounds: int, loop_examples: int
) -> dict[str, Any]:
    """Run the four ways in turns; their speeds and ratios.

    Args:
        model: The model, in fp32.
        kind: Of task: "classification" or "causal-lm".
        examples: Examples of the batched ways.
        length: Tokens an example.
        batch_size: Examples a batch.
        rounds: How often each way is run.
        loop_examples: Examples of the loop, which is the slowest; times are per example.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    task: Any = Tokens(kind, examples, length, model.config.vocab_size, device)
    every, some = range(examples), range(loop_examples)
    ways: dict[str, tuple[int, Callable[[], Any]]] = {
        "loop": (loop_examples, lambda: loop(model, task, some)),
        "plain": (examples, lambda: plain(model, task, every, batch_size)),
        "fp32": (examples, lambda: fisher(model, task, indices=every, batch_size=batch_size)),
        "bf16": (
            examples,
            lambda: fisher(model, task, indices=every, batch_size=batch_size, precision="bf16"),
        ),
    }
    loop(model, task, range(2))  # everything once, to warm up
    plain(model, task, range(batch_size), batch_size)
    for precision in ("fp32", "bf16"):
        fisher(model, task, indices=range(batch_size), batch_size=batch_size, precision=precision)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (count, work) in ways.items():
            times[name].append(seconds(work)[0] / count)

    def ratio(over: str, under: str) -> float:
        return round(statistics.median(a / b for a, b in zip(times[over], times[under], strict=True)), 3)

    speeds = {name: round(1 / statistics.median(values), 1) for name, values in times.items()}
    print(f"{kind} {batch_size} x {length}: {speeds} examples/s", flush=True)
    return {
        "speedup_vs_loop": ratio("loop", "fp32"),
        "speedup_vs_loop_bf16": ratio("loop", "bf16"),
        "cost_vs_plain_pass": ratio("fp32", "plain"),
        "cost_vs_plain_pass_bf16": ratio("bf16", "plain"),
        "plain_vs_loop": ratio("loop", "plain"),
        "examples_per_second": speeds,
    }


def exactness(model: Any, kind: str, length: int, examples: int = 16) -> dict[str, Any]:
    """How far scores are from the loop's, and the seconds that choosing from them takes."""
    task: Any = Tokens(kind, examples, length, model.config.vocab_size, model.device)
    truth = loop(model, task, range(examples))
    found = fisher(model, task, indices=range(examples)).scores
    coarse = fisher(model, task, indices=range(examples), precision="bf16").scores
    wrong = {"max_rel_err": error(found, truth), "max_rel_err_bf16": error(coarse, truth)}
    count = sum(values.numel() for values in found.values())
    choosing = {
        f"{share:.2%}": round(seconds(partial(top_k, found, int(count * share)))[0], 3) for share in SHARES
    }
    return wrong | {"choosing_seconds": choosing}


def grid(rounds: int = 5) -> list[dict[str, Any]]:
    """`compare` over models, batch sizes and lengths."""
    lines = []
    for name, kind, make in (
        ("encoder", "classification", encoder),
        ("llama 25M", "causal-lm", lambda: llama("25M", torch.float32)),
    ):
        model = make()
        for batch_size in (8, 32):
            for length in (16, 48, 128):
                found = compare(model, kind, 2 * batch_size, length, batch_size, rounds, loop_examples=4)
                lines.append({"model": name, "batch_size": batch_size, "tokens": length, **found})
    return lines


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


def llama(name: str, dtype: torch.dtype) -> Any:
    """A Llama-shaped random model."""
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
    torch.set_default_dtype(dtype)
    model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    return model


def grow(name: str, examples: int = 16, length: int = 128, batch_size: int = 4) -> dict[str, Any]:
    """Score a Llama-shaped random model in bfloat16 and choose: time and peak memory of this process."""
    model = llama(name, torch.bfloat16)
    count = sum(parameter.numel() for parameter in model.parameters())
    task: Any = Tokens("causal-lm", examples, length, model.config.vocab_size)
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
    parser.add_argument("--quick", action="store_true", help="fewer examples, no grid: under a minute")
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
            write_atomic(RESULTS / "fisher_growth.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
            publish("growth: python -m benchmarks.fisher --growth", growth_table(lines))
        return
    size = {"examples": 128, "rounds": 3} if arguments.quick else {"examples": 512, "rounds": 7}
    size |= {"length": arguments.tokens, "batch_size": 32, "loop_examples": 16}
    model = encoder()
    result: dict[str, Any] = compare(model, "classification", **size)
    result |= exactness(model, "classification", arguments.tokens)
    if not arguments.quick:
        result["grid"] = grid()
    result |= {"tokens": arguments.tokens, **size, "machine": describe()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
