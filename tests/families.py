"""Tiny random checkpoints of families that are fine-tuned, beside those of :mod:`tests.tiny`."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import transformers as tf

from paretune.task import Task
from tests.tiny import tiny_rows, tiny_tokenizer

Config = Callable[..., tf.PretrainedConfig]
_WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 260}
_HEADS = {"num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 64}
_BERT = _WIDTH | _HEADS
_LLAMA = _BERT | {"num_key_value_heads": 2}
_QWEN = _LLAMA | {"head_dim": 8}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_MIXTRAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_WINDOW = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
_BART = {
    "vocab_size": 260,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_DEEPSEEK = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
# What has no biases of its own, what has no feed-forward of linear layers, whose attention is its own code.
_NO_BIAS, _NO_LINEAR, _OWN_ATTENTION = {"bitfit"}, {"adapter", "s4"}, {"prefix", "s4"}


@dataclass(frozen=True)
class Family:
    """A family of models.

    Args:
        reads: What it is.
        config: Its configuration, of a tiny model.
        refused: Methods that say that they cannot train it.
    """

    reads: Literal["encoder", "decoder", "encoder-decoder"]
    config: Callable[[], tf.PretrainedConfig]
    refused: frozenset[str] = frozenset()

    def task(self, folder: Path) -> Task:
        """A task for a checkpoint that is saved into a folder."""
        encodes, decodes = self.reads == "encoder", self.reads == "decoder"
        both = tf.AutoModelForSeq2SeqLM
        auto = tf.AutoModel if encodes else tf.AutoModelForCausalLM if decodes else both
        torch.manual_seed(0)
        auto.from_config(self.config()).save_pretrained(folder)
        tiny_tokenizer(folder, "roberta" if encodes else "qwen2" if decodes else "t5")
        rows = tiny_rows("single", 40)
        if decodes:
            rows = [{"text": row["text"]} for row in rows]
        elif not encodes:
            rows = [{"prompt": row["text"], "completion": "yes it is"} for row in rows]
        return Task.from_rows(rows, rows, model=folder)


def _encoder(config: Config, refused: Iterable[str] = (), **own: object) -> Family:
    return Family("encoder", lambda: config(**{**_BERT, **own}), frozenset(refused))


def _decoder(config: Config, refused: Iterable[str] = (), **own: object) -> Family:
    return Family("decoder", lambda: config(**own), frozenset(refused))


def _both(config: Config, refused: Iterable[str] = (), **own: object) -> Family:
    return Family("encoder-decoder", lambda: config(**own), frozenset(refused))


_SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
FAMILIES = {
    "ALBERT": _encoder(tf.AlbertConfig, embedding_size=16),
    "BigBird": _encoder(tf.BigBirdConfig, _OWN_ATTENTION, attention_type="original_full"),
    "DeBERTa-v2 and v3": _encoder(
        tf.DebertaV2Config, _OWN_ATTENTION, relative_attention=True, pos_att_type=["p2c", "c2p"]
    ),
    "ELECTRA": _encoder(tf.ElectraConfig, embedding_size=16),
    "Longformer": _encoder(
        tf.LongformerConfig, _OWN_ATTENTION, attention_window=8, max_position_embeddings=80
    ),
    "ModernBERT": _encoder(tf.ModernBertConfig, _NO_BIAS, **_SPECIAL),
    "MPNet": _encoder(tf.MPNetConfig, _OWN_ATTENTION, max_position_embeddings=70),
    "XLM-RoBERTa": _encoder(tf.XLMRobertaConfig, max_position_embeddings=70, pad_token_id=1),
    "XLNet": Family(
        "encoder",
        lambda: tf.XLNetConfig(vocab_size=260, d_model=32, n_layer=2, n_head=4, d_inner=64),
        frozenset(_OWN_ATTENTION),
    ),
    "BLOOM": _decoder(tf.BloomConfig, _OWN_ATTENTION, vocab_size=260, hidden_size=32, n_layer=2, n_head=4),
    "Cohere": _decoder(tf.CohereConfig, _NO_BIAS, **_LLAMA, pad_token_id=0),
    "DeepSeek-V3": _decoder(
        tf.DeepseekV3Config, _NO_BIAS | _OWN_ATTENTION, **{**_BERT, "num_key_value_heads": 4, **_DEEPSEEK}
    ),
    "Falcon": _decoder(tf.FalconConfig, _OWN_ATTENTION, **_WIDTH, num_attention_heads=4),
    "Gemma 2": _decoder(tf.Gemma2Config, _NO_BIAS, **_QWEN, sliding_window=8),
    "Gemma 3": _decoder(tf.Gemma3TextConfig, _NO_BIAS, **_QWEN, **_WINDOW),
    "GPT-J": _decoder(
        tf.GPTJConfig, _OWN_ATTENTION, vocab_size=260, n_embd=32, n_layer=2, n_head=4, rotary_dim=4
    ),
    "GPT-NeoX": _decoder(tf.GPTNeoXConfig, **_BERT),
    "gpt-oss": _decoder(tf.GptOssConfig, _NO_LINEAR, **_QWEN, **_MIXTRAL, **_WINDOW),
    "Granite": _decoder(tf.GraniteConfig, _NO_BIAS, **_LLAMA),
    "Mamba": _decoder(tf.MambaConfig, _OWN_ATTENTION, **_WIDTH, state_size=8),
    "Mistral": _decoder(tf.MistralConfig, _NO_BIAS, **_LLAMA, sliding_window=8),
    "Mixtral": _decoder(tf.MixtralConfig, _NO_BIAS | _NO_LINEAR, **_LLAMA, **_MIXTRAL),
    "OLMo 2": _decoder(tf.Olmo2Config, _NO_BIAS, **_LLAMA),
    "OPT": _decoder(
        tf.OPTConfig,
        **_WIDTH,
        num_attention_heads=4,
        ffn_dim=64,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
    ),
    "Phi": _decoder(tf.PhiConfig, **_BERT),
    "Phi-3": _decoder(tf.Phi3Config, _NO_BIAS, **_LLAMA, pad_token_id=0),
    "Qwen 3": _decoder(tf.Qwen3Config, _NO_BIAS, **_QWEN),
    "Qwen 3 with experts": _decoder(tf.Qwen3MoeConfig, _NO_BIAS | _NO_LINEAR, **_QWEN, **_EXPERTS),
    "RWKV": _decoder(
        tf.RwkvConfig,
        _OWN_ATTENTION,
        **_WIDTH,
        attention_hidden_size=32,
        intermediate_size=64,
        context_length=64,
    ),
    "SmolLM 3": _decoder(tf.SmolLM3Config, _NO_BIAS, **_LLAMA, pad_token_id=0),
    "StarCoder 2": _decoder(tf.Starcoder2Config, **_LLAMA),
    "BART": _both(tf.BartConfig, **_BART),
    "Marian": _both(tf.MarianConfig, **_BART, decoder_start_token_id=0),
    "mT5": _both(
        tf.MT5Config, _NO_BIAS, vocab_size=260, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4
    ),
    "Pegasus": _both(tf.PegasusConfig, **_BART),
}
