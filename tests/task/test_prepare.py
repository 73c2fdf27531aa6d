import dataclasses

import pytest

from paretune.errors import PareError
from paretune.task.fields import Fields
from paretune.task.files import from_mappings
from paretune.task.kinds import Shape
from paretune.task.prepare import Settings, fingerprint, prepare
from tests.tiny import tiny_rows


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ({"heldout": 1.0}, "heldout=1.0"),
        ({"heldout": -0.1}, "heldout=-0.1"),
        ({"max_length": 1}, "max_length=1"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_settings_out_of_range(setting, word):
    with pytest.raises(PareError, match=word):
        Settings("model", **setting)


def ready(checkpoint, shape="single", model="bert", train=None, validation=None, **settings):
    rows = from_mappings(train or tiny_rows(shape), "train.jsonl")
    checked = validation and from_mappings(validation, "validation.jsonl")
    return prepare(rows, checked, Settings(str(checkpoint(model)), **settings))


@pytest.mark.parametrize(
    ("shape", "model", "kind"),
    [
        ("single", "bert", "classification"),
        ("single", "gpt2", "classification"),
        ("score", "bert", "regression"),
        ("text", "gpt2", "causal-lm"),
        ("prompt", "gpt2", "causal-lm"),
        ("messages", "llama", "causal-lm"),
        ("prompt", "t5", "seq2seq"),
        ("pair", "t5", "classification"),
    ],
)
def test_the_kind_is_found(checkpoint, shape, model, kind):
    assert ready(checkpoint, shape, model)["kind"] == kind


def test_the_kind_that_is_asked_for_rules(checkpoint):
    scores = [{"text": "the cat", "label": number % 3 + 0.5} for number in range(30)]
    assert ready(checkpoint, train=scores)["kind"] == "regression"
    assert ready(checkpoint, train=scores, kind="classification")["labels"] == ("0.5", "1.5", "2.5")
    stars = [{"text": "the cat", "label": number % 3} for number in range(30)]
    assert ready(checkpoint, train=stars)["kind"] == "classification"
    assert ready(checkpoint, train=stars, kind="regression")["labels"] == ()
    assert ready(checkpoint, "single", "gpt2", kind="causal-lm")["fields"] == Fields(("text",), None)


def test_kinds_that_do_not_fit(checkpoint):
    with pytest.raises(PareError, match="does not fit seq2seq"):
        ready(checkpoint, "prompt", "gpt2", kind="seq2seq")
    with pytest.raises(PareError, match="does not fit causal-lm"):
        ready(checkpoint, "prompt", "bert", kind="causal-lm")
    with pytest.raises(PareError, match="does not fit causal-lm"):
        ready(checkpoint, "prompt", "bert")
    with pytest.raises(PareError, match="two fields"):
        ready(checkpoint, "prompt", "t5", text="prompt")
    with pytest.raises(PareError, match="no kind of task"):
        ready(checkpoint, kind="ranking")
    with pytest.raises(PareError, match="no classes"):
        ready(checkpoint, "score", positive="good")


def test_train_and_heldout_are_all_rows_once(checkpoint):
    found = ready(checkpoint, train=tiny_rows("single", 50), heldout=0.2)
    ids = [tuple(row) for part in ("train", "heldout") for row in found[part]["input_ids"]]
    whole = ready(checkpoint, train=tiny_rows("single", 50), heldout=0)
    assert sorted(ids) == sorted(tuple(row) for row in whole["train"]["input_ids"])
    assert list(found["heldout"]["labels"]).count(0) == 5
    assert len(found["heldout"]) == 10
    assert whole["heldout"] is None
    assert found["validation"] is None


def test_what_is_cut_and_left_out_is_counted(checkpoint):
    train = [*tiny_rows("text", 18), {"text": ""}, {"text": "the cat " * 50}]
    found = ready(checkpoint, model="gpt2", train=train, validation=train[-3:], max_length=16, heldout=0.1)
    assert found["left_out"] == {"train": 1, "validation": 1}
    assert found["truncated"]["train"] + found["truncated"]["heldout"] >= 1
    assert found["truncated"]["validation"] >= 1
    assert len(found["train"]) + len(found["heldout"]) == 19
    with pytest.raises(PareError, match="no row has a target"):
        ready(checkpoint, model="gpt2", train=[{"text": ""}, {"text": ""}], text="text")


def test_the_models_positions_bound_the_length(checkpoint):
    found = ready(checkpoint, model="roberta", max_length=128)
    assert found["max_length"] == 64
    assert "128 cut to the model's 64" in found["notes"][0]
    assert ready(checkpoint, "prompt", "t5", max_length=128)["max_length"] == 128


def test_validation_is_checked_like_train(checkpoint):
    with pytest.raises(PareError, match=r"validation.jsonl: no field 'label'"):
        ready(checkpoint, validation=[{"text": "the cat"}])
    with pytest.raises(PareError, match=r"validation.jsonl, row 2: label 'great'"):
        ready(checkpoint, validation=[*tiny_rows("single", 1), {"text": "a", "label": "great"}])
    same = [{"sentence1": "a", "sentence2": "b", "score": 1.0}] * 2
    assert len(ready(checkpoint, "score", validation=same)["validation"]) == 2


def test_the_fingerprint_follows_what_is_learnt():
    rows = tiny_rows("single", 6)
    settings = Settings("model")
    shape = Shape(Fields(("text",), "label"), ("bad", "good"), 128, "", True)

    def of(rows=rows, validation=None, shape=shape, settings=settings, kind="classification", name="train"):
        checked = validation and from_mappings(validation, "validation")
        return fingerprint(from_mappings(rows, name), checked, shape, kind, settings)

    base = of()
    assert len(base) == 64
    # What is not read does not count, nor do names or the metric.
    assert of([row | {"id": number} for number, row in enumerate(rows)]) == base
    assert of(name="other") == base
    assert of(settings=Settings("other", metric="f1")) == base
    others = {
        of(rows[::-1]),
        of(rows[:-1]),
        of([{**rows[0], "text": "other"}, *rows[1:]]),
        of(validation=rows),
        of(kind="regression"),
        of(settings=Settings("model", seed=1)),
        of(settings=Settings("model", heldout=0.2)),
        of(shape=dataclasses.replace(shape, max_length=64)),
        of(shape=dataclasses.replace(shape, separator=" ")),
    }
    assert base not in others
    assert len(others) == 9
