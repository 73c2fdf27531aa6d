"""The trials in a search's journal, read without taking part in it: the search may be running."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paretune.errors import PareError
from paretune.report.reading import Fields
from paretune.report.records import Trial
from paretune.search.space import RATE

IDENTITY = "paretune search"  # the study's attribute with the request


@dataclass
class Journal:
    """What a journal holds.

    Args:
        request: What was asked for.
        trials: The finished trials, in the order in which they were begun.
        missing: Sentences about what could not be read.
    """

    request: dict[str, Any] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def read_journal(path: Path) -> Journal:
    """The finished trials of a journal; without a journal, or without optuna, that is said in ``missing``.

    Raises:
        PareError: The journal is damaged.
    """
    if not path.exists():
        return Journal(missing=[f"{path.name} is not there: the single trials are not shown."])
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        return Journal(missing=["The single trials are not shown: they need pip install 'paretune[search]'."])
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
        studies = storage.get_all_studies()
        if not studies:
            return Journal(missing=[f"{path.name} is empty: no trial has begun."])
        number = studies[0]._study_id
        request = storage.get_study_user_attrs(number).get(IDENTITY, {})
        attributes = [trial.user_attrs for trial in storage.get_all_trials(number, deepcopy=False)]
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise PareError(
            f"{path}: is damaged ({problem}); run the search again with another --out"
        ) from problem
    done = [attribute for attribute in attributes if "scored" in attribute]
    return Journal(request, [_trial(attribute, str(path)) for attribute in done])


def _trial(attributes: dict[str, Any], where: str) -> Trial:
    job = Fields(Fields(attributes, where).object("job"), where)
    scored = Fields(attributes["scored"], where)
    spec = Fields(job.object("spec"), where)
    point = spec.object("point")
    return Trial(
        id=job.text("key"),
        candidate=spec.text("choice"),
        method="design",
        settings=point,
        budget=None,
        lr=float(point[RATE]) if RATE in point else None,
        share=job.number("share"),
        seed=spec.count("seed"),
        split="heldout",
        failed=scored.text("failed"),
        score=scored.number("score"),
        scores={"loss": scored.number("loss")},
        losses=[],
        seconds=scored.number("seconds"),
        command="",
    )
