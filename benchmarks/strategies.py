"""Time and memory of a training step with each strategy, and with all four, against peft's LoRA.

``python -m benchmarks.strategies --quick`` prints a table and, as its last line, JSON. Every variant trains
as many weights as fit the same budget: what peft's LoRA of rank 3 on query and value has. The variants take
turns, one step each a round; ratios are taken round by round and their median is reported. Every memory
figure comes from a process of its own: the peak of the resident set during the steps, above what it was
with everything imported and no model built.

The model has the shape of the built-in encoder (6 blocks of width 384) but is a random Llama with grouped
heads and a classification head, because an added bias needs a model without biases.
"""

import argparse
import gc
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from typing import Any

import peft
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn
from transformers import LlamaConfig, LlamaForSequenceClassification

from benchmarks.machine import describe, peak_resident, reset_peak, resident
from paretune.plan import Addition
from paretune.strategies import STRATEGIES, attach_additions

BLOCKS, WIDTH, INNER, VOCABULARY = 6, 384, 1536, 30522
RANK, TARGETS = 3, ("q_proj", "v_proj")
BIASED = ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj")
SHARES = {"lora": 0.4, "adapter": 0.4, "prefix": 0.1, "bias": 0.1}  # of the mixture's budget


def build() -> nn.Module:
    """The frozen random model with two labels, in training mode."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=BLOCKS,
        num_attention_heads=12,
        num_key_value_heads=6,
        max_position_embeddings=512,
        pad_token_id=0,
    )
    return LlamaForSequenceClassification(config).requires_grad_(False).train()


def budget(model: nn.Module) -> int:
    """Weights of peft's LoRA of rank 3 on query and value."""
    sizes = [sum(m.weight.shape) for name, m in model.named_modules() if name.endswith(TARGETS)]
    return RANK * sum(sizes)


def modules(strategy: str) -> list[str]:
    """Where a strategy goes in every block."""
    blocks = [f"model.layers.{index}" for index in range(BLOCKS)]
    if strategy == "lora":
        return [f"{block}.self_attn.{target}" for block in blocks for target in TARGETS]
    if strategy == "bias":
        parts = {name: "mlp" if name == "down_proj" else "self_attn" for name in BIASED}
        return [f"{block}.{part}.{name}" for block in blocks for name, part in parts.items()]
    return blocks


def design(model: nn.Module, strategy: str, weights: int) -> list[Addition]:
    """One strategy everywhere, at the largest size that fits so many weights; of biases, as many as fit."""
    kind, places = STRATEGIES[strategy], modules(strategy)
    chosen: list[Addition] = []
    for number, module in enumerate(places):
        left = weights - sum(addition.count for addition in chosen)
        share = left if strategy == "bias" else left // (len(places) - number)
        size = kind.size(model, module, share, {})
        if size:
            chosen.append(Addition(strategy, module, size, kind.count(model, module, size, {})))
    return chosen


def mixture(model: nn.Module) -> list[Addition]:
    """All four strategies in every block."""
    weights = budget(model)
    return [a for strategy, share in SHARES.items() for a in design(model, strategy, int(share * weights))]


def peft_lora(model: nn.Module) -> nn.Module:
    """The peer: peft's LoRA as its users make it."""
    return peft.get_peft_model(
        model, peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(TARGETS))
    )


def ours(strategy: str) -> Callable[[nn.Module], nn.Module]:
    """A function that attaches one strategy."""

    def attach(model: nn.Module) -> nn.Module:
        attach_additions(model, design(model, strategy, budget(model)))
        return model

    return attach


def all_four(model: nn.Module) -> nn.Module:
    """Attach the mixture."""
    attach_additions(model, mixture(model))
    return model


VARIANTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "peft_lora": peft_lora,
    **{strategy: ours(strategy) for strategy in STRATEGIES},
    "mixture": all_four,
}


class Stepper:
    """One variant, ready to step."""

    def __init__(self, variant: str, batch: int, length: int) -> None:
        self.model = VARIANTS[variant](build())
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.trained = sum(p.numel() for p in trained)
        self.optimiser = torch.optim.AdamW(trained, lr=1e-4)
        self.batch = batch_of(batch, length)

    def step(self) -> float:
        """One forward, backward and optimiser step; its seconds."""
        start = time.perf_counter()
        self.model(**self.batch).loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        return time.perf_counter() - start


