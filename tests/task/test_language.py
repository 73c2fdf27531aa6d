import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.errors import PareError
from paretune.task.collate import IGNORED
from paretune.task.files import from_mappings
from paretune.task.language import encode_language
from tests.tiny import WORDS

PROMPT = ("prompt", "completion")
ASKED = [{"role": "user", "content": "the cat"}]
ANSWERED = [{"role": "assistant", "content": "a dog"}]


def encode(tokenizer, row, fields=PROMPT, limit=32, separator=""):
    return encode_language(tokenizer, from_mappings([row], "data.jsonl"), fields, limit, separator)


def parts(tokenizer, encoded):
    """What is read without loss, and what is learnt, of the only row."""
    (ids,), (labels,) = encoded.columns["input_ids"], encoded.columns["labels"]
    assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))
    first = next(index for index, label in enumerate(labels) if label != IGNORED)
    assert IGNORED not in labels[first:]
    return tuple(tokenizer.decode(side).replace(" </s>", "</s>") for side in (ids[:first], ids[first:]))


def test_all_of_a_text_is_learnt_and_its_end(tokenizer):
    encoded = encode(tokenizer("gpt2"), {"text": "the cat runs"}, ["text"])
    assert parts(tokenizer("gpt2"), encoded) == ("", "the cat runs<|endoftext|>")
    assert encoded.columns["attention_mask"] == [[1] * len(encoded.columns["input_ids"][0])]
    assert encoded.notes == ["loss on all tokens"]
    encoded = encode(tokenizer("llama"), {"text": "the cat"}, ["text"])
    assert parts(tokenizer("llama"), encoded) == ("<s>", "the cat</s>")


def test_an_end_that_is_written_is_not_written_twice(tokenizer):
    gpt2 = tokenizer("gpt2")
    for row, fields in (
        ({"text": "the cat<|endoftext|>"}, ["text"]),
        ({"prompt": "the ", "completion": "cat<|endoftext|>"}, PROMPT),
        ({"prompt": "the cat<|endoftext|>", "completion": ""}, PROMPT),
    ):
        encoded = encode(gpt2, row, fields)
        assert gpt2.decode(encoded.columns["input_ids"][0]) == "the cat<|endoftext|>"
        assert encoded.columns["labels"][0][-1] == gpt2.eos_token_id


def test_only_the_completion_is_learnt(tokenizer):
    gpt2 = tokenizer("gpt2")
    encoded = encode(gpt2, {"prompt": "the cat ", "completion": "runs"})
    # The space belongs to the token it begins, and that reaches into the completion.
    assert parts(gpt2, encoded) == ("the cat", " runs<|endoftext|>")
    assert encoded.columns["input_ids"][0] == gpt2("the cat runs")["input_ids"] + [gpt2.eos_token_id]
    assert encoded.notes == ["loss on the completion"]
    encoded = encode(tokenizer("llama"), {"prompt": "the cat", "completion": " runs"})
    assert parts(tokenizer("llama"), encoded) == ("<s> the cat", "runs</s>")


def test_a_seam_without_white_space_is_told_and_a_separator_mends_it(tokenizer):
    row = {"prompt": "the cat", "completion": "runs"}
    encoded = encode(tokenizer("gpt2"), row)
    assert "without white space in 1 of 1 rows" in encoded.notes[1]
    encoded = encode(tokenizer("gpt2"), row, separator="\n")
    assert parts(tokenizer("gpt2"), encoded) == ("the cat\n", "runs<|endoftext|>")
    assert len(encoded.notes) == 1


@settings(max_examples=40)
@given(
    prompt=st.lists(st.sampled_from(WORDS), min_size=1, max_size=8),
    completion=st.lists(st.sampled_from(WORDS), max_size=8),
    limit=st.integers(2, 20),
)
def test_what_does_not_fit_is_cut_from_the_prompt_first(tokenizer, prompt, completion, limit):
    llama = tokenizer("llama")
    row = {"prompt": " ".join(prompt), "completion": " ".join(completion)}
    encoded = encode(llama, row, limit=limit, separator=" ")
    # Each of the words is one token here, with a start before and an end after.
    whole = ["<s>", *prompt, *completion, "</s>"]
    targets = len(completion) + 1
    tokens = llama.convert_ids_to_tokens(encoded.columns["input_ids"][0])
    learnt = sum(label != IGNORED for label in encoded.columns["labels"][0])
    assert encoded.truncated == [len(whole) > limit]
    assert len(tokens) == min(len(whole), limit)
    assert learnt == min(targets, limit - 1)
    assert tokens[-learnt:] == whole[len(whole) - targets :][:learnt]
    assert tokens[0] == "<s>"
    assert (
        tokens[1:-learnt]
        == whole[: len(whole) - targets][len(whole) - targets - (len(tokens) - learnt - 1) :]
    )


