import hashlib
import json
import struct

import pytest
import safetensors

from paretune.delta.container import Array, check_digest, pack, read_metadata, unpack
from paretune.errors import PareError

ARRAYS = {"names": Array("U8", b"abc"), "b": Array("BF16", b"\x01\x02" * 3), "f": Array("F32", b"\x00" * 8)}


def read(data: bytes) -> dict[str, Array]:
    described, metadata = read_metadata(data)
    arrays = unpack(data, described, metadata)
    check_digest(arrays, metadata)
    return arrays


def test_round_trip_and_what_safetensors_makes_of_it(tmp_path):
    data = pack(ARRAYS, {"format": "x"})
    arrays = read(data)
    assert {name: (a.dtype, bytes(a.content)) for name, a in arrays.items()} == {
        name: (a.dtype, a.content) for name, a in ARRAYS.items()
    }
    other = dict(safetensors.deserialize(data))
    assert {name: bytes(entry["data"]) for name, entry in other.items()} == {
        name: a.content for name, a in ARRAYS.items()
    }
    (tmp_path / "x.safetensors").write_bytes(data)
    with safetensors.safe_open(tmp_path / "x.safetensors", "np") as file:
        assert file.metadata()["format"] == "x"


def test_every_array_is_aligned():
    data = pack({"a": Array("U8", b"abc"), "z": Array("F64", b"\x00" * 8), "h": Array("F16", b"12")}, {})
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    sizes = {"U8": 1, "F16": 2, "F64": 8}
    assert length % 8 == 0
    for name in "azh":
        assert header[name]["data_offsets"][0] % sizes[header[name]["dtype"]] == 0


def test_the_digest_is_that_of_the_file_with_zeros_for_digits():
    data = pack(ARRAYS, {"format": "x"})
    digest = read_metadata(data)[1]["sha256"]
    assert hashlib.sha256(data.replace(digest.encode(), b"0" * 64)).hexdigest() == digest


def test_order_of_arrays_and_texts_does_not_matter():
    again = dict(reversed(ARRAYS.items()))
    assert pack(ARRAYS, {"a": "1", "b": "2"}) == pack(again, {"b": "2", "a": "1"})


def test_no_arrays():
    assert read(pack({}, {"format": "x"})) == {}


def test_every_bit_counts():
    data = pack(ARRAYS, {"format": "x"})
    for place in range(len(data) * 8):
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises(PareError):
            read(bytes(changed))


def test_every_cut_and_every_added_byte_is_refused():
    data = pack(ARRAYS, {"format": "x"})
    for length in range(len(data)):
        with pytest.raises(PareError):
            read(data[:length])
    for more in (b"\x00", b" ", data):
        with pytest.raises(PareError, match="bytes, the file has"):
            read(data + more)


def by_hand(header: object, content: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<Q", 1 << 62) + b"{}",
        by_hand([]),
        by_hand({"__metadata__": []}),
        by_hand({"__metadata__": {"a": 1}}),
        by_hand({"a": 1}),
        by_hand({"a": {"dtype": "F32", "shape": [1]}}, b"1234"),
        by_hand({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, True]}}, b"1"),
        by_hand({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}),
        by_hand({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}),
        by_hand({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
        by_hand({"a": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}, b"12345678"),
        by_hand({"a": {"dtype": "F32", "shape": [7], "data_offsets": [0, 4]}}, b"1234"),
        by_hand({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4], "more": 1}}, b"1234"),
        by_hand(
            {
                "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
                "b": {"dtype": "U8", "shape": [3], "data_offsets": [1, 4]},
            },
            b"1234",
        ),
        by_hand({"a": {"dtype": "U8", "shape": [2], "data_offsets": [2, 4]}}, b"1234"),
    ],
)
def test_headers_that_cannot_be_are_refused(data):
    with pytest.raises(PareError):
        read(data)
