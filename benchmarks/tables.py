"""Results of benchmarks on disk: a line of JSON each, and tables between marks in docs/performance.md."""

import json
import os
from pathlib import Path
from typing import Any

from paretune.files import write_atomic

DOCS = Path(__file__).parents[1] / "docs"


def read(name: str) -> list[dict[str, Any]]:
    """The lines of docs/results/NAME.jsonl; none where there is no file."""
    path = _path(name)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(name: str, row: dict[str, Any]) -> None:
    """One more line, on the disk when this returns."""
    with _path(name).open("a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def publish(mark: str, text: str) -> None:
    """Put a table between its marks in docs/performance.md.

    Raises:
        SystemExit: The page has no such marks.
    """
    page, begin = DOCS / "performance.md", f"<!-- {mark} -->"
    end = f"<!-- end of {mark.partition(':')[0]} -->"
    before, found, rest = page.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{page}: lacks {begin} or {end}")
    write_atomic(page, f"{before}{begin}\n{text}{end}{after}")


def _path(name: str) -> Path:
    return DOCS / "results" / f"{name}.jsonl"
