"""Reading what a run left behind: JSON files that may be absent, half of an older version, or not ours."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from paretune.errors import PareError

T = TypeVar("T")
Row = Mapping[str, Any]


def read_json(path: Path) -> Any | None:
    """The content of a JSON file; None where there is no file. NaN and infinities are read as None.

    Raises:
        PareError: The file is damaged.
    """
    try:
        return json.loads(path.read_text(), parse_constant=lambda _: None)
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise PareError(f"{path}: damaged ({problem}); run the command that wrote it again") from problem


def read_object(path: Path) -> dict[str, Any] | None:
    """As :func:`read_json`, for a file that holds an object.

    Raises:
        PareError: The file is damaged or holds something else.
    """
    content = read_json(path)
    if content is not None and not isinstance(content, dict):
        raise PareError(f"{path}: holds {type(content).__name__}, not an object; is it of a run?")
    return content


def check_schema(document: Row, newest: int, path: Path) -> None:
    """Refuse a file without a version, or of a newer one.

    Raises:
        PareError: As said.
    """
    schema = document.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise PareError(f"{path}: no schema version; it was not written by paretune")
    if schema > newest:
        raise PareError(f"{path}: schema {schema} is newer than this paretune reads ({newest}); upgrade it")


class Fields:
    """Typed access to one object of a file; what is absent or null takes the default.

    Args:
        row: The object.
        where: What messages call it.

    Raises:
        PareError: It is no object.
    """

    def __init__(self, row: Any, where: str) -> None:
        if not isinstance(row, dict):
            raise PareError(f"{where}: {row!r:.60} is not an object")
        self.row, self.where = row, where

    def text(self, name: str, default: str = "") -> str:
        """A text."""
        return self._get(name, str, default)

    def count(self, name: str, default: int = 0) -> int:
        """A whole number."""
        return self._get(name, int, default)

    def number(self, name: str) -> float | None:
        """A number, or None."""
        value = self._get(name, (int, float), None)
        return None if value is None else float(value)

    def flag(self, name: str) -> bool:
        """True or false; false by default."""
        return self._get(name, bool, False)

    def object(self, name: str) -> dict[str, Any]:
        """An object; empty by default."""
        return self._get(name, dict, {})

    def list(self, name: str) -> list[Any]:
        """A list; empty by default."""
        return self._get(name, list, [])

    def _get(self, name: str, kind: Any, default: Any) -> Any:
        value = self.row.get(name)
        if value is None:
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise PareError(f"{self.where}: {name} is {value!r:.60}; another kind of value belongs there")
        return value
