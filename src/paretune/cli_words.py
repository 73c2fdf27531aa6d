"""The words of a command that name the model and the data, for commands that train something again."""

from argparse import Namespace
from pathlib import Path

_TASK = ("model", "train", "validation", "kind", "label", "metric", "positive", "revision")
_DEFAULTS = {"max_length": 128, "heldout": 0.1, "separator": ""}


def task_words(options: Namespace) -> list[str]:
    """These words, as the options were given.

    ``tune`` scores on validation: where none was given, the word stands for it.
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
