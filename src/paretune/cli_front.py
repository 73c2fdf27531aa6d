"""``paretune front``: the command, and its line of progress."""

import json
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

from tqdm.auto import tqdm

from paretune.cli_engine import engine_of
from paretune.cli_live import Live
from paretune.cli_words import task_words
from paretune.progress import set_quiet
from paretune.search.field import FIELD
from paretune.search.front import front
from paretune.search.front_table import front_table
from paretune.search.ration import Limits
from paretune.tuning import Recipe


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


def _listed(values: Sequence[str] | None) -> list[str]:
    """``a,b c`` as a list."""
    return [part for value in values or () for part in value.split(",") if part]


def _next(result: dict[str, Any]) -> str:
    """How to train what is recommended."""
    advice = result["recommendation"]
    row = next(row for row in result["candidates"] if row["name"] == advice["candidate"])
    return f"train it: {row['command']}"
