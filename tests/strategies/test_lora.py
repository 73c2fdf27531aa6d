import peft
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from paretune.errors import PareError
from paretune.plan import Addition
from paretune.strategies import STRATEGIES, lora
from paretune.strategies.lora import Lora
from tests.strategies.models import ALL, assert_same, build, design, layers, logits, shake, snapshot

LORA = STRATEGIES["lora"]


def everywhere(model, **settings):
    """LoRA on every Linear and Conv1D, ranks 1 to 3."""
    paths = layers(model)
    return design(model, [("lora", path, 1 + i % 3, settings) for i, path in enumerate(paths)])


@pytest.mark.parametrize("kind", ALL)
def test_attaching_changes_nothing_and_detaching_leaves_nothing(kind):
    model = build(kind)
    before, plain = snapshot(model), logits(model, kind)
    attached = LORA.attach(model, everywhere(model))
    assert torch.equal(logits(model, kind), plain)
    shake(attached.tensors)
    assert not torch.equal(logits(model, kind), plain)
    attached.detach()
    assert_same(before, snapshot(model))
    assert not hasattr(model, "peft_config")


def test_count_of_linear_and_conv1d():
    assert LORA.count(build("bert"), "bert.encoder.layer.0.intermediate.dense", 3, {}) == 3 * (16 + 24)
    assert LORA.count(build("gpt2"), "transformer.h.0.attn.c_attn", 2, {}) == 2 * (16 + 48)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_output_is_the_formula(kind):
    model = build(kind, dtype=torch.float64)
    path = {"bert": "bert.encoder.layer.0.output.dense", "gpt2": "transformer.h.0.mlp.c_proj"}[kind]
    x = torch.randn(3, {"bert": 24, "gpt2": 64}[kind], dtype=torch.float64)
    plain = model.get_submodule(path)(x)
    attached = LORA.attach(model, design(model, [("lora", path, 2, {"alpha": 3.0})]))
    shake(attached.tensors)
    a, b = (attached.tensors[f"lora:{path}:lora_{f}.weight"] for f in "AB")
    torch.testing.assert_close(model.get_submodule(path)(x), plain + 1.5 * (x @ a.T) @ b.T)


def test_default_scale_is_two_at_every_rank():
    model = build("bert")
    paths = layers(model)[:3]
    LORA.attach(model, design(model, [("lora", path, 1 + 3 * i, {}) for i, path in enumerate(paths)]))
    assert {model.get_submodule(path).scaling["paretune"] for path in paths} == {2.0}


