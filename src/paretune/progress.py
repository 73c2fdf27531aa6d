"""Progress bars on everything longer than a few seconds; silent when asked, and on other ranks."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm.auto import tqdm

from paretune.ranks import is_first

Item = TypeVar("Item")
_quiet = False


def set_quiet(quiet: bool) -> None:
    """Turn every progress bar of this process off (or on again)."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """Whether bars are off: asked for, or this process is not the first of a distributed run."""
    return _quiet or not is_first()


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items behind a progress bar that shows up after two seconds.

    Args:
        items: What to go through.
        description: One or two words before the bar.
        total: How many items there are; asked from ``items`` when it knows.
    """
    yield from tqdm(items, desc=description, total=total, delay=2.0, disable=is_quiet(), leave=False)
