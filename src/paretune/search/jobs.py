"""A trial to run, and what came of it; what the trial is about is the objective's affair."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class Job:
    """One trial to run.

    Args:
        key: What the trial is found by; a finished one is never run again.
        spec: Everything the objective needs to know (JSON).
        share: What it is worth in whole trainings.
    """

    key: str
    spec: dict[str, Any]
    share: float


@dataclass(frozen=True)
class Scored:
    """What came of a trial.

    Args:
        score: The task's metric on held-out train; None when the trial failed.
        seconds: Wall seconds in all.
        training: Of these, the seconds of the training steps.
        failed: Why there is no score.
        loss: On held-out train; the lower one decides between equal scores.
        details: What else is to be kept of it (JSON).
    """

    score: float | None
    seconds: float
    training: float
    failed: str = ""
    loss: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """Where a run of trials is, after a trial.

    Args:
        what: The trial in a few words.
        scored: What came of it.
        done: Trials finished so far.
        ahead: Trials still to run, of those that were stated.
        seconds: Wall seconds that they will take.
    """

    what: str
    scored: Scored
    done: int
    ahead: int
    seconds: float


class Objective(Protocol):
    """What a trial is. It is pickled once for each process that runs trials."""

    def __call__(self, spec: dict[str, Any]) -> Scored:
        """Train and score.

        Raises:
            PareError: It cannot be done at all; a training that diverges is a result instead.
        """
        ...


@runtime_checkable
class NeedsFolders(Protocol):
    """An objective that reads or writes folders: every machine that runs it must have them."""

    @property
    def reads(self) -> Sequence[Path]:
        """What must be there."""
        ...

    @property
    def writes(self) -> Sequence[Path]:
        """What must be the same folder everywhere, and not one of the same name."""
        ...
