"""A small space, and searches of it for the tests."""

from paretune.search.book import Book
from paretune.search.engines import make_engine
from paretune.search.ration import Limits
from paretune.search.space import Space
from paretune.search.staged import Staged

SPACE = Space(
    {
        "rate": ("0.001", "0.01"),
        "grouping": ("increasing", "spindle", "uniform"),
        "allocation": ("increasing", "uniform", "decreasing"),
        "tuned": ("1+2", "1", "2"),
        "group 1": ("adapter", "bias", "lora", "adapter+lora"),
        "group 2": ("adapter", "bias", "lora", "adapter+lora"),
    }
)


def always(point):
    return None


def staged(folder, objective, *, limits=None, identity=None, seed=0, workers=1, **settings):
    """A search in a folder, with what must be closed."""
    limits = limits or Limits(workers=workers)
    book = Book(folder / "study.journal", identity or {"task": "a"})
    engine = make_engine(objective, workers=limits.workers)
    settings = {"space": SPACE, "refusal": always} | settings
    return Staged(book=book, engine=engine, limits=limits, seed=seed, **settings), book, engine


def run(folder, objective, **settings):
    """The outcomes of a whole search."""
    search, book, engine = staged(folder, objective, **settings)
    try:
        return search.run()
    finally:
        engine.close()
        book.close()


def calls(log):
    """What was trained, without the process that did it."""
    return [line.partition(" ")[2] for line in log.read_text().splitlines()]
