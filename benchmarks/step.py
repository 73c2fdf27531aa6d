"""Time and memory of one training step, against peft and full fine-tuning in the same run.

``python -m benchmarks.step --quick`` prints a table and, as its last line, JSON. The variants take turns, one
step each a round, so that a change of the machine's speed meets all of them; ratios are taken round by
round and their median is reported. Every memory figure comes from a process of its own: the peak of the
resident set during the steps, above what it was with everything imported and no model loaded.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import peft
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.utils import logging

from benchmarks.machine import builtin_encoder, describe, peak_resident, reset_peak, resident
from paretune.anatomy import anatomy, base_digest, mark_head
from paretune.methods.lora import fill_ranks
from paretune.methods.random import random_entries
from paretune.plan import Base, Plan, Selection
from paretune.tuning import attach

HEAD = ("classifier.weight", "classifier.bias")
ALL_LINEARS = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]


def load() -> nn.Module:
    """The built-in encoder with a fresh head, in training mode, all of it in memory.

    A checkpoint is mapped from its file page by page; the rows of the embedding that one batch does not use
    would count for the variants that read the whole model and not for the others.
    """
    torch.manual_seed(0)
    logging.set_verbosity_error()
    model = AutoModelForSequenceClassification.from_pretrained(builtin_encoder(), num_labels=2)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    mark_head(model, HEAD)
    return model.train()


def budget_of(model: nn.Module, share: float) -> int:
    """Weights that a share of the model is."""
    return int(share * anatomy(model).weights)


def full(model: nn.Module, share: float) -> nn.Module:
    """Every weight."""
    return model


def floor(model: nn.Module, share: float) -> nn.Module:
    """Every weight frozen; the gradient still runs through all activations."""
    model.requires_grad_(False)
    model.get_input_embeddings().register_forward_hook(lambda *args: args[2].requires_grad_())
    return model


def ours(model: nn.Module, share: float) -> nn.Module:
    """Single entries, drawn uniformly, so that every tensor of the model is touched."""
    parts = anatomy(model)
    selections = random_entries(parts.body, budget_of(model, share), seed=0)
    head = tuple(Selection(n, tuple(model.get_parameter(n).shape), "all") for n in HEAD)
    base = Base("built-in encoder", base_digest(model, HEAD), "float32")
    return attach(model, Plan(base, selections, head=head), check=False)


def lora(model: nn.Module, share: float, targets: list[str]) -> nn.Module:
    """LoRA (peft) at the largest count within the budget."""
    modules = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and ".layer." in name
        and any(name.endswith(f".{target}") for target in targets)
    ]
    sizes = [sum(model.get_submodule(name).weight.shape) for name in modules]
    ranks = fill_ranks(sizes, budget_of(model, share))
    config = peft.LoraConfig(
        task_type="SEQ_CLS",
        r=min(ranks),
        lora_alpha=2 * min(ranks),
        target_modules=modules,
        rank_pattern={name: rank for name, rank in zip(modules, ranks, strict=True) if rank > min(ranks)},
        lora_dropout=0.0,
    )
    return peft.get_peft_model(model, config)


def shira(model: nn.Module, share: float) -> nn.Module:
    """SHiRA (peft; sparse high-rank updates, random mask) on all linear layers, nearest count below."""
    per_rank = sum(
        sum(m.weight.shape) for n, m in model.named_modules() if isinstance(m, nn.Linear) and ".layer." in n
    )
    rank = max(1, budget_of(model, share) // per_rank)
    return peft.get_peft_model(
        model, peft.ShiraConfig(task_type="SEQ_CLS", r=rank, target_modules=ALL_LINEARS)
    )


VARIANTS: dict[str, Callable[[nn.Module, float], nn.Module]] = {
    "floor": floor,
    "ours": ours,
    "lora_query_value": lambda model, share: lora(model, share, ["query", "value"]),
    "lora_all_linears": lambda model, share: lora(model, share, ALL_LINEARS),
    "shira": shira,
    "full": full,
}


class Stepper:
    """One variant, ready to step."""

    def __init__(self, variant: str, share: float, batch: int, length: int, autocast: bool) -> None:
        self.model = VARIANTS[variant](load(), share)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.trained = sum(p.numel() for p in trained)
        self.optimiser = torch.optim.AdamW(trained, lr=1e-4) if trained else None
        self.autocast = autocast
        rng = torch.Generator().manual_seed(0)
        vocabulary = AutoConfig.from_pretrained(builtin_encoder()).vocab_size
        self.batch = {
            "input_ids": torch.randint(1000, vocabulary, (batch, length), generator=rng),
            "attention_mask": torch.ones(batch, length, dtype=torch.long),
            "labels": torch.randint(0, 2, (batch,), generator=rng),
        }

    def step(self) -> float:
        """One forward, backward and optimiser step; its seconds."""
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            loss = self.model(**self.batch).loss
        loss.backward()
        if self.optimiser:
            self.optimiser.step()
            self.optimiser.zero_grad()
        return time.perf_counter() - start


def times(options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds a step, by variant, round by round."""
    steppers = {name: Stepper(name, options.share, *_shape(options)) for name in VARIANTS}
    for stepper in steppers.values():
        stepper.step()
    seconds: dict[str, list[float]] = {name: [] for name in steppers}
    names = list(steppers)
    for round_ in range(options.rounds):
        for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
            seconds[name].append(steppers[name].step())
    print(f"{'':<18}{'trained':>12}{'s/step':>10}")
    for name, stepper in steppers.items():
        print(f"{name:<18}{stepper.trained:>12,}{statistics.median(seconds[name]):>10.3f}")
    return seconds


