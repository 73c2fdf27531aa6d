import copy

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    MptConfig,
    MptModel,
)
from transformers.models.bert.modeling_bert import BertLMHeadModel

from paretune.errors import PareError
from paretune.strategies import STRATEGIES, attach_additions, prefix
from paretune.strategies.blocks import attention_paths, plain_anatomy
from tests.strategies.models import (
    ALL,
    CACHED,
    SIZE,
    VOCABULARY,
    assert_same,
    build,
    design,
    inputs,
    logits,
    shake,
    snapshot,
)

PREFIX = STRATEGIES["prefix"]


def in_every_block(model, cross=True, **settings):
    """Prefixes of different lengths, of cross-attention too where there is one."""
    wanted = []
    for block in plain_anatomy(model).blocks:
        both = cross and len(attention_paths(model, block.path)) > 1
        wanted.append(("prefix", block.path, 1 + block.index, {"cross_attention": both, **settings}))
    return design(model, wanted)


def prefixed(kind, attn="sdpa", dtype=torch.float32, scale=1.0):
    """A model with prefixes that matter, and the attachment."""
    model = build(kind, attn, dtype)
    attached = attach_additions(model, in_every_block(model))
    shake(attached.tensors, scale=scale)
    return model, attached


@pytest.mark.parametrize("kind", ALL)
def test_changes_the_logits_and_detaching_leaves_nothing(kind):
    model = build(kind)
    before, plain = snapshot(model), logits(model, kind)
    attached = attach_additions(model, in_every_block(model))
    start = (logits(model, kind) - plain).abs().max()
    shake(attached.tensors, scale=1.0)
    assert start > 0 and (logits(model, kind) - plain).abs().max() > 1e-3
    attached.detach()
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("kind", ALL)
def test_eager_and_sdpa_agree(kind):
    pair = [logits(prefixed(kind, attn, torch.float64)[0], kind) for attn in ("eager", "sdpa")]
    torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-6)  # Llama's eager softmax is in fp32


FAMILIES = {
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24},
    "electra": SIZE,
    "modernbert": {**SIZE, "cls_token_id": 3, "sep_token_id": 4},
    "qwen2": {**SIZE, "num_key_value_heads": 2},
    "qwen3": {**SIZE, "num_key_value_heads": 2, "head_dim": 6},
    "gemma3_text": {**SIZE, "num_key_value_heads": 1, "head_dim": 6, "sliding_window": 3},
    "gpt_neox": SIZE,
    "phi3": {**SIZE, "num_key_value_heads": 2},
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_other_families(kind):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **VOCABULARY, **FAMILIES[kind], max_position_embeddings=20)
    found = []
    for attn in ("sdpa", "eager"):
        torch.manual_seed(0)
        model = AutoModel.from_config(config, attn_implementation=attn).eval()
        before = snapshot(model)
        with torch.no_grad():
            plain = model(**inputs("bert")).last_hidden_state
            attached = attach_additions(model, in_every_block(model))
            shake(attached.tensors, scale=1.0)
            found.append(model(**inputs("bert")).last_hidden_state)
        assert (found[-1] - plain).abs().max() > 1e-3
        attached.detach()
        assert_same(before, snapshot(model))
    torch.testing.assert_close(*(each[0] for each in found), rtol=1e-4, atol=1e-4)


def test_implementation_can_be_changed_while_attached():
    model, _ = prefixed("llama", dtype=torch.float64)
    wanted = logits(model, "llama")
    model.set_attn_implementation("eager")
    torch.testing.assert_close(logits(model, "llama"), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ALL)
