import pytest
from torch import nn
from transformers import BertConfig, BertModel, MixtralConfig, MixtralForCausalLM

from paretune.errors import PareError
from paretune.strategies import attach_additions
from paretune.strategies.blocks import (
    attention_output,
    attention_paths,
    feed_forward_output,
    find_block,
    plain_anatomy,
)
from tests.strategies.models import SIZE, VOCABULARY, build, mixture

PLACES = {
    "bert": ("bert.encoder.layer.1", "output.dense", "attention.output.dense", ["attention"]),
    "roberta": ("roberta.encoder.layer.0", "output.dense", "attention.output.dense", ["attention"]),
    "gpt2": ("transformer.h.1", "mlp.c_proj", "attn.c_proj", ["attn"]),
    "llama": ("model.layers.1", "mlp.down_proj", "self_attn.o_proj", ["self_attn"]),
    "t5": ("decoder.block.1", "layer.2.DenseReluDense.wo", "layer.0.SelfAttention.o", ["layer.0", "layer.1"]),
    "bart": ("model.decoder.layers.0", "fc2", "self_attn.out_proj", ["self_attn", "encoder_attn"]),
    "vit": ("vit.layers.0", "mlp.fc2", "attention.o_proj", ["attention"]),
}


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("attached", [False, True])
def test_sublayers_are_found_by_structure(kind, attached):
    model = build(kind)
    if attached:
        attach_additions(model, mixture(model))
    block, feed_forward, attention, outermost = PLACES[kind]
    assert feed_forward_output(model, block) == f"{block}.{feed_forward}"
    assert attention_output(model, block) == f"{block}.{attention}"
    assert list(attention_paths(model, block)) == [f"{block}.{path}" for path in outermost]


def test_anatomy_of_an_attached_model_is_that_of_the_plain_one():
    plain, attached = build("llama"), build("llama")
    attach_additions(attached, mixture(attached))
    assert plain_anatomy(attached) == plain_anatomy(plain)


def test_anatomy_is_read_again_when_the_modules_change():
    model = BertModel(BertConfig(**SIZE, **VOCABULARY))
    assert len(plain_anatomy(model).blocks) == 2
    model.encoder.layer.append(type(model.encoder.layer[0])(model.config))
    assert len(plain_anatomy(model).blocks) == 3


def test_unknown_block_names_the_nearest():
    with pytest.raises(PareError, match=r"no block of the model; did you mean bert\.encoder\.layer\.1"):
        find_block(build("bert"), "bert.encoder.layer.11")


def test_unknown_block_of_a_model_without_blocks():
    with pytest.raises(PareError, match="its blocks are not to be found"):
        find_block(nn.Linear(2, 2), "layer.0")


def test_experts_are_refused_with_block_and_reason():
    config = MixtralConfig(**SIZE, **VOCABULARY, num_key_value_heads=2, num_local_experts=2)
    with pytest.raises(PareError, match=r"block 1 \(model\.layers\.1\) has no feed-forward of Linear"):
        feed_forward_output(MixtralForCausalLM(config), "model.layers.1")


def test_several_feed_forwards_are_refused():
    model = build("llama")
    block = model.model.layers[0]
    block.second = nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 16))
    with pytest.raises(PareError, match="2 layers end a feed-forward of width 16, not one"):
        feed_forward_output(model, "model.layers.0")


def test_feed_forward_as_wide_as_the_block():
    config = BertConfig(**{**SIZE, "intermediate_size": 16}, **VOCABULARY)
    model = BertModel(config)
    assert feed_forward_output(model, "encoder.layer.0") == "encoder.layer.0.output.dense"
