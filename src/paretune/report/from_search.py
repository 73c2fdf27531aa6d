"""The report of a staged search: ``search.json``, ``design.yaml``, or the journal of an unfinished one."""

from pathlib import Path
from typing import Any

from paretune.errors import PareError
from paretune.report.document import Report, facts
from paretune.report.journal import read_journal
from paretune.report.reading import Fields, check_schema, read_object
from paretune.search.outcome import ENDINGS, Outcome

NEWEST = 1  # schema of search.json
ASKED = ("model", "data", "metric", "budget", "seed", "head", "exclude", "trials", "minutes", "recipe")
JOURNAL = "study.journal"


def search_report(run: Path) -> Report:
    """Read a search's run folder, whatever of it is there.

    Raises:
        PareError: A file that is damaged, of a newer schema, or not of a search.
    """
    path = run / "search.json"
    document = read_object(path)
    report = Report("search", run.resolve().name, "finished" if document else "unfinished")
    journal = read_journal(run / JOURNAL)
    report.trials = journal.trials
    report.missing += journal.missing
    if document is None:
        report.missing.append(
            f"search.json is not there: the search is not finished ({len(report.trials)} trials so far); "
            "the same `paretune search` command goes on."
        )
        report.facts = facts(journal.request, ASKED)
        report.metric = str(journal.request.get("metric", "score"))
        return report
    check_schema(document, NEWEST, path)
    get = Fields(document, str(path))
    request = get.object("request")
    report.facts = facts(request, ASKED)
    report.facts.append(("designs in the space", f"{get.count('designs_in_space'):,}"))
    report.metric = Fields(request, f"{path}: request").text("metric", "score")
    stages = [_stage(row, path, number) for number, row in enumerate(get.list("stages"))]
    report.stages = [stage.document() | {"ended": ENDINGS[stage.ends]} for stage in stages]
    report.cost = {name: get.number(name) for name in ("trials", "equivalents", "seconds")}
    design = run / "design.yaml"
    if design.exists():
        report.design = design.read_text()
    else:
        report.missing.append("design.yaml is not there.")
    tied = [f"{stage.name} (with {', '.join(stage.ties)})" for stage in stages if stage.ties]
    lr = get.number("lr")
    report.recommendation = {
        "text": f"Train the design in design.yaml with a learning rate of {lr or 0:g}. "
        + (f"Not told apart from what lost: {'; '.join(tied)}." if tied else "No stage ended in a tie."),
        "candidate": "design",
        "simpler": [],
    }
    return report


def _stage(row: Any, path: Path, number: int) -> Outcome:
    get = Fields(row, f"{path}: stage {number}")
    try:
        stage = Outcome.from_document(get.row)
    except (KeyError, TypeError) as problem:
        raise PareError(f"{path}: stage {number} is not a stage ({problem})") from problem
    if stage.ends not in ENDINGS:
        raise PareError(f"{path}: stage {number} ended with {stage.ends!r}, which is not known")
    return stage
