"""Families that the other tests have not: experts in one tensor, no attention, results changed in place."""

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    LongformerConfig,
    MambaConfig,
    Qwen3MoeConfig,
)

from paretune.errors import PareError
from paretune.methods import choose
from paretune.strategies import STRATEGIES
from paretune.task import Task
from paretune.tuning import Recipe, attach, detach, train
from tests.tiny import tiny_rows, tiny_tokenizer

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 220}
HEADS = {"num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 80}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES = {
    "longformer": LongformerConfig(**SHAPE, **HEADS, attention_window=8, pad_token_id=1),
    "mamba": MambaConfig(**SHAPE, state_size=8),
    "experts": Qwen3MoeConfig(**SHAPE, **HEADS, **EXPERTS, num_key_value_heads=2, head_dim=8),
}


@pytest.fixture(scope="module", params=FAMILIES)
def task(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    encodes = request.param == "longformer"
    torch.manual_seed(0)
    (AutoModel if encodes else AutoModelForCausalLM).from_config(FAMILIES[request.param]).save_pretrained(
        folder
    )
    tiny_tokenizer(folder, "roberta" if encodes else "qwen2")
    rows = tiny_rows("single", 24)
    if not encodes:
        rows = [{"text": row["text"]} for row in rows]
    return Task.from_rows(rows, rows, model=folder)


@pytest.mark.parametrize(("method", "settings"), [("fish", {"samples": 8}), ("lora", {})])
def test_a_model_is_trained_and_given_back(task, method, settings, tmp_path):
    model = task.load_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = choose(method, model, task, "5%", **settings)
    attach(model, plan)
    sizes = {addition.module: addition.size for addition in plan.additions}
    ranks = {name: len(module.weight) for name, module in model.named_modules() if "lora_A." in name}
    assert ranks == {f"{module}.lora_A.paretune": size for module, size in sizes.items()}
    train(model, task, tmp_path, Recipe(lr=1e-2, steps=2, batch_size=8, checkpoints=0))
    delta = model.delta()
    trained = task.score(model)
    detach(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with delta.apply(model):
        assert task.score(model) == trained


def test_lora_is_added_to_what_can_carry_it(task):
    model = task.load_model()
    added = {addition.module.rpartition(".")[2] for addition in choose("lora", model, task, "20%").additions}
    assert added
    assert not added & {"gate", "experts", "conv1d"}
    if model.config.model_type == "mamba":
        assert "out_proj" not in added
        with pytest.raises(PareError, match="Mamba's kernels"):
            STRATEGIES["lora"].count(model, "backbone.layers.0.mixer.out_proj", 1, {})
