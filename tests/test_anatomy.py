"""The anatomy of tiny random models: the kind and block of every tensor, ties, heads, digests."""

import hashlib
import re
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    BartConfig,
    BartForConditionalGeneration,
    BartForSequenceClassification,
    BartModel,
    BertConfig,
    BertForSequenceClassification,
    BertLMHeadModel,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForCausalLM,
    RobertaForSequenceClassification,
    RobertaModel,
    SwinConfig,
    SwinModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    T5ForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from paretune.anatomy import Anatomy, Block, Tensor, anatomy, base_digest, mark_head
from paretune.errors import PareError

WIDE = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
TEXT = {**WIDE, "vocab_size": 20, "max_position_embeddings": 16}
GROUPED = {**TEXT, "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
BERT = BertConfig(**TEXT)
BERT_DECODER = BertConfig(**TEXT, is_decoder=True, add_cross_attention=True)
ROBERTA = RobertaConfig(**TEXT)
ROBERTA_DECODER = RobertaConfig(**TEXT, is_decoder=True)
DISTILBERT = DistilBertConfig(
    dim=8, n_layers=2, n_heads=2, hidden_dim=12, vocab_size=20, max_position_embeddings=16
)
GPT2 = GPT2Config(
    n_embd=8, n_layer=2, n_head=2, vocab_size=20, n_positions=16, bos_token_id=1, eos_token_id=1
)
LLAMA = LlamaConfig(**GROUPED)
QWEN2 = Qwen2Config(**GROUPED)
QWEN3 = Qwen3Config(**GROUPED, head_dim=4, tie_word_embeddings=True)
T5 = T5Config(d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2, vocab_size=20)
T5_GATED = T5Config(
    d_model=8,
    d_kv=4,
    d_ff=12,
    num_layers=2,
    num_decoder_layers=3,
    num_heads=2,
    vocab_size=20,
    feed_forward_proj="gated-gelu",
)
BART = BartConfig(
    d_model=8,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=12,
    decoder_ffn_dim=12,
    vocab_size=20,
    max_position_embeddings=16,
)
VIT = ViTConfig(**WIDE, image_size=8, patch_size=4)

Kinds = dict[str, str]

BERT_BLOCK = r"encoder\.layer\.\d\."
BERT_KINDS: Kinds = {
    r"embeddings\.(word|position|token_type)_embeddings\.weight": "embedding",
    r"embeddings\.LayerNorm\.(weight|bias)": "norm",
    BERT_BLOCK + r"(cross)?attention\.self\.(query|key|value)\.weight": "attention",
    BERT_BLOCK + r"(cross)?attention\.output\.dense\.weight": "attention",
    BERT_BLOCK + r"(intermediate|output)\.dense\.weight": "mlp",
    BERT_BLOCK + r".*(query|key|value|dense)\.bias": "bias",
    BERT_BLOCK + r"(attention\.|crossattention\.)?output\.LayerNorm\.(weight|bias)": "norm",
    r"pooler\.dense\.weight": "other",
    r"pooler\.dense\.bias": "bias",
}
BERT_LM_KINDS: Kinds = {
    r"cls\.predictions\.bias": "bias",
    r"cls\.predictions\.transform\.dense\.weight": "other",
    r"cls\.predictions\.transform\.dense\.bias": "bias",
    r"cls\.predictions\.transform\.LayerNorm\.(weight|bias)": "norm",
}
ROBERTA_LM_KINDS: Kinds = {
    r"lm_head\.(dense\.)?bias": "bias",
    r"lm_head\.dense\.weight": "other",
    r"lm_head\.layer_norm\.(weight|bias)": "norm",
}
DISTILBERT_BLOCK = r"transformer\.layer\.\d\."
DISTILBERT_KINDS: Kinds = {
    r"embeddings\.(word|position)_embeddings\.weight": "embedding",
    r"embeddings\.LayerNorm\.(weight|bias)": "norm",
    DISTILBERT_BLOCK + r"attention\.(q|k|v|out)_lin\.weight": "attention",
    DISTILBERT_BLOCK + r"ffn\.lin[12]\.weight": "mlp",
    DISTILBERT_BLOCK + r".*lin[12]?\.bias": "bias",
    DISTILBERT_BLOCK + r"(sa|output)_layer_norm\.(weight|bias)": "norm",
}
GPT2_KINDS: Kinds = {
    r"w[tp]e\.weight": "embedding",
    r"h\.\d\.attn\.c_(attn|proj)\.weight": "attention",
    r"h\.\d\.mlp\.c_(fc|proj)\.weight": "mlp",
    r"h\.\d\.(attn|mlp)\.c_\w+\.bias": "bias",
    r"h\.\d\.ln_[12]\.(weight|bias)": "norm",
    r"ln_f\.(weight|bias)": "norm",
}
LLAMA_KINDS: Kinds = {
    r"embed_tokens\.weight": "embedding",
    r"layers\.\d\.self_attn\.[qkvo]_proj\.weight": "attention",
    r"layers\.\d\.self_attn\.[qkv]_proj\.bias": "bias",  # Qwen2
    r"layers\.\d\.self_attn\.[qk]_norm\.weight": "norm",  # Qwen3
    r"layers\.\d\.mlp\.(gate|up|down)_proj\.weight": "mlp",
    r"layers\.\d\.(input|post_attention)_layernorm\.weight": "norm",
    r"norm\.weight": "norm",
}
T5_BLOCK = r"(encoder|decoder)\.block\.\d\.layer\.\d\."
T5_KINDS: Kinds = {
    r"shared\.weight": "embedding",
    T5_BLOCK + r"(SelfAttention|EncDecAttention)\.[qkvo]\.weight": "attention",
    T5_BLOCK + r"SelfAttention\.relative_attention_bias\.weight": "attention",
    T5_BLOCK + r"DenseReluDense\.(wi|wi_0|wi_1|wo)\.weight": "mlp",
    T5_BLOCK + r"layer_norm\.weight": "norm",
    r"(encoder|decoder)\.final_layer_norm\.weight": "norm",
}
BART_BLOCK = r"(encoder|decoder)\.layers\.\d\."
BART_KINDS: Kinds = {
    r"shared\.weight": "embedding",
    r"(encoder|decoder)\.embed_positions\.weight": "embedding",
    r"(encoder|decoder)\.layernorm_embedding\.(weight|bias)": "norm",
    BART_BLOCK + r"(self|encoder)_attn\.(q|k|v|out)_proj\.weight": "attention",
    BART_BLOCK + r"fc[12]\.weight": "mlp",
    BART_BLOCK + r".*(_proj|fc[12])\.bias": "bias",
    BART_BLOCK + r"\w+_layer_norm\.(weight|bias)": "norm",
}
VIT_KINDS: Kinds = {
    r"embeddings\.(cls_token|position_embeddings)": "embedding",
    r"embeddings\.patch_embeddings\.projection\.weight": "embedding",
    r"embeddings\.patch_embeddings\.projection\.bias": "bias",
    r"layers\.\d\.attention\.[qkvo]_proj\.weight": "attention",
    r"layers\.\d\.mlp\.fc[12]\.weight": "mlp",
    r"layers\.\d\.(attention|mlp)\.\w+\.bias": "bias",
    r"layers\.\d\.layernorm_(before|after)\.(weight|bias)": "norm",
    r"layernorm\.(weight|bias)": "norm",
    r"pooler\.dense\.weight": "other",
    r"pooler\.dense\.bias": "bias",
}


def under(prefix: str, kinds: Kinds, **more: str) -> Kinds:
    """The kinds of a model that holds another under a prefix, beside some of its own."""
    return {re.escape(prefix) + pattern: kind for pattern, kind in kinds.items()} | more


def heads(*patterns: str) -> Kinds:
    return dict.fromkeys(patterns, "head")


LM_HEAD = {r"lm_head\.weight": "embedding"}
SEQUENCE_HEAD = heads(r"classification_head\.(dense|out_proj)\.(weight|bias)")

# How to build it, the kind of every tensor by its name, the paths of its blocks.
CASES: dict[str, tuple[Callable[[], nn.Module], Kinds, list[str]]] = {}


def case(name: str, build: Callable[[], nn.Module], kinds: Kinds, *paths: str) -> None:
    CASES[name] = (build, kinds, [path % i for path in paths for i in range(2)])


case("bert", lambda: BertModel(BERT), BERT_KINDS, "encoder.layer.%d")
case(
    "bert-classification",
    lambda: BertForSequenceClassification(BERT),
    under("bert.", BERT_KINDS) | heads(r"classifier\.(weight|bias)"),
    "bert.encoder.layer.%d",
)
case(
    "bert-causal",
    lambda: BertLMHeadModel(BERT_DECODER),
    under("bert.", BERT_KINDS) | BERT_LM_KINDS,
    "bert.encoder.layer.%d",
)
case("roberta", lambda: RobertaModel(ROBERTA), BERT_KINDS, "encoder.layer.%d")
case(
    "roberta-classification",
    lambda: RobertaForSequenceClassification(ROBERTA),
    under("roberta.", BERT_KINDS) | heads(r"classifier\.(dense|out_proj)\.(weight|bias)"),
    "roberta.encoder.layer.%d",
)
case(
    "roberta-causal",
    lambda: RobertaForCausalLM(ROBERTA_DECODER),
    under("roberta.", BERT_KINDS) | ROBERTA_LM_KINDS,
    "roberta.encoder.layer.%d",
)
case("distilbert", lambda: DistilBertModel(DISTILBERT), DISTILBERT_KINDS, "transformer.layer.%d")
case(
    "distilbert-classification",
    lambda: DistilBertForSequenceClassification(DISTILBERT),
    under("distilbert.", DISTILBERT_KINDS) | heads(r"(pre_)?classifier\.(weight|bias)"),
    "distilbert.transformer.layer.%d",
)
case("gpt2", lambda: GPT2Model(GPT2), GPT2_KINDS, "h.%d")
case(
    "gpt2-classification",
    lambda: GPT2ForSequenceClassification(GPT2),
    under("transformer.", GPT2_KINDS) | heads(r"score\.weight"),
    "transformer.h.%d",
)
case("gpt2-causal", lambda: GPT2LMHeadModel(GPT2), under("transformer.", GPT2_KINDS), "transformer.h.%d")
case("llama", lambda: LlamaModel(LLAMA), LLAMA_KINDS, "layers.%d")
case(
    "llama-classification",
    lambda: LlamaForSequenceClassification(LLAMA),
    under("model.", LLAMA_KINDS) | heads(r"score\.weight"),
    "model.layers.%d",
)
case(
    "llama-causal", lambda: LlamaForCausalLM(LLAMA), under("model.", LLAMA_KINDS) | LM_HEAD, "model.layers.%d"
)
case(
    "qwen2-classification",
    lambda: Qwen2ForSequenceClassification(QWEN2),
    under("model.", LLAMA_KINDS) | heads(r"score\.weight"),
    "model.layers.%d",
)
case(
    "qwen2-causal", lambda: Qwen2ForCausalLM(QWEN2), under("model.", LLAMA_KINDS) | LM_HEAD, "model.layers.%d"
)
case("qwen3-causal-tied", lambda: Qwen3ForCausalLM(QWEN3), under("model.", LLAMA_KINDS), "model.layers.%d")
case("t5", lambda: T5ForConditionalGeneration(T5), T5_KINDS, "encoder.block.%d", "decoder.block.%d")
case("t5-encoder", lambda: T5EncoderModel(T5), T5_KINDS, "encoder.block.%d")
case(
    "t5-classification",
    lambda: T5ForSequenceClassification(T5),
    under("transformer.", T5_KINDS) | SEQUENCE_HEAD,
    "transformer.encoder.block.%d",
    "transformer.decoder.block.%d",
)
case("bart", lambda: BartModel(BART), BART_KINDS, "encoder.layers.%d", "decoder.layers.%d")
case(
    "bart-seq2seq",
    lambda: BartForConditionalGeneration(BART),
    under("model.", BART_KINDS),
    "model.encoder.layers.%d",
    "model.decoder.layers.%d",
)
case(
    "bart-classification",
    lambda: BartForSequenceClassification(BART),
    under("model.", BART_KINDS) | SEQUENCE_HEAD,
    "model.encoder.layers.%d",
    "model.decoder.layers.%d",
)
case("vit", lambda: ViTModel(VIT), VIT_KINDS, "layers.%d")
case(
    "vit-classification",
    lambda: ViTForImageClassification(VIT),
    under("vit.", VIT_KINDS) | heads(r"classifier\.(weight|bias)"),
    "vit.layers.%d",
)

DECODERS = {"bert-causal", "roberta-causal"} | {c for c in CASES if c.startswith(("gpt2", "llama", "qwen"))}


def unique_weights(model: nn.Module) -> int:
    return sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())


