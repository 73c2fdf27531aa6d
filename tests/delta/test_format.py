import json
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from paretune.delta import Delta, Values, codec, format
from paretune.delta.container import Array, pack, read_metadata, unpack
from paretune.delta.manifest import compress
from paretune.errors import PareError
from paretune.plan import Base, Selection
from paretune.selection import unit_bound
from tests.delta.examples import file_delta, shapes_delta

BASE = Base("some/model", "ab" * 32, "float32")
ASSET = Path(__file__).parent / "assets" / "version1.safetensors"
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def make(tensors: dict[str, Values], **more: object) -> Delta:
    return Delta(base=BASE, plan_digest="cd" * 32, tensors=tensors, **more)  # type: ignore[arg-type]


def assert_same(one: Delta, other: Delta) -> None:
    assert (one.base, one.plan_digest, one.head) == (other.base, other.plan_digest, other.head)
    assert (one.task, one.info, one.additions) == (other.task, other.info, other.additions)
    assert list(one.tensors) == list(other.tensors) and list(one.added) == list(other.added)
    for name, values in one.tensors.items():
        again = other.tensors[name]
        assert (values.shape, values.granularity) == (again.shape, again.granularity)
        assert (values.indices is None) == (again.indices is None)
        assert values.indices is None or np.array_equal(values.indices, again.indices)
        assert values.values.dtype == again.values.dtype and torch.equal(values.values, again.values)
    for key, tensor in one.added.items():
        assert tensor.dtype == other.added[key].dtype and torch.equal(tensor, other.added[key])


