"""``paretune report``, and the page that front, search and tune leave at their end."""

from argparse import Namespace

from paretune.report import write_report

WITH_PAGE = ("front", "search", "tune")  # commands whose --out is a run


def run(options: Namespace) -> None:
    """Write the report of a run folder, and say what the run does not hold.

    Raises:
        PareError: As :func:`paretune.report.write_report`.
    """
    written = write_report(options.run)
    print(written)
    for sentence in written.missing:
        print(f"  {sentence}")


def after(options: Namespace) -> None:
    """Write the report of the run that a command has just finished; nothing more is said with ``--json``."""
    written = write_report(options.out)
    if not options.json:
        print(written)
