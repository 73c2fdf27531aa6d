"""``paretune methods``: what there is to choose with, and its settings."""

import textwrap
from dataclasses import fields

from paretune.methods import METHODS

WIDTH = 80  # columns
NAME = 11  # columns of a method's name


def print_methods() -> None:
    """Print every method with what it does, its learning rates and its settings."""
    for name, method in METHODS.items():
        rates = ", ".join(f"{rate:g}" for rate in method.learning_rates)
        size = "fits any budget" if method.sized else "has its own size"
        _print(f"{name:<{NAME}}{method.summary}", 0)
        at = " at 0.5 %, higher below, lower above" if method.rate_power else ""
        _print(f"{size}; --lr sweep: {rates}{at}", NAME + 2)
        settings = [f"{field.name}={field.default}" for field in fields(method)]  # type: ignore[arg-type]
        if settings:
            _print(f"--set {', '.join(settings)}", NAME + 2)
    _print(f"{'auto':<{NAME}}for tune: evidence and short trials choose among these; docs/front.md", 0)


def _print(text: str, indent: int) -> None:
    """A paragraph of at most 80 columns; its further lines stand below what follows the name."""
    further = " " * (max(indent, NAME) + (6 if text.startswith("--set ") else 0))
    print(
        textwrap.fill(
            text,
            WIDTH,
            initial_indent=" " * indent,
            subsequent_indent=further,
            break_long_words=False,
            break_on_hyphens=False,
        )
    )
