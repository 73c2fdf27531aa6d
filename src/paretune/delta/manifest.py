"""The manifest of a delta file: read back with every field checked."""

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch

from paretune.delta.arrays import DTYPES, dtype_name
from paretune.delta.canonical import canonical_json, read_json
from paretune.delta.codec import LARGEST_BOUND
from paretune.errors import PareError
from paretune.plan import Addition, Base, Granularity, Selection
from paretune.selection import unit_bound

_LARGEST = 1 << 28  # bytes of JSON; a delta of a million tensors has a third of that
_FIELDS = ("base", "plan", "head", "task", "tensors", "additions", "added", "info")


@dataclass(frozen=True)
class Row:
    """One stored tensor.

    Args:
        name: Tensor name, or key of an added tensor.
        dtype: Of its values.
        shape: Of the whole tensor.
        granularity: None for an added tensor.
        indices: Number of indices; None where every value is stored.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    granularity: Granularity | None
    indices: int | None

    @property
    def bound(self) -> int:
        """One above the largest possible index."""
        return unit_bound(self.name, self.shape, self.granularity or "all")

    def count(self, indices: np.ndarray | None) -> int:
        """Number of values, given the indices: the blocks at a tensor's edge are smaller than the others."""
        if indices is None or self.granularity is None:
            return math.prod(self.shape)
        return Selection(self.name, self.shape, self.granularity, indices).count


@dataclass(frozen=True)
class Manifest:
    """Everything of a delta but its numbers; ``rows`` in the order in which the numbers are stored."""

    base: Base
    plan: str
    head: tuple[str, ...]
    task: dict[str, Any]
    additions: tuple[Addition, ...]
    info: dict[str, Any]
    rows: tuple[Row, ...]


def compress(document: Mapping[str, Any]) -> bytes:
    """Canonical JSON through zlib: names repeat so much that a fifth remains."""
    return zlib.compress(canonical_json(document, "manifest"), level=9)


def read_manifest(content: bytes | memoryview) -> Manifest:
    """The manifest from its stored bytes.

    Raises:
        PareError: It is damaged, or a field is absent or is not what it should be.
    """
    document = read_json(_decompress(content), "the manifest")
    if not isinstance(document, dict) or sorted(document) != sorted(_FIELDS):
        raise PareError(f"the manifest does not hold exactly {', '.join(_FIELDS)}")
    for name in ("base", "task", "tensors", "added", "info"):
        _expect(document[name], dict, f"manifest field {name!r}")
    for name in ("head", "additions"):
        _expect(document[name], list, f"manifest field {name!r}")
    return Manifest(
        base=_base(document["base"]),
        plan=_expect(document["plan"], str, "manifest field 'plan'"),
        head=tuple(_expect(name, str, "a head name") for name in document["head"]),
        task=document["task"],
        additions=tuple(_addition(entry) for entry in document["additions"]),
        info=document["info"],
        rows=tuple(_rows(document["tensors"], document["added"])),
    )


def _decompress(content: bytes | memoryview) -> bytes:
    stream = zlib.decompressobj()
    try:
        text = stream.decompress(content, _LARGEST)
    except zlib.error as problem:
        raise PareError(f"the manifest cannot be decompressed ({problem})") from problem
    if not stream.eof or stream.unused_data:
        raise PareError("the manifest is cut short, has bytes after its end, or is too large")
    return text


def _rows(tensors: Mapping[str, Any], added: Mapping[str, Any]) -> Iterator[Row]:
    """Rows by dtype in the order of :data:`DTYPES`; in each, tensors and then added ones."""
    dtypes = {dtype_name(dtype): dtype for dtype in DTYPES}
    unknown = sorted({*tensors, *added} - set(dtypes))
    if unknown:
        raise PareError(f"dtype {unknown[0]!r} is none of {', '.join(dtypes)}")
    for name, dtype in dtypes.items():
        for entry in _expect(tensors.get(name, []), list, f"the tensors of {name}"):
            yield _tensor(entry, dtype)
        for entry in _expect(added.get(name, []), list, f"the added tensors of {name}"):
            key, shape = _entry(entry, 2)
            yield Row(key, dtype, _shape(key, shape), None, None)


def _tensor(entry: Any, dtype: torch.dtype) -> Row:
    name, sizes, granularity, indices = _entry(entry, 4)
    shape = _shape(name, sizes)
    if granularity not in get_args(Granularity):
        raise PareError(f"{name}: granularity {granularity!r} is none of {', '.join(get_args(Granularity))}")
    if granularity == "all":
        _expect(indices, type(None), f"{name}: the number of indices of a whole tensor")
        return Row(name, dtype, shape, granularity, None)
    unit_bound(name, shape, granularity)  # refuses what this shape does not have
    if _expect(indices, int, f"{name}: the number of indices") < 0:
        raise PareError(f"{name}: {indices} indices cannot be")
    return Row(name, dtype, shape, granularity, indices)


def _entry(entry: Any, length: int) -> list[Any]:
    """A row of the table as it stands: a list that starts with a name."""
    if not isinstance(entry, list) or len(entry) != length or not isinstance(entry[0], str):
        raise PareError(f"the manifest has a row that describes no tensor: {str(entry)[:60]}")
    return entry


def _shape(name: str, sizes: Any) -> tuple[int, ...]:
    for size in _expect(sizes, list, f"{name}: shape"):
        if _expect(size, int, f"{name}: a size in the shape") < 0:
            raise PareError(f"{name}: a size of {size} cannot be")
    if math.prod(sizes) > LARGEST_BOUND:
        raise PareError(f"{name}: shape {sizes} is beyond what can be indexed (2**60 elements)")
    return tuple(sizes)


def _base(entry: dict[str, Any]) -> Base:
    if sorted(entry) != ["digest", "dtype", "model"]:
        raise PareError("the manifest's base does not hold exactly model, digest, dtype")
    for name, value in entry.items():
        _expect(value, str, f"base {name}")
    return Base(**entry)


def _addition(entry: Any) -> Addition:
    kinds = {"strategy": str, "module": str, "size": int, "count": int, "settings": dict}
    if not isinstance(entry, dict) or sorted(entry) != sorted(kinds):
        raise PareError(f"an addition does not hold exactly {', '.join(kinds)}")
    for name, kind in kinds.items():
        _expect(entry[name], kind, f"addition {name}")
    return Addition(**entry)


def _expect(value: Any, kind: type, what: str) -> Any:
    """The value, if it is of exactly this type (True is no number here)."""
    if type(value) is not kind:
        raise PareError(f"{what} is {value!r:.40}, not {kind.__name__}")
    return value
