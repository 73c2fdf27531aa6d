"""``paretune front``: the command, and its line of progress."""

import json
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from paretune.cli_engine import engine_of
from paretune.cli_live import Live
from paretune.progress import set_quiet
from paretune.search.field import FIELD
from paretune.search.front import front
from paretune.search.front_table import front_table
from paretune.search.ration import Limits
from paretune.tuning import Recipe

_TASK = ("model", "train", "validation", "kind", "label", "metric", "positive", "revision")
_DEFAULTS = {"max_length": 128, "heldout": 0.1, "separator": ""}


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
    """The words that name the model and the data, for commands that train something again.

    ``tune`` scores on validation: where a front was given none, the word stands for it.
    """
    words: list[str] = []
    for name in (*_TASK, *_DEFAULTS):
        value = getattr(options, name)
        if name == "validation" and value is None and Path(options.train).exists():
            value = "VALIDATION"  # a data set on the Hub may have its own
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
