"""Read a data file into rows, and remember where each row stands so that an error can say so."""

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet

from paretune.errors import PareError
from paretune.task.hub import is_hub_name, load_hub


@dataclass(frozen=True)
class Rows:
    """Rows of one file or data set, held as columns.

    Attributes:
        name: What an error calls them: the file as it was given, or the data set and its split.
        columns: One list a field, all of one length; a row that lacks a field holds None there.
        unit: What `numbers` counts: "line" of a text file or "row" of anything else.
        numbers: Where each row stands, counted from 1.
    """

    name: str
    columns: dict[str, list[Any]]
    unit: str
    numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def place(self, index: int) -> str:
        """Where row `index` (from 0) stands: "train.jsonl, line 7"."""
        return f"{self.name}, {self.unit} {self.numbers[index]}"


def read_rows(source: str | Path, split: str = "train") -> Rows:
    """Read a file (by its suffix) or a data set of the Hub.

    Files: ``.jsonl``/``.ndjson`` (an object a line), ``.json`` (a list of objects, or an object a line),
    ``.csv`` (a header, then RFC 4180), ``.tsv`` (a header; a quote is an ordinary character, as in GLUE's
    files), ``.parquet``. A string that is neither a file nor looks like one is a name on the Hub:
    ``org/name``, ``org/name:config`` or ``org/name:config:split``.

    Args:
        source: The path or the name.
        split: The split to take from a Hub data set that names none.

    Raises:
        PareError: There is no such file or data set, it holds no rows, or a line cannot be read; the message
            names the file and the line.
    """
    path = Path(source)
    if is_hub(source):
        return from_dataset(*load_hub(str(source), split))
    check_file(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(READERS)
        raise PareError(
            f"{path}: no way to read a file that ends in {path.suffix or 'nothing'!r}; use one of {known}"
        )
    rows = reader(path)
    if not len(rows):
        raise PareError(f"{path}: the file holds no rows; give a file with at least one")
    return rows


def is_hub(source: str | Path) -> bool:
    """Whether the source is a name on the Hub: a string that is no file here and does not look like one."""
    return isinstance(source, str) and not Path(source).exists() and is_hub_name(source)


def check_file(path: Path) -> None:
    """Refuse a path that is not a file with something in it.

    Raises:
        PareError: The path does not exist, is a folder, cannot be read, or is empty.
    """
    if path.is_dir():
        inside = sorted(entry.name for entry in path.iterdir() if entry.suffix in READERS)
        found = (
            f" such as {path / inside[0]}" if inside else f"; there is none that ends in {', '.join(READERS)}"
        )
        raise PareError(f"{path}: this is a folder; name a file in it{found}")
    if not path.exists():
        folder = path.parent
        beside = sorted(p.name for p in folder.iterdir() if p.suffix in READERS) if folder.is_dir() else []
        hint = f"{folder} holds {', '.join(beside[:8])}" if beside else f"look at what {folder} holds"
        raise PareError(f"{path}: no such file; {hint}")
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise PareError(f"{path}: the file is empty; give a file with at least one row")
    except PermissionError as error:
        raise PareError(f"{path}: not allowed to read this file; change its permissions") from error


def from_mappings(rows: Iterable[Mapping[str, Any]], name: str) -> Rows:
    """Rows from objects in memory.

    Raises:
        PareError: There are none, or one is not a mapping.
    """
    listed = list(rows)
    if not listed:
        raise PareError(f"{name}: there are no rows; give at least one")
    for number, row in enumerate(listed, 1):
        if not isinstance(row, Mapping):
            raise PareError(
                f"{name}, row {number}: {type(row).__name__} where a mapping of fields was expected"
            )
    return Rows(name, _columns(listed), "row", range(1, len(listed) + 1))


def from_dataset(dataset: datasets.Dataset, name: str) -> Rows:
    """Rows from a `datasets.Dataset`; a class label becomes its name (None where unlabelled).

    Raises:
        PareError: It holds no rows.
    """
    if not len(dataset):
        raise PareError(f"{name}: there are no rows; give at least one")
    columns = {field: list(dataset[field]) for field in dataset.column_names}
    for field, feature in dataset.features.items():
        if isinstance(feature, datasets.ClassLabel):
            columns[field] = [
                None if value is None or value < 0 else feature.int2str(value) for value in columns[field]
            ]
    return Rows(name, columns, "row", range(1, len(dataset) + 1))


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Columns over the union of the rows' fields, in the order of first sight."""
    fields = dict.fromkeys(field for row in rows for field in row)
    return {str(field): [row.get(field) for row in rows] for field in fields}


def _text(path: Path) -> list[str]:
    """The lines of a UTF-8 file, without their ends (a byte-order mark at the start is dropped).

    Raises:
        PareError: A line is not UTF-8.
    """
    lines = []
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            lines.append(line.removesuffix(b"\r").decode("utf-8"))
        except UnicodeDecodeError as error:
            raise PareError(
                f"{path}, line {number}: byte {error.start + 1} is not UTF-8; save the file as UTF-8"
            ) from error
    return lines


def _read_json_lines(path: Path) -> Rows:
    """An object a line; blank lines are passed over."""
    rows, numbers = [], []
    for number, line in enumerate(_text(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise PareError(
                f"{path}, line {number}: not JSON ({error.msg}, column {error.colno}); "
                "every line must be one JSON object"
            ) from error
        if not isinstance(row, dict):
            raise PareError(
                f"{path}, line {number}: {_json_type(row)}, but every line must be one JSON object"
            )
        rows.append(row)
        numbers.append(number)
    return Rows(str(path), _columns(rows), "line", numbers)


def _read_json(path: Path) -> Rows:
    """A list of objects; a file of one object a line is read as such."""
    lines = _text(path)
    try:
        content = json.loads("\n".join(lines))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return _read_json_lines(path)
        raise PareError(
            f"{path}, line {error.lineno}: not JSON ({error.msg}, column {error.colno}); "
            "the file must hold a list of objects, or one object a line"
        ) from error
    if isinstance(content, dict) and sum(bool(line.strip()) for line in lines) == 1:
        content = [content]
    if not isinstance(content, list):
        raise PareError(f"{path}: {_json_type(content)}, but the file must hold a list of objects")
    for number, row in enumerate(content, 1):
        if not isinstance(row, dict):
            raise PareError(f"{path}, row {number}: {_json_type(row)}, but every row must be an object")
    return Rows(str(path), _columns(content), "row", range(1, len(content) + 1))


def _json_type(value: Any) -> str:
    """What JSON calls a value."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _read_csv(path: Path) -> Rows:
    """Comma-separated values with quotes; a value may span lines, and the row is named by its first."""
    return _read_table(path, csv.reader([line + "\n" for line in _text(path)], strict=True))


def _read_tsv(path: Path) -> Rows:
    """Tab-separated values, where a quote means nothing."""
    return _read_table(path, csv.reader(_text(path), delimiter="\t", quoting=csv.QUOTE_NONE))


def _read_table(path: Path, reader: Any) -> Rows:
    """The rows under a header; every row must have as many values as the header."""
    header: list[str] = []
    rows, numbers = [], []
    previous_limit = csv.field_size_limit(2**31 - 1)
    try:
        line = 1
        for values in reader:
            if not values:
                pass  # a blank line
            elif not header:
                header = [name.strip() for name in values]
                _check_header(path, line, header)
            elif len(values) != len(header):
                raise PareError(
                    f"{path}, line {line}: {len(values)} values where the header has {len(header)} "
                    f"({', '.join(header)}); quote a value that holds the separator"
                )
            else:
                rows.append(dict(zip(header, values, strict=True)))
                numbers.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise PareError(f"{path}, line {line}: {error}; check the quotes of this row") from error
    finally:
        csv.field_size_limit(previous_limit)
    return Rows(str(path), _columns(rows), "line", numbers)


def _check_header(path: Path, line: int, header: Sequence[str]) -> None:
    """Every column needs a name of its own."""
    for position, name in enumerate(header):
        if name in header[:position]:
            raise PareError(
                f"{path}, line {line}: the header names {name!r} twice; rename one of the columns"
            )


def _read_parquet(path: Path) -> Rows:
    """A Parquet file; class labels that `datasets` wrote become their names."""
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise PareError(f"{path}: not a Parquet file that can be read ({error}); write it again") from error
    if not table.num_rows:
        return Rows(str(path), {}, "row", [])
    return from_dataset(datasets.Dataset(table), str(path))


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: absent, null, not a number, or text without a visible character."""
    if isinstance(value, str):
        return not value.strip() or value.strip().lower() == "nan"
    return value is None or (isinstance(value, float) and math.isnan(value))
