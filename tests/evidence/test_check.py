"""Rules are found on families with odd layers, checked, and given up where they are wrong."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from paretune.errors import PareError
from paretune.evidence.check import Findings, first_examples, study
from paretune.evidence.collector import Collector
from paretune.evidence.consumers import SquaredSum
from paretune.evidence.state import undisturbed
from tests.evidence.models import EXAMPLES, losses, one_by_one, worst

WORDS = {"vocab_size": 61}
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, **WORDS}
BART = {
    **WORDS,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 40,
}
SWIN = {
    "image_size": 16,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [1, 1],
    "num_heads": [2, 2],
    "window_size": 2,
}
FAMILIES: dict[str, tuple[Any, Callable[[], Any], set[str]]] = {
    # layers that are used again and again
    "albert": (
        tf.AutoModelForSequenceClassification,
        lambda: tf.AlbertConfig(**SIZE, embedding_size=16),
        set(),
    ),
    # relative positions by a method of the encoder
    "mpnet": (tf.AutoModelForSequenceClassification, lambda: tf.MPNetConfig(**SIZE), set()),
    # norms around one, scaled embeddings, tied
    "gemma": (
        tf.AutoModelForCausalLM,
        lambda: tf.Gemma3TextConfig(**SIZE, num_key_value_heads=2, head_dim=8),
        set(),
    ),
    # tokens as a matrix, positions from the mask with an offset
    "opt": (
        tf.AutoModelForCausalLM,
        lambda: tf.OPTConfig(
            **WORDS,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            ffn_dim=64,
            word_embed_proj_dim=32,
        ),
        set(),
    ),
    # positions with an offset, looked up once for all; the input only tells the shape
    "bart": (tf.AutoModelForSeq2SeqLM, lambda: tf.BartConfig(**BART, pad_token_id=1, eos_token_id=2), set()),
    # positions that a model computes without a gradient
    "pegasus": (tf.AutoModelForSeq2SeqLM, lambda: tf.PegasusConfig(**BART), set()),
    # windows, several to an example; a table of positions that is indexed in place
    "swin": (
        tf.AutoModelForImageClassification,
        lambda: tf.SwinConfig(**SWIN, num_labels=2),
        {"position_bias"},
    ),
    # batch norms and convolutions
    "resnet": (
        tf.AutoModelForImageClassification,
        lambda: tf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=2),
        set(),
    ),
    # layers that also take a table without examples
    "deberta": (
        tf.AutoModelForSequenceClassification,
        lambda: tf.DebertaV2Config(
            **SIZE,
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            position_buckets=8,
            share_att_key=True,
        ),
        {"query_proj", "key_proj", "rel_embeddings"},
    ),
}


def make(kind: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A tiny random model in float64 and a batch."""
    auto, config, _ = FAMILIES[kind]
    torch.manual_seed(0)
    model = auto.from_config(config()).double()
    model.requires_grad_(True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    ids = torch.randint(5, 60, (EXAMPLES, 9))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(EXAMPLES) % 2}
    if auto is tf.AutoModelForCausalLM:
        batch["labels"] = ids.masked_fill(mask == 0, -100)
    elif auto is tf.AutoModelForSeq2SeqLM:
        batch["labels"] = torch.randint(5, 60, (EXAMPLES, 6))
    elif auto is tf.AutoModelForImageClassification:
        side = 32 if kind == "resnet" else 16
        batch = {"pixel_values": torch.randn(EXAMPLES, 3, side, side), "labels": batch["labels"]}
    return model, batch


@pytest.mark.parametrize("kind", FAMILIES)
def test_families_with_odd_layers(kind: str) -> None:
    model, batch = make(kind)
    slow = FAMILIES[kind][2]
    squares = SquaredSum(dict(model.named_parameters()))
    with Collector(model, [squares]) as collector:
        collector.run(losses, batch, range(EXAMPLES))
    truth = {name: values.square().sum(0) for name, values in one_by_one(model, losses, batch).items()}
    assert worst(squares.values, truth) < (1e-6 if kind == "gemma" else 1e-10)  # its norms compute in float32
    assert all(any(part in name for part in slow) for name in collector.slow)
    assert bool(slow) == bool(collector.slow)


def found(model: nn.Module, loss: Any, batch: dict[str, Tensor]) -> Findings:
    with undisturbed(model):
        return study(model, loss, batch, len(batch["labels"]), dict(model.named_parameters()))


class Pretender(nn.Module):
    """Computes like a linear layer; its gradient is not that of one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (2 * self.weight - self.weight.detach()).T


def test_a_layer_that_only_looks_linear_is_found_out() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), Pretender(4), nn.Linear(4, 2)).double()
    batch = {"x": torch.randn(5, 6, 3, dtype=torch.float64), "labels": torch.zeros(5, dtype=torch.int64)}

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return cross_entropy(model(batch["x"]).mean(1), batch["labels"], reduction="none")

    assert found(model, loss, batch).slow == {"1.weight"}


def test_a_model_that_bears_no_copies_is_taken_without() -> None:
    class Strict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.randn(1, 4))
            self.out = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(x + torch.cat([self.token, self.token], 0)[:1])

    torch.manual_seed(0)
    model = Strict()
    batch = {"x": torch.randn(5, 4), "labels": torch.zeros(5, dtype=torch.int64)}

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return cross_entropy(model(batch["x"]), batch["labels"], reduction="none")

    assert found(model, loss, batch).slow == {"token"}


def test_what_reaches_no_loss_is_neither_slow_nor_wrong() -> None:
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "unused": nn.Linear(3, 2), "ignored": nn.Linear(3, 2)})
    batch = {"x": torch.randn(4, 3), "labels": torch.zeros(4, dtype=torch.int64)}

    def loss(model: nn.Module, batch: Any) -> Tensor:
        model["ignored"](batch["x"])
        return cross_entropy(model["used"](batch["x"]), batch["labels"], reduction="none")

    findings = found(model, loss, batch)
    assert findings.slow == set()
    assert {slot.name for slot in findings.slots} == {
        "used.weight",
        "used.bias",
        "unused.weight",
        "unused.bias",
    }


def test_examples_of_a_batch_are_cut_out_of_what_has_them() -> None:
    batch = {
        "ids": torch.arange(12).view(4, 3),
        "labels": torch.arange(4),
        "scale": torch.tensor(2.0),
        "name": "x",
    }
    cut = first_examples(batch, 1, 3)
    assert cut["ids"].tolist() == [[3, 4, 5], [6, 7, 8]]
    assert cut["labels"].tolist() == [1, 2]
    assert cut["scale"] == 2.0 and cut["name"] == "x"


@pytest.mark.parametrize("random", [False, True])
def test_a_kernel_that_gradients_pick_is_not_taken_for_chance(random: bool) -> None:
    """Attention has one: mT5's losses in bf16 differ with gradients and without."""
    model = nn.Linear(3, 2)
    batch = {"x": torch.randn(4, 3), "labels": torch.zeros(4, dtype=torch.int64)}
    calls = iter(range(9))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        logits = model(batch["x"])
        off = next(calls) if random else int(logits.requires_grad)
        return cross_entropy(logits, batch["labels"], reduction="none") * (1 + 2e-3 * off)

    if random:
        with pytest.raises(PareError, match="forward is random"):
            found(model, loss, batch)
    else:
        assert found(model, loss, batch).slow == set()
