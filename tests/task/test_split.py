import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretune.errors import PareError
from paretune.task.split import draw, hold_out

CLASSES = st.lists(st.integers(0, 4), min_size=1, max_size=60)


@given(size=st.integers(1, 60), count=st.integers(0, 80), seed=st.integers(0, 5))
def test_draw_is_sorted_unique_and_seeded(size, count, seed):
    rows = draw(size, count, seed)
    assert rows.dtype == np.int64
    assert len(rows) == min(count, size)
    assert (np.diff(rows) > 0).all()
    assert ((rows >= 0) & (rows < size)).all()
    assert (rows == draw(size, count, seed)).all()


@given(classes=CLASSES, count=st.integers(0, 80))
def test_classes_keep_their_proportions(classes, count):
    rows = draw(len(classes), count, 0, classes)
    assert len(rows) == min(count, len(classes))
    for number in set(classes):
        share = min(count, len(classes)) * classes.count(number) / len(classes)
        assert abs(sum(classes[row] == number for row in rows) - share) < 1 + 1e-9


@given(classes=CLASSES, share=st.floats(0.01, 0.99))
def test_every_class_stays_behind(classes, share):
    if len(set(classes)) == len(classes):
        with pytest.raises(PareError, match="too few"):
            hold_out(len(classes), share, 0, "data", classes)
        return
    held = hold_out(len(classes), share, 0, "data", classes)
    left = np.delete(np.asarray(classes), held)
    assert set(left.tolist()) == set(classes)
    assert 1 <= len(held) <= max(1, round(share * len(classes)))


def test_seeds_differ():
    draws = {tuple(draw(100, 10, seed)) for seed in range(10)}
    assert len(draws) == 10


def test_one_row_cannot_be_held_out():
    with pytest.raises(PareError, match="1 rows are too few"):
        hold_out(1, 0.5, 0, "data")