def test_every_tensor_matters(kind):
    model, attached = prefixed(kind)
    wanted = logits(model, kind)
    for key, tensor in attached.tensors.items():
        with torch.no_grad():
            kept = tensor.clone()
            tensor.mul_(3)
            if tensor.shape[0] > 1 or ":value" in key or "_value" in key:
                assert not torch.equal(logits(model, kind), wanted), key
            tensor.copy_(kept)
    assert torch.equal(logits(model, kind), wanted)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_is_what_a_cache_filled_with_the_same_keys_gives(kind):
    """The same prefix of one length everywhere, as peft lays it out: in the cache, without a position."""
    model = build(kind, dtype=torch.float64)
    blocks = plain_anatomy(model).blocks
    attached = attach_additions(model, design(model, [("prefix", b.path, 3, {}) for b in blocks]))
    shake(attached.tensors, scale=1.0)
    found = logits(model, kind)
    values = {key: tensor.detach().clone() for key, tensor in attached.tensors.items()}
    attached.detach()

    cache = DynamicCache(config=model.config)
    heads = getattr(model.config, "num_key_value_heads", None) or model.config.num_attention_heads
    for block in blocks:
        pair = [values[f"prefix:{block.path}:{tensor}"] for tensor in ("key", "value")]
        key, value = (t.view(3, heads, 4).transpose(0, 1).expand(2, -1, -1, -1) for t in pair)
        cache.update(key, value, block.index)
    mask = torch.cat([torch.ones(2, 3, dtype=torch.long), inputs(kind)["attention_mask"]], 1)
    positions = torch.arange(7).expand(2, -1)
    wanted = logits(model, kind, past_key_values=cache, attention_mask=mask, position_ids=positions)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_without_a_mask_it_is_causal(kind):
    model, _ = prefixed(kind, dtype=torch.float64)
    tokens = inputs(kind)["input_ids"]
    with torch.no_grad():
        whole = model(input_ids=tokens).logits
        for length in (1, 3):
            part = model(input_ids=tokens[:, :length]).logits
            torch.testing.assert_close(part, whole[:, :length])


@pytest.mark.parametrize("kind", CACHED)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"cache_implementation": "static"}])
def test_generate_with_a_cache_is_generate_without(kind, attn, options):
    model, _ = prefixed(kind, attn)
    batch = {key: value for key, value in inputs(kind).items() if not key.startswith("decoder")}
    if kind in ("gpt2", "llama"):  # a causal model reads its prompt padded on the left
        batch["attention_mask"] = batch["attention_mask"].flip(1)
    settings = {
        "max_new_tokens": 6,
        "min_new_tokens": 6,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
        "disable_compile": True,
    }
    cached = model.generate(**batch, **settings, **options)
    whole = model.generate(**batch, **settings, num_beams=options.get("num_beams", 1), use_cache=False)
    assert torch.equal(cached.sequences, whole.sequences)
    for with_cache, without in zip(cached.logits, whole.logits, strict=True):
        torch.testing.assert_close(with_cache, without, rtol=1e-4, atol=1e-5)
    assert len(cached.logits) == 6


def test_cache_holds_the_tokens_alone():
    model, _ = prefixed("llama")
    with torch.no_grad():
        output = model(**inputs("llama"), use_cache=True)
    assert output.past_key_values.get_seq_length() == 7


def test_padding_does_not_matter():
    model, _ = prefixed("bert", dtype=torch.float64)
    short = {"input_ids": inputs("bert")["input_ids"][1:, :4], "attention_mask": torch.ones(1, 4)}
    torch.testing.assert_close(logits(model, "bert")[1:], logits(model, "bert", **short))


def test_counts():
    bert, llama, t5 = build("bert"), build("llama"), build("t5")
    assert PREFIX.count(bert, "bert.encoder.layer.0", 5, {}) == 2 * 5 * 16
    assert PREFIX.count(llama, "model.layers.0", 5, {}) == 2 * 5 * 8  # two key heads of width 4
    assert PREFIX.count(t5, "encoder.block.0", 5, {}) == 2 * 5 * 24  # four heads of width 6
    cross = {"cross_attention": True}
    assert PREFIX.count(t5, "decoder.block.0", 5, cross) == 4 * 5 * 24
    assert PREFIX.size(t5, "decoder.block.0", 4 * 5 * 24 + 95, cross) == 5


def test_keys_of_cross_attention():
    model = build("t5")
    (addition,) = design(model, [("prefix", "decoder.block.0", 2, {"cross_attention": True})])
    shapes = {key: tuple(t.shape) for key, t in attach_additions(model, [addition]).tensors.items()}
    names = ["cross_key", "cross_value", "key", "value"]
    assert shapes == {f"prefix:decoder.block.0:{name}": (2, 24) for name in names}


def test_initial_values():
    model = build("bert")
    block = "bert.encoder.layer.0"
    for std, wanted in ((None, 0.02), (0.5, 0.5), (0.0, 0.0)):
        settings = {} if std is None else {"std": std}
        attached = attach_additions(model, design(model, [("prefix", block, 20, settings)]))
        key, value = attached.tensors.values()
        assert abs(key.std() - wanted) <= wanted / 10 and abs(key.mean()) <= wanted / 5
        assert wanted == 0 or not torch.equal(key, value)
        attached.detach()


