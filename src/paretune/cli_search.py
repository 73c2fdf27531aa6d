"""``paretune search``: the command, and its line of progress."""

import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tqdm.auto import tqdm

from paretune.cli_engine import engine_of
from paretune.cli_live import Live
from paretune.cli_words import task_words
from paretune.errors import PareError, near
from paretune.methods.designed import Designed
from paretune.progress import set_quiet
from paretune.search.ration import Limits
from paretune.search.search import search
from paretune.search.words import Words
from paretune.strategies import STRATEGIES
from paretune.tuning import Recipe


def run(options: Namespace, task: Callable[[Namespace], Any], recipe: Recipe) -> None:
    """Search, and say how to train what was found.

    Args:
        options: The parsed options.
        task: Makes the task of the options.
        recipe: A whole training.

    Raises:
        PareError: As :func:`paretune.search.search.search`.
    """
    limits = Limits(options.trials, options.minutes, options.workers)
    strategies = options.strategies or list(STRATEGIES)
    for name in strategies:
        if name not in STRATEGIES:
            raise PareError(f"--strategies {name}: there is no such{near(name, STRATEGIES)}")
    for rate in options.lr or ():
        replace(recipe, lr=rate)  # refuses one that cannot be, before the data are read
    engine = engine_of(options)
    with Live() as live:
        set_quiet(True)  # the one line is enough: no bar for every trial
        data = task(options)
        result = search(
            data,
            options.budget,
            options.out,
            limits=limits,
            engine=engine,
            rates=options.lr or Designed.learning_rates,
            groups=options.groups,
            strategies=strategies,
            recipe=recipe,
            seed=options.seed,
            head=options.head,
            exclude=options.exclude,
            say=(lambda _: None) if options.json else lambda said: tqdm.write(str(said)),
            show=live.show,
        )
    if options.json:
        print(json.dumps(result))
        return
    design = options.out / "design.yaml"
    cost = f"{result['trials']} trials, worth {result['equivalents']:.0f} whole trainings"
    print(f"{cost}, {result['seconds'] / 60:.1f} minutes\n\n{design}:\n{design.read_text()}")
    words = Words(task_words(options), recipe, options.head, options.exclude, data.heldout_seed)
    settings = {"file": str(design)}
    again = words.chosen("design", settings, options.budget, result["lr"], options.seed, name="design")
    print(f"train it: {again}")