def check_sums(model: nn.Module, found: Anatomy) -> None:
    """Every parameter is there once, with its own shape, and the counts add up."""
    assert [t.name for t in found.tensors] == [name for name, _ in model.named_parameters()]
    for tensor in found.tensors:
        assert tensor.shape == tuple(model.get_parameter(tensor.name).shape)
        assert model.get_submodule(tensor.module)
        for alias in tensor.aliases:
            assert model.get_parameter(alias) is model.get_parameter(tensor.name)
    assert sum(t.count for t in found.tensors) == found.weights + found.head_weights == unique_weights(model)


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_of_a_known_model(name: str) -> None:
    build, kinds, paths = CASES[name]
    model = build()
    found = anatomy(model)
    check_sums(model, found)
    assert [block.path for block in found.blocks] == paths
    assert [block.index for block in found.blocks] == list(range(len(paths)))
    for block in found.blocks:
        decoder = name in DECODERS or ".decoder." in f".{block.path}"
        assert block.part == ("decoder" if decoder else "encoder"), block
    for tensor in found.tensors:
        expected = {kind for pattern, kind in kinds.items() if re.fullmatch(pattern, tensor.name)}
        assert expected == {tensor.kind}, tensor
        inside = [block.index for block in found.blocks if tensor.name.startswith(block.path + ".")]
        assert inside == ([] if tensor.block is None else [tensor.block]), tensor