def test_longer_than_the_positions():
    model = build("bert")
    with pytest.raises(PareError, match=r"bert\.encoder\.layer\.1: length 21 is more than the 20 positions"):
        PREFIX.count(model, "bert.encoder.layer.1", 21, {})
    assert PREFIX.size(model, "bert.encoder.layer.1", 10**9, {}) == 20
    assert PREFIX.size(build("t5"), "encoder.block.0", 48 * 10**6, {}) == 10**6  # relative positions: no end


def test_cross_attention_that_is_not_there():
    with pytest.raises(PareError, match=r"block 0 \(encoder\.block\.0\) has no cross-attention"):
        PREFIX.count(build("t5"), "encoder.block.0", 1, {"cross_attention": True})


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"cross_attention": 1}, "is not a bool"), ({"std": -1}, "std -1 is not a number in")],
)
def test_bad_settings(settings, message):
    with pytest.raises(PareError, match=message):
        PREFIX.count(build("bert"), "bert.encoder.layer.0", 1, settings)


def test_models_past_the_interface_are_refused_with_block_and_reason():
    deberta = DebertaV2ForSequenceClassification(DebertaV2Config(**SIZE, **VOCABULARY))
    with pytest.raises(
        PareError, match=r"block 1 \(deberta\.encoder\.layer\.1\) cannot carry a prefix: .*int"
    ):
        PREFIX.count(deberta, "deberta.encoder.layer.1", 1, {})
    mpt = MptModel(MptConfig(d_model=16, n_heads=4, n_layers=2, vocab_size=40))
    with pytest.raises(PareError, match="MptAttention"):
        PREFIX.count(mpt, "blocks.0", 1, {})


def test_attention_implementations_past_the_interface_are_refused():
    config = GPT2Config(
        **VOCABULARY, n_embd=16, n_layer=2, n_head=4, n_positions=20, reorder_and_upcast_attn=True
    )
    with pytest.raises(PareError, match="reorder_and_upcast_attn off"):
        PREFIX.count(GPT2LMHeadModel(config), "transformer.h.0", 1, {})
    model = build("bert")
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(PareError, match="with 'flex_attention' attention"):
        PREFIX.count(model, "bert.encoder.layer.0", 1, {})


def test_decoder_with_cross_attention_and_its_own_cache():
    config = BertConfig(**SIZE, **VOCABULARY, is_decoder=True, add_cross_attention=True)
    model = BertLMHeadModel(config).eval()
    attached = attach_additions(model, in_every_block(model))
    shake(attached.tensors, scale=1.0)
    tokens, states = inputs("bert")["input_ids"], torch.randn(2, 5, 16)
    with torch.no_grad():
        whole = model(tokens, encoder_hidden_states=states).logits
        first = model(tokens[:, :4], encoder_hidden_states=states, use_cache=True)
        rest = model(tokens[:, 4:], encoder_hidden_states=states, past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1), whole)


def test_a_copy_is_independent():
    model, attached = prefixed("t5")
    wanted = logits(model, "t5")
    twin, twin_attached = copy.deepcopy((model, attached))
    attached.detach()
    assert torch.equal(logits(twin, "t5"), wanted)
    twin.set_attn_implementation("eager")
    torch.testing.assert_close(logits(twin, "t5"), wanted)
    twin_attached.detach()
    twin.set_attn_implementation("sdpa")
    assert torch.equal(logits(twin, "t5"), logits(model, "t5"))


def test_failure_midway_leaves_the_model_as_it_was(monkeypatch):
    model = build("t5")
    before = snapshot(model)
    additions = in_every_block(model)
    real, calls = prefix.carry, []

    def fail_at_fourth(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise MemoryError
        real(*arguments)

    monkeypatch.setattr(prefix, "carry", fail_at_fourth)
    with pytest.raises(MemoryError):
        PREFIX.attach(model, additions)
    assert_same(before, snapshot(model))


def test_merging_is_refused_in_words():
    _, attached = prefixed("bert")
    with pytest.raises(PareError, match="prefix cannot be merged"):
        attached.merge()
