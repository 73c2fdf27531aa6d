import pytest
import torch
from transformers import DebertaV2Config, DebertaV2Model

from paretune.errors import PareError
from paretune.strategies import STRATEGIES, adapter, attach_additions
from paretune.strategies.adapter import ACTIVATIONS, Bottleneck
from paretune.strategies.blocks import plain_anatomy
from tests.strategies.models import (
    ALL,
    SIZE,
    VOCABULARY,
    assert_same,
    build,
    design,
    logits,
    shake,
    snapshot,
)

ADAPTER = STRATEGIES["adapter"]


def in_every_block(model, **settings):
    blocks = plain_anatomy(model).blocks
    return design(model, [("adapter", block.path, 1 + block.index, settings) for block in blocks])


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("after", ["mlp", "both"])
def test_attaching_changes_nothing_and_detaching_leaves_nothing(kind, after):
    model = build(kind)
    before, plain = snapshot(model), logits(model, kind)
    additions = in_every_block(model, after=after)
    assert [a.count for a in additions] == [
        (2 * 16 * a.size + a.size + 16) * {"mlp": 1, "both": 2}[after] for a in additions
    ]
    attached = attach_additions(model, additions)
    assert torch.equal(logits(model, kind), plain)
    shake(attached.tensors)
    assert not torch.equal(logits(model, kind), plain)
    attached.detach()
    assert_same(before, snapshot(model))


def test_every_block_and_placement_matters():
    """Each adapter alone changes the logits: none is attached where nothing calls it."""
    for kind in ALL:
        model = build(kind)
        plain = logits(model, kind)
        attached = attach_additions(model, in_every_block(model, after="both"))
        for key, tensor in attached.tensors.items():
            if key.endswith("up.bias"):
                with torch.no_grad():
                    tensor.add_(torch.arange(16) / 16)
                    assert not torch.equal(logits(model, kind), plain), (kind, key)
                    tensor.zero_()


def test_models_outside_the_attention_interface_carry_adapters():
    model = DebertaV2Model(DebertaV2Config(**SIZE, **VOCABULARY)).eval()
    attach_additions(model, in_every_block(model, after="both"))


def test_size_is_the_largest_that_fits():
    model = build("t5")
    for settings in ({"after": "mlp"}, {"after": "both"}):
        for count in range(0, 400, 7):
            size = ADAPTER.size(model, "decoder.block.0", count, settings)
            assert size == 0 or ADAPTER.count(model, "decoder.block.0", size, settings) <= count
            assert ADAPTER.count(model, "decoder.block.0", size + 1, settings) > count


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_output_is_the_formula(activation):
    part = Bottleneck(6, 3, activation, torch.Generator().manual_seed(0)).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    assert torch.equal(part(x), x)
    shake(dict(part.named_parameters()))
    hidden = ACTIVATIONS[activation](x @ part.down.weight.T + part.down.bias)
    torch.testing.assert_close(part(x), x + hidden @ part.up.weight.T + part.up.bias)


def test_initial_values():
    part = Bottleneck(16, 200, "relu", torch.Generator().manual_seed(0))
    assert 0.245 < part.down.weight.abs().max() <= 0.25
    assert not part.down.bias.any() and not part.up.weight.any() and not part.up.bias.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"after": "norm"}, "neither 'mlp' nor 'both'"), ({"activation": "sine"}, "none of relu, gelu")],
)
def test_bad_settings(settings, message):
    with pytest.raises(PareError, match=message):
        ADAPTER.count(build("bert"), "bert.encoder.layer.0", 1, settings)


def test_merging_is_refused_in_words():
    model = build("bert")
    attached = attach_additions(model, in_every_block(model))
    with pytest.raises(PareError, match="adapter cannot be merged: it is not linear"):
        attached.merge()
    assert attached.tensors


def test_failure_midway_leaves_the_model_as_it_was(monkeypatch):
    model = build("bert")
    before = snapshot(model)
    additions = in_every_block(model, after="both")
    real = adapter.add_output

    def fail_at_third(model, path, *rest):
        if path == "bert.encoder.layer.1.output.dense":
            raise MemoryError
        real(model, path, *rest)

    monkeypatch.setattr(adapter, "add_output", fail_at_third)
    with pytest.raises(MemoryError):
        ADAPTER.attach(model, additions)
    assert_same(before, snapshot(model))
