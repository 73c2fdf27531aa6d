import copy
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paretune.errors import PareError
from paretune.plan import Addition
from paretune.strategies import STRATEGIES, attach_additions, prefix
from paretune.strategies.blocks import attention_paths, plain_anatomy
from tests.strategies.models import (
    ALL,
    TEXT,
    assert_same,
    build,
    design,
    inputs,
    layers,
    logits,
    mixture,
    shake,
    snapshot,
)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_all_strategies_at_once_in_every_block(kind, attn):
    model = build(kind, attn)
    before, plain = snapshot(model), logits(model, kind)
    additions = mixture(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attached = attach_additions(model, additions)
    assert sum(t.numel() for t in attached.tensors.values()) == sum(a.count for a in additions)
    assert list(attached.tensors) == sorted(attached.tensors)
    shake(attached.tensors)
    assert not torch.equal(logits(model, kind), plain)
    attached.detach()
    assert_same(before, snapshot(model))
    assert torch.equal(logits(model, kind), plain)


@pytest.mark.parametrize("kind", ALL)
def test_all_but_the_prefix_change_nothing_at_first(kind):
    model = build(kind)
    plain = logits(model, kind)
    attach_additions(model, [a for a in mixture(model) if a.strategy != "prefix"])
    assert torch.equal(logits(model, kind), plain)


@pytest.mark.parametrize("kind", TEXT)
def test_every_added_tensor_gets_the_true_gradient(kind):
    """Against a finite difference along a random direction of all added tensors, in fp64 (T5 has kinks)."""
    model = build(kind, "eager", torch.float64)
    additions = [
        Addition(a.strategy, a.module, a.size, a.count, {**a.settings, "activation": "tanh"})
        if a.strategy == "adapter"
        else a
        for a in mixture(model)
    ]
    attached = attach_additions(model, additions)
    model.requires_grad_(False)
    tensors = list(attached.tensors.values())
    for tensor in tensors:
        tensor.requires_grad_(True)
    shake(attached.tensors, scale=0.1)

    def loss():
        return model(**inputs(kind)).logits.double().square().mean()

    loss().backward()
    assert all(tensor.grad is not None for tensor in tensors)
    generator = torch.Generator().manual_seed(5)
    direction = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in tensors]
    slope = sum((t.grad * d).sum() for t, d in zip(tensors, direction, strict=True))
    step, values = 1e-4, []
    with torch.no_grad():
        for sign in (1, -1):
            for tensor, d in zip(tensors, direction, strict=True):
                tensor.add_(d, alpha=sign * step)
            values.append(loss())
            for tensor, d in zip(tensors, direction, strict=True):
                tensor.sub_(d, alpha=sign * step)
    torch.testing.assert_close((values[0] - values[1]) / (2 * step), slope, rtol=5e-3, atol=1e-6)


def gradients(model, attached, kind):
    for tensor in attached.tensors.values():
        tensor.grad = None
    model(**inputs(kind)).logits.float().square().mean().backward()
    return {key: tensor.grad.clone() for key, tensor in attached.tensors.items()}


@pytest.mark.parametrize("kind", TEXT)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(kind, reentrant):
    model = build(kind, dtype=torch.float64)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    attached = attach_additions(model, mixture(model))
    shake(attached.tensors)
    wanted = gradients(model, attached, kind)
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": reentrant})
    if reentrant:  # the reentrant kind needs an input that requires a gradient
        model.enable_input_require_grads()
    model.train()
    for module in model.modules():
        for name in ("dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    found = gradients(model, attached, kind)
    for key, gradient in wanted.items():
        torch.testing.assert_close(found[key], gradient)


@pytest.mark.parametrize("kind", TEXT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast(kind, dtype):
    """Under bf16 autocast, also of a bf16 model: gradients in fp32, near the exact ones."""
    model = build(kind)
    attached = attach_additions(model, mixture(model))
    shake(attached.tensors)
    wanted = gradients(model, attached, kind)

    model = build(kind, dtype=dtype)
    attached = attach_additions(model, mixture(model))
    shake(attached.tensors)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(model, attached, kind)
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    flat = [torch.cat([g[key].flatten() for key in wanted]) for g in (wanted, found)]
    assert torch.cosine_similarity(*flat, dim=0) > 0.98


@pytest.mark.parametrize("kind", TEXT)
def test_low_precision_model_without_autocast(kind):
    model = build(kind, dtype=torch.bfloat16)
    attached = attach_additions(model, mixture(model))
    shake(attached.tensors)
    assert all(gradient.isfinite().all() for gradient in gradients(model, attached, kind).values())
    assert logits(model, kind).dtype == torch.bfloat16


def test_training_steps_change_added_tensors_alone():
    model = build("t5")
    before = snapshot(model)
    model.requires_grad_(False)
    attached = attach_additions(model, mixture(model))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.1, weight_decay=0.1)
    start = {key: tensor.detach().clone() for key, tensor in attached.tensors.items()}
    for _ in range(2):
        gradients(model, attached, "t5")
        optimizer.step()
    assert all(not torch.equal(start[key], tensor) for key, tensor in attached.tensors.items())
    attached.detach()
    model.requires_grad_(True)
    assert_same(before, snapshot(model))


def test_a_copied_model_trains_on_its_own():
    model = build("t5")
    attached = attach_additions(model, mixture(model))
    shake(attached.tensors)
    wanted = logits(model, "t5")
    twin, twin_attached = copy.deepcopy((model, attached))
    assert not {id(p) for p in model.parameters()} & {id(p) for p in twin.parameters()}
    shake(twin_attached.tensors, 3)
    assert torch.equal(logits(model, "t5"), wanted)
    attached.detach()
    twin_attached.detach()
    assert torch.equal(logits(twin, "t5"), logits(build("t5"), "t5"))


def test_the_order_of_additions_does_not_matter():
    found = []
    for order in (1, -1):
        model = build("llama")
        attached = attach_additions(model, mixture(model)[::order])
        shake(attached.tensors)
        found.append(logits(model, "llama"))
    assert torch.equal(*found)


def test_merge_of_loras_alone():
    model = build("gpt2", dtype=torch.float64)
    paths = [path for path in layers(model) if path != "lm_head"]
    attached = attach_additions(model, design(model, [("lora", path, 2, {}) for path in paths]))
    shake(attached.tensors)
    wanted = logits(model, "gpt2")
    assert attached.unmergeable is None
    attached.merge()
    torch.testing.assert_close(logits(model, "gpt2"), wanted)


def test_a_mixture_that_cannot_be_merged_is_left_whole():
    model = build("llama")
    attached = attach_additions(model, mixture(model))
    state = snapshot(model)
    with pytest.raises(PareError, match="cannot be merged"):
        attached.merge()
    assert_same(state, snapshot(model))


def test_failure_of_the_last_strategy_detaches_the_others(monkeypatch):
    model = build("llama")
    before = snapshot(model)

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(prefix, "carry", fail)
    with pytest.raises(KeyboardInterrupt):
        attach_additions(model, mixture(model))
    assert_same(before, snapshot(model))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Addition("lorra", "lm_head", 1, 1), "no strategy 'lorra'; did you mean lora?"),
        (Addition("ia3", "lm_head", 1, 1), "no strategy 'ia3'; there are lora, bias, adapter, prefix"),
        (Addition("prefix", "model.layers.0", 0, 0), "length 0 is not a whole number"),
        (Addition("prefix", "model.layers.9", 1, 16), "is no block of the model"),
        (Addition("prefix", "model.layers.0", 99, 16), "length 99 is more than the 20 positions"),
        (Addition("bias", "lm_head", 1, 3), "made for another model"),
    ],
)
def test_bad_input_is_refused_before_anything_is_changed(bad, message):
    model = build("llama")
    before = snapshot(model)
    with pytest.raises(PareError) as problem:
        attach_additions(model, [*mixture(model)[-4:], bad])
    assert message in str(problem.value)
    assert_same(before, snapshot(model))


