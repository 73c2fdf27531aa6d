import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.errors import PareError
from paretune.files import write_atomic
from paretune.plan import Addition, Base, Plan, Selection

BASE = Base("somewhere/model", "ab" * 32, "float32")


@st.composite
def selections(draw, tensor="a.weight"):
    shape = tuple(draw(st.lists(st.integers(1, 5), max_size=4) | st.tuples(*[st.integers(0, 40)] * 2)))
    kinds = ["all", "entries"] + (["rows", "columns"] if shape else [])
    granularity = draw(st.sampled_from([*kinds, "blocks", "blocks"] if len(shape) == 2 else kinds))
    if granularity == "all":
        return Selection(tensor, shape, "all")
    bound = Selection(tensor, shape, granularity, np.empty(0, np.int64)).bound
    size = draw(st.sampled_from([0, min(1, bound), bound]) | st.integers(0, bound))
    chosen = draw(st.permutations(range(bound)))[:size]
    return Selection(tensor, shape, granularity, np.array(sorted(chosen), dtype=np.int64))


@st.composite
def plans(draw):
    chosen = tuple(draw(selections(f"block.{i}.weight")) for i in range(draw(st.integers(0, 3))))
    added = tuple(
        Addition("lora", f"block.{i}.query", i + 1, 8 * (i + 1), {"alpha": 2.0, "dropout": 0.0})
        for i in range(draw(st.integers(0, 2)))
    )
    return Plan(
        base=BASE,
        selections=chosen,
        additions=added,
        head=(Selection("classifier.weight", (2, 3), "all"),),
        head_rule=draw(st.sampled_from(["outside", "inside"])),
        method="by hand",
        settings={"samples": draw(st.integers(1, 9))},
        seed=draw(st.integers(0, 99)),
        weights=1000,
        notes={"of": "a test"},
    )


@given(selections())
def test_flat_names_the_same_weights_as_numpy_indexing(selection):
    shape = selection.shape
    mark = np.zeros(shape, dtype=bool)
    if selection.granularity == "all":
        mark[...] = True
    elif selection.granularity == "rows":
        mark[selection.indices] = True
    elif selection.granularity == "columns":
        mark[..., selection.indices] = True
    elif selection.granularity == "blocks":
        corners = [(row, column) for row in range(0, shape[0], 16) for column in range(0, shape[1], 16)]
        for row, column in (corners[index] for index in selection.indices):
            mark[row : row + 16, column : column + 16] = True
    else:
        mark.reshape(-1)[selection.indices] = True
    assert selection.flat().tolist() == np.flatnonzero(mark).tolist()
    assert selection.count == mark.sum() == selection.sizes.sum()


@given(plans())
@settings(max_examples=50)
def test_a_saved_plan_comes_back_equal(tmp_path_factory, plan):
    folder = tmp_path_factory.mktemp("plan")
    plan.save(folder)
    again = Plan.load(folder)
    assert again == plan
    assert again.digest == plan.digest


def test_a_tensor_beyond_32_bits_round_trips(tmp_path):
    indices = np.array([0, 2**31 + 5, 2**40 - 1])
    plan = Plan(BASE, (Selection("huge", (2**20, 2**20), "entries", indices),))
    plan.save(tmp_path)
    assert Plan.load(tmp_path).selections[0].indices.tolist() == indices.tolist()
    rows = Selection("huge", (2**31 + 8, 1), "rows", np.array([2**31 + 7]))
    assert rows.flat().tolist() == [2**31 + 7]
    blocks = Selection("huge", (2**20 + 1, 2**20 + 1), "blocks", np.array([(2**16 + 1) ** 2 - 1]))
    assert (blocks.flat().tolist(), blocks.count) == ([(2**20 + 1) ** 2 - 1], 1)


@pytest.mark.parametrize(
    ("indices", "said"),
    [
        ([3, 2], "increasing"),
        ([1, 1], "increasing"),
        ([-1, 2], "outside"),
        ([0, 12], "index 12 is outside 0..11"),
    ],
)
def test_bad_indices_are_refused(indices, said):
    with pytest.raises(PareError, match=said):
        Selection("a", (3, 4), "entries", np.array(indices))


def test_a_scalar_has_no_rows():
    with pytest.raises(PareError, match="without dimensions"):
        Selection("a", (), "rows", np.array([0]))


@pytest.mark.parametrize("shape", [(), (40,), (20, 20, 2)])
def test_only_a_matrix_has_blocks(shape):
    with pytest.raises(PareError, match=r"a: blocks of 16 x 16 are parts of a matrix.*take entries"):
        Selection("a", shape, "blocks", np.array([0]))


