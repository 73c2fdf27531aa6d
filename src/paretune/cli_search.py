"""``paretune search``: the command, and its line of progress."""

import json
import shlex
from argparse import Namespace
from collections.abc import Callable
from types import TracebackType
from typing import Any

from tqdm.auto import tqdm

from paretune.cli_engine import engine_of
from paretune.errors import PareError, near
from paretune.methods.designed import Designed
from paretune.progress import is_quiet, set_quiet
from paretune.search.ration import Limits
from paretune.search.search import search
from paretune.search.staged import Progress
from paretune.strategies import STRATEGIES
from paretune.tuning import Recipe


class Live:
    """One line while a search runs: stage, trials, the last choice and its score, the time left."""

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
        said = "diverged" if score is None else f"{score:.4f}"
        self._bar.total = progress.done + progress.ahead
        self._bar.n = progress.done
        left = f", about {progress.seconds / 60:.1f} min left" if progress.ahead else ""
        self._bar.set_description_str(f"{progress.stage}: {progress.trial.choice} {said}{left}")


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
    engine = engine_of(options)
    with Live() as live:
        set_quiet(True)  # the one line is enough: no bar for every trial
        result = search(
            task(options),
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
    setting = shlex.quote(f"file={design}")
    budget = shlex.quote(options.budget)
    print(f"train it: --method design --set {setting} --budget {budget} --lr {result['lr']:g}")
