import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from paretune.delta import Values
from paretune.delta.contents import rounded
from paretune.errors import PareError
from paretune.plan import Addition
from tests.delta.examples import file_delta


def test_values_are_a_copy():
    source, indices = torch.zeros(4, requires_grad=True), np.array([0])
    values = Values((2, 2), "all", None, source)
    with torch.no_grad():
        source[0] = 1
    assert not values.values.requires_grad
    assert values.values.tolist() == [[0, 0], [0, 0]]
    assert Values((2, 2), "entries", indices, torch.zeros(1)).values.shape == (1,)


@pytest.mark.parametrize(
    ("granularity", "indices", "flat"),
    [("rows", [1], [3, 4, 5]), ("columns", [0, 2], [0, 2, 3, 5]), ("entries", [4], [4]), ("all", None, None)],
)
def test_places_are_in_the_order_of_the_values(granularity, indices, flat):
    weight = torch.arange(6.0).reshape(2, 3)
    picked = {
        "rows": weight[[1]],
        "columns": weight[:, [0, 2]],
        "entries": weight.reshape(-1)[[4]],
        "all": weight,
    }
    indices = None if indices is None else np.array(indices)
    values = Values((2, 3), granularity, indices, picked[granularity])
    positions = values.positions()
    assert (None if positions is None else positions.tolist()) == flat
    if flat is not None:
        assert values.values.tolist() == flat  # each value is its own place here


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (((2, 3), "entries", np.array([6]), torch.zeros(1)), "outside"),
        (((2, 3), "rows", np.array([2]), torch.zeros(3)), "outside"),
        (((2, 3), "entries", np.array([1, 0]), torch.zeros(2)), "increasing"),
        (((2, 3), "entries", np.array([1]), torch.zeros(2)), "2 values for 1"),
        (((2, 3), "columns", np.array([1]), torch.zeros(3)), "3 values for 2"),
        (((2, 3), "all", None, torch.zeros(5)), "5 values for 6"),
        (((2, 3), "all", np.array([0]), torch.zeros(6)), "no indices"),
        (((2, 3), "entries", None, torch.zeros(6)), "indices"),
        (((2, 3), "tiles", None, torch.zeros(6)), "granularity 'tiles' is none of all, rows"),
        (((2, 3), "blocks", None, torch.zeros(6)), "no indices"),
        (((2, 3), "blocks", np.array([1]), torch.zeros(6)), r"index 1 is outside 0\.\.0"),
        (((17, 3), "blocks", np.array([1]), torch.zeros(48)), "48 values for 3"),
        (((6,), "blocks", np.array([0]), torch.zeros(6)), "parts of a matrix"),
        (((), "rows", np.array([0]), torch.zeros(1)), "without dimensions"),
        (((2,), "all", None, torch.zeros(2, dtype=torch.int64)), "not floating"),
    ],
)
def test_values_that_cannot_be_are_refused(arguments, word):
    with pytest.raises(PareError, match=word):
        Values(*arguments)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"head": ("nowhere",)}, "nowhere"),
        ({"head": ("layer.0.weight",)}, "layer.0.weight"),
        ({"additions": ()}, "belongs to no added module"),
        ({"added": {}}, "without tensors"),
        ({"additions": file_delta().additions * 2}, "twice"),
        ({"task": {"x": float("nan")}}, "task cannot"),
        ({"info": {"x": {1}}}, "info cannot"),
        ({"additions": (Addition("lora", "layer.3", 2, 26, {"x": {1}}),)}, "settings of an addition"),
    ],
)
def test_contents_that_do_not_belong_together_are_refused(change, word):
    with pytest.raises(PareError, match=word):
        replace(file_delta(), **change)


def test_integer_tensors_of_added_modules_are_refused():
    delta = file_delta()
    added = {key: value.long() for key, value in delta.added.items()}
    with pytest.raises(PareError, match="not floating point"):
        replace(delta, added=added)


def test_digest_sees_every_part():
    delta = file_delta()
    changed = [
        replace(delta, plan_digest="x"),
        replace(delta, info={}),
        replace(delta, base=replace(delta.base, model="other")),
        replace(delta, added={key: value + 1 for key, value in delta.added.items()}),
        replace(delta, additions=(Addition("lora", "layer.3", 2, 26, {"alpha": 5.0}),)),
        rounded(delta, torch.float64),
    ]
    for name, values in delta.tensors.items():
        more = {name: replace(values, values=values.values + 1)}
        changed.append(replace(delta, tensors={**delta.tensors, **more}))
    entries = delta.tensors["layer.0.weight"]
    moved = np.setdiff1d(np.arange(40), entries.indices)[: len(entries.indices)]
    changed.append(
        replace(delta, tensors={**delta.tensors, "layer.0.weight": replace(entries, indices=moved)})
    )
    digests = {each.digest for each in [delta, *changed]}
    assert len(digests) == len(changed) + 1
    assert replace(delta, tensors=dict(reversed(delta.tensors.items()))).digest == delta.digest


def test_rounding_rounds_everything():
    delta = file_delta().to(torch.bfloat16)
    assert {values.values.dtype for values in delta.tensors.values()} == {torch.bfloat16}
    assert {values.dtype for values in delta.added.values()} == {torch.bfloat16}
    source = file_delta().tensors["scale"].values
    assert delta.tensors["scale"].values == source.to(torch.bfloat16)
    with pytest.raises(PareError, match="cannot hold"):
        delta.to(torch.int8)


def test_task_and_info_are_what_a_file_would_give_back():
    labels, delta = ["a"], file_delta()
    delta = replace(delta, task={"labels": tuple(labels)}, info={"list": labels, "map": {1: None}})
    labels.append("b")
    assert delta.task == {"labels": ["a"]}
    assert delta.info == {"list": ["a"], "map": {"1": None}}


def test_indices_that_cannot_be_written_to():
    indices = np.frombuffer(np.array([1, 2]).tobytes(), dtype=np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        positions = Values((4,), "entries", indices, torch.zeros(2)).positions()
    assert positions is not None and positions.tolist() == [1, 2]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_no_numbers_are_named(bad):
    delta = file_delta()
    delta.check_finite()
    wrong = delta.tensors["layer.1.weight"].values.clone()
    wrong[3] = bad
    broken = replace(
        delta,
        tensors={
            **delta.tensors,
            "layer.1.weight": replace(delta.tensors["layer.1.weight"], values=wrong),
        },
    )
    with pytest.raises(PareError, match=r"layer\.1\.weight: 1 of 10 values"):
        broken.check_finite()
    added = {**delta.added, "lora:layer.3:lora_B.weight": torch.full((8, 2), bad)}
    with pytest.raises(PareError, match=r"lora:layer\.3:lora_B\.weight: 16 of 16"):
        replace(delta, added=added).check_finite()