def test_decoder_blocks_follow_encoder_blocks() -> None:
    found = anatomy(T5ForConditionalGeneration(T5_GATED))
    assert [block.part for block in found.blocks] == ["encoder"] * 2 + ["decoder"] * 3
    assert found.tensor("decoder.block.0.layer.1.EncDecAttention.q.weight").block == 2
    assert found.tensor("encoder.block.1.layer.1.DenseReluDense.wi_1.weight").kind == "mlp"


def test_tied_tensors_are_one_with_aliases() -> None:
    found = anatomy(BertLMHeadModel(BERT_DECODER))
    words = found.tensor("bert.embeddings.word_embeddings.weight")
    assert words.aliases == ("cls.predictions.decoder.weight",)
    assert found.tensor("cls.predictions.decoder.weight") is words
    assert found.tensor("cls.predictions.bias").aliases == ("cls.predictions.decoder.bias",)

    tied = anatomy(T5ForConditionalGeneration(T5)).tensor("shared.weight")
    assert tied.aliases == ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    untied = anatomy(LlamaForCausalLM(LLAMA))
    assert untied.tensor("lm_head.weight").aliases == ()


def test_layers_that_share_weights_are_counted_once() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Module()
    model.layers = nn.ModuleList([layer, layer, nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)])
    found = anatomy(model)
    check_sums(model, found)
    assert [block.path for block in found.blocks] == ["layers.0", "layers.2"]
    assert found.tensor("layers.0.linear1.weight").aliases == ("layers.1.linear1.weight",)