def test_a_text_is_cut_at_its_end(tokenizer):
    encoded = encode(tokenizer("llama"), {"text": "the cat runs and sings"}, ["text"], limit=4)
    assert parts(tokenizer("llama"), encoded) == ("<s>", "the cat runs")
    assert encoded.truncated == [True]


def test_rows_without_a_target_are_left_out(tokenizer):
    rows = from_mappings([{"text": "the cat"}, {"text": ""}, {"text": "a dog"}], "data.jsonl")
    encoded = encode_language(tokenizer("gpt2"), rows, ["text"], 8, "")
    assert encoded.kept == [0, 2]
    assert len(encoded.columns["length"]) == len(encoded.truncated) == 2


def test_an_empty_completion_teaches_to_stop(tokenizer):
    encoded = encode(tokenizer("gpt2"), {"prompt": "the cat", "completion": ""})
    assert parts(tokenizer("gpt2"), encoded) == ("the cat", "<|endoftext|>")


def test_a_tokenizer_that_cannot_tell_where_its_tokens_stand(tokenizer, monkeypatch):
    llama = tokenizer("llama")
    monkeypatch.setattr(type(llama), "is_fast", property(lambda _: False))
    encoded = encode(llama, {"prompt": "the cat", "completion": " a dog"})
    assert parts(llama, encoded) == ("<s> the cat", "a dog</s>")


def test_messages_with_the_assistant_marked(tokenizer):
    llama = tokenizer("llama")
    encoded = encode(llama, {"messages": [*ASKED, *ANSWERED]}, ["messages"], 64)
    read, learnt = parts(llama, encoded)
    assert read == "<s> | user : the cat | assistant :"
    assert learnt == "a dog</s>"
    assert encoded.notes == ["loss on the assistant's tokens"]


def test_messages_without_marks_are_learnt_whole(tokenizer):
    qwen = tokenizer("qwen2")
    encoded = encode(qwen, {"messages": [*ASKED, *ANSWERED]}, ["messages"], 64)
    assert parts(qwen, encoded) == ("", "| user : the cat<|im_end|>| assistant : a dog<|im_end|>")
    assert "loss on all tokens" in encoded.notes[0]
    assert "{% generation %}" in encoded.notes[0]


def test_a_conversation_whose_answer_is_cut_off_is_left_out(tokenizer):
    rows = from_mappings([{"messages": [*ASKED, *ANSWERED]}], "data.jsonl")
    assert encode_language(tokenizer("llama"), rows, ["messages"], 20, "").kept == []
    short = encode_language(tokenizer("llama"), rows, ["messages"], 21, "")
    assert short.truncated == [True]
    assert parts(tokenizer("llama"), short)[1] == "a"


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_prompt_and_completion_of_messages(tokenizer, kind):
    found = tokenizer(kind)
    encoded = encode(found, {"prompt": ASKED, "completion": ANSWERED}, limit=64)
    read, learnt = parts(found, encoded)
    assert read.rstrip().endswith("| assistant :")
    assert learnt.strip() == f"a dog{found.eos_token}"
    assert "chat template" in encoded.notes[0]


def test_what_is_wrong_with_messages(tokenizer):
    llama = tokenizer("llama")
    with pytest.raises(PareError, match="no chat template"):
        encode(tokenizer("gpt2"), {"messages": ASKED}, ["messages"])
    rows = from_mappings([{"messages": ASKED}, {"messages": None}], "data.jsonl")
    with pytest.raises(PareError, match="row 2: no list of messages"):
        encode_language(llama, rows, ["messages"], 64, "")
    with pytest.raises(PareError, match=r"row 1: message 2 .* needs a role and a content"):
        encode(llama, {"messages": [*ASKED, {"role": "assistant"}]}, ["messages"])
    with pytest.raises(PareError, match="row 1: the tokenizer's chat template does not write"):
        encode(llama, {"messages": [{"role": "assistant", "content": 3}]}, ["messages"])
