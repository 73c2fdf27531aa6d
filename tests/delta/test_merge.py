from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.delta import Delta, Values, format
from paretune.errors import PareError
from paretune.plan import Addition, Base
from tests.delta.examples import Net, expected, net_delta, same_bits, snapshot

BASE = Base("some/model", "ab" * 32, "float32")


def make(values: Values | dict[str, Values], **more) -> Delta:
    tensors = values if isinstance(values, dict) else {"w": values}
    return Delta(**{"base": BASE, "plan_digest": "p", "tensors": tensors, **more})


def entries(places: dict[int, float], shape=(4, 5), dtype=torch.float32) -> Values:
    indices = np.array(sorted(places), dtype=np.int64)
    return Values(shape, "entries", indices, torch.tensor([places[i] for i in sorted(places)], dtype=dtype))


def dense(delta: Delta, name: str = "w") -> dict[int, float]:
    """Value by flat place."""
    values = delta.tensors[name]
    flat = values.selection(name).flat().tolist()
    return dict(zip(flat, values.values.reshape(-1).double().tolist(), strict=True))


PLACES = st.dictionaries(st.integers(0, 19), st.floats(-4, 4, width=32), max_size=12)


@given(st.lists(PLACES, min_size=2, max_size=4), st.sampled_from(["error", "mean", "last"]))
@settings(max_examples=200)
def test_against_dicts(parts, overlap):
    deltas = [make(entries(part), info={"seed": i}) for i, part in enumerate(parts)]
    held = {place: [part[place] for part in parts if place in part] for part in parts for place in part}
    if overlap == "error" and any(len(set(values)) > 1 for values in held.values()):
        with pytest.raises(PareError, match="w: the deltas disagree on"):
            Delta.merge(deltas)
        return
    merged = dense(Delta.merge(deltas, overlap))
    assert merged.keys() == held.keys()
    for place, values in held.items():
        if overlap == "last" or len(set(values)) == 1:
            assert merged[place] == values[-1]
        else:
            assert merged[place] == pytest.approx(sum(values) / len(values), rel=1e-6, abs=1e-30)


@pytest.mark.parametrize("overlap", ["error", "mean"])
def test_order_does_not_matter_to_the_byte(overlap):
    """Disjoint entries everywhere; under `mean` also some that disagree."""
    parts = [{0: 0.1, 3: 5.0}, {1: 0.2}, {2: 0.3}]
    if overlap == "mean":
        parts = [{**part, 9: 0.1 * (3**n), 10: 1e-8 * (-1) ** n} for n, part in enumerate(parts)]
    deltas = [make(entries(part), plan_digest=str(n)) for n, part in enumerate(parts)]
    files = {format.encode(Delta.merge(order, overlap)) for order in permutations(deltas)}
    assert len(files) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_disjoint_deltas_merged_are_both_applied(dtype):
    model = Net().to(dtype)
    rng = np.random.default_rng(0)
    whole = net_delta(model, 1)
    parts: list[dict[str, Values]] = [{}, {}]
    for name, parameter in model.named_parameters():
        owner = rng.integers(0, 2, parameter.numel())
        for turn in range(2):
            places = np.flatnonzero(owner == turn)
            values = torch.randn(len(places)).to(dtype)
            parts[turn][name] = Values(tuple(parameter.shape), "entries", places, values)
    first, second = (replace(whole, tensors=tensors, head=()) for tensors in parts)
    merged = Delta.merge([first, second])
    before = snapshot(model)
    merged = replace(merged, base=replace(merged.base, digest=_digest(model)))
    with merged.apply(model):
        assert same_bits(snapshot(model), expected(before, [second, first]))
    assert same_bits(snapshot(model), before)


def _digest(model):
    from paretune.anatomy import base_digest

    return base_digest(model, ())


