"""The flat top-k against sorting everything."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from paretune.errors import PareError
from paretune.evidence import topk
from paretune.evidence.topk import top_k


def by_sorting(scores: dict[str, np.ndarray], k: int, largest: bool) -> dict[str, list[int]]:
    """The same by one stable sort."""
    flat = np.concatenate([values.reshape(-1).astype(np.float64) for values in scores.values()])
    order = np.argsort(-flat if largest else flat, kind="stable")[:k]
    chosen: dict[str, list[int]] = {}
    start = 0
    for name, values in scores.items():
        inside = order[(order >= start) & (order < start + values.size)] - start
        if len(inside):
            chosen[name] = sorted(inside.tolist())
        start += values.size
    return chosen


def as_lists(chosen: dict[str, np.ndarray]) -> dict[str, list[int]]:
    assert all(indices.dtype == np.int64 for indices in chosen.values())
    return {name: indices.tolist() for name, indices in chosen.items()}


VALUES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 1.0, -1.0, 1e-45, 1e-40, -1e-45, np.inf, -np.inf, 3.0e38]),
    st.floats(width=32, allow_nan=False),
)
TENSORS = st.lists(
    arrays.arrays(np.float32, arrays.array_shapes(max_dims=3, max_side=6, min_side=0), elements=VALUES),
    min_size=1,
    max_size=4,
)


@settings(max_examples=200)
@given(tensors=TENSORS, share=st.floats(0, 1), largest=st.booleans(), chunk=st.sampled_from([1, 3, 64]))
def test_equals_sorting(tensors: list[np.ndarray], share: float, largest: bool, chunk: int) -> None:
    scores = {f"t{number}": values for number, values in enumerate(tensors)}
    k = round(share * sum(values.size for values in tensors))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topk, "_CHUNK", chunk)
        assert as_lists(top_k(scores, k, largest=largest)) == by_sorting(scores, k, largest)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("largest", [True, False])
def test_torch_tensors_of_any_precision(dtype: torch.dtype, largest: bool) -> None:
    torch.manual_seed(0)
    scores = {
        "a": torch.randn(40, 50).to(dtype),
        "b": torch.randn(30).to(dtype),
        "c": torch.rand(9, 9, 9).to(dtype),
    }
    scores["a"].requires_grad_()
    plain = {name: values.detach().double().numpy() for name, values in scores.items()}
    for k in (1, 7, 500, 2758, 2759):
        assert as_lists(top_k(scores, k, largest=largest)) == by_sorting(plain, k, largest)


def test_precisions_may_be_mixed() -> None:
    scores = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([1.0 + 1e-12, 0.0], dtype=torch.float64)}
    assert as_lists(top_k(scores, 2)) == {"a": [1], "b": [0]}


def test_scores_that_are_not_contiguous_are_read_in_c_order() -> None:
    values = torch.arange(12.0).view(3, 4).T
    assert as_lists(top_k({"a": values}, 2)) == {"a": [8, 11]}


def test_many_equal_scores_are_taken_from_the_front() -> None:
    scores = {
        "a": np.zeros((100, 100), np.float32),
        "b": np.zeros(50, np.float32),
        "c": np.ones(3, np.float32),
    }
    chosen = top_k(scores, 10_010)
    assert chosen["a"].tolist() == list(range(10_000))
    assert chosen["b"].tolist() == list(range(7))
    assert chosen["c"].tolist() == [0, 1, 2]


def test_scale_compares_products() -> None:
    generator = np.random.default_rng(0)
    scores = {"a": generator.random((20, 20), np.float32), "b": generator.random(100, np.float32)}
    scaled = {"a": scores["a"].astype(np.float64) * 1e-30, "b": scores["b"].astype(np.float64)}
    assert as_lists(top_k(scores, 130, scale={"a": 1e-30})) == by_sorting(scaled, 130, True)


def test_nothing_asked_nothing_chosen() -> None:
    assert top_k({"a": np.ones(3, np.float32)}, 0) == {}


@pytest.mark.parametrize("k", [-1, 4])
def test_k_out_of_range(k: int) -> None:
    with pytest.raises(PareError, match=f"cannot choose {k} of 3 scores"):
        top_k({"a": np.ones(3, np.float32)}, k)


def test_nan_is_refused_by_name_and_place() -> None:
    values = torch.ones(4, 5)
    values[2, 1] = float("nan")
    with pytest.raises(PareError, match="b: the score at flat index 11 is NaN"):
        top_k({"a": torch.ones(3), "b": values}, 2)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("inf"), float("nan")])
def test_scale_must_be_positive(factor: float) -> None:
    with pytest.raises(PareError, match="a: the factor"):
        top_k({"a": np.ones(3, np.float32)}, 1, scale={"a": factor})


def test_scores_are_left_alone() -> None:
    values = torch.tensor([-0.0, 1.0, -2.0])
    before = values.clone()
    top_k({"a": values}, 2)
    assert values.equal(before) and torch.signbit(values[0])


def test_memory_is_a_few_chunks() -> None:
    import tracemalloc

    values = np.random.default_rng(0).random(6_000_000, np.float32)
    tracemalloc.start()
    top_k({"a": values}, 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < values.nbytes * 2  # a full sort of indices takes 2.0, and its float copy more