@st.composite
def designs(draw):
    """A kind of model, and for each block any mixture of strategies with any sizes."""
    kind = draw(st.sampled_from(TEXT))
    model = build(kind)
    wanted = []
    sizes = st.integers(1, 4)
    for block in plain_anatomy(model).blocks:
        below = layers(model, block.path)
        if draw(st.booleans()):
            options = {"after": draw(st.sampled_from(["mlp", "both"])), "seed": draw(st.integers(0, 3))}
            wanted.append(("adapter", block.path, draw(sizes), options))
        if draw(st.booleans()):
            cross = len(attention_paths(model, block.path)) > 1 and draw(st.booleans())
            wanted.append(("prefix", block.path, draw(sizes), {"cross_attention": cross}))
        for path in draw(st.lists(st.sampled_from(below), unique=True, max_size=4)):
            options = {
                "alpha": draw(st.sampled_from([None, 1, 16.0])),
                "dropout": draw(st.sampled_from([0, 0.5])),
            }
            wanted.append(("lora", path, draw(sizes), options))
        plain = [path for path in below if getattr(model.get_submodule(path), "bias", None) is None]
        if plain:
            chosen = draw(st.lists(st.sampled_from(plain), unique=True, max_size=3))
            wanted += [("bias", path, 1, {}) for path in chosen]
    return kind, design(model, wanted)


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(designs(), st.integers(0, 2**20))
def test_values_carried_to_another_model_give_the_same_logits(drawn, seed):
    """For any design: what is trained on one model, loaded into a fresh one, computes the same bits."""
    kind, additions = drawn
    model, other = build(kind), build(kind)
    before, plain = snapshot(other), logits(other, kind)
    attached = attach_additions(model, additions)
    assert sum(t.numel() for t in attached.tensors.values()) == sum(a.count for a in additions)
    shake(attached.tensors, seed)
    saved = {key: tensor.detach().clone() for key, tensor in attached.tensors.items()}

    loaded = attach_additions(other, additions[::-1], "elsewhere")
    assert loaded.tensors.keys() == saved.keys()
    with torch.no_grad():
        for key, tensor in loaded.tensors.items():
            tensor.copy_(saved[key])
    assert torch.equal(logits(other, kind), logits(model, kind))
    loaded.detach()
    assert_same(before, snapshot(other))
    assert torch.equal(logits(other, kind), plain)


@pytest.mark.parametrize("first", [0, 1])
def test_two_mixtures_on_one_model_leave_in_any_order(first):
    model = build("t5")
    before = snapshot(model)
    pair = [attach_additions(model, mixture(model, seed), f"delta-{seed}") for seed in (0, 1)]
    for seed, attached in enumerate(pair):
        shake(attached.tensors, seed)
    pair.pop(first).detach()
    alone = logits(model, "t5")
    lonely = build("t5")
    shake(attach_additions(lonely, mixture(lonely, 1 - first)).tensors, 1 - first)
    assert torch.equal(logits(lonely, "t5"), alone)
    pair.pop().detach()
    assert_same(before, snapshot(model))


def test_registry_order_is_the_order_of_attaching():
    assert list(STRATEGIES) == ["lora", "bias", "adapter", "prefix"]
