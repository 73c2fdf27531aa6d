"""What ``front.json`` holds; docs/front.md describes it."""

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from paretune.errors import PareError
from paretune.files import write_atomic
from paretune.search.field import Skipped
from paretune.search.front_trial import FrontSpec
from paretune.search.jobs import Scored
from paretune.search.outcome import finite
from paretune.search.standing import Standing
from paretune.search.words import Words

SCHEMA = 1
Status = Literal["running", "finished", "interrupted"]


@dataclass(frozen=True)
class TrialRow:
    """One trial; figures that a failed one did not come to are 0 or empty."""

    id: str
    candidate: str
    method: str
    settings: dict[str, Any]
    budget: str | None
    lr: float
    share: float
    seed: int
    split: str
    state: Literal["finished", "failed"]
    score: float | None
    scores: dict[str, float]
    losses: list[list[float]]
    trained: int
    head: int
    delta_bytes: int
    peak_bytes: int
    step_seconds: float
    seconds: float
    failed: str
    plan: str
    command: str


@dataclass(frozen=True)
class CandidateRow:
    """One candidate at the largest share of the steps that it reached.

    Figures are medians over its trials there, ``low`` and ``high`` the ends of the mean's 95 % interval.
    """

    name: str
    method: str
    settings: dict[str, Any]
    budget: str | None
    lr: float
    share: float
    n: int
    score: float
    low: float | None
    high: float | None
    trained: int
    head: int
    delta_bytes: int
    peak_bytes: int
    step_seconds: float
    on_front: bool
    predicted: float | None
    plan: str
    command: str


@dataclass(frozen=True)
class Recommendation:
    """One sentence; ``simpler`` are not told apart from the candidate under three seeds or more."""

    text: str
    candidate: str
    simpler: list[str]


@dataclass
class FrontFile:
    """The whole file."""

    status: Status
    request: dict[str, Any]
    model_weights: int
    trials: list[TrialRow] = field(default_factory=list)
    candidates: list[CandidateRow] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    recommendation: Recommendation | None = None
    cost: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The file as JSON."""
        return {"schema": SCHEMA, **asdict(self)}

    def save(self, path: Path) -> dict[str, Any]:
        """Write it whole; what was written."""
        content = json.dumps(self.document(), indent=1)
        write_atomic(path, content)
        return json.loads(content)


def read_front(out: str | Path) -> dict[str, Any]:
    """What a front wrote so far.

    Raises:
        PareError: There is none in the folder.
    """
    path = Path(out) / "front.json"
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as problem:
        raise PareError(f"{path}: no front there ({problem}); run `paretune front`") from problem


def trial_row(spec: FrontSpec, scored: Scored, words: Words, out: Path) -> TrialRow:
    """A trial as it is written."""
    get = scored.details.get
    plan = f"plans/{get('plan')}" if get("plan") else ""
    return TrialRow(
        id=spec.job.key,
        candidate=spec.candidate,
        method=spec.method,
        settings=spec.settings,
        budget=spec.budget,
        lr=spec.lr,
        share=spec.share,
        seed=spec.seed,
        split="heldout",
        state="failed" if scored.score is None else "finished",
        score=scored.score,
        scores=get("scores") or {},
        losses=get("losses") or [],
        trained=get("trained", 0),
        head=get("head", 0),
        delta_bytes=get("delta_bytes", 0),
        peak_bytes=get("peak_bytes", 0),
        step_seconds=get("step_seconds", 0.0),
        seconds=scored.seconds,
        failed=scored.failed,
        plan=plan,
        command=words.trial(spec, get("steps") or 0, out / plan) if plan and get("steps") else "",
    )


def candidate_row(
    standing: Standing, on_front: bool, predicted: float | None, words: Words, higher: bool
) -> CandidateRow:
    """A candidate as it is written."""
    candidate, sign = standing.candidate, 1 if higher else -1
    around = standing.interval
    ends = sorted((sign * around.low, sign * around.high))
    details = [scored.details for scored in standing.results]
    seed = min(set(standing.scores) - set(standing.failed))
    return CandidateRow(
        name=candidate.name,
        method=candidate.method,
        settings=candidate.settings,
        budget=candidate.budget,
        lr=standing.lr,
        share=standing.share,
        n=len(standing.scores),
        score=sign * standing.mean,
        low=finite(ends[0]),
        high=finite(ends[1]),
        trained=standing.trained,
        head=details[0]["head"],
        delta_bytes=details[0]["delta_bytes"],
        peak_bytes=int(statistics.median(each["peak_bytes"] for each in details)),
        step_seconds=statistics.median(each["step_seconds"] for each in details),
        on_front=on_front,
        predicted=predicted,
        plan=f"plans/{details[0]['plan']}",
        command=words.candidate(candidate, standing.lr, seed),
    )
