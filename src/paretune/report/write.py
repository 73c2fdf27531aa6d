"""From a run folder to ``report.json`` and ``report.html``."""

import json
from dataclasses import dataclass
from pathlib import Path

from paretune.errors import PareError
from paretune.files import write_atomic
from paretune.report.document import Report
from paretune.report.from_front import front_report
from paretune.report.from_search import JOURNAL, search_report
from paretune.report.from_tune import tune_report
from paretune.report.reading import read_object

NO_PLOTLY = "the page needs plotly: pip install 'paretune[report]'"


@dataclass(frozen=True)
class Written:
    """What was written.

    Args:
        data: ``report.json``.
        page: ``report.html``; None where plotly is not installed.
        missing: Sentences about what the run does not hold.
    """

    data: Path
    page: Path | None
    missing: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}" if self.page else f"{self.data}; {NO_PLOTLY}"


def read_report(run: str | Path) -> Report:
    """The report of a run folder of ``front``, ``search`` or ``tune``, finished or not.

    Raises:
        PareError: No run there, a damaged file, or one of a newer schema.
    """
    run = Path(run)
    if not run.is_dir():
        raise PareError(f"{run}: no such folder; give the --out of a paretune front, search or tune")
    request = read_object(run / "request.json") or {}
    if (run / "front.json").exists() or "methods" in request:
        return front_report(run)
    if (run / "search.json").exists() or (run / JOURNAL).exists():
        return search_report(run)
    if "method" in request:
        return tune_report(run)
    raise PareError(f"{run}: holds no run; give the --out of a paretune front, search or tune")


def write_report(run: str | Path) -> Written:
    """Write ``report.json`` and, where plotly is installed, ``report.html`` into a run folder.

    Raises:
        PareError: As :func:`read_report`.
        OSError: The folder cannot be written.
    """
    run = Path(run)
    report = read_report(run)
    write_atomic(run / "report.json", json.dumps(report.document(), indent=1) + "\n")
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        return Written(run / "report.json", None, tuple(report.missing))
    from paretune.report.page import render

    write_atomic(run / "report.html", render(report, get_plotlyjs()))
    return Written(run / "report.json", run / "report.html", tuple(report.missing))
