"""The options of the command line."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from paretune.errors import near

RECIPE: tuple[tuple[str, type, str], ...] = (
    ("epochs", float, "passes over the training data (3)"),
    ("steps", int, "optimiser steps, instead of epochs"),
    ("batch-size", int, "examples a forward pass (32)"),
    ("accumulation", int, "forward passes an optimiser step (1)"),
    ("warmup", float, "share of the steps that warm up (0.06)"),
    ("weight-decay", float, "decoupled weight decay (0)"),
    ("max-grad-norm", float, "clip the gradient's norm to this (1)"),
    ("checkpoints", int, "how many to write (10)"),
)

_LOOK = "look during this share of a training, such as 10%% (at the pretrained weights); adapeft"
_UNITS = "entries, rows, columns or blocks of 16 x 16 (entries); fish, ird, gradient, random"
# Settings of some methods with a flag of their own: name, metavar, help.
METHOD_FLAGS: tuple[tuple[str, str, str], ...] = (
    ("granularity", "WHAT", _UNITS),
    ("horizon", "SHARE", _LOOK),
    ("probe-model", "MODEL", "look at this smaller model, train the one of --model; adapeft"),
    ("probe-depth", "SHARE", "look at a copy with this share of the blocks; adapeft"),
)


class _Typed(argparse._StoreAction):
    """Store a value, and note its name in ``typed``: nobody asked for what is there by default."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        super().__call__(parser, namespace, values, option_string)
        namespace.typed = {*getattr(namespace, "typed", ()), self.dest}


