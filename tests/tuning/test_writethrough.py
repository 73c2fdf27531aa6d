import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from paretune.errors import PareError
from paretune.plan import Selection
from paretune.tuning.writethrough import Slot, TunedWeight

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def bert():
    return BertForSequenceClassification(BertConfig(vocab_size=50, **TINY))


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32))


def llama():
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=50, num_key_value_heads=1, tie_word_embeddings=True, **TINY)
    )


def t5():
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
        )
    )


class Plain(nn.Module):
    """Weights read in every way that is not ``module(x)``."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.matrix = nn.Parameter(torch.randn(8, 8))
        self.table = nn.Embedding(50, 8, padding_idx=0)

    def forward(self, input_ids, labels):
        x = self.table(input_ids)
        x = x + self.attention(x, x, x)[0]
        x = self.lstm(x)[0]
        x = self.conv(x.mT).mT @ self.matrix.T
        loss = ((x @ self.table.weight.T) ** 2).mean()
        return type("Output", (), {"loss": loss})


CASES = {"bert": bert, "gpt2": gpt2, "llama": llama, "t5": t5, "plain": Plain}


def make(case, dtype=torch.float64):
    torch.manual_seed(0)
    return CASES[case]().to(dtype).eval()


def batch(case):
    rng = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 50, (3, 7), generator=rng)
    tokens[0, 5:] = 0
    return {"input_ids": tokens, "labels": torch.tensor([0, 1, 1]) if case == "bert" else tokens}


def some(parameter, share=0.3, seed=0, name="w"):
    size = max(1, round(share * parameter.numel()))
    chosen = np.random.default_rng(seed).choice(parameter.numel(), size, replace=False)
    return Selection(name, tuple(parameter.shape), "entries", np.sort(chosen))


def slots_on(model, share=0.3):
    return {name: Slot(p, some(p, share, name=name)) for name, p in list(model.named_parameters())}


@pytest.mark.parametrize("case", CASES)
def test_every_gradient_equals_the_dense_one(case):
    dense = make(case)
    dense(**batch(case)).loss.backward()
    model = make(case)
    slots = slots_on(model)
    model(**batch(case)).loss.backward()
    for name, parameter in dense.named_parameters():
        wanted = parameter.grad.reshape(-1)[slots[name].index]
        torch.testing.assert_close(slots[name].values.grad, wanted, rtol=1e-10, atol=1e-14, msg=name)
        assert model.get_parameter(name).grad is None


@pytest.mark.parametrize("case", ["bert", "llama"])
def test_gradient_checkpointing_gives_the_same_gradients(case):
    plain, recomputed = make(case), make(case)
    wanted, found = slots_on(plain), slots_on(recomputed)
    for module in (plain, recomputed):
        module.train()
        for part in module.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
    recomputed.gradient_checkpointing_enable()
    plain(**batch(case)).loss.backward()
    recomputed(**batch(case)).loss.backward()
    for name in wanted:
        torch.testing.assert_close(found[name].values.grad, wanted[name].values.grad)


def test_a_weight_of_the_checkpointed_module_itself_gets_its_gradient():
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    slot = Slot(layer.weight, some(layer.weight))
    x = torch.randn(2, 4)
    checkpoint(lambda y: torch.tanh(y @ layer.weight.T), x, use_reentrant=False).sum().backward()
    assert slot.values.grad.abs().sum() > 0


def test_no_dense_gradient_of_an_embedding_is_made():
    table = nn.Embedding(1_000_000, 4)
    slot = Slot(table.weight, some(table.weight, share=1e-4))
    from torch.profiler import profile

    with profile(profile_memory=True) as watched:
        table(torch.tensor([[3, 4, 5]])).sum().backward()
    largest = max(event.self_cpu_memory_usage for event in watched.key_averages())
    assert slot.values.grad.shape == (400,)
    assert largest < 1_000_000  # the dense gradient would be 16 MB


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_are_written_through_before_the_next_use(dtype):
    model = make("bert", dtype)
    slots = slots_on(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        for slot in slots.values():
            slot.values += 0.5
    state = model.state_dict()
    for name, slot in slots.items():
        flat, old = state[name].reshape(-1), before[name].reshape(-1)
        mask = torch.ones_like(flat, dtype=torch.bool)
        mask[slot.index.long()] = False
        assert torch.equal(flat[mask], old[mask])
        assert torch.equal(flat[slot.index.long()], slot.values.detach().to(dtype))
        assert slot.values.dtype == torch.float32


def test_an_optimiser_that_writes_behind_autograd_is_seen():
    class Sneaky(torch.optim.Optimizer):
        def step(self):
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data.sub_(0.25)

    layer = nn.Linear(4, 4)
    slot = Slot(layer.weight, some(layer.weight))
    before = layer(torch.ones(1, 4))
    Sneaky([slot.values], {}).step()
    assert not torch.equal(layer(torch.ones(1, 4)), before)


def test_a_loaded_state_reaches_the_values():
    model = make("bert", torch.float32)
    slots = slots_on(model)
    other = {n: t + 1 for n, t in model.state_dict().items()}
    model.load_state_dict(other)
    for name, slot in slots.items():
        slot.synchronise()
        assert torch.equal(slot.values.detach(), other[name].reshape(-1)[slot.index.long()])


def test_masters_survive_a_reload_of_what_they_already_are():
    layer = nn.Linear(4, 4).bfloat16()
    slot = Slot(layer.weight, some(layer.weight))
    with torch.no_grad():
        slot.values += 1e-4
    master = slot.values.detach().clone()
    layer.load_state_dict(copy.deepcopy(layer.state_dict()))
    layer(torch.ones(1, 4, dtype=torch.bfloat16))
    assert torch.equal(slot.values, master)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_release_is_bit_exact(dtype):
    model = make("llama", dtype)
    before = copy.deepcopy(model.state_dict())
    slots = slots_on(model)
    optimiser = torch.optim.AdamW([slot.values for slot in slots.values()], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        model(**batch("llama")).loss.backward()
        optimiser.step()
    assert not torch.equal(model.state_dict()["model.norm.weight"], before["model.norm.weight"])
    for slot in slots.values():
        slot.release()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(type(parameter) is nn.Parameter for parameter in model.parameters())


def test_names_and_identities_stay():
    model = make("llama")
    names = [name for name, _ in model.named_parameters()]
    tied = model.lm_head.weight
    slots_on(model)
    assert [name for name, _ in model.named_parameters()] == names
    assert model.lm_head.weight is tied is model.model.embed_tokens.weight
    assert isinstance(tied, nn.Parameter)
    assert isinstance(tied, TunedWeight)
    assert type(model.state_dict()["lm_head.weight"]) is torch.Tensor


def test_a_copy_trains_by_itself():
    model = make("bert")
    slots = slots_on(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for slot in slots.values():
            slot.values += 1
    assert not torch.equal(model(**batch("bert")).logits, twin(**batch("bert")).logits)
    twin(**batch("bert")).loss.backward()
    assert twin.classifier.weight.slot.values.grad is not None
    assert slots["classifier.weight"].values.grad is None


def test_embedding_padding_gets_no_gradient():
    table = nn.Embedding(10, 2, padding_idx=0)
    slot = Slot(table.weight, Selection("t", (10, 2), "rows", np.array([0, 3, 9])))
    table(torch.tensor([0, 3, 3])).sum().backward()
    assert slot.values.grad.tolist() == [0, 0, 2, 2, 0, 0]


def test_weight_decay_moves_selected_weights_by_the_exact_amount():
    layer = nn.Linear(4, 4)
    slot = Slot(layer.weight, some(layer.weight))
    start = slot.values.detach().clone()
    optimiser = torch.optim.AdamW([slot.values], lr=0.1, weight_decay=0.5)
    slot.values.grad = torch.zeros_like(slot.values)
    optimiser.step()
    torch.testing.assert_close(slot.values.detach(), start * (1 - 0.1 * 0.5))


def test_a_quantised_or_foreign_parameter_is_refused():
    class Packed(nn.Parameter):
        pass

    with pytest.raises(PareError, match="Packed cannot be trained in part"):
        Slot(Packed(torch.ones(3)), Selection("w", (3,), "all"))


def test_autocast_trains_the_values_in_fp32():
    model = make("bert", torch.float32)
    slots = slots_on(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch("bert")).loss
    loss.backward()
    assert all(slot.values.grad.dtype == torch.float32 for slot in slots.values())
    assert all(torch.isfinite(slot.values.grad).all() for slot in slots.values())


def test_a_compiled_model_trains_the_same():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3)).double()
    compiled = copy.deepcopy(plain)
    x = torch.randn(5, 6, dtype=torch.float64)
    wanted, found = slots_on(plain), slots_on(compiled)
    losses = []
    for model, slots in ((plain, wanted), (torch.compile(compiled, backend="aot_eager"), found)):
        optimiser = torch.optim.SGD([slot.values for slot in slots.values()], lr=0.1)
        for _ in range(2):
            loss = model(x).square().mean()
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            losses.append(loss.item())
    assert losses[:2] == pytest.approx(losses[2:], rel=1e-12)
    assert losses[0] != losses[1]
    for name in wanted:
        torch.testing.assert_close(found[name].values, wanted[name].values, msg=name)


def test_describing_a_weight_makes_no_alias_of_it():
    layer = nn.Linear(4, 4)
    Slot(layer.weight, some(layer.weight))
    assert not layer.weight._is_view() and layer.weight.is_leaf and layer.weight.is_contiguous()
