"""The command line: parse, call, print."""

import io
import json
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from paretune.cli_settings import method_settings
from paretune.cli_tuned import print_tuned, refuse_beside_plan, refuse_only_auto, talk_aside
from paretune.completion import complete
from paretune.errors import PareError
from paretune.options import RECIPE, build_parser
from paretune.ranks import is_first, refuse_several

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 when it worked; 2 for input that cannot be used (one line says what, and the way out); 130 after
        Ctrl-C (the same command goes on where it was; choose, which writes at its end, starts anew); 1 when
        the system refused (a full disk).
    """
    parser = build_parser()
    complete(parser)
    options = parser.parse_args(arguments)
    _prepare(options)
    try:
        with nullcontext() if is_first() else redirect_stdout(io.StringIO()):
            COMMANDS[options.command](options)
            _leave_page(options)
    except PareError as problem:
        print(f"paretune: error: {problem}", file=sys.stderr)
        return BAD_INPUT
    except OSError as problem:
        print(f"paretune: error: {problem}", file=sys.stderr)
        return FAILED
    except RuntimeError as problem:
        import torch

        if not isinstance(problem, torch.OutOfMemoryError):
            raise
        print(
            f"paretune: error: {problem}\nA smaller --batch-size, --precision bf16 or a shorter --max-length "
            "needs less; CUDA_VISIBLE_DEVICES= before the command computes on the CPU.",
            file=sys.stderr,
        )
        return FAILED
    except KeyboardInterrupt:
        then = "starts anew" if options.command == "choose" else "goes on where it was"
        print(f"\nparetune: interrupted; the same command {then}", file=sys.stderr)
        return INTERRUPTED
    return OK


def _leave_page(options: Namespace) -> None:
    from paretune import cli_report

    if options.command in cli_report.WITH_PAGE and is_first():
        cli_report.after(options)


def _prepare(options: Namespace) -> None:
    """Progress bars on or off; the libraries' own chatter down."""
    from transformers.utils import logging

    from paretune.progress import set_quiet

    set_quiet(getattr(options, "quiet", False) or getattr(options, "json", False))
    logging.set_verbosity_error()


def _task(options: Namespace) -> Any:
    from paretune.task import Task

    text = options.text
    return Task.from_files(
        options.train,
        options.validation,
        model=options.model,
        kind=options.kind,
        text=text[0] if text and len(text) == 1 else tuple(text) if text else None,
        label=options.label,
        metric=options.metric,
        positive=options.positive,
        separator=options.separator.replace("\\n", "\n"),
        revision=options.revision,
        max_length=options.max_length,
        heldout=options.heldout,
        seed=options.seed if options.heldout_seed is None else options.heldout_seed,
        trust_remote_code=options.trust_remote_code,
    )


def _recipe(options: Namespace) -> Any:
    from paretune.tuning import Recipe

    names = [name.replace("-", "_") for name, _, _ in RECIPE]
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return Recipe(
        lr=1.0,  # replaced by --lr
        precision=options.precision,
        gradient_checkpointing=options.gradient_checkpointing,
        **given,
    )


def _rate(text: str | float | None) -> Any:
    """The learning rate asked for.

    Raises:
        PareError: Neither ``sweep`` nor a number that one can be.
    """
    from paretune.tuning import Recipe

    if text is None or text == "sweep":
        return text
    try:
        rate = float(text)
    except ValueError:
        raise PareError(f"--lr {text}: give a number such as 1e-3, or sweep") from None
    return Recipe(lr=rate).lr


def _demo(options: Namespace) -> None:
    refuse_several("paretune demo")
    from paretune.demo import run

    run(Path(options.out))


def _choose(options: Namespace) -> None:
    import torch

    from paretune.methods import choose

    settings = method_settings(options)
    task = _task(options)
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    plan = choose(
        options.method,
        task.load_model(seed=options.seed, dtype=dtype),
        task,
        options.budget,
        seed=options.seed,
        head=options.head,
        exclude=options.exclude,
        **settings,
    )
    if options.out and is_first():
        plan.save(options.out)
    print(json.dumps(plan.document(), indent=1) if options.json else plan)


def _tune(options: Namespace) -> None:
    if options.method == "auto":
        refuse_several("paretune tune --method auto")
        from paretune import cli_auto

        cli_auto.run(options, _task, _recipe(options))
        return
    refuse_only_auto(options)
    from paretune.plan import Plan
    from paretune.search.tune import tune

    plan = Plan.load(options.plan) if options.plan else None
    if plan:
        refuse_beside_plan(options, plan)
    settings = method_settings(options)
    lr, recipe = _rate(options.lr), _recipe(options)
    say = (lambda *_: None) if options.json or options.quiet else print
    with talk_aside(options.json):
        result = tune(
            _task(options),
            options.method,
            options.budget,
            options.out,
            lr=lr,
            recipe=recipe,
            seed=options.seed,
            head=options.head,
            exclude=options.exclude,
            delta_dtype=options.delta_dtype,
            settings=settings,
            plan=plan,
            reselect=options.reselect,
            say=say,
            report_to=options.report_to,
        )
    print_tuned(result, options.out, options.json)


def _search(options: Namespace) -> None:
    refuse_several("paretune search")
    from paretune import cli_search

    cli_search.run(options, _task, _recipe(options))


def _front(options: Namespace) -> None:
    refuse_several("paretune front")
    from paretune import cli_front

    cli_front.run(options, _task, _recipe(options))


def _methods(options: Namespace) -> None:
    from paretune.cli_methods import print_methods

    print_methods()


def _delta(options: Namespace) -> None:
    from paretune import cli_delta

    getattr(cli_delta, options.action)(options)


def _report(options: Namespace) -> None:
    from paretune import cli_report

    cli_report.run(options)


COMMANDS: dict[str, Callable[[Namespace], None]] = {
    "demo": _demo,
    "choose": _choose,
    "tune": _tune,
    "front": _front,
    "search": _search,
    "report": _report,
    "methods": _methods,
    "delta": _delta,
}

if __name__ == "__main__":
    sys.exit(main())
