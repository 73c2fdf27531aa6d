"""Which examples evidence is taken on: a seeded draw without replacement."""

import datasets
import numpy as np

from paretune.errors import PareError
from paretune.task import Task

__all__ = ["draw", "name_of"]


def draw(
    task: Task,
    samples: int,
    seed: int = 0,
    *,
    balanced: bool = False,
    split: str | datasets.Dataset = "train",
) -> np.ndarray:
    """Draw examples.

    Args:
        task: The task.
        samples: How many.
        seed: Seed of the draw.
        balanced: Draw as many of each class, up to one; a class that has too few gives all it has and the
            others fill up.
        split: The task's split, or a data set of its own.

    Returns:
        Indices into the split (int64, distinct), in the order drawn.

    Raises:
        PareError: There are fewer examples than samples. Balanced: a class has no example, there are fewer
            samples than classes, or the task has no classes.
    """
    rows = task.rows(split)
    where = name_of(split)
    if not 1 <= samples <= len(rows):
        raise PareError(
            f"samples={samples}: {where} has {len(rows)} examples; ask for 1 to {len(rows)} of them"
        )
    generator = np.random.default_rng(seed)
    if not balanced:
        return generator.choice(len(rows), samples, replace=False)
    if not task.labels:
        raise PareError(f"a balanced draw needs classes; for a {task.kind} task draw with balanced=False")
    if samples < len(task.labels):
        raise PareError(f"samples={samples}: a balanced draw of {len(task.labels)} classes needs as many")
    classes = np.asarray(rows["labels"])
    members = [generator.permutation(np.flatnonzero(classes == label)) for label in range(len(task.labels))]
    for label, those in zip(task.labels, members, strict=True):
        if not len(those):
            raise PareError(
                f"class {label!r} has no example in {where}; draw with balanced=False, or add some"
            )
    shares = _shares(np.array([len(those) for those in members]), samples, generator)
    chosen = [those[:share] for those, share in zip(members, shares, strict=True)]
    return generator.permutation(np.concatenate(chosen))


def _shares(sizes: np.ndarray, samples: int, generator: np.random.Generator) -> np.ndarray:
    """How many of each class: what a small class lacks is spread over the others."""
    shares = np.zeros(len(sizes), np.int64)
    while (missing := samples - int(shares.sum())) > 0:
        unused = np.flatnonzero(shares < sizes)
        each, odd = divmod(missing, len(unused))
        if each:  # a class may have fewer; the odd ones are given out once none is cut any more
            shares[unused] += each
        else:
            shares[generator.permutation(unused)[:odd]] += 1
        shares = np.minimum(shares, sizes)
    return shares


def name_of(split: str | datasets.Dataset) -> str:
    """What a message calls a split."""
    return split if isinstance(split, str) else "the data set"
