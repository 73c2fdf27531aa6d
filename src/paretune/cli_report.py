"""``paretune report``, and the page that front, search and tune leave at their end."""

from argparse import Namespace
from pathlib import Path

from paretune.report import Written, write_report

WITH_PAGE = ("front", "search", "tune")  # commands whose --out is a run
INSIDE = "auto"  # the front in the run folder of `tune --method auto`


def run(options: Namespace) -> None:
    """Write the report of a run folder, and say what the run does not hold.

    Raises:
        PareError: As :func:`paretune.report.write_report`.
    """
    for written in _write(options.run):
        print(written)
        for sentence in written.missing:
            print(f"  {sentence}")


def after(options: Namespace) -> None:
    """Write the report of the run that a command has just finished; nothing more is said with ``--json``."""
    for written in _write(options.out):
        if not options.json:
            print(written)


def _write(run: Path) -> list[Written]:
    """The report of a run, and before it that of the front inside it, by which auto chose what to train."""
    inside = [write_report(run / INSIDE)] if (run / INSIDE).is_dir() else []
    has_begun = (run / "request.json").exists() or not inside
    return inside + ([write_report(run)] if has_begun else [])