class Parser(argparse.ArgumentParser):
    """argparse with a near miss named, and without the wall of usage before it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        self.register("action", None, _Typed)  # of every option that takes a value

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse, and say for an unknown option which one may have been meant."""
        words = list(sys.argv[1:] if args is None else args)
        options, unknown = self.parse_known_args(words, namespace)
        if unknown:
            self.error(f"no option {unknown[0]!r}{near(unknown[0], _options_of(self, words))}")
        return options

    def error(self, message: str) -> NoReturn:
        """Print one line and leave with 2."""
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def _options_of(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """Every option of a parser and of the commands under it that were named."""
    known: list[str] = []
    for action in parser._actions:
        known += action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                if name in words:
                    known += _options_of(command, words)
    return known


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(
        prog="paretune",
        description="Choose which parameters of a pretrained model to fine-tune; train and ship those.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    def add(name: str, text: str) -> Parser:
        return commands.add_parser(name, help=text, description=text)

    demo = add("demo", "The whole story on built-in data, in minutes on two cores.")
    _output(demo, default="runs/demo", prints=False)
    choose = add("choose", "Make a plan and look at it; nothing trains.")
    _task(choose)
    _method(choose)
    _output(choose, required=False)
    tune = add("tune", "Choose, train, score on validation, save the delta.")
    _task(tune)
    _method(tune)
    _training(tune)
    _auto(tune)
    _output(tune)
    front = add("front", "Try every method on your data, side by side; a table and one recommendation.")
    _task(front)
    _front(front)
    _output(front)
    search = add("search", "Refine a design space in stages; the found design is a file for tune.")
    _task(search)
    _search(search)
    _output(search)
    report = add("report", "Write report.html and report.json into the folder of a run.")
    report.add_argument("run", type=Path, help="the --out of a front, search or tune, finished or not")
    add("methods", "What there is to choose with, and its settings.")
    _delta(add("delta", "Inspect, verify, apply, merge and export deltas."))
    return parser


def _task(parser: Parser) -> None:
    group = parser.add_argument_group("the model and the data")
    group.add_argument("--model", required=True, help="folder or Hub id of the pretrained model")
    group.add_argument(
        "--train", required=True, help="JSON lines, CSV, TSV or Parquet file, or a Hub data set"
    )
    group.add_argument("--validation", help="scored once, at the end, by tune")
    group.add_argument(
        "--kind", help="classification, regression, causal-lm or seq2seq (default: from the data)"
    )
    group.add_argument("--text", nargs="+", help="one or two text fields (default: found by their names)")
    group.add_argument("--label", help="the label field (default: found by its name)")
    group.add_argument("--metric", help="the main metric (default: by kind)")
    group.add_argument("--positive", help="the class whose F1 is reported (default: by the labels)")
    group.add_argument("--separator", default="", help="between a prompt and its completion (nothing)")
    group.add_argument("--revision", help="of the model on the Hub")
    group.add_argument(
        "--max-length", type=int, default=128, help="tokens; longer texts are cut (%(default)s)"
    )
    group.add_argument(
        "--heldout", type=float, default=0.1, help="share of train kept for choices (%(default)s)"
    )
    group.add_argument("--heldout-seed", type=int, help="of that draw (default: --seed)")
    group.add_argument("--precision", default="fp32", choices=["fp32", "amp", "bf16"], help=_PRECISION)
    group.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")


_OVERLAP = (
    "what holds where deltas disagree: nothing (%(default)s), the mean in the head alone, the mean, the last"
)
_PRECISION = (
    "fp32; amp: autocast over an fp32 base, in bf16 (in fp16 on GPUs without it); bf16: base in bf16, fp32 "
    "masters for what is trained (%(default)s)"
)


def _method(parser: Parser) -> None:
    group = parser.add_argument_group("what to train")
    group.add_argument("--method", default="fish", help="see `paretune methods`; auto (%(default)s)")
    group.add_argument("--budget", help="0.5%%, 120k, 120000, or 2MiB of delta")
    group.add_argument(
        "--head", default="outside", choices=["outside", "inside"], help="the budget (%(default)s)"
    )
    group.add_argument(
        "--exclude", nargs="+", default=[], help="patterns of tensors that may not be selected"
    )
    group.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of the method")
    for name, metavar, text in METHOD_FLAGS:
        group.add_argument(f"--{name}", metavar=metavar, help=text)
    group.add_argument("--seed", type=int, default=0, help="for everything drawn (%(default)s)")


def _training(parser: Parser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("--plan", help="train this plan (a folder) instead of choosing one")
    group.add_argument("--lr", help="a rate, or sweep (default: the middle of the method's range)")
    _recipe(group)
    group.add_argument("--delta-dtype", choices=["fp32", "bf16"], help="of the shipped values (the base's)")
    group.add_argument("--reselect", type=int, metavar="STEPS", help="choose the mask again so often (never)")
    group.add_argument("--report-to", nargs="+", default=["none"], help="tensorboard, trackio, ... (none)")


def _auto(parser: Parser) -> None:
    group = parser.add_argument_group("with --method auto")
    group.add_argument("--for-memory", metavar="SIZE", help="train within that much memory, such as 6GiB")
    group.add_argument("--for-bytes", metavar="SIZE", help="ship at most that much, such as 500KiB")
    group.add_argument("--minutes", type=float, help="of the trials, in all")
    _engine(group)


def _front(parser: Parser) -> None:
    group = parser.add_argument_group("the front")
    group.add_argument(
        "--methods", nargs="+", metavar="METHOD", help="such as fish or lora:targets=all (default: the field)"
    )
    group.add_argument("--budgets", nargs="+", default=["0.5%"], metavar="BUDGET", help="(%(default)s)")
    group.add_argument("--trials", type=int, help="in all (default: 25 whole trainings' worth)")
    group.add_argument("--minutes", type=float, help="in all, those before an interruption included")
    group.add_argument("--seeds", type=int, default=3, help="of a finalist, at least (%(default)s)")
    _engine(group)
    group.add_argument(
        "--head", default="outside", choices=["outside", "inside"], help="the budget (%(default)s)"
    )
    group.add_argument("--exclude", nargs="+", default=[], help="patterns of tensors that stay as they are")
    group.add_argument("--seed", type=int, default=0, help="the first seed (%(default)s)")
    _recipe(parser.add_argument_group("a whole training, of which trials take a share"))


def _engine(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--engine", help="who runs trials: here, workers, ray (default: by --workers)")
    group.add_argument("--workers", type=int, default=1, help="trials at a time (%(default)s)")
    group.add_argument("--address", metavar="HOST:PORT", help="of the Ray cluster's head (RAY_ADDRESS)")
    group.add_argument("--trial-cpus", type=float, metavar="N", help="of the cluster, for a trial (1)")
    group.add_argument("--trial-gpus", type=float, metavar="N", help="such as 0.5, for a trial (0)")


def _search(parser: Parser) -> None:
    group = parser.add_argument_group("the search")
    group.add_argument("--budget", required=True, help="0.5%%, 120k, 120000, or 2MiB of delta")
    group.add_argument("--trials", type=int, help="in all (default: two draws for each choice and rung)")
    group.add_argument("--minutes", type=float, help="in all (no limit)")
    _engine(group)
    group.add_argument("--groups", type=int, default=4, help="of consecutive blocks (%(default)s)")
    group.add_argument("--strategies", nargs="+", help="what a group may have (default: all there are)")
    group.add_argument("--lr", type=float, nargs="+", help="rates; several are settled first")
    group.add_argument(
        "--head", default="outside", choices=["outside", "inside"], help="the budget (%(default)s)"
    )
    group.add_argument("--exclude", nargs="+", default=[], help="patterns of tensors that stay as they are")
    group.add_argument("--seed", type=int, default=0, help="for everything drawn (%(default)s)")
    _recipe(parser.add_argument_group("a whole training, of which trials take a share"))


def _recipe(group: argparse._ArgumentGroup) -> None:
    for name, kind, text in RECIPE:
        group.add_argument(f"--{name}", type=kind, help=text)
    group.add_argument("--gradient-checkpointing", action="store_true", help="less memory, more time")


def _output(parser: Parser, default: str | None = None, required: bool = True, prints: bool = True) -> None:
    group = parser.add_argument_group("output")
    text = "a folder" + (f" ({default})" if default else "")
    group.add_argument("--out", type=Path, required=required and not default, default=default, help=text)
    group.add_argument("--quiet", action="store_true", help="no progress bars")
    if prints:
        group.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else")


def _delta(parser: Parser) -> None:
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=Parser)

    def add(name: str, text: str, **file: Any) -> Parser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("file", type=Path, **file)
        return command

    inspect = add("inspect", "What is in a delta.")
    inspect.add_argument("--json", action="store_true", help="as JSON")
    verify = add("verify", "Whether a delta is whole, and fits its base.")
    verify.add_argument("--model", help="folder or Hub id of the base (default: the file alone is checked)")
    apply = add("apply", "Write a merged checkpoint that transformers loads.")
    apply.add_argument("--model", help="folder or Hub id of the base (default: the one it was trained on)")
    apply.add_argument("--out", type=Path, required=True, help="a new folder")
    merge = add("merge", "Make one delta out of several of one base.", nargs="+")
    merge.add_argument("--overlap", default="error", choices=["error", "head", "mean", "last"], help=_OVERLAP)
    merge.add_argument("--out", type=Path, required=True, help="a new file")
    export = add("export", "Write a peft adapter; for deltas that are LoRA only.")
    export.add_argument("--out", type=Path, required=True, help="a new folder")