def batch_of(batch: int, length: int) -> dict[str, torch.Tensor]:
    """Random tokens without padding, and labels."""
    rng = torch.Generator().manual_seed(0)
    return {
        "input_ids": torch.randint(1, VOCABULARY, (batch, length), generator=rng),
        "attention_mask": torch.ones(batch, length, dtype=torch.long),
        "labels": torch.randint(0, 2, (batch,), generator=rng),
    }


def times(options: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds a step, by variant, round by round; and the weights that each variant trains."""
    steppers = {name: Stepper(name, options.batch, options.length) for name in VARIANTS}
    for stepper in steppers.values():
        stepper.step()
    seconds: dict[str, list[float]] = {name: [] for name in steppers}
    names = list(steppers)
    for number in range(options.rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            seconds[name].append(steppers[name].step())
    return seconds, {name: stepper.trained for name, stepper in steppers.items()}


def memory_of(variant: str, options: argparse.Namespace) -> int:
    """Peak bytes of three steps of a variant, in a process of its own."""
    # The children start from this process with everything imported and nothing computed.
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send_peak, args=(sender, variant, options.batch, options.length))
    child.start()
    sender.close()
    peak = receiver.recv()
    child.join()
    return peak


def _send_peak(sender: Any, variant: str, batch: int, length: int) -> None:
    before = resident()
    stepper = Stepper(variant, batch, length)
    gc.collect()
    reset_peak()
    for _ in range(3):
        stepper.step()
    sender.send(peak_resident() - before)


@torch.no_grad()
def exactness(options: argparse.Namespace) -> dict[str, float]:
    """Largest change of the logits by attaching, and by a trip of the trained tensors through bytes."""
    inputs = {key: value for key, value in batch_of(4, options.length).items() if key != "labels"}
    plain = build().eval()(**inputs).logits
    changes = {}
    for strategy in STRATEGIES:
        model = VARIANTS[strategy](build()).eval()
        changes[strategy] = float((model(**inputs).logits - plain).abs().max())
    trained, fresh = build().eval(), build().eval()
    attached = attach_additions(trained, mixture(trained))
    for tensor in attached.tensors.values():
        tensor.normal_(0, 0.1)
    saved = load_tensors(save_tensors({k: t.detach().clone() for k, t in attached.tensors.items()}))
    for key, tensor in attach_additions(fresh, mixture(fresh)).tensors.items():
        tensor.copy_(saved[key])
    difference = (trained(**inputs).logits - fresh(**inputs).logits).abs().max()
    attached.detach()
    return {
        "attach_changes_logits": max(change for name, change in changes.items() if name != "prefix"),
        "prefix_changes_logits": changes["prefix"],
        "roundtrip_max_abs_diff": float(difference),
        "detach_max_abs_diff": float((trained(**inputs).logits - plain).abs().max()),
    }


def main() -> None:
    """Run the benchmark and print its JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds: under a minute on two cores")
    parser.add_argument("--batch", type=int, help="sequences a step (32; quick: 8)")
    parser.add_argument("--length", type=int, help="tokens a sequence (64; quick: 32)")
    parser.add_argument("--rounds", type=int, help="timed steps of each variant (31; quick: 11)")
    options = parser.parse_args()
    for name, quick, usual in (("batch", 8, 32), ("length", 32, 64), ("rounds", 11, 31)):
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else usual)
    memory = {name: memory_of(name, options) for name in VARIANTS}
    seconds, trained = times(options)
    over = {
        name: statistics.median(a / b for a, b in zip(seconds[name], seconds["peft_lora"], strict=True))
        for name in VARIANTS
    }
    print(f"{'':<12}{'trained':>10}{'s/step':>10}{'vs peft':>10}{'peak MiB':>10}{'vs peft':>10}")
    for name in VARIANTS:
        step, peak = statistics.median(seconds[name]), memory[name]
        print(
            f"{name:<12}{trained[name]:>10,}{step:>10.3f}{over[name]:>10.2f}"
            f"{peak / 2**20:>10,.0f}{peak / memory['peft_lora']:>10.2f}"
        )
    result = {
        **{f"time_{name}_vs_peft_lora": over[name] for name in VARIANTS if name != "peft_lora"},
        **{
            f"memory_{name}_vs_peft_lora": memory[name] / memory["peft_lora"]
            for name in VARIANTS
            if name != "peft_lora"
        },
        **exactness(options),
        "trained": trained,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "memory_bytes": memory,
        "batch": [options.batch, options.length],
        "rounds": options.rounds,
        "machine": describe(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
