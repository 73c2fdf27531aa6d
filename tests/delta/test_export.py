import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel

from paretune.anatomy import base_digest
from paretune.delta import Delta, Values
from paretune.errors import PareError
from paretune.plan import Addition, Base
from paretune.strategies import attach_additions
from tests.delta.examples import file_delta
from tests.strategies import models

HEADS = {"bert": "classifier.", "roberta": "classifier.", "vit": "classifier.", "gpt2": "", "t5": ""}
TASKS = {"gpt2": "causal-lm", "llama": "causal-lm", "t5": "seq2seq"}


def lora_delta(kind: str, wanted=None) -> Delta:
    """LoRA of different ranks on every layer outside the head, with random values, and a trained head."""
    model = models.build(kind)
    prefix = HEADS.get(kind) or None
    if wanted is None:
        heads = ("lm_head", "classifier")
        paths = [path for path in models.layers(model) if not path.startswith(heads)]
        wanted = [("lora", path, 1 + n % 3, {"seed": n}) for n, path in enumerate(paths)]
    additions = models.design(model, wanted)
    attached = attach_additions(model, additions)
    models.shake(attached.tensors)
    added = {key: value.detach().clone() for key, value in attached.tensors.items()}
    attached.detach()
    head = tuple(name for name, _ in model.named_parameters() if prefix and name.startswith(prefix))
    tensors = {
        name: Values(tuple(p.shape), "all", None, torch.randn(p.shape))
        for name, p in model.named_parameters()
        if name in head
    }
    return Delta(
        Base("some/model", base_digest(model, head), "float32"),
        "p",
        head=head,
        task={"kind": TASKS.get(kind, "classification")},
        tensors=tensors,
        additions=tuple(additions),
        added=added,
    )


def through_peft(delta: Delta, kind: str, folder) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        warnings.filterwarnings("error", message=".*unexpected.*")
        return models.logits(PeftModel.from_pretrained(models.build(kind), folder).eval(), kind)


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "llama", "t5", "vit"])
def test_peft_gives_the_same_logits(kind, tmp_path):
    delta = lora_delta(kind)
    delta.export_peft(tmp_path)
    model = models.build(kind)
    with delta.apply(model):
        wanted = models.logits(model, kind)
    assert not torch.allclose(wanted, models.logits(model, kind), atol=1e-2)
    torch.testing.assert_close(through_peft(delta, kind, tmp_path), wanted, rtol=1e-5, atol=1e-5)


def test_each_module_has_its_own_rank_alpha_and_no_other_module_is_touched(tmp_path):
    """`query` of block 1 alone, of another rank and alpha than block 0's `key`; block 11 would match `1`."""
    wanted = [
        ("lora", "bert.encoder.layer.0.attention.self.key", 1, {"alpha": 0.5}),
        ("lora", "bert.encoder.layer.1.attention.self.query", 4, {"alpha": 3.0, "dropout": 0.1}),
    ]
    delta = lora_delta("bert", wanted)
    delta.export_peft(tmp_path)
    model = models.build("bert")
    with delta.apply(model):
        expected = models.logits(model, "bert")
    torch.testing.assert_close(through_peft(delta, "bert", tmp_path), expected, rtol=1e-5, atol=1e-5)
    peft = PeftModel.from_pretrained(models.build("bert"), tmp_path)
    assert sum("lora_A" in name for name, _ in peft.named_parameters()) == 2


def test_the_files(tmp_path):
    delta = lora_delta("bert")
    delta.to(torch.bfloat16).export_peft(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["task_type"] == "SEQ_CLS"
    assert config["base_model_name_or_path"] == "some/model"
    assert config["modules_to_save"] == ["classifier"]
    first = [p.read_bytes() for p in sorted(tmp_path.iterdir())]
    delta.to(torch.bfloat16).export_peft(tmp_path)
    assert [p.read_bytes() for p in sorted(tmp_path.iterdir())] == first


def test_what_peft_cannot_hold_is_named(tmp_path):
    delta = lora_delta("bert")
    folder = tmp_path / "out"
    with pytest.raises(PareError, match=r"selected weights of layer\.0\.weight \(4 such\)"):
        file_delta().export_peft(folder)
    adapter = Addition("adapter", "bert.encoder.layer.0", 2, 1)
    added = {**delta.added, "adapter:bert.encoder.layer.0:x": torch.zeros(1)}
    with pytest.raises(PareError, match=r"the adapter on bert\.encoder\.layer\.0"):
        replace(delta, additions=(*delta.additions, adapter), added=added).export_peft(folder)
    with pytest.raises(PareError, match="no LoRA in this delta"):
        replace(delta, additions=(), added={}).export_peft(folder)
    bare = Values((2,), "all", None, torch.zeros(2))
    with pytest.raises(PareError, match="bias belongs to none"):
        replace(delta, tensors={"bias": bare}, head=("bias",)).export_peft(folder)
    selected = Values((2, 2), "entries", np.array([0]), torch.zeros(1))
    with pytest.raises(PareError, match=r"merged checkpoint"):
        replace(delta, tensors={**delta.tensors, "w": selected}).export_peft(folder)
    on_head = lora_delta("bert", [("lora", "classifier", 1, {})])
    with pytest.raises(PareError, match="peft saves classifier whole"):
        on_head.export_peft(folder)
    with pytest.raises(PareError, match="peft saves classifier whole"):
        replace(on_head, tensors={}, head=()).export_peft(folder)
    assert not folder.exists()


def test_targets_that_peft_takes_for_experts_are_refused(tmp_path):
    """In a model with experts peft reads `down_proj` as theirs, though this one is of a layer without."""
    wanted = [("lora", f"model.layers.0.{path}", 1, {}) for path in ("self_attn.q_proj", "mlp.down_proj")]
    delta = replace(lora_delta("llama", wanted), info={"model_type": "deepseek_v3"})
    with pytest.raises(PareError, match=r"down_proj of the experts: ship the delta"):
        delta.export_peft(tmp_path)
    assert not list(tmp_path.iterdir())
    replace(lora_delta("llama", wanted[:1]), info={"model_type": "deepseek_v3"}).export_peft(tmp_path / "a")
    replace(lora_delta("llama", wanted), info={"model_type": "llama"}).export_peft(tmp_path / "b")
