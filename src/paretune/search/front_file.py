"""What ``front.json`` holds; docs/front.md describes it."""

import json
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from paretune.errors import PareError
from paretune.files import write_atomic
from paretune.search.field import Candidate, Skipped
from paretune.search.front_trial import FrontSpec
from paretune.search.jobs import Scored
from paretune.search.outcome import finite
from paretune.search.standing import Standing
from paretune.tuning import Recipe

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


@dataclass(frozen=True)
class Words:
    """Writes the commands that train something again.

    Args:
        task: The words that name the model and the data.
        recipe: A whole training.
        head: Whether the head is ``outside`` or ``inside`` the budget.
        exclude: Patterns of tensors that may not be selected.
        heldout_seed: Of the draw of the held-out part.
    """

    task: Sequence[str]
    recipe: Recipe
    head: str
    exclude: Sequence[str]
    heldout_seed: int

    def trial(self, spec: FrontSpec, steps: int, plan: Path) -> str:
        """Trains what a trial trained, in the same order, from the same start."""
        words = ["--plan", str(plan), *self._training(spec.lr, spec.seed, steps)]
        return self._command(words, f"{spec.candidate}-{spec.seed}")

    def candidate(self, candidate: Candidate, lr: float, seed: int) -> str:
        """Chooses and trains a candidate for all of the steps."""
        words = ["--method", candidate.method]
        if candidate.settings:
            pairs = candidate.settings.items()
            words += ["--set", *(f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in pairs)]
        if candidate.budget:
            words += ["--budget", candidate.budget]
        words += ["--head", self.head] if self.head != "outside" else []
        words += ["--exclude", *self.exclude] if self.exclude else []
        return self._command(words + self._training(lr, seed, None), candidate.name)

    def _training(self, lr: float, seed: int, steps: int | None) -> list[str]:
        words = ["--lr", f"{lr:g}", "--seed", str(seed), "--heldout-seed", str(self.heldout_seed)]
        for each in fields(Recipe):
            value = getattr(self.recipe, each.name)
            if each.name in ("lr", "checkpoints") or (each.name == "steps" and steps is not None):
                continue
            if value != each.default:
                option = f"--{each.name.replace('_', '-')}"
                words += [option] if value is True else [option, str(value)]
        return words + (["--steps", str(steps)] if steps is not None else [])

    def _command(self, words: Sequence[str], name: str) -> str:
        out = "".join(c if c.isalnum() or c in ".-" else "-" for c in name).strip("-")
        return shlex.join(["paretune", "tune", *self.task, *words, "--out", f"runs/{out}"])


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
