"""``paretune tune --method auto``: the command."""

from argparse import Namespace
from collections.abc import Callable
from typing import Any

from tqdm.auto import tqdm

from paretune.budget import Budget
from paretune.cli_engine import engine_of
from paretune.cli_live import Live
from paretune.cli_tuned import print_tuned, talk_aside
from paretune.cli_words import task_words
from paretune.errors import PareError
from paretune.options import METHOD_FLAGS
from paretune.progress import set_quiet
from paretune.search.auto import auto
from paretune.search.ration import Limits
from paretune.tuning import Recipe


def run(options: Namespace, task: Callable[[Namespace], Any], recipe: Recipe) -> None:
    """Let evidence and short trials choose, train the winner, and print its result.

    Args:
        options: The parsed options.
        task: Makes the task of the options.
        recipe: A whole training.

    Raises:
        PareError: As :func:`paretune.search.auto.auto`, or an option that auto settles itself.
    """
    for name in ("set", "plan", "lr", "reselect", *(flag for flag, *_ in METHOD_FLAGS)):
        if getattr(options, name.replace("-", "_")):
            raise PareError(f"--{name}: --method auto settles that itself; leave it out, or name a method")
    if options.budget is not None and options.for_bytes is not None:
        raise PareError("--budget and --for-bytes both say how much may be trained; give one of them")
    memory = None if options.for_memory is None else _bytes("--for-memory", options.for_memory)
    if options.for_bytes is not None:
        _bytes("--for-bytes", options.for_bytes)
    engine = engine_of(options)
    with talk_aside(options.json), Live() as live:
        set_quiet(True)  # the one line is enough: no bar for every trial
        result = auto(
            task(options),
            options.out,
            budget=options.for_bytes or options.budget,
            memory=memory,
            limits=Limits(None, options.minutes, options.workers),
            recipe=recipe,
            engine=engine,
            seed=options.seed,
            head=options.head,
            exclude=options.exclude,
            delta_dtype=options.delta_dtype,
            task_words=task_words(options),
            say=(lambda _: None) if options.json else lambda said: tqdm.write(str(said)),
            show=live.show,
            report_to=options.report_to,
        )
    print_tuned(result, options.out, options.json)


def _bytes(option: str, text: str) -> int:
    """A size such as 6GiB.

    Raises:
        PareError: It is none.
    """
    size = Budget.parse(text)
    if size.unit != "bytes":
        raise PareError(f"{option} {text}: give a size such as 500KiB or 6GiB")
    return int(size.value)
