"""The record of a search: an Optuna study in a journal file, which survives a kill at any moment.

One process writes it. A trial is in it once; a finished one is found again by its key.
"""

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paretune.errors import PareError
from paretune.search.jobs import Job, Scored
from paretune.search.lock import Lock

try:
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    from optuna.trial import TrialState, create_trial
except ImportError as problem:
    raise PareError("a search needs optuna: pip install 'paretune[search]'") from problem

SCHEMA = 2  # 1 held trials of stages only
_IDENTITY = "paretune search"


class Book:
    """The study of one run folder, open in this process alone.

    Args:
        path: The journal file.
        identity: What the search is about (JSON); a file of another search is refused.
        higher: Whether a higher score is better.

    Raises:
        PareError: Another process has it open, it belongs to another search or to a newer version, or it is
            no journal.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], higher: bool = True) -> None:
        self._path = path
        self._lock = Lock(path.with_suffix(".lock"), "searching")
        try:
            self._open(identity, higher)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let another process have it."""
        self._lock.close()

    def _open(self, identity: Mapping[str, Any], higher: bool) -> None:
        logging.getLogger("optuna").setLevel(logging.WARNING)
        _refuse_other_files(self._path)
        _drop_half_line(self._path)
        backend = JournalFileBackend(str(self._path), lock_obj=_NoLock(str(self._path)))
        try:
            self._storage = optuna.storages.JournalStorage(backend)
            self._study = optuna.create_study(
                study_name="paretune",
                storage=self._storage,
                sampler=optuna.samplers.RandomSampler(seed=0),
                direction="maximize" if higher else "minimize",
                load_if_exists=True,
            )
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise PareError(
                f"{self._path}: is damaged ({problem}); move it away, or give another --out"
            ) from problem
        self._check(json.loads(json.dumps(identity)))
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._fail(trial._trial_id, "interrupted")

    def _check(self, identity: dict[str, Any]) -> None:
        found = self._study.user_attrs.get(_IDENTITY)
        if found is None and self._study.get_trials(deepcopy=False):
            raise PareError(f"{self._path}: a study that paretune did not make; give another --out")
        if found is None or (found != {"schema": SCHEMA, **identity} and self._is_unused()):
            self._study.set_user_attr(_IDENTITY, {"schema": SCHEMA, **identity})
            return
        if found.get("schema") != SCHEMA:
            raise PareError(
                f"{self._path}: a study of schema {found.get('schema')}, this paretune reads {SCHEMA}; "
                "finish it with the version that began it, or give another --out"
            )
        for name in sorted(identity):
            if found.get(name) != identity[name]:
                raise PareError(
                    f"{self._path} belongs to another search: {name} was {_short(found.get(name))}, now "
                    f"{_short(identity[name])}; give another --out, or ask for the same"
                )

    def _is_unused(self) -> bool:
        """Whether a request that could not work left this study: no trial was begun, nothing noted."""
        settled = any(name != _IDENTITY for name in self._study.user_attrs)
        return not settled and not self._study.get_trials(deepcopy=False)

    def note(self, name: str, value: Any) -> None:
        """Keep something (JSON) under a name."""
        self._study.set_user_attr(name, value)

    def noted(self, name: str) -> Any:
        """What was kept under a name; None when nothing was."""
        return self._study.user_attrs.get(name)

    def begin(self, job: Job, point: Mapping[str, str], options: Mapping[str, Sequence[str]]) -> int:
        """Record that a trial runs; its number.

        Args:
            job: The trial.
            point: What Optuna's own tools show as its parameters.
            options: The options of each of these; the same in every trial.
        """
        distributions: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(options[name]) for name in point
        }
        trial = create_trial(
            state=TrialState.RUNNING,
            params=dict(point),
            distributions=distributions,
            user_attrs={"key": job.key, "job": asdict(job)},
        )
        return self._storage.create_new_trial(self._study._study_id, template_trial=trial)

    def finish(self, trial: int, scored: Scored) -> None:
        """Record what came of a running trial; on disk when this returns."""
        self._storage.set_trial_user_attr(trial, "scored", asdict(scored))
        if scored.score is None:
            self._fail(trial, scored.failed)
        else:
            self._storage.set_trial_state_values(trial, TrialState.COMPLETE, [scored.score])

    def give_up(self, trial: int, reason: str) -> None:
        """Record that a running trial came to nothing; it may be begun again."""
        self._fail(trial, reason)

    def finished(self) -> dict[str, Scored]:
        """Every finished trial by key; those that failed with a result are finished too."""
        return {key: scored for key, _, scored in self.trials()}

    def trials(self) -> Iterator[tuple[str, Job, Scored]]:
        """Key, job and result of every finished trial, in the order in which they were begun."""
        done = (TrialState.COMPLETE, TrialState.FAIL)
        for trial in self._study.get_trials(deepcopy=False, states=done):
            scored = trial.user_attrs.get("scored")
            if scored is not None:
                yield trial.user_attrs["key"], Job(**trial.user_attrs["job"]), Scored(**scored)

    def _fail(self, trial: int, reason: str) -> None:
        self._storage.set_trial_user_attr(trial, "reason", reason)
        self._storage.set_trial_state_values(trial, TrialState.FAIL)


class _NoLock(JournalFileOpenLock):
    """The lock on the run folder is enough: one process writes, and the system frees it after a kill."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def _drop_half_line(path: Path) -> None:
    """Cut off what a kill left of a last line, so that the next one does not join it."""
    with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)


def _refuse_other_files(path: Path) -> None:
    """Refuse, before anything is written to it, a file that does not begin as a journal does."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        first = file.readline()
        if not first.startswith(b'{"op_code"'[: len(first)]):
            raise PareError(f"{path}: is no study; move it away, or give another --out")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
