"""The one error class for input that cannot be used."""

import difflib
from collections.abc import Iterable


class PareError(ValueError):
    """Input that cannot be used: the message names the thing and the way out."""


class BudgetError(PareError):
    """The budget holds nothing of what is asked; a larger one is the way out."""


class DivergedError(PareError):
    """Training left the finite numbers; a smaller learning rate is the way out."""


def near(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` when something known is spelled much like ``name``, else nothing."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {matches[0]!r}?)" if matches else ""
