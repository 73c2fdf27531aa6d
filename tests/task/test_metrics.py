import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretune.task.metrics import classification, higher_is_better, language, regression

BITS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40)


@given(BITS)
def test_two_classes_against_the_formulas(pairs):
    predictions, targets = np.array(pairs, dtype=np.int64).T
    hits = int((predictions & targets).sum())
    false = int((predictions & ~targets & 1).sum())
    missed = int((targets & ~predictions & 1).sum())
    rejected = len(pairs) - hits - false - missed
    scores = classification(predictions, targets, np.zeros(len(pairs)), positive=1)
    assert scores["accuracy"] == pytest.approx((hits + rejected) / len(pairs))
    assert scores["f1"] == pytest.approx(2 * hits / max(1, 2 * hits + false + missed))
    below = math.sqrt((hits + false) * (hits + missed) * (rejected + false) * (rejected + missed))
    expected = (hits * rejected - false * missed) / below if below else 0.0
    assert scores["matthews"] == pytest.approx(expected)


def test_f1_is_that_of_the_positive_class_or_the_mean():
    predictions, targets = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 1])
    losses = np.array([0.5, 1.5, 1.0, 1.0], dtype=np.float32)
    by_class = [classification(predictions, targets, losses, number)["f1"] for number in range(3)]
    assert by_class == pytest.approx([2 / 3, 1 / 2, 0])
    scores = classification(predictions, targets, losses, None)
    assert scores["f1"] == pytest.approx(np.mean(by_class))
    assert scores["loss"] == 1.0


def test_regression_against_numpy():
    generator = np.random.default_rng(0)
    targets = generator.normal(size=50)
    predictions = (targets + generator.normal(size=50)).astype(np.float32)
    scores = regression(predictions, targets, np.full(50, 2.0))
    assert scores["pearson"] == pytest.approx(np.corrcoef(predictions, targets)[0, 1])
    ranks = [np.argsort(np.argsort(values)) for values in (predictions, targets)]
    assert scores["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert scores["loss"] == 2.0


@pytest.mark.parametrize(("predictions", "targets"), [([1, 1], [1, 2]), ([1, 2], [1, 1]), ([1], [2])])
def test_a_constant_orders_nothing(predictions, targets):
    scores = regression(np.array(predictions), np.array(targets), np.zeros(len(targets)))
    assert scores["pearson"] == scores["spearman"] == 0.0


def test_language_counts_tokens():
    scores = language(np.array([1.0, 4.0]), np.array([3, 1]))
    assert scores["loss"] == 1.75
    assert scores["perplexity"] == pytest.approx(math.exp(1.75))
    assert language(np.array([1e6]), np.array([1]))["perplexity"] == math.inf


def test_direction():
    assert all(higher_is_better(name) for name in ("accuracy", "f1", "matthews", "pearson", "spearman"))
    assert not any(higher_is_better(name) for name in ("loss", "perplexity"))
