"""A .safetensors file with one possible spelling: every byte of it follows from its content.

The format (https://github.com/huggingface/safetensors): eight bytes with the length of the header, the header
as JSON padded with spaces, the arrays one after the other. Here the JSON is canonical, every array has one
dimension, and ``__metadata__`` holds the sha256 of the whole file with these 64 digits written as zeros.
"""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paretune.delta.canonical import canonical_json, read_json
from paretune.errors import PareError

_SIZES = {"U8": 1, "F16": 2, "BF16": 2, "F32": 4, "F64": 8}
_NO_DIGEST = "0" * 64


@dataclass(frozen=True)
class Array:
    """One stored array.

    Args:
        dtype: Its name in the format: ``U8``, ``F16``, ``BF16``, ``F32`` or ``F64``.
        content: Its bytes, little-endian.
    """

    dtype: str
    content: bytes | memoryview

    @property
    def items(self) -> int:
        """Number of elements."""
        return len(self.content) // _SIZES[self.dtype]


def pack(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    """The file.

    Args:
        arrays: Arrays by name; stored with the larger element types first, so that each is aligned.
        metadata: Texts for ``__metadata__``; ``sha256`` is added.
    """
    ordered = dict(sorted(arrays.items(), key=lambda item: (-_SIZES[item[1].dtype], item[0])))
    digest = _digest(_header(ordered, {**metadata, "sha256": _NO_DIGEST}), ordered)
    header = _header(ordered, {**metadata, "sha256": digest})
    return b"".join([header, *(array.content for array in ordered.values())])


def read_metadata(data: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """The header of a file and the texts in it.

    Returns:
        The arrays as the header describes them, by name, and the texts of ``__metadata__``.

    Raises:
        PareError: The header is cut short or is not a header.
    """
    if len(data) < 8:
        raise PareError(f"{len(data)} bytes are no .safetensors file; it was cut short")
    (length,) = struct.unpack("<Q", data[:8])
    if length > len(data) - 8:
        raise PareError(f"the header should have {length} bytes, there are {len(data) - 8}; it was cut short")
    header = read_json(data[8 : 8 + length], "the header")
    metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise PareError("the header is not that of a .safetensors file")
    return header, metadata


def unpack(data: bytes, described: Mapping[str, Any], metadata: Mapping[str, str]) -> dict[str, Array]:
    """The arrays of a file whose header was read, without copying them.

    The digest is not compared here: see :func:`check_digest`.

    Raises:
        PareError: The file does not have the length that the header says, or its header is not spelled as
            :func:`pack` does.
    """
    (length,) = struct.unpack("<Q", data[:8])
    spans = sorted((_span(name, entry), name) for name, entry in described.items())
    end = spans[-1][0][1] if spans else 0
    if 8 + length + end != len(data):
        raise PareError(f"the header speaks of {8 + length + end} bytes, the file has {len(data)}")
    view = memoryview(data)[8 + length :]
    arrays = {name: Array(described[name]["dtype"], view[slice(*span)]) for span, name in spans}
    if _header(arrays, metadata) != data[: 8 + length]:
        raise PareError("the header is not spelled in the one way there is")
    return arrays


def check_digest(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Compare the sha256 in the header with that of the file.

    Args:
        arrays: What :func:`unpack` gave, in its order.
        metadata: What :func:`read_metadata` gave.

    Raises:
        PareError: They differ.
    """
    if _digest(_header(arrays, {**metadata, "sha256": _NO_DIGEST}), arrays) != metadata.get("sha256"):
        raise PareError("the sha256 in the header is not that of the file")


def _header(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    """The length and the JSON that arrays stored in this order have, padded to a multiple of 8."""
    document: dict[str, Any] = {"__metadata__": dict(metadata)}
    start = 0
    for name, array in arrays.items():
        end = start + len(array.content)
        document[name] = {"dtype": array.dtype, "shape": [array.items], "data_offsets": [start, end]}
        start = end
    text = canonical_json(document, "header")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _digest(header: bytes, arrays: Mapping[str, Array]) -> str:
    state = hashlib.sha256(header)
    for array in arrays.values():
        state.update(array.content)
    return state.hexdigest()


def _span(name: str, entry: Any) -> tuple[int, int]:
    """Where an array starts and ends, from its description."""
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or [type(offset) for offset in offsets] != [int, int]:
        raise PareError(f"the header does not say where {name!r} lies")
    if str(entry.get("dtype")) not in _SIZES or not 0 <= offsets[0] <= offsets[1]:
        raise PareError(f"the header describes {name!r} in a way that cannot be")
    return offsets[0], offsets[1]
