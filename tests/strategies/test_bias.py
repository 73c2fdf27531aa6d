import pytest
import torch
from torch import nn

from paretune.errors import PareError
from paretune.strategies import STRATEGIES, attach_additions, bias
from tests.strategies.models import assert_same, build, design, inputs, logits, shake, snapshot

BIAS = STRATEGIES["bias"]


@pytest.mark.parametrize(
    ("kind", "module", "width"),
    [
        ("t5", "encoder.block.0.layer.0.SelfAttention.q", 24),
        ("t5", "decoder.block.1.layer.2.DenseReluDense.wi", 24),
        ("t5", "encoder.final_layer_norm", 16),
        ("llama", "model.layers.1.self_attn.k_proj", 8),
        ("llama", "model.layers.0.input_layernorm", 16),
        ("gpt2", "lm_head", 40),
    ],
)
def test_layers_without_a_bias_get_one(kind, module, width):
    model = build(kind)
    before, plain = snapshot(model), logits(model, kind)
    assert BIAS.count(model, module, 1, {}) == width
    attached = attach_additions(model, design(model, [("bias", module, 1, {})]))
    assert torch.equal(logits(model, kind), plain)
    ((key, vector),) = attached.tensors.items()
    assert key == f"bias:{module}:bias" and vector.shape == (width,) and not vector.any()
    shake(attached.tensors)
    found = []
    handle = model.get_submodule(module).register_forward_hook(lambda m, a, output: found.append(output))
    logits(model, kind)
    attached.detach()
    logits(model, kind)
    handle.remove()
    if "0" in module:  # the first block reads the same input with and without the bias
        torch.testing.assert_close(found[0], found[1] + vector)
    assert not torch.equal(found[0], found[1])
    assert_same(before, snapshot(model))


def test_layer_norm_without_a_bias():
    model = nn.Sequential(nn.LayerNorm(4, bias=False))
    assert BIAS.count(model, "0", 1, {}) == 4


def test_a_bias_that_exists_is_selected_instead():
    with pytest.raises(PareError, match=r"select bert\.pooler\.dense\.bias in the plan"):
        BIAS.count(build("bert"), "bert.pooler.dense", 1, {})


@pytest.mark.parametrize("module", ["model.embed_tokens", "model.layers.0", "model.layers.0.mlp"])
def test_modules_that_cannot_carry_it(module):
    with pytest.raises(PareError, match="a bias fits Linear and norm layers"):
        BIAS.count(build("llama"), module, 1, {})


def test_one_vector_a_layer():
    with pytest.raises(PareError, match="2 vectors"):
        BIAS.count(build("llama"), "lm_head", 2, {})
    assert BIAS.size(build("llama"), "lm_head", 10**6, {}) == 1


def test_merging_is_refused_in_words():
    model = build("llama")
    attached = attach_additions(model, design(model, [("bias", "lm_head", 1, {})]))
    state = snapshot(model)
    with pytest.raises(PareError, match="cannot be merged: the model has no bias there"):
        attached.merge()
    assert_same(state, snapshot(model))


def test_gradient_is_that_of_a_real_bias():
    model = build("llama")
    path = "model.layers.1.mlp.gate_proj"
    attached = attach_additions(model, design(model, [("bias", path, 1, {})]))
    shake(attached.tensors)
    (vector,) = attached.tensors.values()
    model(**inputs("llama")).logits.square().sum().backward()

    other = build("llama")
    other.get_submodule(path).bias = nn.Parameter(vector.detach().clone())
    other(**inputs("llama")).logits.square().sum().backward()
    torch.testing.assert_close(vector.grad, other.get_submodule(path).bias.grad)


def test_failure_midway_leaves_the_model_as_it_was(monkeypatch):
    model = build("llama")
    before = snapshot(model)
    additions = design(model, [("bias", "lm_head", 1, {}), ("bias", "model.norm", 1, {})])
    real = bias.add_output

    def fail_at_second(model, path, *rest):
        if path == "model.norm":
            raise MemoryError
        real(model, path, *rest)

    monkeypatch.setattr(bias, "add_output", fail_at_second)
    with pytest.raises(MemoryError):
        BIAS.attach(model, additions)
    assert_same(before, snapshot(model))
