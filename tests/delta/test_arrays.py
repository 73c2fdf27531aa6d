import pytest
import torch

from paretune.delta.arrays import DTYPES, dtype_name, from_bytes, to_bytes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 4)])
def test_round_trip_keeps_every_bit(dtype, shape):
    values = torch.randn(shape, dtype=torch.float64).to(dtype)
    again = from_bytes(memoryview(to_bytes(values)), dtype)
    assert again.dtype == dtype
    assert to_bytes(again) == to_bytes(values)
    assert torch.equal(again.reshape(shape), values)


def test_bytes_are_little_endian_and_in_c_order():
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T
    assert to_bytes(values) == bytes.fromhex("0000803f 00004040 00000040 00008040")
    assert to_bytes(torch.tensor(1.0, dtype=torch.bfloat16)) == b"\x80\x3f"


def test_what_is_read_is_a_copy():
    data = bytearray(b"\x00" * 8)
    values = from_bytes(memoryview(data), torch.float32)
    values[0] = 1
    assert data == b"\x00" * 8


def test_names():
    assert [dtype_name(dtype) for dtype in DTYPES] == ["float64", "float32", "bfloat16", "float16"]
