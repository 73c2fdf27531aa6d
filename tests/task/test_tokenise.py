import pytest

from paretune.errors import PareError
from paretune.task.files import from_mappings
from paretune.task.tokenise import CHUNK, encode_targets, encode_texts, texts
from tests.tiny import tiny_rows


def single(*values):
    return from_mappings([{"text": value} for value in values], "data.jsonl")


def pair(*values):
    return from_mappings([{"a": first, "b": second} for first, second in values], "data.jsonl")


def words(tokenizer, ids):
    return " ".join(tokenizer.convert_ids_to_tokens(ids))


def test_texts_name_the_row():
    assert texts(single("a", ""), "text") == ["a", ""]
    with pytest.raises(PareError, match="row 2: no text in field 'text'"):
        texts(single("a", None), "text")
    with pytest.raises(PareError, match="row 1: field 'text' holds a int"):
        texts(single(3), "text")
    with pytest.raises(PareError, match="row 1: no text in field 'other'"):
        texts(single("a"), "other")


def test_one_text_and_its_columns(tokenizer):
    bert = tokenizer("bert")
    encoded = encode_texts(bert, single("the cat runs", "good"), ["text"], 16)
    assert words(bert, encoded.columns["input_ids"][0]) == "[CLS] the cat runs [SEP]"
    assert encoded.columns["attention_mask"] == [[1] * 5, [1] * 3]
    assert encoded.columns["length"] == [5, 3]
    assert encoded.columns["token_type_ids"] == [[0] * 5, [0] * 3]
    assert encoded.kept == [0, 1]
    assert encoded.truncated == [False, False]


def test_types_are_kept_only_for_a_model_that_has_them(tokenizer):
    rows = pair(("the cat", "a dog"))
    assert encode_texts(tokenizer("bert"), rows, ["a", "b"], 16).columns["token_type_ids"] == [
        [0, 0, 0, 0, 1, 1, 1]
    ]
    assert "token_type_ids" not in encode_texts(tokenizer("bert"), rows, ["a", "b"], 16, types=False).columns
    assert "token_type_ids" not in encode_texts(tokenizer("distilbert"), rows, ["a", "b"], 16).columns


@pytest.mark.parametrize(
    ("kind", "written"),
    [
        ("bert", "[CLS] the cat [SEP] a dog [SEP]"),
        ("roberta", "<s> the cat </s> </s> a dog </s>"),
        ("t5", "the cat </s> a dog </s>"),
        ("llama", "<s> the cat <s> a dog"),
    ],
)
def test_a_pair_is_wrapped_as_the_tokenizer_does(tokenizer, kind, written):
    encoded = encode_texts(tokenizer(kind), pair(("the cat", "a dog")), ["a", "b"], 16)
    assert words(tokenizer(kind), encoded.columns["input_ids"][0]) == written


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_a_pair_without_a_separator_gets_a_line_break(tokenizer, kind):
    encoded = encode_texts(tokenizer(kind), pair(("the cat", "a dog")), ["a", "b"], 16)
    assert tokenizer(kind).decode(encoded.columns["input_ids"][0]) == "the cat\na dog"


def test_long_rows_are_cut_and_counted_across_chunks(tokenizer):
    bert = tokenizer("bert")
    values = ["the cat"] * (CHUNK - 1) + ["the cat " * 20, "a dog", "a dog " * 3]
    encoded = encode_texts(bert, single(*values), ["text"], 8)
    lengths = encoded.columns["length"]
    assert lengths == [4] * (CHUNK - 1) + [8, 4, 8]
    assert encoded.truncated == [False] * (CHUNK - 1) + [True, False, False]
    assert words(bert, encoded.columns["input_ids"][CHUNK - 1]) == "[CLS] the cat the cat the cat [SEP]"
    # Nothing else differs from tokenising row by row.
    for index in (0, CHUNK - 1, CHUNK, CHUNK + 1):
        alone = bert(values[index], truncation=True, max_length=8)
        assert encoded.columns["input_ids"][index] == alone["input_ids"]


def test_the_longer_text_of_a_pair_is_cut(tokenizer):
    encoded = encode_texts(tokenizer("bert"), pair(("the " * 20, "a dog")), ["a", "b"], 10)
    assert words(tokenizer("bert"), encoded.columns["input_ids"][0]) == (
        "[CLS] the the the the the [SEP] a dog [SEP]"
    )
    assert encoded.columns["token_type_ids"][0] == [0] * 7 + [1] * 3


def test_no_room_and_no_token(tokenizer):
    with pytest.raises(PareError, match=r"max_length=4 .* 3 special tokens; give at least 5"):
        encode_texts(tokenizer("bert"), pair(("a", "b")), ["a", "b"], 4)
    with pytest.raises(PareError, match="row 2: the text has no token"):
        encode_texts(tokenizer("gpt2"), single("a", ""), ["text"], 4)
    assert encode_texts(tokenizer("bert"), single(""), ["text"], 4).columns["length"] == [2]


def test_targets_end_and_are_cut(tokenizer):
    t5 = tokenizer("t5")
    ids, cut = encode_targets(t5, single("a dog", "the cat " * 20), "text", 6)
    assert words(t5, ids[0]) == "a dog </s>"
    assert words(t5, ids[1]) == "the cat the cat the </s>"
    assert cut == [False, True]


def test_no_warning_about_length(tokenizer, capfd):
    rows = from_mappings([*tiny_rows("single", 3), {"text": "the " * 500, "label": "good"}], "data")
    encode_texts(tokenizer("gpt2"), rows, ["text"], 32)
    assert "longer than" not in "".join(capfd.readouterr())
