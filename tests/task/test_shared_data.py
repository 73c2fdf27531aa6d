"""The real data sets are read without being told anything."""

import pytest

from paretune.errors import PareError
from paretune.task import Task


@pytest.mark.parametrize(
    ("name", "fields", "label", "labels", "rows"),
    [
        ("mrpc", ("sentence1", "sentence2"), "label", ("equivalent", "not_equivalent"), (4076, 1725)),
        ("cola", ("sentence",), "label", ("acceptable", "unacceptable"), (8551, 1043)),
        pytest.param(
            "rte",
            ("sentence1", "sentence2"),
            "label",
            ("entailment", "not_entailment"),
            (2490, 277),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_classes(shared, checkpoint, name, fields, label, labels, rows):
    task = Task.from_files(
        shared / name / "train.jsonl", shared / name / "validation.jsonl", model=checkpoint("bert")
    )
    assert task.kind == "classification"
    assert (task.fields.text, task.fields.label) == (fields, label)
    assert task.labels == labels
    assert task.positive == labels[0]
    assert (len(task.train) + len(task.heldout), len(task.validation)) == rows
    share = [list(part["labels"]).count(0) / len(part) for part in (task.train, task.heldout)]
    assert share[0] == pytest.approx(share[1], abs=0.005)


def test_scores(shared, checkpoint):
    task = Task.from_files(
        shared / "stsb" / "train.jsonl", shared / "stsb" / "validation.jsonl", model=checkpoint("bert")
    )
    assert task.kind == "regression"
    assert task.metric == "pearson"
    assert max(task.train["labels"]) == 5.0


@pytest.mark.parametrize(
    ("model", "kind"), [("gpt2", "causal-lm"), pytest.param("t5", "seq2seq", marks=pytest.mark.slow)]
)
def test_prompts(shared, checkpoint, model, kind):
    task = Task.from_files(
        shared / "e2e" / "train.jsonl", shared / "e2e" / "validation.jsonl", model=checkpoint(model)
    )
    assert task.kind == kind
    assert task.fields.text == ("prompt", "completion")
    assert len(task.train) + len(task.heldout) == 4672


def test_a_validation_file_of_another_task_is_refused(shared, checkpoint):
    with pytest.raises(PareError, match="no field 'sentence1'"):
        Task.from_files(
            shared / "mrpc" / "train.jsonl", shared / "cola" / "validation.jsonl", model=checkpoint("bert")
        )
