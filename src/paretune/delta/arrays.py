"""Tensors as bytes: little-endian, C order, the same on every machine."""

import numpy as np
import torch
from torch import Tensor

# What a delta can hold, with the names of the safetensors format; larger ones first, for alignment.
DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def to_bytes(values: Tensor) -> bytes:
    """The bytes of a CPU tensor of one of :data:`DTYPES`."""
    bits = {8: torch.int64, 4: torch.int32, 2: torch.int16}[values.element_size()]
    whole = values.contiguous().reshape(-1).view(bits).numpy()
    return whole.astype(whole.dtype.newbyteorder("<"), copy=False).tobytes()


def from_bytes(data: bytes | memoryview, dtype: torch.dtype) -> Tensor:
    """A one-dimensional tensor, with memory of its own, from the bytes of :func:`to_bytes`."""
    whole = np.frombuffer(data, dtype=f"<i{dtype.itemsize}").astype(f"=i{dtype.itemsize}")
    return torch.from_numpy(whole).view(dtype)
