"""One runner for every experiment: a job a line, finished jobs are never repeated.

A job is one plan chosen, trained and scored under one seed. Its line in the results file holds the job
itself, the scores, the logged losses, counts, seconds and versions. A line that a kill cut off is passed
over, and its job runs again. What another experiment has run already, whatever it calls it, is copied from
the results file beside this one.

``PARETUNE_WORKERS=2`` runs two jobs at a time, each in a process of its own with its part of the cores: on a
CPU one a core is fastest, and a GPU that a small model leaves idle takes several.
"""

import argparse
import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed

from benchmarks.machine import builtin_encoder, describe
from benchmarks.tables import append, read
from paretune.budget import Budget
from paretune.errors import BudgetError, DivergedError, PareError
from paretune.methods import choose, learning_rates, make_method
from paretune.plan import Plan
from paretune.progress import set_quiet
from paretune.ranks import device
from paretune.search.trial import run_trial
from paretune.task import Task
from paretune.task.models import load_model_from_spec
from paretune.tuning import Recipe

SHARED = Path(os.environ.get("PARETUNE_SHARED", Path(__file__).parents[1] / ".." / "shared"))
WORKERS = int(os.environ.get("PARETUNE_WORKERS", "1"))
NOISE = 0.02  # scores of one seed differ by more than this under another
METRICS = {"mrpc": "f1", "cola": "matthews", "stsb": "spearman"}
METRIC_NAMES = {"mrpc": "F1", "cola": "Matthews correlation", "stsb": "Spearman correlation"}
# One step budget for all, so that runs are shared; the shortest texts have most steps.
STEPS = {"mrpc": 250, "cola": 400, "stsb": 250, "rte": 250, "sst2": 250, "qnli9k": 250}
Rates = dict[tuple[str, str, str | None], float]  # by task, label and budget
STARTS = {"prior": "the labels' prior", "zero": "zero"}  # of a new head's bias
FIRST_SEED = 100  # of what adapeft, design_space and front report: no rate and no search has seen it


def metric_name(task: str) -> str:
    """What a task's score is, in words."""
    return METRIC_NAMES.get(task, "accuracy")


@dataclass(frozen=True)
class Job:
    """One run.

    Args:
        task: A folder of the development data, such as ``mrpc``.
        method: A method's name.
        lr: Peak learning rate.
        budget: Share of the model, or None.
        settings: The method's settings.
        exclude: Patterns of tensors that may not be selected.
        seed: Head, data order, dropout, evidence.
        steps: Optimiser steps of 32 examples.
        split: ``heldout`` to tune on, ``validation`` to report.
        label: What the tables call it; the method's name when empty.
        start: Where the new head's bias begins: at the labels' ``prior``, as in paretune, or at ``zero``, as
            in transformers.
    """

    task: str
    method: str
    lr: float
    budget: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    exclude: list[str] = field(default_factory=list)
    seed: int = 0
    steps: int = 300
    split: str = "validation"
    label: str = ""
    start: str = "prior"

    @property
    def key(self) -> str:
        """The job as text: equal jobs have equal keys."""
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def training(self) -> str:
        """The job without its label: what two experiments may call by different names."""
        return replace(self, label="").key


def run(jobs: Iterable[Job], path: Path) -> list[dict[str, Any]]:
    """Run what is not in the file yet, one line each as it finishes; all rows of the jobs.

    A training that diverges and a budget that is too small are results (`failed`); any other error ends the
    run, and the same command goes on there.
    """
    jobs = list(jobs)
    done = {row["key"]: row for row in read(path)}
    beside = _beside(path)
    missing = list({job.key: job for job in jobs if job.key not in done}.values())
    calls = (delayed(_row)(job, beside.get(job.training)) for job in missing)
    for number, row in enumerate(Parallel(WORKERS, return_as="generator_unordered")(calls)):
        done[row["key"]] = row
        append(row, path)
        score = row.get("score")
        said = row["failed"] if score is None else f"{score:.4f}"
        job = f"{row['task']} {row['label'] or row['method']} {row['lr']:g} s{row['seed']}"
        print(f"{len(jobs) - len(missing) + number + 1}/{len(jobs)} {job}: {said}", flush=True)
    return [done[job.key] for job in jobs]