@st.composite
def small_values(draw: st.DrawFn) -> Values:
    """Shapes of 0 to 4 dimensions, empty ones too; none, one, some or all places."""
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4) | st.tuples(*[st.integers(0, 40)] * 2)))
    kinds = ["all", "entries"] + (["rows", "columns"] if shape else [])
    kinds += ["blocks", "blocks"] if len(shape) == 2 else []
    granularity = draw(st.sampled_from(kinds))
    dtype = draw(st.sampled_from(DTYPES))
    size = int(np.prod(shape, dtype=np.int64))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    if granularity == "all":
        return Values(shape, "all", None, torch.from_numpy(rng.standard_normal(size)).to(dtype))
    bound = unit_bound("values", shape, granularity)
    count = draw(st.sampled_from([0, min(1, bound), bound // 2, bound]))
    indices = np.sort(rng.choice(bound, count, replace=False)) if count else np.empty(0, dtype=np.int64)
    values = rng.standard_normal(Selection("values", shape, granularity, indices).count)
    return Values(shape, granularity, indices, torch.from_numpy(values).to(dtype))


@given(st.dictionaries(st.text(min_size=1, max_size=8), small_values(), max_size=4))
@settings(max_examples=200)
def test_round_trip(tensors):
    delta = make(tensors, info={"text": "é\n\x00", "number": 0.1})
    data = format.encode(delta)
    again = Delta(**vars(format.decode(data)))
    assert_same(delta, again)
    assert format.encode(again) == data
    assert again.digest == delta.digest


@given(st.data())
@settings(max_examples=50)
def test_tensors_beyond_two_to_the_31(data):
    shape = tuple(data.draw(st.lists(st.integers(1 << 10, 1 << 20), min_size=2, max_size=2)))
    shape = (1 << 12, *shape) if data.draw(st.booleans()) else shape
    bound = int(np.prod(shape, dtype=object))
    places = st.one_of(st.integers(0, bound - 1), st.integers(max(bound - 9, 0), bound - 1))
    indices = np.array(sorted(data.draw(st.sets(places, max_size=20))), dtype=np.int64)
    values = Values(shape, "entries", indices, torch.randn(len(indices)))
    assert_same(make({"big": values}), format.decode(format.encode(make({"big": values}))))


def test_rows_of_a_tensor_beyond_two_to_the_31():
    shape = ((1 << 33) + 1, 1)
    values = Values(shape, "rows", np.array([0, 1 << 33]), torch.randn(2))
    assert_same(make({"big": values}), format.decode(format.encode(make({"big": values}))))


def test_something_of_everything():
    delta = file_delta()
    assert_same(delta, format.decode(format.encode(delta)))


def test_an_empty_delta():
    delta = make({})
    assert_same(delta, format.decode(format.encode(delta)))


def test_same_input_same_bytes():
    delta = file_delta()
    shuffled = replace(
        delta,
        tensors=dict(reversed(delta.tensors.items())),
        added=dict(reversed(delta.added.items())),
        task=dict(reversed(delta.task.items())),
        info=dict(reversed(delta.info.items())),
    )
    assert format.encode(shuffled) == format.encode(delta)
    strided = delta.tensors["layer.1.weight"].values.repeat_interleave(2)[::2]
    assert not strided.is_contiguous()
    values = replace(delta.tensors["layer.1.weight"], values=strided)
    again = replace(delta, tensors={**delta.tensors, "layer.1.weight": values})
    assert format.encode(again) == format.encode(delta)


def test_a_file_of_version_1_still_reads():
    """Written when the version was made, by `file_delta().save`."""
    assert format.read(ASSET).digest == "32d28bd0d03046cbccc45a520993dab935603438596103890a73600ec4cedc0e"


@pytest.mark.parametrize("make_delta", [file_delta, shapes_delta])
def test_every_flipped_bit_is_refused(make_delta):
    data = format.encode(make_delta())
    for place in range(len(data) * 8):
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises(PareError, match=r"^some/file:"):
            format.decode(bytes(changed), "some/file")


@pytest.mark.parametrize("make_delta", [file_delta, shapes_delta])
def test_every_cut_and_every_added_byte_is_refused(make_delta):
    data = format.encode(make_delta())
    for length in range(len(data)):
        with pytest.raises(PareError, match=r"^some/file:"):
            format.decode(data[:length], "some/file")
    for more in (b"\x00", b"{}", data):
        with pytest.raises(PareError, match="the file has"):
            format.decode(data + more)


def test_the_damaged_tensor_is_named():
    delta = file_delta()
    data = format.encode(delta)
    for name, values in delta.tensors.items():
        raw = values.values.reshape(-1).view(torch.uint8).numpy().tobytes()
        assert data.count(raw) == 1
        changed = bytearray(data)
        changed[data.index(raw)] ^= 1
        with pytest.raises(PareError, match=f"damaged: {name}: its indices or values"):
            format.decode(bytes(changed))


def rebuilt(delta: Delta, change) -> bytes:
    """The file of a delta with its arrays changed by hand, with a right sha256."""
    data = format.encode(delta)
    described, metadata = read_metadata(data)
    arrays = {name: Array(a.dtype, bytes(a.content)) for name, a in unpack(data, described, metadata).items()}
    change(arrays)
    metadata.pop("sha256")
    return pack(arrays, metadata)


def test_an_out_of_range_index_built_by_hand_is_refused():
    shape, indices = (5, 8), np.array([1, 2, 3, 39])
    delta = make({"layer.weight": Values(shape, "entries", indices, torch.randn(4))})

    def shrink(arrays):
        document = delta.manifest()
        document["tensors"]["float32"][0][1] = [37]
        arrays["manifest"] = Array("U8", compress(document))

    assert codec.low_bits(4, 40) == codec.low_bits(4, 37)
    with pytest.raises(PareError, match=r"layer\.weight: index 39 is outside 0\.\.36"):
        format.decode(rebuilt(delta, shrink))


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ([20, 32], r"w: index 5 is outside 0\.\.3"),
        ([20, 35], "w: 60 values need 240 bytes, 160 are left"),
        ([20, 33], "w: its indices or values do not have their checksum"),
        ([20, 34, 1], "parts of a matrix"),
    ],
)
def test_blocks_of_another_shape_built_by_hand_are_refused(size, said):
    values = shapes_delta().tensors["blocks"]
    delta = make({"w": replace(values, indices=np.array([2, 5]), values=torch.randn(16 * 2 + 4 * 2))})

    def reshape(arrays):
        document = delta.manifest()
        document["tensors"]["float32"][0][1] = size
        arrays["manifest"] = Array("U8", compress(document))

    with pytest.raises(PareError, match=said):
        format.decode(rebuilt(delta, reshape))


def test_more_values_than_there_are_is_refused_before_memory_is_taken():
    delta = make({"layer.weight": Values((2,), "all", None, torch.randn(2))})

    def grow(arrays):
        document = delta.manifest()
        document["tensors"]["float32"][0][1] = [1 << 50]
        arrays["manifest"] = Array("U8", compress(document))

    with pytest.raises(PareError, match=r"layer\.weight: 1125899906842624 values need"):
        format.decode(rebuilt(delta, grow))


@pytest.mark.parametrize("array", ["indices", "values.float32"])
def test_bytes_of_no_tensor_are_refused(array):
    def append(arrays):
        arrays[array] = Array(arrays[array].dtype, arrays[array].content + b"\x00" * 4)

    with pytest.raises(PareError, match="belong to no tensor"):
        format.decode(rebuilt(file_delta(), append))


@pytest.mark.parametrize("array", ["indices", "manifest", "values.float32"])
def test_a_missing_array_is_refused(array):
    with pytest.raises(PareError):
        format.decode(rebuilt(file_delta(), lambda arrays: arrays.pop(array)))


def test_an_array_of_another_dtype_is_refused():
    def retype(arrays):
        arrays["values.bfloat16"] = Array("F16", arrays["values.bfloat16"].content)

    with pytest.raises(PareError, match="other arrays"):
        format.decode(rebuilt(file_delta(), retype))


@pytest.mark.parametrize("part", ["tensors", "added"])
def test_a_tensor_twice_is_refused(part):
    delta = make({"w": Values((0,), "all", None, torch.zeros(0))}) if part == "tensors" else file_delta()

    def repeat(arrays):
        document = json.loads(json.dumps(delta.manifest()))
        rows = document[part]["float32"]
        rows[1:] = [rows[0]]
        arrays["manifest"] = Array("U8", compress(document))
        if part == "tensors":
            arrays["indices"] = Array("U8", arrays["indices"].content * 2)

    with pytest.raises(PareError, match=r"twice|checksum"):
        format.decode(rebuilt(delta, repeat))


def test_values_that_are_no_numbers_are_neither_written_nor_read(monkeypatch):
    delta = make({"layer.weight": Values((2,), "all", None, torch.tensor([1.0, float("nan")]))})
    with pytest.raises(PareError, match=r"layer\.weight: 1 of 2 values are NaN"):
        format.encode(delta)
    with monkeypatch.context() as patch:
        patch.setattr(Delta, "check_finite", lambda self: None)
        data = format.encode(delta)
    with pytest.raises(PareError, match=r"layer\.weight: 1 of 2 values are NaN"):
        format.decode(data)


def test_a_newer_version_asks_for_an_upgrade():
    data = pack({}, {"format": format.FORMAT, "version": "2"})
    with pytest.raises(PareError, match=r"delta format 2 is newer.*upgrade"):
        format.decode(data)


@pytest.mark.parametrize("version", ["", "0", "-1", "1.0", "²", "9" * 5000])
def test_a_version_that_is_none_is_refused(version):
    with pytest.raises(PareError, match="not a paretune delta"):
        format.decode(pack({}, {"format": format.FORMAT, "version": version}))


def test_another_safetensors_file_is_no_delta(tmp_path):
    save_file({"a": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(PareError, match=r"model\.safetensors: not a paretune delta"):
        format.read(tmp_path / "model.safetensors")


def test_no_file_there(tmp_path):
    for path in (tmp_path / "no.safetensors", tmp_path):
        with pytest.raises(PareError, match="no delta file there"):
            format.read(path)


def test_other_programs_can_read_it(tmp_path):
    """The recipe of docs/format.md, with safetensors and zlib alone."""
    delta = file_delta()
    (tmp_path / "d.safetensors").write_bytes(format.encode(delta))
    arrays = load_file(tmp_path / "d.safetensors")
    manifest = json.loads(zlib.decompress(arrays["manifest"].numpy().tobytes()))
    assert manifest == json.loads(json.dumps(delta.manifest()))
    assert torch.equal(arrays["values.bfloat16"], delta.tensors["layer.0.weight"].values)


def test_at_most_four_bytes_a_weight_with_everything_in_the_file():
    """Names and sizes of a 12-block encoder; values are random, so nothing can be squeezed out of them."""
    shapes = {"embeddings.word_embeddings.weight": (30522, 768)}
    for block in range(12):
        for name in ("query", "key", "value"):
            shapes[f"encoder.layer.{block}.attention.self.{name}.weight"] = (768, 768)
        shapes[f"encoder.layer.{block}.attention.output.dense.weight"] = (768, 768)
        shapes[f"encoder.layer.{block}.intermediate.dense.weight"] = (3072, 768)
        shapes[f"encoder.layer.{block}.output.dense.weight"] = (768, 3072)
    rng = np.random.default_rng(0)
    for share in (0.0002, 0.001, 0.005, 0.02):
        tensors = {}
        for name, shape in shapes.items():
            bound = shape[0] * shape[1]
            indices = np.unique(rng.integers(0, bound, int(bound * share)))
            values = torch.from_numpy(rng.standard_normal(len(indices))).bfloat16()
            tensors[name] = Values(shape, "entries", indices, values)
        delta = make(tensors, task=file_delta().task, info=file_delta().info)
        assert len(format.encode(delta)) / delta.count <= 4
