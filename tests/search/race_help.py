"""Races of planted candidates for the tests."""

from paretune.search.book import Book
from paretune.search.engines import make_engine
from paretune.search.field import Candidate
from paretune.search.race import Race
from paretune.search.ration import Limits

NAMES = ("head", "lora", "adapter", "random", "fish", "full")


def candidate(method, budget="1%"):
    sized = method not in ("head", "full")
    return Candidate(method, {}, budget if sized else None, None if method == "full" else budget, 0.005)


CANDIDATES = [candidate(method) for method in NAMES]


def race(folder, objective, *, limits=None, candidates=CANDIDATES, identity=None, engine=None, **settings):
    """A whole race in a folder."""
    limits = limits or Limits()
    book = Book(folder / "study.journal", identity or {"task": "a"})
    running = make_engine(objective, engine, limits.workers)
    settings = {"equivalents": 25.0 if limits.trials is None and limits.minutes is None else None} | settings
    made = Race(candidates, book, running, limits, **settings)
    try:
        made.run()
    finally:
        running.close()
        book.close()
    return made