def _row(job: Job, known: dict[str, Any] | None) -> dict[str, Any]:
    """The line of a job, run unless its results are known."""
    set_quiet(True)
    found = known or _run(job) | {"machine": describe()}
    return found | {"key": job.key, **asdict(job)}


def _beside(path: Path) -> dict[str, dict[str, Any]]:
    """Rows of the other results files in the same folder, by training; each says whose it is."""
    names = {each.name for each in fields(Job)}
    return {
        Job(**{name: row[name] for name in names}).training: row | {"run_for": other.stem}
        for other in sorted(path.parent.glob("*.jsonl"))
        if other != path
        for row in read(other)
        if names <= row.keys()
    }


@lru_cache(maxsize=4)
def load_task(name: str, seed: int) -> Task:
    """A development task for the built-in encoder.

    Raises:
        PareError: The data are not there.
    """
    folder = SHARED / "data" / name
    if not folder.exists():
        raise PareError(f"{folder}: no development data there; set PARETUNE_SHARED to the folder that has it")
    return Task.from_files(
        folder / "train.jsonl",
        folder / "validation.jsonl",
        model=builtin_encoder(),
        metric=METRICS.get(name),
        seed=seed,
    )


def _run(job: Job) -> dict[str, Any]:
    start = time.perf_counter()
    task = load_task(job.task, 0)  # one held-out part for all seeds
    model = load_model(task, job.seed, job.start)
    try:
        plan = _plan(job, task, model)
        chosen = time.perf_counter()
        recipe = Recipe(lr=job.lr, steps=job.steps, precision="amp")
        outcome = run_trial(model, task, plan, recipe, seed=job.seed, split=job.split)
    except (DivergedError, BudgetError) as problem:
        return {"failed": str(problem)}
    return {
        "score": outcome.scores[task.metric],
        "scores": outcome.scores,
        "losses": outcome.training.losses,
        "trained": plan.count,
        "head": plan.head_count,
        "plan": plan.digest,
        "notes": plan.notes,
        "seconds": {"choose": chosen - start, "train": outcome.training.seconds},
        "versions": plan.versions,
    }


def load_model(task: Task, seed: int, start: str) -> torch.nn.Module:
    """The model with a new head whose bias begins at one of ``STARTS``."""
    if start == "prior":
        return task.load_model(seed=seed)
    return load_model_from_spec(task.model_id, task.spec(), seed).to(device())


def add_start(parser: argparse.ArgumentParser) -> None:
    """The option that says where heads begin; runs and pages are of one start."""
    parser.add_argument("--start", choices=list(STARTS), default="prior", help="of a new head's bias")


def _plan(job: Job, task: Task, model: torch.nn.Module) -> Plan:
    return choose(job.method, model, task, job.budget, seed=job.seed, exclude=job.exclude, **job.settings)


def rates_to_try(method: str, settings: dict[str, Any], budget: str | None) -> tuple[float, ...]:
    """A method's learning rates at a budget, which is a share of the model."""
    share = float(Budget.parse(budget).value) if budget else None
    return learning_rates(make_method(method, settings), share)


def best_rates(rows: Sequence[dict[str, Any]]) -> Rates:
    """By (task, label, budget): the learning rate of the best held-out score.

    Scores within ``NOISE`` of the best count as equal under one seed; the lower held-out loss decides.
    """
    tried: dict[tuple[str, str, str | None], list[dict[str, Any]]] = {}
    for row in rows:
        if row["split"] == "heldout" and "failed" not in row:
            place = row["task"], row["label"] or row["method"], row["budget"]
            tried.setdefault(place, []).append(row)
    return {place: _best(found)["lr"] for place, found in tried.items()}


def _best(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    top = max(row["score"] for row in rows)
    return min((row for row in rows if row["score"] >= top - NOISE), key=lambda row: row["scores"]["loss"])