@pytest.mark.parametrize(
    ("first", "second", "granularity"),
    [
        ("rows", "rows", "rows"),
        ("columns", "columns", "columns"),
        ("rows", "columns", "entries"),
        ("entries", "rows", "entries"),
        ("blocks", "blocks", "blocks"),
        ("blocks", "rows", "entries"),
        ("columns", "blocks", "entries"),
        ("entries", "blocks", "entries"),
        ("all", "entries", "all"),
        ("blocks", "all", "all"),
        ("all", "all", "all"),
    ],
)
def test_granularities(first, second, granularity):
    shape = (4, 50)

    def part(kind: str, turn: int) -> Values:
        indices = None if kind == "all" else np.array([turn, 2])
        selection = Values(shape, kind, indices, torch.zeros(_count(kind))).selection("w")
        return Values(shape, kind, indices, torch.from_numpy(selection.flat() + 100.0 * turn).float())

    merged = Delta.merge([make(part(first, 0)), make(part(second, 1))], "last")
    assert merged.tensors["w"].granularity == granularity
    wanted = dense(make(part(first, 0))) | dense(make(part(second, 1)))
    assert dense(merged) == wanted


def _count(kind: str) -> int:
    return {"rows": 100, "columns": 8, "blocks": 4 * 32, "entries": 2, "all": 200}[kind]


def test_values_that_agree_do_not_clash():
    merged = Delta.merge([make(entries({1: 2.0, 3: 4.0})), make(entries({1: 2.0}), plan_digest="q")])
    assert dense(merged) == {1: 2.0, 3: 4.0}


def test_the_clash_is_counted_and_named():
    with pytest.raises(PareError, match=r"w: the deltas disagree on 2 of 4 values .*overlap='mean'"):
        Delta.merge([make(entries({1: 2.0, 3: 4.0, 5: 1.0})), make(entries({1: 0.0, 3: 0.0, 7: 1.0}))])


def test_heads():
    def with_head(value: float) -> Delta:
        return make({"head.bias": Values((2,), "all", None, torch.full((2,), value))}, head=("head.bias",))

    with pytest.raises(PareError, match=r"head\.bias"):
        Delta.merge([with_head(1.0), with_head(2.0)])
    merged = Delta.merge([with_head(1.0), with_head(2.0)], "mean")
    assert merged.head == ("head.bias",)
    assert merged.tensors["head.bias"].values.tolist() == [1.5, 1.5]


def test_dtypes_are_promoted():
    merged = Delta.merge(
        [make(entries({0: 1.0}, dtype=torch.bfloat16)), make(entries({1: 2.0}, dtype=torch.float16))]
    )
    assert merged.tensors["w"].values.dtype == torch.float32


def test_added_modules_are_joined_where_they_do_not_meet():
    def lora(module: str) -> Delta:
        return make(
            {},
            additions=(Addition("lora", module, 1, 4),),
            added={f"lora:{module}:lora_A.weight": torch.ones(1, 4)},
        )

    merged = Delta.merge([lora("b"), lora("a")])
    assert [addition.module for addition in merged.additions] == ["a", "b"]
    assert list(merged.added) == ["lora:a:lora_A.weight", "lora:b:lora_A.weight"]
    with pytest.raises(PareError, match="add a lora to a"):
        Delta.merge([lora("a"), lora("a").with_info(x=1)], "last")


def test_what_is_remembered():
    one = make(
        entries({0: 1.0}), task={"kind": "regression", "fields": ["a"]}, info={"method": "m", "seed": 1}
    )
    two = make(entries({1: 1.0}), task={"kind": "regression", "fields": ["b"]}, plan_digest="q")
    merged = Delta.merge([one, two])
    assert merged.task == {"kind": "regression"}
    assert merged.info["method"] == "merge"
    sources = {source["digest"]: source for source in merged.info["sources"]}
    assert sources[one.digest] == {"digest": one.digest, "plan": "p", "method": "m", "seed": 1}
    assert sources.keys() == {one.digest, two.digest}
    assert merged.plan_digest not in ("p", "q")


@pytest.mark.parametrize(
    ("deltas", "overlap", "word"),
    [
        ([], "error", "nothing to merge"),
        ([make({})] * 2, "first", "'first' is none of"),
        ([make({}), make({}, base=replace(BASE, digest="00" * 32))], "mean", "different bases"),
        ([make({}), make({}, base=replace(BASE, dtype="bfloat16"))], "mean", "different bases"),
        ([make(entries({0: 1.0})), make(entries({0: 1.0}, shape=(5, 4)))], "mean", "shapes"),
    ],
)
def test_what_cannot_be_merged(deltas, overlap, word):
    with pytest.raises(PareError, match=word):
        Delta.merge(deltas, overlap)


def test_one_delta_comes_back():
    delta = make(entries({0: 1.0}))
    assert Delta.merge([delta]) is delta