def memory_of(variant: str, options: argparse.Namespace) -> int:
    """Peak bytes of a variant's steps, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.step", "--memory", variant, "--share", str(options.share)]
    command += ["--batch", str(options.batch), "--length", str(options.length)]
    command += ["--autocast"] if options.autocast else []
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    return int(run.stdout.strip().splitlines()[-1])


def print_memory(options: argparse.Namespace) -> None:
    """In the process of its own: the peak over three steps, above the resident set without a model."""
    before = resident()
    stepper = Stepper(options.memory, options.share, *_shape(options))
    gc.collect()
    reset_peak()
    for _ in range(3):
        stepper.step()
    print(peak_resident() - before)


def _shape(options: argparse.Namespace) -> tuple[int, int, bool]:
    return options.batch, options.length, options.autocast


def ratio(seconds: dict[str, list[float]], over: str) -> float:
    """Median over the rounds of ours / other."""
    return statistics.median(a / b for a, b in zip(seconds["ours"], seconds[over], strict=True))


def main() -> None:
    """Run the benchmark and print its JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds: under a minute on two cores")
    parser.add_argument("--share", type=float, default=0.005, help="trained share of the model")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=48)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--autocast", action="store_true", help="bf16 autocast")
    parser.add_argument("--memory", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rounds = options.rounds or (4 if options.quick else 21)
    if options.memory:
        print_memory(options)
        return
    memory = {name: memory_of(name, options) for name in VARIANTS}
    seconds = times(options)
    for name, peak in memory.items():
        print(f"{name:<18} peak {peak / 2**20:,.0f} MiB")
    loras = ("lora_query_value", "lora_all_linears")
    faster = min(loras, key=lambda name: statistics.median(seconds[name]))
    result = {
        "time_vs_floor": ratio(seconds, "floor"),
        "time_vs_lora": ratio(seconds, faster),
        "time_vs_full": ratio(seconds, "full"),
        "time_vs_shira": ratio(seconds, "shira"),
        "memory_vs_lora": memory["ours"] / memory[faster],
        "memory_vs_full": memory["ours"] / memory["full"],
        "memory_vs_shira": memory["ours"] / memory["shira"],
        "faster_lora": faster,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "memory_bytes": memory,
        "share": options.share,
        "batch": [options.batch, options.length],
        "autocast": options.autocast,
        "machine": describe(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