# Models that no library made.


class RMS(nn.Module):
    """Its name does not say what it is; the epsilon does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.eps = 1e-6


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))


class Mixer(nn.Module):
    """Attention that only its query, key and value give away."""

    def __init__(self) -> None:
        super().__init__()
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(8, 8) for _ in range(4))


class OwnBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before = RMS(8)
        self.mix = Mixer()
        self.scale = LayerScale(8)
        self.feed = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))


class OwnModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.positions = nn.Parameter(torch.zeros(16, 8))
        self.register = nn.Parameter(torch.zeros(1, 2, 8))
        self.temperature = nn.Parameter(torch.tensor(0.1))
        self.body = nn.Sequential(*(OwnBlock() for _ in range(3)))
        self.out = nn.Linear(8, 2)


def test_own_transformer_is_read_by_structure() -> None:
    model = OwnModel()
    found = anatomy(model)
    check_sums(model, found)
    assert [block.path for block in found.blocks] == ["body.0", "body.1", "body.2"]
    kinds = {t.name: t.kind for t in found.tensors if t.block in (None, 1)}
    assert kinds == {
        "positions": "embedding",
        "register": "embedding",
        "temperature": "other",
        "patches.weight": "embedding",
        "patches.bias": "bias",
        "body.1.before.gain": "norm",
        **{f"body.1.mix.w{role}.weight": "attention" for role in "qkvo"},
        **{f"body.1.mix.w{role}.bias": "bias" for role in "qkvo"},
        "body.1.scale.gamma": "other",
        "body.1.feed.0.weight": "mlp",
        "body.1.feed.0.bias": "bias",
        "body.1.feed.2.weight": "mlp",
        "body.1.feed.2.bias": "bias",
        "out.weight": "other",
        "out.bias": "bias",
    }


class FlatBlock(nn.Module):
    """Its projections are its own children, beside the feed-forward ones."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24, bias=False)
        self.out = nn.Linear(8, 8, bias=False)
        self.up = nn.Linear(8, 16, bias=False)
        self.down = nn.Linear(16, 8, bias=False)


