"""Results on disk, a line of JSON each, and tables between marks in docs/performance.md."""

import json
import os
from pathlib import Path
from typing import Any

from paretune.files import write_atomic

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = DOCS / "results"


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file, without one that a kill cut off; none where there is no file."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:  # cut off by a kill; it is measured again
            continue
    return rows


def append(row: dict[str, Any], path: Path) -> None:
    """One more line in a results file, on the disk when this returns; a half line before it is closed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write("\n" * (not _ends_whole(path)) + json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _ends_whole(path: Path) -> bool:
    return not path.stat().st_size or path.read_bytes().endswith(b"\n")


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
