"""``paretune front``: the command, and its line of progress."""

import json
from argparse import Namespace
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from tqdm.auto import tqdm

from paretune.cli_engine import engine_of
from paretune.progress import is_quiet, set_quiet
from paretune.search.field import FIELD
from paretune.search.front import Progress, front
from paretune.search.front_table import front_table
from paretune.search.ration import Limits
from paretune.tuning import Recipe

_TASK = ("model", "train", "validation", "kind", "label", "metric", "positive", "revision")
_DEFAULTS = {"max_length": 128, "heldout": 0.1, "separator": ""}


class Live:
    """One line while trials run: what for, how many, the last one and its score, the time left."""

    def __init__(self) -> None:
        form = "{n_fmt}/{total_fmt} trials |{bar:20}| {desc}"
        self._bar = tqdm(total=1, bar_format=form, disable=is_quiet(), leave=False, dynamic_ncols=True)

    def __enter__(self) -> "Live":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def show(self, progress: Progress) -> None:
        """Take a finished trial in."""
        score = progress.scored.score
        said = "failed" if score is None else f"{score:.4f}"
        self._bar.total = progress.done + progress.ahead
        self._bar.n = progress.done
        left = f", about {progress.seconds / 60:.1f} min left" if progress.ahead else ""
        spec = progress.spec
        self._bar.set_description_str(f"{progress.rung}: {spec.candidate} at {spec.lr:g} {said}{left}")


def run(options: Namespace, task: Callable[[Namespace], Any], recipe: Recipe) -> None:
    """Make a front, and print it.

    Args:
        options: The parsed options.
        task: Makes the task of the options.
        recipe: A whole training.

    Raises:
        PareError: As :func:`paretune.search.front.front`.
    """
    limits = Limits(options.trials, options.minutes, options.workers)
    engine = engine_of(options)
    with Live() as live:
        set_quiet(True)  # the one line is enough: no bar for every trial
        result = front(
            task(options),
            options.out,
            methods=_listed(options.methods) or FIELD,
            budgets=_listed(options.budgets),
            limits=limits,
            seeds=options.seeds,
            recipe=recipe,
            engine=engine,
            seed=options.seed,
            head=options.head,
            exclude=options.exclude,
            task_words=task_words(options),
            say=(lambda _: None) if options.json else lambda said: tqdm.write(str(said)),
            show=live.show,
        )
    print(json.dumps(result) if options.json else f"\n{front_table(result)}\n\n{_next(result)}")


def task_words(options: Namespace) -> list[str]:
    """The words that name the model and the data, for commands that train something again."""
    words: list[str] = []
    for name in (*_TASK, *_DEFAULTS):
        value = getattr(options, name)
        if value is not None and value != _DEFAULTS.get(name):
            words += [f"--{name.replace('_', '-')}", str(value)]
    words += ["--text", *options.text] if options.text else []
    return words + (["--trust-remote-code"] if options.trust_remote_code else [])


def _listed(values: Sequence[str] | None) -> list[str]:
    """``a,b c`` as a list."""
    return [part for value in values or () for part in value.split(",") if part]


def _next(result: dict[str, Any]) -> str:
    """How to train what is recommended."""
    advice = result["recommendation"]
    row = next(row for row in result["candidates"] if row["name"] == advice["candidate"])
    return f"train it: {row['command']}"
