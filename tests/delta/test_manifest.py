import copy
import json
import zlib
from typing import Any

import pytest

from paretune.delta import manifest
from paretune.delta.manifest import compress, read_manifest
from paretune.errors import PareError
from tests.delta.examples import file_delta, shapes_delta


def test_round_trip():
    delta = file_delta()
    again = read_manifest(compress(delta.manifest()))
    assert (again.base, again.plan, again.head) == (delta.base, delta.plan_digest, delta.head)
    assert (again.task, again.info, again.additions) == (delta.task, delta.info, delta.additions)
    assert [row.name for row in again.rows] == [name for name, _, _ in delta.parts()]
    for row in again.rows:
        part = delta.tensors[row.name] if row.granularity else None
        values = delta.added[row.name] if part is None else part.values
        count = row.count(None if part is None else part.indices)
        assert (row.dtype, count) == (values.dtype, values.numel())


def test_bounds_and_counts_of_rows():
    delta = shapes_delta()
    rows = {row.name: row for row in read_manifest(compress(delta.manifest())).rows}
    bounds = {name: (row.bound, row.count(delta.tensors[name].indices)) for name, row in rows.items()}
    assert bounds == {"entries": (680, 2), "rows": (20, 68), "columns": (34, 40), "blocks": (6, 264)}
    assert (rows["rows"].indices, rows["blocks"].indices) == (2, 2)


WRONG: list[tuple[list[Any], Any]] = [
    (["base"], None),
    (["base", "model"], 3),
    (["base", "digest"], None),
    (["base", "more"], "x"),
    (["plan"], 1),
    (["head"], "classifier"),
    (["head", 0], 1),
    (["task"], []),
    (["info"], None),
    (["additions"], {}),
    (["additions", 0], []),
    (["additions", 0, "size"], True),
    (["additions", 0, "count"], 1.0),
    (["additions", 0, "settings"], None),
    (["additions", 0, "more"], 1),
    (["tensors"], []),
    (["tensors", "float32"], {}),
    (["tensors", "int8"], []),
    (["tensors", "float32", 0], "x"),
    (["tensors", "float32", 0], ["x", [1], "all"]),
    (["tensors", "float32", 0], [1, [1], "all", None]),
    (["tensors", "float32", 0, 1], "8"),
    (["tensors", "float32", 0, 1, 0], -8),
    (["tensors", "float32", 0, 1, 0], 8.0),
    (["tensors", "float32", 0, 1, 0], True),
    (["tensors", "float32", 0, 1, 0], 1 << 70),
    (["tensors", "float32", 0, 2], "tiles"),
    (["tensors", "float32", 0], ["classifier.bias", [2], "blocks", 1]),  # of a vector
    (["tensors", "float32", 1], ["layer.1.weight", [2, 2, 2], "blocks", 1]),
    (["tensors", "float32", 0, 2], ["all"]),
    (["tensors", "float32", 0, 3], 2),  # a whole tensor (the head's) with indices
    (["tensors", "bfloat16", 0, 3], None),  # entries without
    (["tensors", "bfloat16", 0, 3], -1),
    (["tensors", "float64", 0, 2], "rows"),  # of a tensor without dimensions
    (["added", "float32", 0], ["x", [1], "all", None]),
    (["added", "float32", 0, 1], None),
    (["more"], 1),
]


@pytest.mark.parametrize(("path", "value"), WRONG)
def test_every_field_is_checked(path, value):
    document = copy.deepcopy(json.loads(json.dumps(file_delta().manifest())))
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(PareError):
        read_manifest(compress(document))


@pytest.mark.parametrize("field", manifest._FIELDS)
def test_every_field_is_needed(field):
    document = file_delta().manifest()
    del document[field]
    with pytest.raises(PareError, match="exactly"):
        read_manifest(compress(document))


def test_cut_and_continued_streams_are_refused():
    content = compress(file_delta().manifest())
    for wrong in (b"", content[:-1], content[:9], content + b"\x00", b"\x00" + content):
        with pytest.raises(PareError):
            read_manifest(wrong)
    with pytest.raises(PareError, match="exactly"):
        read_manifest(zlib.compress(b"[]"))


def test_a_manifest_that_grows_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(manifest, "_LARGEST", 1000)
    with pytest.raises(PareError, match="too large"):
        read_manifest(zlib.compress(b" " * 1001))