def test_block_that_holds_its_projections_itself() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList(FlatBlock() for _ in range(2))
    found = anatomy(model)
    kinds = {t.name.removeprefix("layers.1."): t.kind for t in found.tensors if t.block == 1}
    assert kinds == {
        "norm.weight": "norm",
        "norm.bias": "norm",
        "qkv.weight": "attention",
        "out.weight": "attention",
        "up.weight": "mlp",
        "down.weight": "mlp",
    }


def test_torch_transformer() -> None:
    model = nn.Transformer(8, 2, 2, 3, 16, batch_first=True)
    found = anatomy(model)
    check_sums(model, found)
    assert [block.part for block in found.blocks] == ["encoder"] * 2 + ["decoder"] * 3
    assert found.tensor("encoder.layers.0.self_attn.in_proj_weight").kind == "attention"
    assert found.tensor("encoder.layers.0.self_attn.in_proj_bias").kind == "bias"
    assert found.tensor("decoder.layers.0.multihead_attn.out_proj.weight").kind == "attention"
    assert found.tensor("decoder.layers.2.linear2.weight").kind == "mlp"
    alone = anatomy(nn.MultiheadAttention(8, 2))
    assert [t.kind for t in alone.tensors] == ["attention", "bias", "attention", "bias"]


def test_plain_networks_without_blocks() -> None:
    mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 2))
    found = anatomy(mlp, head=["3.weight", "3.bias"])
    check_sums(mlp, found)
    assert not found.blocks
    assert [t.kind for t in found.tensors] == ["mlp", "bias", "norm", "norm", "head", "head"]

    cnn = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(), nn.Flatten(), nn.Linear(4, 2, bias=False)
    )
    found = anatomy(cnn)
    check_sums(cnn, found)
    assert [t.kind for t in found.tensors] == ["other", "bias", "norm", "norm", "other", "mlp"]

    recurrent = nn.LSTM(4, 4)
    found = anatomy(recurrent)
    check_sums(recurrent, found)
    assert [t.kind for t in found.tensors] == ["mlp", "mlp", "bias", "bias"]


