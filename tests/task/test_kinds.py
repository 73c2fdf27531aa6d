import numpy as np
import pytest
import torch

from paretune.errors import PareError
from paretune.task import Task
from paretune.task.kinds import KINDS as TASK_KINDS
from paretune.task.kinds import LARGEST_LOGITS, check_family, check_metric, class_number, find_kind
from tests.tiny import DECODERS, KINDS, tiny_rows

TEXT_MODELS = [kind for kind in KINDS if kind != "vit"]
CASES = (
    [(model, shape) for model in TEXT_MODELS for shape in ("single", "pair", "score")]
    + [(model, shape) for model in DECODERS for shape in ("text", "prompt")]
    + [("t5", "prompt"), ("llama", "messages"), ("qwen2", "messages")]
)


@pytest.mark.parametrize(("model", "shape"), CASES)
def test_example_losses_are_what_the_model_averages(checkpoint, model, shape):
    task = Task.from_rows(tiny_rows(shape, 12), model=checkpoint(model), heldout=0)
    loaded = task.load_model().double()
    batch = next(task.batches("train", 8))
    if task.kind == "regression":
        batch["labels"] = batch["labels"].double()
    losses = task.example_losses(loaded, batch)
    expected = loaded(**batch).loss
    if task.labels or task.kind == "regression":
        mean = losses.mean()
    else:  # transformers' mean counts tokens, not examples
        labels = batch["labels"][:, 1:] if task.kind == "causal-lm" else batch["labels"]
        counts = (labels != -100).sum(1)
        mean = (losses * counts).sum() / counts.sum()
    assert losses.shape == (8,)
    assert losses.dtype == torch.float64
    torch.testing.assert_close(mean, expected.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("model", "shape"), CASES)
def test_an_example_does_not_depend_on_its_batch(checkpoint, model, shape):
    task = Task.from_rows(tiny_rows(shape, 6), model=checkpoint(model), heldout=0)
    loaded = task.load_model().double()
    together = task.example_losses(loaded, next(task.batches("train", 6)))
    alone = torch.cat([task.example_losses(loaded, batch) for batch in task.batches("train", 1)])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("shape", ["single", "score"])
def test_losses_against_brute_force(shape):
    logits = torch.randn(5, 3 if shape == "single" else 1, dtype=torch.float64)
    if shape == "single":
        labels = torch.tensor([0, 1, 2, 2, 0])
        expected = [
            float(-torch.log(row.exp()[label] / row.exp().sum()))
            for row, label in zip(logits, labels, strict=True)
        ]
        found = find_kind("classification").losses(logits, labels)
    else:
        labels = torch.randn(5, dtype=torch.float64)
        expected = [float((row[0] - label) ** 2) for row, label in zip(logits, labels, strict=True)]
        found = find_kind("regression").losses(logits, labels)
    assert found.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("name", ["causal-lm", "seq2seq"])
def test_token_losses_against_brute_force(name):
    logits = torch.randn(2, 4, 7, dtype=torch.float64)
    labels = torch.tensor([[1, 2, 3, 4], [-100, 5, -100, -100]])
    log = logits.log_softmax(-1)
    late = 1 if name == "causal-lm" else 0
    expected = []
    for row in range(2):
        terms = [
            -float(log[row, place - late, labels[row, place]])
            for place in range(late, 4)
            if labels[row, place] != -100
        ]
        expected.append(sum(terms) / len(terms))
    kind = find_kind(name)
    judged = kind.judge(logits, labels)
    assert kind.losses(logits, labels).tolist() == pytest.approx(expected)
    assert judged["losses"].tolist() == pytest.approx(expected)
    assert judged["tokens"].tolist() == [4 - late, 1]


def test_half_precision_logits_are_widened(checkpoint):
    task = Task.from_rows(tiny_rows("single", 6), model=checkpoint("bert"), heldout=0)
    loaded = task.load_model(dtype=torch.bfloat16)
    losses = task.example_losses(loaded, next(task.batches("train", 6)))
    assert next(loaded.parameters()).dtype == torch.bfloat16
    assert losses.dtype == torch.float32


def test_losses_have_gradients(checkpoint):
    task = Task.from_rows(tiny_rows("prompt", 4), model=checkpoint("t5"), heldout=0)
    loaded = task.load_model()
    task.example_losses(loaded, next(task.batches("train", 4))).sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


def test_not_finite_is_seen():
    logits = torch.tensor([[0.0, 1.0], [float("nan"), 0.0], [0.0, float("inf")]])
    assert find_kind("classification").judge(logits, torch.tensor([0, 1, 1]))["finite"].tolist() == [
        True,
        False,
        False,
    ]
    tokens = torch.zeros(2, 3, 4)
    tokens[1, 0, 2] = float("nan")
    for name in ("causal-lm", "seq2seq"):
        assert find_kind(name).judge(tokens, torch.ones(2, 3, dtype=torch.int64))["finite"].tolist() == [
            True,
            False,
        ]


def test_large_logits_make_small_batches():
    assert find_kind("causal-lm").most_rows(128, 50_000) == LARGEST_LOGITS // (128 * 50_000)
    assert find_kind("seq2seq").most_rows(2**20, 2**20) == 1
    assert find_kind("classification").most_rows(128, 50_000) > 10**6


@pytest.mark.parametrize("name", TASK_KINDS)
def test_names_and_metrics(name):
    kind = find_kind(name)
    assert check_metric(kind, None) == kind.metrics[0]
    assert check_metric(kind, "loss") == "loss"
    with pytest.raises(PareError, match=f"for {name}; there are"):
        check_metric(kind, "bleu")


def test_what_there_is_not():
    with pytest.raises(PareError, match=r"no kind of task 'clasification'.*did you mean 'classification'"):
        find_kind("clasification")
    with pytest.raises(PareError, match=r"bert: .*encoder family.*fits classification, regression"):
        check_family(find_kind("causal-lm"), "encoder", "bert")
    assert class_number(("a", "b"), "b") == 1
    assert class_number(("a", "b"), None) is None


def test_measure_knows_each_metric():
    ones = np.ones(4)
    judged = {"losses": ones, "predictions": ones, "targets": ones, "tokens": ones}
    for kind in TASK_KINDS.values():
        assert set(kind.measure(judged, None)) == set(kind.metrics)
