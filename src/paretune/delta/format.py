"""The delta file: a manifest, the coded indices and the values of every tensor; docs/format.md has a page."""

import re
import zlib
from pathlib import Path

import torch

from paretune.delta import codec
from paretune.delta.arrays import DTYPES, dtype_name, from_bytes, to_bytes
from paretune.delta.container import Array, check_digest, pack, read_metadata, unpack
from paretune.delta.contents import Contents, Values
from paretune.delta.manifest import Manifest, Row, compress, read_manifest
from paretune.errors import PareError

FORMAT = "paretune.delta"
VERSION = 1
_CHECKSUM = 4  # bytes of crc32 after the indices of each tensor: says which tensor is damaged


def encode(contents: Contents) -> bytes:
    """The whole file. The same contents give the same bytes.

    Raises:
        PareError: A value is NaN or infinite, or a tensor has more than 2**60 elements.
    """
    contents.check_finite()
    streams: list[bytes] = []
    values: dict[torch.dtype, list[bytes]] = {}
    for name, indices, numbers in contents.parts():
        stream = b"" if indices is None else codec.encode(indices, contents.tensors[name].bound)
        raw = to_bytes(numbers)
        streams += [stream, zlib.crc32(raw, zlib.crc32(stream)).to_bytes(_CHECKSUM, "little")]
        values.setdefault(numbers.dtype, []).append(raw)
    arrays = {_values_name(dtype): Array(DTYPES[dtype], b"".join(raw)) for dtype, raw in values.items()}
    arrays["indices"] = Array("U8", b"".join(streams))
    arrays["manifest"] = Array("U8", compress(contents.manifest()))
    return pack(arrays, {"format": FORMAT, "version": str(VERSION)})


def decode(data: bytes, where: str = "delta") -> Contents:
    """The contents of a file, with every byte of it checked.

    Args:
        data: The whole file.
        where: Its name, for messages.

    Raises:
        PareError: Not a delta, a newer version, a damaged file; the message names the file and what is wrong
            in it.
    """
    try:
        described, metadata = read_metadata(data)
    except PareError as problem:
        raise PareError(f"{where}: {problem}. Copy or make the file again") from problem
    _check_version(metadata, where)
    try:
        arrays = unpack(data, described, metadata)
        contents = _read(arrays)
        check_digest(arrays, metadata)
        contents.check_finite()
    except PareError as problem:
        raise PareError(f"{where}: damaged: {problem}. Copy or make the file again") from problem
    return contents


def read(path: str | Path) -> Contents:
    """The contents of a file on disk.

    Raises:
        PareError: No such file, or what :func:`decode` raises.
        OSError: The file cannot be read.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as problem:
        raise PareError(f"{path}: no delta file there ({problem.strerror})") from None
    return decode(data, str(path))


def _check_version(metadata: dict[str, str], where: str) -> None:
    version = metadata.get("version", "")
    if metadata.get("format") != FORMAT or not re.fullmatch("[1-9][0-9]{0,8}", version):
        raise PareError(f"{where}: not a paretune delta (another kind of .safetensors file, or damaged)")
    if int(version) > VERSION:
        raise PareError(
            f"{where}: delta format {version} is newer than this paretune reads ({VERSION}): "
            "upgrade it with `pip install -U paretune`"
        )


def _read(arrays: dict[str, Array]) -> Contents:
    """The contents from the arrays of the file."""
    if "manifest" not in arrays or "indices" not in arrays:
        raise PareError("it has no manifest or no indices")
    manifest = read_manifest(arrays["manifest"].content)
    named = {_values_name(row.dtype): row.dtype for row in manifest.rows}
    if {name: array.dtype for name, array in arrays.items()} != {
        "manifest": "U8",
        "indices": "U8",
        **{name: DTYPES[dtype] for name, dtype in named.items()},
    }:
        raise PareError("the manifest speaks of other arrays than the header")
    cursors = {name: memoryview(array.content) for name, array in arrays.items()}
    tensors: dict[str, Values] = {}
    added: dict[str, torch.Tensor] = {}
    for row in manifest.rows:
        values = _read_row(row, cursors)
        if row.name in (added if isinstance(values, torch.Tensor) else tensors):
            raise PareError(f"{row.name} is there twice")
        if isinstance(values, torch.Tensor):
            added[row.name] = values
        else:
            tensors[row.name] = values
    left = next((name for name in ("indices", *named) if len(cursors[name])), None)
    if left:
        raise PareError(f"{left} has {len(cursors[left])} bytes that belong to no tensor")
    return _contents(manifest, tensors, added)


def _read_row(row: Row, cursors: dict[str, memoryview]) -> Values | torch.Tensor:
    """The values of the next tensor; the cursors are moved behind it."""
    source = _values_name(row.dtype)
    stream = cursors["indices"]
    try:
        indices, used = codec.decode(stream, row.indices, row.bound) if row.indices is not None else (None, 0)
    except PareError as problem:
        raise PareError(f"{row.name}: {problem}") from problem
    count = row.count(indices)
    size = count * row.dtype.itemsize
    if size > len(cursors[source]):
        raise PareError(f"{row.name}: {count} values need {size} bytes, {len(cursors[source])} are left")
    raw = cursors[source][:size]
    checksum = zlib.crc32(raw, zlib.crc32(stream[:used])).to_bytes(_CHECKSUM, "little")
    if bytes(stream[used : used + _CHECKSUM]) != checksum:
        raise PareError(f"{row.name}: its indices or values do not have their checksum")
    cursors["indices"], cursors[source] = stream[used + _CHECKSUM :], cursors[source][size:]
    values = from_bytes(raw, row.dtype)
    if row.granularity is None:
        return values.reshape(row.shape)
    return Values(row.shape, row.granularity, indices, values)


def _contents(manifest: Manifest, tensors: dict[str, Values], added: dict[str, torch.Tensor]) -> Contents:
    return Contents(
        base=manifest.base,
        plan_digest=manifest.plan,
        head=manifest.head,
        task=manifest.task,
        tensors=tensors,
        additions=manifest.additions,
        added=added,
        info=manifest.info,
    )


def _values_name(dtype: torch.dtype) -> str:
    return f"values.{dtype_name(dtype)}"