def test_stages_give_way_to_layers_and_experts_do_not() -> None:
    swin = anatomy(
        SwinModel(SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[2, 1], num_heads=[1, 2]))
    )
    assert [block.path for block in swin.blocks] == [
        "encoder.layers.0.blocks.0",
        "encoder.layers.0.blocks.1",
        "encoder.layers.1.blocks.0",
    ]
    albert = anatomy(AlbertModel(AlbertConfig(**TEXT, embedding_size=6)))
    assert [block.path for block in albert.blocks] == ["encoder.albert_layer_groups.0.albert_layers.0"]

    mixture = anatomy(MixtralForCausalLM(MixtralConfig(**GROUPED, num_local_experts=2)))
    assert [block.path for block in mixture.blocks] == ["model.layers.0", "model.layers.1"]
    assert mixture.tensor("model.layers.0.mlp.experts.gate_up_proj").kind == "mlp"

    class Expert(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    class ExpertBlock(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = Mixer()
            self.experts = nn.ModuleList(Expert() for _ in range(3))

    model = nn.Module()
    model.layers = nn.ModuleList(ExpertBlock() for _ in range(2))
    assert [block.path for block in anatomy(model).blocks] == ["layers.0", "layers.1"]


def test_stack_of_convolutions_beside_attention_is_no_stack_of_blocks() -> None:
    class ConvLayer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(64, 64, 3)

    model = nn.Module()
    model.front = nn.ModuleList(ConvLayer() for _ in range(4))
    model.encoder = nn.ModuleList(OwnBlock() for _ in range(2))
    found = anatomy(model)
    assert [block.path for block in found.blocks] == ["encoder.0", "encoder.1"]
    assert found.tensor("front.0.conv.weight").kind == "embedding"

    del model.encoder
    assert len(anatomy(model).blocks) == 4


# The head.


def test_marked_head_comes_before_what_the_structure_says() -> None:
    model = BertForSequenceClassification(BERT)
    mark_head(
        model, ["classifier.bias", "bert.pooler.dense.weight", "classifier.weight", "bert.pooler.dense.bias"]
    )
    assert model.paretune_head == (
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
    )
    found = anatomy(model)
    assert tuple(t.name for t in found.head) == model.paretune_head
    assert found.head_weights == 8 * 8 + 8 + 2 * 8 + 2
    assert {t.name for t in found.body}.isdisjoint(model.paretune_head)

    assert anatomy(model, head=["classifier.weight"]).head_weights == 16
    assert anatomy(model, head=[]).head == ()
    mark_head(model, [])
    assert anatomy(model).head == ()


def test_mark_head_takes_aliases_and_passes_buffers_over() -> None:
    model = GPT2LMHeadModel(GPT2)
    mark_head(model, ["lm_head.weight"])
    assert model.paretune_head == ("transformer.wte.weight",)
    norm = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    mark_head(norm, ["1.running_mean", "0.bias"])
    assert norm.paretune_head == ("0.bias",)


def test_unknown_head_names_are_refused_with_near_misses() -> None:
    model = BertForSequenceClassification(BERT)
    with pytest.raises(PareError, match=r"no parameter 'clasifier.weight'.*did you mean classifier\.weight"):
        anatomy(model, head=["clasifier.weight"])
    with pytest.raises(PareError, match=r"no parameter 'zzz'.*named_parameters"):
        mark_head(model, ["zzz"])
    assert not hasattr(model, "paretune_head")
    with pytest.raises(PareError, match=r"list of names.*\['classifier.weight'\]"):
        anatomy(model, head="classifier.weight")


# What an anatomy answers.


def test_tensor_by_name() -> None:
    found = anatomy(BertModel(BERT))
    tensor = found.tensor("encoder.layer.1.output.dense.weight")
    assert tensor == Tensor(tensor.name, (8, 12), "mlp", 1, "encoder.layer.1.output.dense")
    assert tensor.count == 96
    with pytest.raises(PareError, match=r"encoder\.layer\.1\.output\.dense\.weight"):
        found.tensor("encoder.layer.1.output.dens.weight")
    assert Tensor("scalar", (), "other", None, "").count == 1


def test_relative_depth_is_counted_within_encoder_and_decoder() -> None:
    found = anatomy(T5ForConditionalGeneration(T5_GATED))
    assert [found.relative_depth(block) for block in found.blocks] == [0, 1, 0, 0.5, 1]
    assert found.relative_depth(3) == 0.5
    with pytest.raises(PareError, match="no block 5: the model has 5 blocks"):
        found.relative_depth(5)
    with pytest.raises(PareError, match="no block -1"):
        found.relative_depth(-1)
    assert Anatomy((), (Block(0, "only", "encoder"),)).relative_depth(0) == 0.5


def test_model_without_parameters_is_refused() -> None:
    with pytest.raises(PareError, match="ReLU has no parameters"):
        anatomy(nn.ReLU())


@pytest.mark.parametrize("name", CASES)
def test_table_fits_eighty_columns(name: str) -> None:
    found = anatomy(CASES[name][0]())
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= 80
    assert all(line.isascii() for line in lines)
    assert f"{found.weights:,} weights" in lines[-2]


def test_table_shows_runs_of_equal_blocks() -> None:
    model = BertForSequenceClassification(BertConfig(**{**TEXT, "num_hidden_layers": 12}))
    assert str(anatomy(model)).splitlines() == [
        "weights of          attention     mlp    norm    bias embedding   other     all",
        "12 x encoder 0-11         256     192      32      52         -       -     532",
        "outside                     -       -      16       8       304      64     392",
        "head                        -       -       -       -         -       -      18",
        "all                     3.07k    2.3k     400     632       304      64   6.79k",
        "pretrained: 6,776 weights, tensors: 199",
        "head: 18 weights, tensors: 2",
    ]


def test_table_stays_narrow_for_a_huge_model() -> None:
    tensors = tuple(
        Tensor(f"{kind}.{block}", (10**6, 123_457), kind, block, kind)  # type: ignore[arg-type]
        for block in range(120)
        for kind in ("attention", "mlp", "norm", "bias", "embedding", "head", "other")
    )
    found = Anatomy(tensors, tuple(Block(i, str(i), "decoder") for i in range(120)))
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split()[:5] == ["120", "x", "decoder", "0-119", "123G"]


# The digest of the base.


def digest(model: nn.Module) -> str:
    return base_digest(model, [t.name for t in anatomy(model).head])


def test_digest_sees_every_weight_of_the_base_and_none_of_the_head() -> None:
    torch.manual_seed(0)
    model = BertForSequenceClassification(BERT)
    before = digest(model)
    assert re.fullmatch(r"[0-9a-f]{64}", before)
    for tensor in anatomy(model).tensors:
        parameter = model.get_parameter(tensor.name)
        last = parameter.data.view(-1)[-1:]
        kept = last.clone()
        last.add_(1e-3)
        assert (digest(model) == before) == (tensor.kind == "head"), tensor.name
        last.copy_(kept)
    assert digest(model) == before


def test_digest_does_not_depend_on_training_or_layout() -> None:
    model = BertModel(BERT)
    before = digest(model)
    model.requires_grad_(False)
    model.train()
    assert digest(model) == before
    weight = model.pooler.dense.weight
    weight.data = weight.data.t().contiguous().t()
    assert not weight.is_contiguous()
    assert digest(model) == before


def test_digest_tells_dtypes_names_and_shapes_apart() -> None:
    def holding(name: str, values: torch.Tensor) -> nn.Module:
        module = nn.Module()
        module.register_parameter(name, nn.Parameter(values, requires_grad=False))
        return module

    zeros = [
        holding("a", torch.zeros(4)),
        holding("b", torch.zeros(4)),
        holding("a", torch.zeros(2, 2)),
        holding("a", torch.zeros(8, dtype=torch.bfloat16)),
        holding("a", torch.zeros(8, dtype=torch.float16)),
        holding("a", torch.tensor(0.0)),
        holding("a", torch.zeros(0)),
    ]
    assert len({base_digest(module, []) for module in zeros}) == len(zeros)


def test_digest_of_bfloat16_is_that_of_its_bytes() -> None:
    module = nn.Linear(2, 1).to(torch.bfloat16)
    expected = hashlib.sha256()
    for name, shape in (("bias", [1]), ("weight", [1, 2])):
        expected.update(f"{name} torch.bfloat16 {shape}\n".encode())
        expected.update(module.get_parameter(name).detach().view(torch.int16).numpy().tobytes())
    assert base_digest(module, []) == expected.hexdigest()


def test_digest_reads_a_tensor_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model = BertModel(BERT)
    whole = digest(model)
    monkeypatch.setattr("paretune.anatomy._CHUNK", 7)
    assert digest(model) == whole


def test_digest_refuses_weights_that_are_not_there() -> None:
    with torch.device("meta"):
        model = nn.Linear(2, 2)
    assert anatomy(model).weights == 6
    with pytest.raises(PareError, match=r"bias holds no values.*load the weights"):
        base_digest(model, [])
    with pytest.raises(PareError, match="no parameter 'wait' in the model; did you mean weight"):
        base_digest(nn.Linear(2, 2), ["wait"])
