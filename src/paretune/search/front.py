"""``front``: every method on the user's own data, side by side, within a stated number of trainings."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paretune.anatomy import anatomy, base_digest
from paretune.budget import HeadRule
from paretune.errors import PareError
from paretune.files import write_atomic
from paretune.search.book import Book
from paretune.search.engines import Cluster, make_engine
from paretune.search.field import FIELD, Skipped, make_field
from paretune.search.front_file import FrontFile, candidate_row, trial_row
from paretune.search.front_trial import FrontSpec, FrontTrial
from paretune.search.jobs import Progress, Scored
from paretune.search.race import Race
from paretune.search.ration import Limits
from paretune.search.standing import on_front
from paretune.search.threads import threads_of
from paretune.search.verdict import recommend
from paretune.search.words import Words
from paretune.task import Task
from paretune.tuning import Recipe

JOURNAL = "study.journal"
EQUIVALENTS = 25.0  # whole trainings of a front without --trials and --minutes


def front(
    task: Task,
    out: str | Path,
    *,
    methods: Sequence[str] = FIELD,
    budgets: Sequence[str] = ("0.5%",),
    limits: Limits | None = None,
    seeds: int = 3,
    recipe: Recipe | None = None,
    engine: str | Cluster | None = None,
    seed: int = 0,
    head: HeadRule = "outside",
    exclude: Sequence[str] = (),
    task_words: Sequence[str] | None = None,
    say: Callable[[object], None] = lambda message: None,
    show: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Any]:
    """Try methods at budgets and write what was found into a folder, anew after every trial.

    The folder holds ``front.json`` (docs/front.md says what is in it), ``study.journal`` (an Optuna study of
    every trial), ``plans`` and ``request.json``. Called again with the same arguments, no finished trial is
    repeated; trials, minutes, seeds and workers may differ, so that a finished front goes on.

    Args:
        task: The data; its held-out part decides, its validation part is never looked at.
        out: The run folder.
        methods: Names, with settings as in ``lora:targets=all``.
        budgets: See :func:`paretune.choose`; methods with a size of their own are tried once.
        limits: Trials, minutes and workers; without trials and minutes, ``EQUIVALENTS`` whole trainings.
        seeds: That finalists get at least where the limits allow it.
        recipe: A whole training; its ``lr`` is replaced, and trials take a share of its steps.
        engine: Who runs trials, see :func:`paretune.search.engines.make_engine`.
        seed: The first seed.
        head: Whether the head is ``outside`` or ``inside`` the budget.
        exclude: Patterns of tensors that may not be selected.
        task_words: The words of a command that name the model and the data.
        say: Called with what there is to say: what is skipped, the total.
        show: Called after every trial.

    Returns:
        The content of ``front.json``.

    Raises:
        PareError: Anything about the request that cannot work, too few trials or minutes, or the folder
            belongs to something else.
        KeyboardInterrupt: After ``front.json`` was written with the status ``interrupted``.
    """
    out, limits, recipe = Path(out), limits or Limits(), recipe or Recipe(lr=1.0)
    if seeds < 1:
        raise PareError(f"--seeds {seeds}: at least one is needed")
    task.rows("heldout")
    model = task.load_model(seed=seed, dtype=recipe.dtype)
    parts = anatomy(model)
    candidates, skipped = make_field(model, task, parts, methods, budgets, head=head, exclude=exclude)
    digest = base_digest(model, [tensor.name for tensor in parts.head])
    del model
    if not candidates:
        raise PareError(f"nothing can be tried: {skipped[0].method}: {skipped[0].reason}")
    identity = {
        "command": "front",
        "model": task.model_id,
        "base": digest,
        "data": task.fingerprint,
        "metric": task.metric,
        "methods": list(methods),
        "budgets": list(budgets),
        "seed": seed,
        "head": head,
        "exclude": list(exclude),
        "recipe": {name: value for name, value in asdict(recipe).items() if name != "lr"},
    }
    refuse_other(out, "front")
    for each in skipped:
        say(f"skipped {each.method} {each.budget}: {each.reason}")
    book = Book(out / JOURNAL, identity, task.higher_is_better)
    try:
        extra = {"higher_is_better": task.higher_is_better, "seeds": seeds}
        request = identity | extra | {"trials": limits.trials, "minutes": limits.minutes}
        write_atomic(out / "request.json", json.dumps(request, indent=1, sort_keys=True))
        named = task_words or ["--model", task.model_id, "--train", "TRAIN", "--validation", "VALIDATION"]
        words = Words(named, recipe, head, exclude, task.heldout_seed)
        recorder = Recorder(out, request, parts.weights, skipped, words, task, show)
        threads = threads_of(limits.workers, engine)
        objective = FrontTrial(task, recipe, out / "plans", head, tuple(exclude), threads=threads)
        limited = limits.trials is not None or limits.minutes is not None
        running = make_engine(objective, engine, limits.workers)
        try:
            race = Race(
                candidates=candidates,
                book=book,
                engine=running,
                limits=limits,
                equivalents=None if limited else EQUIVALENTS,
                seeds=seeds,
                seed=seed,
                higher=task.higher_is_better,
                say=say,
                watch=recorder,
            )
            return recorder.record(race)
        finally:
            running.close()
    finally:
        book.close()


@dataclass
class Recorder:
    """Keeps ``front.json`` as the race goes.

    Args:
        out: The run folder.
        request: What was asked.
        weights: Of the model, without the head.
        skipped: What was left out before a trial was run.
        words: Writes commands.
        task: For the metric.
        show: Called after every trial.
        predicted: By candidate, the gain that the evidence predicts.
    """

    out: Path
    request: dict[str, Any]
    weights: int
    skipped: Sequence[Skipped]
    words: Words
    task: Task
    show: Callable[[Progress], None]
    predicted: dict[str, float] | None = None

    def record(self, race: Race) -> dict[str, Any]:
        """Run the race to its end; the file's last content.

        Raises:
            PareError: As the race; the file says what was finished until then.
            KeyboardInterrupt: The file says that it was interrupted.
        """
        try:
            race.run()
        except BaseException:
            if race.results:
                self.write(race, "interrupted")
            raise
        return self.write(race, "finished")

    def __call__(self, race: Race, spec: FrontSpec, scored: Scored) -> None:
        """Write the file anew, and show the trial."""
        self.write(race, "running")
        left = race.clock.left() or 0.0
        what = f"{race.rung}: {spec.candidate} at {spec.lr:g}"
        self.show(Progress(what, scored, len(race.results), race.clock.ahead.trials, left))

    def write(self, race: Race, status: Any) -> dict[str, Any]:
        """Write ``front.json``; what was written."""
        higher = self.task.higher_is_better
        impossible = race.impossible
        standings = [each for each in race.standings if each.candidate.name not in impossible]
        front = on_front(standings)
        found = {each.name: each for each in race.candidates}
        late = [
            Skipped(found[name].method, found[name].budget or "", reason)
            for name, reason in impossible.items()
        ]
        spent = race.spent
        return FrontFile(
            status=status,
            request=self.request,
            model_weights=self.weights,
            trials=[
                trial_row(spec, scored, self.words, self.out)
                for spec, scored in race.results.values()
                if not (spec.candidate in impossible and "plan" not in scored.details)
            ],
            candidates=[
                candidate_row(
                    each,
                    each.candidate.name in front,
                    (self.predicted or {}).get(each.candidate.name),
                    self.words,
                    higher,
                )
                for each in standings
            ],
            skipped=[*self.skipped, *late],
            recommendation=recommend(standings, self.task.metric, higher),
            cost={
                "trials": spent.trials,
                "equivalents": spent.equivalents,
                "seconds": race.clock.seconds,
                "trial_seconds": sum(scored.seconds for _, scored in race.results.values()),
                "training_seconds": sum(scored.training for _, scored in race.results.values()),
                "stated": race.stated,
            },
        ).save(self.out / "front.json")


def refuse_other(out: Path, command: str) -> None:
    """Refuse a folder that holds something else, before anything is written to it.

    Raises:
        PareError: It does.
    """
    path = out / "request.json"
    if path.exists():
        try:
            found = json.loads(path.read_text()).get("command", "tune")
        except (json.JSONDecodeError, AttributeError) as problem:
            raise PareError(f"{path}: is damaged ({problem}); give another --out") from problem
        if found != command:
            raise PareError(f"{out} holds a run of `paretune {found}`; give another --out")
    elif out.exists() and any(out.iterdir()) and not (out / JOURNAL).exists():
        raise PareError(f"{out} is not empty and holds no front; give another --out")
