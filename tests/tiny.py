"""Tiny random checkpoints and data for tests: each folder is what `save_pretrained` leaves of the real thing.

The checkpoints hold the pretrained part only (no classification head), so loading one for a task leaves a
head that is newly initialised, as with a real checkpoint. Nothing here touches the network.
"""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

KINDS = ("bert", "roberta", "distilbert", "gpt2", "llama", "qwen2", "t5", "vit")
ENCODERS = ("bert", "roberta", "distilbert")
DECODERS = ("gpt2", "llama", "qwen2")
POSITIONS = 64

WORDS = """
the a an is are was not of and to in on at it this that he she they we you i good bad fine great poor film
plot actor music story book cat dog bird tree house city river man woman child red blue green big small
old new fast slow happy sad runs sleeps eats sees likes hates makes plays sings reads name type area food
price very quite never always one two three four five yes no with for from by said what who where
""".split()  # noqa: SIM905 - a list of 90 literals would be a page
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?:;|'-"
# The special tokens of each family, in id order: the first ids of the vocabulary.
SPECIALS: dict[str, dict[str, str]] = {
    "bert": {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
    "distilbert": {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
    "roberta": {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>"},
    "gpt2": {"eos_token": "<|endoftext|>"},
    "llama": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    "qwen2": {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"},
    "t5": {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
}
# Llama's marks what the assistant says, Qwen's does not, GPT-2 has none.
CHAT_TEMPLATES = {
    "llama": (
        "{{ bos_token }}{% for message in messages %}{{ '| ' + message['role'] + ' : ' }}"
        "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + eos_token }}"
        "{% endgeneration %}{% else %}{{ message['content'] + ' ' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '| assistant : ' }}{% endif %}"
    ),
    "qwen2": (
        "{% for message in messages %}{{ '| ' + message['role'] + ' : ' + message['content'] + eos_token }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '| assistant : ' }}{% endif %}"
    ),
}


def tiny_tokenizer(folder: Path, kind: str = "bert") -> PreTrainedTokenizerFast:
    """Save a tokenizer of 170 to 200 tokens with the special tokens and templates of a family.

    GPT-2 and Qwen are byte-level BPE that adds nothing to a text; the others are word pieces: BERT and
    RoBERTa families wrap texts as their originals do, Llama puts its start token first, T5 its end token
    last. GPT-2 and Llama have no padding token, Llama and Qwen have a chat template. Words outside `WORDS`
    fall into letters.
    """
    specials = SPECIALS[kind]
    backend = _byte_pairs(specials) if kind in ("gpt2", "qwen2") else _word_pieces(specials)
    if template := _template(kind, specials):
        single, pair, tokens = template
        backend.post_processor = processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=[(token, backend.token_to_id(token)) for token in tokens]
        )
    inputs = ["input_ids", "attention_mask"]
    if kind == "bert":
        inputs.insert(1, "token_type_ids")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=POSITIONS,
        model_input_names=inputs,
        **specials,
    )
    tokenizer.chat_template = CHAT_TEMPLATES.get(kind)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _word_pieces(specials: dict[str, str]) -> Tokenizer:
    """Letters, letters inside a word, and whole words."""
    pieces = [*specials.values(), *CHARACTERS, *("##" + c for c in CHARACTERS[:36]), *WORDS]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token=specials["unk_token"]))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


def _byte_pairs(specials: dict[str, str]) -> Tokenizer:
    """Printable ASCII bytes and the merges that make the commonest of `WORDS`."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=200,
        special_tokens=list(specials.values()),
        initial_alphabet=[chr(code) for code in range(33, 127)] + ["\u0120", "\u010a"],
        show_progress=False,
    )
    backend.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    return backend


def _template(kind: str, specials: dict[str, str]) -> tuple[str, str, list[str]] | None:
    """The single and pair templates of a family and the special tokens in them."""
    cls, sep = specials.get("cls_token"), specials.get("sep_token")
    if kind in ("bert", "distilbert"):
        return f"{cls} $A {sep}", f"{cls} $A {sep} $B:1 {sep}:1", [cls, sep]
    if kind == "roberta":
        return f"{cls} $A {sep}", f"{cls} $A {sep} {sep} $B {sep}", [cls, sep]
    if kind == "llama":
        return "<s> $A", "<s> $A <s> $B", ["<s>"]
    if kind == "t5":
        return "$A </s>", "$A </s> $B </s>", ["</s>"]
    return None


def tiny_model(kind: str, folder: Path, seed: int = 0, blocks: int = 2) -> Path:
    """Save a random checkpoint of the kind, two blocks of width 32, with its tokenizer (none for vit).

    Args:
        kind: One of `KINDS`.
        folder: Where to; made if absent.
        seed: Seed of the weights; the caller's random state is left alone.
        blocks: Number of blocks (T5: as many in the encoder as in the decoder).

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = None if kind == "vit" else tiny_tokenizer(folder, kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _build(kind, tokenizer, blocks)
        # Biases and norm weights start at constants; a pretrained model has moved all of them.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    model.save_pretrained(folder)
    return folder


def _build(kind: str, tokenizer: PreTrainedTokenizerFast | None, blocks: int) -> Any:
    """The random model itself."""
    size = {
        "hidden_size": 32,
        "num_hidden_layers": blocks,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    if tokenizer is None:
        return ViTModel(ViTConfig(**size, image_size=16, patch_size=8, num_channels=3))
    ids = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id")
        for name in ("bos", "eos", "pad")
        if getattr(tokenizer, f"{name}_token_id") is not None
    }
    vocabulary = {"vocab_size": len(tokenizer)}
    if kind == "bert":
        return BertModel(BertConfig(**size, **vocabulary, **ids, max_position_embeddings=POSITIONS))
    if kind == "roberta":
        config = RobertaConfig(
            **size, **vocabulary, **ids, max_position_embeddings=POSITIONS + 2, type_vocab_size=1
        )
        return RobertaModel(config)
    if kind == "distilbert":
        config = DistilBertConfig(
            **vocabulary,
            **ids,
            dim=32,
            n_layers=blocks,
            n_heads=4,
            hidden_dim=64,
            max_position_embeddings=POSITIONS,
        )
        return DistilBertModel(config)
    if kind == "gpt2":
        config = GPT2Config(
            **vocabulary,
            n_embd=32,
            n_layer=blocks,
            n_head=4,
            n_positions=POSITIONS,
            bos_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        return GPT2LMHeadModel(config)
    if kind == "llama":
        config = LlamaConfig(
            **size, **vocabulary, **ids, num_key_value_heads=2, max_position_embeddings=POSITIONS
        )
        return LlamaForCausalLM(config)
    if kind == "qwen2":
        config = Qwen2Config(
            **size,
            **vocabulary,
            **ids,
            num_key_value_heads=2,
            max_position_embeddings=POSITIONS,
            tie_word_embeddings=True,
        )
        return Qwen2ForCausalLM(config)
    if kind == "t5":
        config = T5Config(
            **vocabulary,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=blocks,
            num_heads=4,
            relative_attention_num_buckets=8,
            decoder_start_token_id=tokenizer.pad_token_id,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        return T5ForConditionalGeneration(config)
    raise ValueError(f"no tiny model of kind {kind!r}; there are {', '.join(KINDS)}")


def tiny_rows(shape: str, count: int = 40, seed: int = 0) -> list[dict[str, Any]]:
    """Made-up rows whose label can be learnt from the words.

    Args:
        shape: "single" (text, label good/bad), "pair" (sentence1, sentence2, label same/other), "score"
            (sentence1, sentence2, score in 0..5), "text", "prompt" (prompt, completion) or "messages".
        count: How many rows; the labels alternate.
        seed: Seed of the words.
    """
    generator = torch.Generator().manual_seed(seed)

    def words(least: int, most: int) -> str:
        length = int(torch.randint(least, most + 1, (), generator=generator))
        picks = torch.randint(len(WORDS), (length,), generator=generator).tolist()
        return " ".join(WORDS[pick] for pick in picks)

    rows: list[dict[str, Any]] = []
    for index in range(count):
        text = words(3, 12)
        if shape == "single":
            good = index % 2 == 0
            rows.append({"text": f"{'good' if good else 'bad'} {text}", "label": "good" if good else "bad"})
        elif shape == "pair":
            same = index % 2 == 0
            other = text if same else words(3, 12)
            rows.append({"sentence1": text, "sentence2": other, "label": "same" if same else "other"})
        elif shape == "score":
            score = round(5 * len(text) / (len(text) + 30), 3)  # longer texts score more
            rows.append({"sentence1": text, "sentence2": words(3, 12), "score": score})
        elif shape == "text":
            rows.append({"text": text})
        elif shape == "prompt":
            rows.append({"prompt": f"name : {text}", "completion": words(2, 8)})
        elif shape == "messages":
            turns = [{"role": "user", "content": text}, {"role": "assistant", "content": words(2, 8)}]
            rows.append({"messages": turns})
        else:
            raise ValueError(f"no rows of shape {shape!r}")
    return rows


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON lines and return the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
