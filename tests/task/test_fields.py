import pytest

from paretune.errors import PareError
from paretune.task.fields import PAIRS, PROMPTS, Fields, check_field, find_fields, is_chat
from paretune.task.files import from_mappings


def rows(*names, **values):
    row = {name: f"some words of {name}" for name in names} | values
    return from_mappings([row, dict(row)], "data.jsonl")


@pytest.mark.parametrize("pair", PAIRS)
def test_pairs(pair):
    assert find_fields(rows("idx", *pair, label=1), None, "encoder", None, None) == Fields(pair, "label")


@pytest.mark.parametrize("name", ["text", "sentence", "review", "content"])
@pytest.mark.parametrize("label", ["label", "labels", "score", "target"])
def test_singles_and_labels(name, label):
    found = find_fields(rows(name, **{label: 1}), None, "encoder", None, None)
    assert found == Fields((name,), label)


def test_the_only_text_is_taken():
    assert find_fields(rows("abstract", id="x7", label=1), None, "encoder", None, None).text == ("abstract",)
    with pytest.raises(PareError, match=r"title, abstract, label.*text="):
        find_fields(rows("title", "abstract", label=1), None, "encoder", None, None)


def test_named_fields_are_taken_and_checked():
    data = rows("title", "abstract", "text", field=1, label=2)
    assert find_fields(data, None, "encoder", "title", "field") == Fields(("title",), "field")
    assert find_fields(data, None, "encoder", ["title", "abstract"], None) == Fields(
        ("title", "abstract"), "label"
    )
    with pytest.raises(PareError, match=r"no field 'tilte'; the fields are title.*did you mean 'title'"):
        find_fields(data, None, "encoder", "tilte", None)
    with pytest.raises(PareError, match=r"no field 'lable'.*did you mean 'label'"):
        find_fields(data, None, "encoder", None, "lable")
    with pytest.raises(PareError, match="two different"):
        find_fields(data, None, "encoder", ("title", "title"), None)
    with pytest.raises(PareError, match="two different"):
        find_fields(data, None, "encoder", ("title", "abstract", "text"), None)


@pytest.mark.parametrize("pair", PROMPTS)
def test_prompts_for_a_language_model(pair):
    for family in ("decoder", "encoder-decoder"):
        assert find_fields(rows("id", *pair), None, family, None, None) == Fields(pair, None)


def test_what_to_write_and_what_to_tell():
    chat = rows(messages=[{"role": "user", "content": "x"}])
    assert find_fields(chat, None, "decoder", None, None) == Fields(("messages",), None)
    assert find_fields(rows("text"), None, "decoder", None, None) == Fields(("text",), None)
    assert find_fields(rows("story"), None, "decoder", None, None) == Fields(("story",), None)
    assert find_fields(rows("text", label=1), None, "decoder", None, None).label == "label"
    assert find_fields(rows("text", label=1), "causal-lm", "decoder", None, None) == Fields(("text",), None)
    # "target" beside "source" is a text, and a prompt with its completion outranks a label.
    assert find_fields(rows("source", "target"), None, "encoder-decoder", None, None).label is None
    assert find_fields(rows("prompt", "completion", label=1), None, "decoder", None, None).label is None
    assert find_fields(rows("prompt", "completion", label=1), None, "decoder", "prompt", "label") == Fields(
        ("prompt",), "label"
    )


@pytest.mark.parametrize("family", ["encoder", "decoder"])
def test_no_label(family):
    with pytest.raises(PareError, match="label="):
        find_fields(rows("text"), "classification", family, None, None)


def test_nothing_to_find():
    with pytest.raises(PareError, match="looks like a label; the fields are text"):
        find_fields(rows("text"), None, "encoder", None, None)
    with pytest.raises(PareError, match="source and a target"):
        find_fields(rows("text"), None, "encoder-decoder", None, None)
    with pytest.raises(PareError, match="looks like the text"):
        find_fields(rows("this", "that"), None, "decoder", None, None)
    with pytest.raises(PareError, match="has no label"):
        find_fields(rows("text", label=1), "causal-lm", "decoder", None, "label")


def test_check_field_and_chat():
    data = rows("text", messages=[])
    check_field(data, "text")
    with pytest.raises(PareError, match="no field 'x'"):
        check_field(data, "x")
    assert is_chat(data, "messages")
    assert not is_chat(data, "text")
