"""The draw is seeded, without replacement, and balanced where asked."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretune.errors import PareError
from paretune.evidence.draw import draw


class Rows:
    """As much of a task as a draw looks at."""

    kind = "classification"

    def __init__(self, classes: list[int], names: int | None = None) -> None:
        self.classes = classes
        self.labels = tuple(f"c{number}" for number in range(max(classes) + 1 if names is None else names))

    def rows(self, split: Any) -> Any:
        return self

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, name: str) -> list[int]:
        assert name == "labels"
        return self.classes


@given(size=st.integers(1, 60), seed=st.integers(0, 5), data=st.data())
def test_a_draw_is_distinct_and_repeatable(size: int, seed: int, data: Any) -> None:
    samples = data.draw(st.integers(1, size))
    task: Any = Rows([0] * size)
    first = draw(task, samples, seed)
    assert first.dtype == np.int64 and len(set(first.tolist())) == samples
    assert set(first.tolist()) <= set(range(size))
    assert first.tolist() == draw(task, samples, seed).tolist()


@given(counts=st.lists(st.integers(1, 12), min_size=1, max_size=5), seed=st.integers(0, 5), data=st.data())
def test_a_balanced_draw_is_as_equal_as_the_classes_allow(counts: list[int], seed: int, data: Any) -> None:
    classes = [label for label, count in enumerate(counts) for _ in range(count)]
    samples = data.draw(st.integers(len(counts), len(classes)))
    chosen = draw(Rows(classes), samples, seed, balanced=True)  # type: ignore[arg-type]
    assert len(set(chosen.tolist())) == samples
    drawn = np.bincount(np.asarray(classes)[chosen], minlength=len(counts))
    room = [share for share, count in zip(drawn, counts, strict=True) if share < count]
    assert all(drawn <= counts)
    assert not room or max(drawn) - min(room) <= 1


def test_what_small_classes_lack_is_spread_evenly() -> None:
    task = Rows([0] * 5 + [1] * 5 + [2] + [3])
    drawn = draw(task, 10, 0, balanced=True)
    assert np.bincount(np.array(task.classes)[drawn]).tolist() == [4, 4, 1, 1]


def test_what_cannot_be_balanced() -> None:
    task: Any = Rows([0, 0, 2], names=3)
    with pytest.raises(PareError, match="class 'c1' has no example in train"):
        draw(task, 3, balanced=True)
    with pytest.raises(PareError, match="samples=2: a balanced draw of 3 classes"):
        draw(task, 2, balanced=True)
    with pytest.raises(PareError, match="the data set has 3 examples; ask for 1 to 3"):
        draw(task, 4, split=task)
