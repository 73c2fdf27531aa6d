"""Tiny models and batches of every family, and per-example gradients the slow way."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from tests.tiny import tiny_model

FAMILIES: dict[str, Any] = {
    "bert": AutoModelForSequenceClassification,
    "roberta": AutoModelForSequenceClassification,
    "distilbert": AutoModelForSequenceClassification,
    "gpt2": AutoModelForCausalLM,
    "llama": AutoModelForCausalLM,
    "qwen2": AutoModelForCausalLM,
    "t5": AutoModelForSeq2SeqLM,
    "vit": AutoModelForImageClassification,
}
EXAMPLES = 5


def build(kind: str, folder: Path, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A tiny model with a head, in training mode."""
    torch.manual_seed(0)
    return FAMILIES[kind].from_pretrained(tiny_model(kind, folder / kind)).to(dtype).train()


def batch_for(kind: str, length: int = 9) -> dict[str, Tensor]:
    """A batch of examples of different lengths, with tokens that repeat."""
    generator = torch.Generator().manual_seed(1)
    classes = torch.randint(0, 2, (EXAMPLES,), generator=generator)
    if kind == "vit":
        return {"pixel_values": torch.randn(EXAMPLES, 3, 16, 16, generator=generator), "labels": classes}
    ids = torch.randint(5, 60, (EXAMPLES, length), generator=generator)
    ids[:, 3] = ids[:, 1]
    mask = torch.ones_like(ids)
    for example in range(EXAMPLES):
        mask[example, length - example % 4 :] = 0
    batch = {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask, "labels": classes}
    if kind == "t5":
        targets = torch.randint(5, 60, (EXAMPLES, 6), generator=generator)
        targets[1, 4:] = -100
        batch["labels"] = targets
    elif kind in ("gpt2", "llama", "qwen2"):
        batch["labels"] = ids.masked_fill(mask == 0, -100)
    return batch


def losses(model: Any, batch: Any) -> Tensor:
    """The loss of each example: cross-entropy, the mean over an example's targets for language models."""
    dtype = next(model.parameters()).dtype
    inputs = {key: value.to(dtype) if value.is_floating_point() else value for key, value in batch.items()}
    logits, labels = model(**inputs).logits, batch["labels"]
    if labels.ndim == 1:
        return cross_entropy(logits, labels, reduction="none")
    if not model.config.is_encoder_decoder:
        logits, labels = logits[:, :-1], labels[:, 1:]
    each = cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    return each.sum(1) / (labels != -100).sum(1)


def one_by_one(model: nn.Module, loss: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of every example by autograd on batches of one: by tensor (examples, *shape)."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    named = dict(model.named_parameters())
    found: dict[str, list[Tensor]] = {name: [] for name in named}
    for example in range(len(batch["labels"])):
        values = loss(model, {key: value[example : example + 1] for key, value in batch.items()})
        gradients = torch.autograd.grad(values.sum(), list(named.values()), allow_unused=True)
        for (name, parameter), gradient in zip(named.items(), gradients, strict=True):
            found[name].append(torch.zeros_like(parameter) if gradient is None else gradient)
    for module, training in modes.items():
        module.training = training
    return {name: torch.stack(gradients) for name, gradients in found.items()}


def worst(found: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """The largest error, relative to the tensor's largest value, or to a millionth of the model's largest.

    The floor is for tensors whose gradient is zero but for rounding (the bias of attention's keys).
    """
    floor = max(float(values.abs().max()) for values in truth.values()) * 1e-6
    return max(
        float((found[name] - values).abs().max()) / max(float(values.abs().max()), floor)
        for name, values in truth.items()
    )