def test_a_block_that_is_not_there_is_refused():
    with pytest.raises(PareError, match=r"index 6 is outside 0\.\.5 \(blocks of shape \(17, 48\)\)"):
        Selection("a", (17, 48), "blocks", np.array([6]))


def test_one_tensor_is_selected_once():
    with pytest.raises(PareError, match="selects a twice"):
        Plan(BASE, (Selection("a", (3,), "all"), Selection("a", (3,), "all")))


def test_more_than_the_budget_is_refused():
    with pytest.raises(PareError, match="12 weights, above its budget of 11"):
        Plan(BASE, (Selection("a", (3, 4), "all"),), budget=11)


def test_a_plan_that_trains_nothing_is_refused():
    with pytest.raises(PareError, match="trains nothing"):
        Plan(BASE, (Selection("a", (3, 4), "entries", np.empty(0, np.int64)),))


def test_the_head_is_paid_only_inside_the_budget():
    parts = {"selections": (Selection("a", (3,), "all"),), "head": (Selection("h", (2,), "all"),)}
    assert (Plan(BASE, **parts).count, Plan(BASE, **parts).trained) == (3, 5)
    inside = Plan(BASE, **parts, head_rule="inside")
    assert (inside.count, inside.trained) == (5, 5)


def saved(tmp_path):
    plan = Plan(BASE, (Selection("a", (3, 4), "entries", np.array([1, 7])),))
    plan.save(tmp_path)
    return plan


def test_no_plan_there_says_how_to_make_one(tmp_path):
    with pytest.raises(PareError, match="paretune choose"):
        Plan.load(tmp_path / "nothing")


def test_every_flipped_byte_of_the_indices_is_refused(tmp_path):
    saved(tmp_path)
    path = tmp_path / "plan.safetensors"
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(PareError, match="damaged"):
            Plan.load(tmp_path)
    path.unlink()
    with pytest.raises(PareError, match="missing"):
        Plan.load(tmp_path)


def test_a_truncated_document_is_refused(tmp_path):
    saved(tmp_path)
    path = tmp_path / "plan.json"
    whole = path.read_text()
    for end in range(len(whole.rstrip())):
        path.write_text(whole[:end])
        with pytest.raises(PareError):
            Plan.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"schema": 99}, "newer"), ({"schema": None}, "no schema"), ({"base": {}}, "not a whole plan")],
)
def test_a_document_of_another_kind_is_refused(tmp_path, change, said):
    saved(tmp_path)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(PareError, match=said):
        Plan.load(tmp_path)


def test_the_picture_fits_a_terminal():
    plan = Plan(
        BASE,
        (Selection("a", (30, 40), "entries", np.arange(500)), Selection("b", (40,), "all")),
        asked="45%",
        weights=1200,
        places={"a": [0, "attention"], "b": [None, "norm"]},
        method="fish",
    )
    lines = str(plan).splitlines()
    assert max(map(len, lines)) <= 80
    assert "540 weights of 1,200: 45.000% (asked: 45%)" in str(plan)
    assert any(line.split()[:2] == ["0", "500"] for line in lines)
    assert "selects  500 entries of 1 tensor, 1 whole tensor" in lines


def test_the_picture_says_of_which_shape_the_selection_is():
    kinds = {"rows": 2, "columns": 3, "blocks": 1}
    parts = tuple(
        Selection(f"{kind}.{n}", (30, 40), kind, np.arange(count))
        for kind, count in kinds.items()
        for n in range(2)
    )
    lines = str(Plan(BASE, parts)).splitlines()
    assert "selects  4 rows of 2 tensors, 6 columns of 2 tensors, 2 blocks of 2 tensors" in lines
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("others", [0, 2])
def test_a_save_stopped_at_any_file_leaves_no_plan_or_a_whole_one(tmp_path, monkeypatch, others):
    def plan(seed):
        def part(number):
            places = np.arange(seed, seed + 3 + number)
            return Plan(BASE, (Selection("a", (30, 40), "entries", places),), seed=seed)

        return replace(part(9), others=tuple(part(number) for number in range(others)))

    for stop in range(2 * others + 2):
        folder = tmp_path / str(stop)
        plan(1).save(folder)
        left = stop

        def write(path, content):
            nonlocal left
            if not left:
                raise KeyboardInterrupt
            left -= 1
            write_atomic(path, content)

        with monkeypatch.context() as patch:
            patch.setattr("paretune.plan.write_atomic", write)
            with pytest.raises(KeyboardInterrupt):
                plan(2).save(folder)
        with pytest.raises(PareError, match="no plan there"):
            Plan.load(folder)
        plan(2).save(folder)
        assert Plan.load(folder).digest == plan(2).digest
        assert [o.digest for o in Plan.load(folder).others] == [o.digest for o in plan(2).others]