def test_agrees_with_peft_itself():
    model, other = build("llama"), build("llama")
    targets = ["q_proj", "v_proj"]
    paths = [path for path in layers(model) if path.rpartition(".")[2] in targets]
    attached = LORA.attach(model, design(model, [("lora", path, 4, {"alpha": 8}) for path in paths]))
    wrapped = peft.get_peft_model(other, peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    shake(attached.tensors)
    state = {
        f"base_model.model.{key.split(':')[1]}.{key.split(':')[2]}": tensor
        for key, tensor in attached.tensors.items()
    }
    result = peft.set_peft_model_state_dict(wrapped, state)
    assert not result.unexpected_keys
    assert torch.equal(logits(model, "llama"), logits(wrapped.eval(), "llama"))


def test_initial_a_is_uniform_like_pefts():
    model = build("bert")
    (addition,) = design(model, [("lora", "bert.pooler.dense", 512, {})])
    attached = LORA.attach(model, [addition])
    a = attached.tensors["lora:bert.pooler.dense:lora_A.weight"]
    assert 0.245 < a.abs().max() <= 0.25 and a.mean().abs() < 0.01  # bound 1 / sqrt(16)
    assert not attached.tensors["lora:bert.pooler.dense:lora_B.weight"].any()


def test_a_path_that_ends_like_another_is_not_confused_with_it():
    inner = nn.ModuleDict({"layer": nn.ModuleDict({"0": nn.Linear(4, 4)})})
    model = nn.ModuleDict({"layer": nn.ModuleDict({"0": nn.Linear(4, 4)}), "encoder": inner})
    additions = design(model, [("lora", "encoder.layer.0", 3, {"alpha": 1}), ("lora", "layer.0", 1, {})])
    attached = LORA.attach(model, additions)
    assert {key: tuple(t.shape) for key, t in attached.tensors.items() if "lora_A" in key} == {
        "lora:encoder.layer.0:lora_A.weight": (3, 4),
        "lora:layer.0:lora_A.weight": (1, 4),
    }
    assert isinstance(model["layer"]["0"], peft.tuners.lora.Linear)


def test_dropout_acts_in_training_alone():
    model = build("bert")
    attached = LORA.attach(model, everywhere(model, dropout=0.5))
    shake(attached.tensors)
    assert torch.equal(logits(model, "bert"), logits(model, "bert"))
    for module in model.modules():
        if isinstance(module, nn.Dropout) and module.p == 0.1:
            module.p = 0.0
    model.train()
    assert not torch.equal(logits(model, "bert"), logits(model, "bert"))


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_merge_gives_the_attached_logits_under_plain_names(kind):
    model = build(kind, dtype=torch.float64)
    paths = [path for path in layers(model) if path != "lm_head"]
    names = list(model.state_dict())
    modules = {name: id(module) for name, module in model.named_modules()}
    attached = LORA.attach(model, design(model, [("lora", path, 2, {}) for path in paths]))
    shake(attached.tensors)
    wanted = logits(model, kind)
    assert attached.unmergeable is None
    attached.merge()
    torch.testing.assert_close(logits(model, kind), wanted)
    assert list(model.state_dict()) == names
    assert {name: id(module) for name, module in model.named_modules()} == modules
    with pytest.raises(PareError, match="was merged"):
        attached.detach()
    with pytest.raises(PareError, match="nothing to merge"):
        attached.merge()


def test_merge_rounds_once_in_bf16():
    model = build("bert", dtype=torch.bfloat16)
    path = "bert.pooler.dense"
    attached = LORA.attach(model, design(model, [("lora", path, 2, {})]))
    shake(attached.tensors)
    a, b = (attached.tensors[f"lora:{path}:lora_{f}.weight"] for f in "AB")
    wanted = (model.bert.pooler.dense.base_layer.weight.float() + 2 * b @ a).bfloat16()
    attached.merge()
    assert torch.equal(model.bert.pooler.dense.weight, wanted)


def test_merging_one_of_two_leaves_the_other():
    model = build("bert", dtype=torch.float64)
    path = "bert.pooler.dense"
    additions = design(model, [("lora", path, 2, {})])
    first, second = (LORA.attach(model, additions, name) for name in ("one", "two"))
    shake(first.tensors, 1)
    shake(second.tensors, 2)
    wanted = logits(model, "bert")
    first.merge()
    torch.testing.assert_close(logits(model, "bert"), wanted)
    assert list(second.tensors) == [f"lora:{path}:lora_A.weight", f"lora:{path}:lora_B.weight"]


def test_merging_into_a_tied_weight_is_refused():
    model = build("gpt2")
    attached = LORA.attach(model, design(model, [("lora", "lm_head", 1, {})]))
    shake(attached.tensors)
    attached_state = snapshot(model)
    with pytest.raises(PareError, match=r"lm_head is tied to transformer\.wte"):
        attached.merge()
    assert_same(attached_state, snapshot(model))
    attached.detach()


def test_beside_a_peft_model_of_the_user():
    model = build("bert")
    config = peft.LoraConfig(r=2, target_modules=["query"], lora_dropout=0.0)
    peft.inject_adapter_in_model(config, model, "theirs")
    theirs, config = snapshot(model), model.peft_config
    path = "bert.encoder.layer.0.attention.self.query"
    attached = LORA.attach(model, design(model, [("lora", path, 1, {})]))
    assert model.get_submodule(path).active_adapters == ["theirs", "paretune"]
    attached.detach()
    assert_same(theirs, snapshot(model))
    assert model.peft_config is config


def test_peft_layers_that_are_merged_or_disabled_are_refused():
    model = build("bert")
    path = "bert.encoder.layer.0.attention.self.query"
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["query"]), model, "theirs")
    additions = design(model, [("lora", path, 1, {})])
    layer = model.get_submodule(path)
    layer.enable_adapters(False)
    with pytest.raises(PareError, match="adapters that are disabled"):
        LORA.attach(model, additions)
    layer.enable_adapters(True)
    layer.merge()
    with pytest.raises(PareError, match="adapters that are merged into it"):
        LORA.attach(model, additions)


def test_failure_inside_peft_leaves_the_model_as_it_was(monkeypatch):
    model = build("gpt2")
    before = snapshot(model)
    real = lora._inject_group

    def fail_at_linear(model, additions, name):
        real(model, additions, name)
        if isinstance(model.get_submodule(additions[0].module).base_layer, Conv1D):
            raise RuntimeError("disk on fire")

    monkeypatch.setattr(lora, "_inject_group", fail_at_linear)
    with pytest.raises(RuntimeError, match="disk on fire"):
        LORA.attach(model, everywhere(model))
    assert_same(before, snapshot(model))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("bert.embeddings.word_embeddings", "is a Embedding"),
        ("bert.encoder.layer.0", "is a BertLayer"),
        ("bert.encoder.layer.0.output.dens", "did you mean"),
    ],
)
def test_modules_that_cannot_carry_it(module, message):
    with pytest.raises(PareError, match=message):
        LORA.count(build("bert"), module, 1, {})


@pytest.mark.parametrize(
    "settings", [{"dropout": 1.0}, {"dropout": -0.1}, {"alpha": -1}, {"alpha": "x"}, {"alpha": float("nan")}]
)
def test_bad_settings(settings):
    with pytest.raises(PareError, match="is not a number in"):
        LORA.count(build("bert"), "bert.pooler.dense", 1, settings)


def test_alpha_zero_would_train_nothing():
    with pytest.raises(PareError, match="alpha 0 switches it off"):
        LORA.count(build("bert"), "bert.pooler.dense", 1, {"alpha": 0})


def test_projection_that_is_never_called():
    model = nn.Sequential(nn.MultiheadAttention(8, 2))
    with pytest.raises(PareError, match="never calls it"):
        LORA.count(model, "0.out_proj", 1, {})


def test_module_under_two_paths():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    with pytest.raises(PareError, match="2 is the same module"):
        LORA.attach(model, [Addition("lora", "0", 1, 8)])


def test_no_additions_is_no_change():
    model = build("bert")
    before = snapshot(model)
    assert Lora().attach(model, []).tensors == {}
    assert_same(before, snapshot(model))
