"""What a shell completes after an option, known without the libraries that a command loads.

A key press waits for the answer, and to import the methods would take seconds.
"""

import argparse
from functools import partial
from typing import Any

METHOD_NAMES = (
    "full",
    "head",
    "bitfit",
    "norm",
    "lora",
    "adapter",
    "prefix",
    "bias",
    "design",
    "s4",
    "random",
    "magnitude",
    "gradient",
    "fish",
    "ird",
    "adapeft",
    "mixture",
)
WORDS: dict[str, tuple[str, ...]] = {  # options whose words are checked later than by the parser
    "--method": (*METHOD_NAMES, "auto"),
    "--methods": METHOD_NAMES,
    "--kind": ("classification", "regression", "causal-lm", "seq2seq"),
    "--granularity": ("entries", "rows", "columns", "blocks"),
    "--engine": ("here", "workers", "ray"),
    "--strategies": ("lora", "adapter", "prefix", "bias"),
    "--report-to": ("tensorboard", "trackio", "none"),
}


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell and leave, when it is the shell that asks; otherwise nothing happens."""
    import argcomplete

    _offer_words(parser)
    argcomplete.autocomplete(parser)


def _offer_words(parser: argparse.ArgumentParser) -> None:
    """Give the options of a parser, and of the commands under it, their words."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _offer_words(command)
        for words in (WORDS[name] for name in action.option_strings if name in WORDS):
            action.completer = partial(_words, words)  # type: ignore[attr-defined]  # argcomplete's door


def _words(words: tuple[str, ...], **_: Any) -> tuple[str, ...]:
    return words
