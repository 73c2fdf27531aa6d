import copy
import itertools

import pytest
import torch
from transformers import DebertaV2Config, DebertaV2Model, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.models.t5.modeling_t5 import T5Attention

from paretune.errors import PareError
from paretune.strategies.prefix_attention import (
    Prefix,
    PrefixedConfig,
    attend,
    carry,
    drop,
    plain_config,
    uses_interface,
)
from tests.strategies.models import SIZE, VOCABULARY, build

BATCH, HEADS, GROUPS, WIDTH, LENGTH = 2, 4, 2, 3, 2


def attention(kind, implementation, causal):
    """An attention module with a prefix of length 2, and the prefix."""
    model = build({"grouped": "llama", "biased": "t5"}[kind], attn=implementation)
    blocks = {
        "grouped": lambda: model.model.layers[0].self_attn,
        "biased": lambda: model.encoder.block[0].layer[0].SelfAttention,
    }
    module = blocks[kind]()
    module.is_causal = causal
    heads = HEADS // getattr(module, "num_key_value_groups", 1)
    generators = tuple(torch.Generator().manual_seed(seed) for seed in (0, 1))
    prefix = Prefix(LENGTH, heads * WIDTH, 1.0, generators).double()
    carry(module, "paretune", prefix)
    return module, prefix, heads


def brute_force(query, key, value, prefix, mask, bias, scaling):
    """Softmax attention of every query over prefix and keys, one head and query after the other."""
    out = torch.zeros(BATCH, query.shape[2], HEADS, WIDTH, dtype=torch.float64)
    heads = key.shape[1]
    for b, h, q in itertools.product(range(BATCH), range(HEADS), range(query.shape[2])):
        group = h // (HEADS // heads)
        own = slice(group * WIDTH, (group + 1) * WIDTH)
        scores = [query[b, h, q] @ k * scaling for k in prefix.key[:, own]]
        values = list(prefix.value[:, own])
        for k in range(key.shape[2]):
            if mask[b, q, k]:
                scores.append(query[b, h, q] @ key[b, group, k] * scaling + bias[h, q, k])
                values.append(value[b, group, k])
        out[b, q, h] = torch.stack(scores).softmax(0) @ torch.stack(values)
    return out


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["grouped", "biased"])
@pytest.mark.parametrize("masking", ["none", "causal", "bool", "float"])
@pytest.mark.parametrize(("queries", "keys"), [(4, 4), (1, 4), (3, 5)])
@torch.no_grad()
def test_agrees_with_brute_force(implementation, kind, masking, queries, keys):
    if implementation == "eager" and masking in ("causal", "bool"):
        return  # eager gets a float mask always: transformers makes none of the others for it
    module, prefix, heads = attention(kind, implementation, causal=masking == "causal")
    torch.manual_seed(0)
    query = torch.randn(BATCH, HEADS, queries, WIDTH, dtype=torch.float64)
    key, value = torch.randn(2, BATCH, heads, keys, WIDTH, dtype=torch.float64)
    allowed = torch.ones(BATCH, queries, keys, dtype=torch.bool)
    if masking == "causal" and queries > 1:
        allowed = allowed.tril()
    elif masking in ("bool", "float"):
        allowed = torch.rand(BATCH, queries, keys) > 0.4
        allowed[0, 0] = False  # a query that sees the prefix alone
    mask = {
        "bool": allowed[:, None],
        "float": torch.zeros(allowed.shape).double().masked_fill(~allowed, -1e30)[:, None],
    }.get(masking)
    bias = torch.randn(HEADS, queries, keys, dtype=torch.float64) * (kind == "biased")
    extra = {"position_bias": bias[None]} if kind == "biased" else {}
    found, _ = attend(module, query, key, value, mask, scaling=0.7, **extra)
    torch.testing.assert_close(found, brute_force(query, key, value, prefix, allowed, bias, 0.7))


@torch.no_grad()
def test_two_prefixes_are_both_attended_to():
    module, prefix, heads = attention("grouped", "sdpa", causal=False)
    generators = tuple(torch.Generator().manual_seed(seed) for seed in (2, 3))
    second = Prefix(3, heads * WIDTH, 1.0, generators).double()
    carry(module, "second", second)
    query = torch.randn(BATCH, HEADS, 4, WIDTH, dtype=torch.float64)
    key, value = torch.randn(2, BATCH, heads, 4, WIDTH, dtype=torch.float64)
    joined = copy.deepcopy(prefix)
    joined.key = torch.nn.Parameter(torch.cat([prefix.key, second.key]))
    joined.value = torch.nn.Parameter(torch.cat([prefix.value, second.value]))
    allowed, bias = torch.ones(BATCH, 4, 4, dtype=torch.bool), torch.zeros(HEADS, 4, 4)
    found, _ = attend(module, query, key, value, None, scaling=1.0)
    torch.testing.assert_close(found, brute_force(query, key, value, joined, allowed, bias, 1.0))


def test_the_calls_word_on_causality_comes_before_the_modules():
    module, _, heads = attention("grouped", "sdpa", causal=True)
    query = torch.randn(BATCH, HEADS, 4, WIDTH, dtype=torch.float64)
    key, value = torch.randn(2, BATCH, heads, 4, WIDTH, dtype=torch.float64)
    causal, _ = attend(module, query, key, value, None)
    full, _ = attend(module, query, key, value, None, is_causal=False)
    assert not torch.allclose(causal[:, 0], full[:, 0])
    torch.testing.assert_close(causal[:, -1], full[:, -1])


def test_only_the_carrying_module_is_changed_and_dropping_restores_it():
    model = build("llama")
    module, other = (layer.self_attn for layer in model.model.layers)
    config = module.config
    generators = (torch.Generator(), torch.Generator())
    carry(module, "a", Prefix(1, 8, 0.02, generators))
    carry(module, "b", Prefix(1, 8, 0.02, generators))
    assert config._attn_implementation == "sdpa" and other.config is config
    assert module.config._attn_implementation == "paretune_prefix"
    drop(module, "a")
    assert isinstance(module.config, PrefixedConfig)
    drop(module, "b")
    assert module.config is config and not module._modules.keys() - other._modules.keys()


def test_view_of_a_config_is_live_and_copies_with_its_model():
    config = LlamaConfig(hidden_size=64)
    view = PrefixedConfig(config)
    config.hidden_size = 16
    assert view.hidden_size == 16
    view.hidden_size = 32
    assert config.hidden_size == 32
    with pytest.raises(AttributeError):
        _ = view.no_such_thing
    twin_config, twin = copy.deepcopy((config, view))
    assert twin.plain is twin_config
    assert copy.copy(view).plain is config


def test_other_implementations_are_refused_when_they_are_used():
    module, _, _ = attention("grouped", "sdpa", causal=True)
    plain_config(module)._attn_implementation = "flash_attention_2"
    states = torch.randn(1, 4, 2, 3)
    with pytest.raises(
        PareError, match=r"'flash_attention_2' attention; call model\.set_attn_implementation"
    ):
        attend(module, states, states[:, :2], states[:, :2], None)


def test_who_uses_the_interface():
    deberta = DebertaV2Model(DebertaV2Config(**SIZE, **VOCABULARY))
    assert not any(uses_interface(module) for module in deberta.modules())
    users = {type(module) for kind in ("llama", "t5") for module in build(kind).modules()}
    assert {each for each in users if "Attention" in each.__name__ and "Layer" not in each.__name__} == {
        LlamaAttention,
        T5Attention,
    }
    assert uses_interface(build("llama").model.layers[0].self_attn)
    assert not uses_interface(torch.nn.Linear(1, 1))
