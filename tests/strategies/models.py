"""Tiny random models with inputs, for tests of added modules."""

import functools
from typing import Any

import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.pytorch_utils import Conv1D

from paretune.plan import Addition
from paretune.strategies import STRATEGIES
from paretune.strategies.blocks import attention_paths, plain_anatomy
from paretune.strategies.paths import named_slots, plain, slot

TEXT = ("bert", "roberta", "gpt2", "llama", "t5")
ALL = (*TEXT, "bart", "vit")
CACHED = ("gpt2", "llama", "t5", "bart")
SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
VOCABULARY = {"vocab_size": 40, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}


def build(kind: str, attn: str = "sdpa", dtype: torch.dtype = torch.float32) -> nn.Module:
    """A tiny random model of a kind, always the same weights, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _build(kind)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.set_attn_implementation(attn)
    return model.eval().to(dtype)


def _build(kind: str) -> Any:
    match kind:
        case "bert":
            return BertForSequenceClassification(BertConfig(**SIZE, **VOCABULARY, max_position_embeddings=20))
        case "roberta":
            return RobertaForSequenceClassification(
                RobertaConfig(**SIZE, **VOCABULARY, max_position_embeddings=20, type_vocab_size=1)
            )
        case "gpt2":
            return GPT2LMHeadModel(GPT2Config(**VOCABULARY, n_embd=16, n_layer=2, n_head=4, n_positions=20))
        case "llama":
            return LlamaForCausalLM(
                LlamaConfig(**SIZE, **VOCABULARY, num_key_value_heads=2, max_position_embeddings=20)
            )
        case "t5":
            config = T5Config(
                vocab_size=40,
                d_model=16,
                d_kv=6,
                d_ff=24,
                num_layers=2,
                num_heads=4,
                relative_attention_num_buckets=8,
                pad_token_id=1,
                eos_token_id=2,
                decoder_start_token_id=1,
            )
            return T5ForConditionalGeneration(config)
        case "bart":
            layers = {
                f"{part}_{what}": value for part in ("encoder", "decoder") for what, value in _BART.items()
            }
            return BartForConditionalGeneration(
                BartConfig(
                    **VOCABULARY, **layers, d_model=16, max_position_embeddings=20, decoder_start_token_id=2
                )
            )
        case "vit":
            return ViTForImageClassification(ViTConfig(**SIZE, image_size=8, patch_size=4, num_labels=3))
    raise ValueError(kind)


_BART = {"layers": 2, "attention_heads": 4, "ffn_dim": 24}


@functools.cache
def inputs(kind: str) -> dict[str, torch.Tensor]:
    """A batch of two, the second padded at its end."""
    generator = torch.Generator().manual_seed(1)
    if kind == "vit":
        return {"pixel_values": torch.randn(2, 3, 8, 8, generator=generator)}
    batch = {
        "input_ids": torch.randint(3, 40, (2, 7), generator=generator),
        "attention_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3]),
    }
    if kind in ("t5", "bart"):
        batch["decoder_input_ids"] = torch.randint(3, 40, (2, 5), generator=generator)
    return batch


@torch.no_grad()
def logits(model: Any, kind: str, **overrides: Any) -> torch.Tensor:
    """What the model says of the batch."""
    return model(**{**inputs(kind), **overrides}).logits


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that detaching must bring back."""
    return {
        "modules": {name: id(module) for name, module in model.named_modules()},
        "values": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "flags": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "objects": {name: id(parameter) for name, parameter in model.named_parameters()},
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "hooks": {
            (name, kind): len(hooks)
            for name, module in model.named_modules()
            for kind, hooks in vars(module).items()
            if kind.endswith("_hooks")
        },
        "configs": {name: id(getattr(module, "config", None)) for name, module in model.named_modules()},
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Two snapshots are equal, tensors bit for bit, names in the same order."""
    assert list(before["values"]) == list(after["values"])
    for name, tensor in before["values"].items():
        assert torch.equal(tensor, after["values"][name]), name
    for part in before.keys() - {"values"}:
        assert before[part] == after[part], part


@torch.no_grad()
def shake(tensors: dict[str, nn.Parameter], seed: int = 0, scale: float = 0.3) -> None:
    """Random values in all added tensors, as training would leave them."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in tensors.values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)


def design(model: nn.Module, wanted: list[tuple[str, str, int, dict[str, Any]]]) -> list[Addition]:
    """Additions from (strategy, module, size, settings), with the counts that the strategies give."""
    return [
        Addition(strategy, module, size, STRATEGIES[strategy].count(model, module, size, settings), settings)
        for strategy, module, size, settings in wanted
    ]


def mixture(model: nn.Module, seed: int = 0) -> list[Addition]:
    """All strategies at once in every block, sizes and settings different from block to block."""
    wanted: list[tuple[str, str, int, dict[str, Any]]] = []
    for index, block in enumerate(plain_anatomy(model).blocks):
        wanted.append(("adapter", block.path, 2 + index, {"after": ("mlp", "both")[index % 2], "seed": seed}))
        cross = len(attention_paths(model, block.path)) > 1
        wanted.append(("prefix", block.path, 1 + index, {"cross_attention": cross, "seed": seed}))
        for number, path in enumerate(layers(model, block.path)):
            wanted.append(("lora", path, 1 + (index + number) % 3, {"seed": seed}))
            if getattr(plain(slot(model, path)), "bias", None) is None:
                wanted.append(("bias", path, 1, {}))
    return design(model, wanted)


def layers(model: nn.Module, path: str = "") -> list[str]:
    """Paths of the Linear and Conv1D layers below a path of the plain model."""
    slots = named_slots(slot(model, path) if path else model, path)
    return [name for name, module in slots if isinstance(plain(module), nn.Linear | Conv1D)]
