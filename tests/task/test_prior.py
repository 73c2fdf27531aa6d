import numpy as np
import pytest
import torch

from paretune.task import Task
from paretune.task.models import load_model_from_spec
from tests.tiny import tiny_rows

WITH_BIAS, WITHOUT = ("bert", "roberta", "distilbert", "t5"), ("gpt2", "llama", "qwen2")


def task_of(folder, labels):
    rows = [
        row | {"label": label} for row, label in zip(tiny_rows("single", len(labels)), labels, strict=True)
    ]
    return Task.from_rows(rows, rows, model=folder, heldout=0.0)


def fresh(task, **options):
    return load_model_from_spec(task.model_id, task.spec(), **options)


def logits(model, task):
    batch = next(task.batches("train", 8))
    batch.pop("labels")
    with torch.no_grad():
        return model(**batch).logits.float()


def changed(model, other):
    there = dict(other.named_parameters())
    return [name for name, tensor in model.named_parameters() if not torch.equal(tensor, there[name])]


@pytest.mark.parametrize("kind", WITH_BIAS)
def test_a_new_head_starts_at_the_classes_frequencies(checkpoint, kind):
    task = task_of(checkpoint(kind), ["a"] * 4 + ["b"] * 12 + ["c"] * 24)
    state = torch.get_rng_state()
    model = task.load_model()
    assert torch.equal(torch.get_rng_state(), state)
    (name,) = changed(model, fresh(task))
    assert name in model.paretune_head
    logs = np.log([5.0, 13.0, 25.0])
    expected = torch.tensor(logs - logs.mean(), dtype=torch.float32)
    moved = logits(model, task) - logits(fresh(task), task)
    torch.testing.assert_close(moved, expected.expand_as(moved), rtol=0, atol=1e-5)
    assert not model.training


@pytest.mark.parametrize("kind", WITH_BIAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_head_starts_at_the_mean_of_the_numbers(checkpoint, kind, dtype):
    labels = [200.0 + number / 8 for number in range(40)]
    task = task_of(checkpoint(kind), labels)
    model = task.load_model(dtype=dtype)
    assert len(changed(model, fresh(task, dtype=dtype))) == 1
    assert (logits(model, task) - np.mean(labels)).abs().max() < 3


@pytest.mark.parametrize("kind", WITHOUT)
def test_a_head_without_a_bias_is_left_alone(checkpoint, kind):
    task = task_of(checkpoint(kind), ["a"] * 4 + ["b"] * 36)
    assert not changed(task.load_model(), fresh(task))


@pytest.mark.parametrize("kind", WITH_BIAS)
def test_nothing_changes_with_as_many_rows_of_each_class(checkpoint, kind):
    task = task_of(checkpoint(kind), ["a", "b"] * 20)
    assert not changed(task.load_model(), fresh(task))


def test_a_head_that_the_checkpoint_holds_is_left_alone(checkpoint, tmp_path):
    first = task_of(checkpoint("bert"), ["a", "b"] * 20)
    first.load_model().save_pretrained(tmp_path)
    first.tokenizer.save_pretrained(tmp_path)
    task = task_of(tmp_path, ["a"] * 4 + ["b"] * 36)
    model = task.load_model()
    assert model.paretune_head == ()
    assert not changed(model, fresh(task))


def test_a_parameter_that_only_looks_like_the_bias_keeps_its_values(checkpoint):
    # As many classes as the head's inner layer has units: that layer's bias has the output bias's shape.
    width = 32
    labels = [f"c{number:02}" for number in range(width)] * 2 + ["c00"] * 8
    task = task_of(checkpoint("roberta"), labels)
    model = task.load_model()
    assert len(model.get_parameter("classifier.dense.bias")) == width
    assert changed(model, fresh(task)) == ["classifier.out_proj.bias"]


def test_language_models_are_left_alone(checkpoint):
    rows = [{"text": row["text"]} for row in tiny_rows("single", 20)]
    task = Task.from_rows(rows, rows, model=checkpoint("gpt2"))
    assert not changed(task.load_model(), fresh(task))
