"""Which training examples evidence is taken on: a seeded draw without replacement."""

from typing import Any

import numpy as np

from paretune.errors import PareError

__all__ = ["draw"]


def draw(
    task: Any, samples: int, seed: int = 0, *, balanced: bool = False, split: str = "train"
) -> np.ndarray:
    """Draw examples.

    Args:
        task: The task; its data set of the split is drawn from.
        samples: How many.
        seed: Seed of the draw.
        balanced: Draw the same number of each class (up to one, up to a class having no more); for
            classification.
        split: Name of the data set.

    Returns:
        Indices into the data set (int64, distinct), in the order drawn.

    Raises:
        PareError: There are fewer examples than samples; balanced, a class has none, or there are fewer
            samples than classes, or the task has no classes.
    """
    data = getattr(task, split)
    if not 1 <= samples <= len(data):
        raise PareError(
            f"samples: {samples} asked for, but {split} has {len(data)} examples; ask for 1 to {len(data)}"
        )
    generator = np.random.default_rng(seed)
    if not balanced:
        return generator.choice(len(data), samples, replace=False)
    if task.kind != "classification":
        raise PareError(
            f"a balanced draw needs classes; this is a {task.kind} task, so draw with balanced=False"
        )
    classes = np.asarray(data["labels"])
    members = [generator.permutation(np.flatnonzero(classes == label)) for label in range(len(task.labels))]
    empty = [task.labels[label] for label, those in enumerate(members) if not len(those)]
    if empty:
        raise PareError(
            f"class {empty[0]!r} has no example in {split}; draw with balanced=False or add examples of it"
        )
    if samples < len(members):
        raise PareError(
            f"samples: {samples} cannot hold each of {len(members)} classes; ask for {len(members)} or more"
        )
    return generator.permutation(
        np.concatenate([m[:c] for m, c in zip(members, _shares(members, samples, generator), strict=True)])
    )


def _shares(members: list[np.ndarray], samples: int, generator: np.random.Generator) -> np.ndarray:
    """How many of each class: equal, what a small class lacks is spread over the others."""
    sizes = np.array([len(those) for those in members])
    shares = np.zeros(len(members), np.int64)
    while (missing := samples - int(shares.sum())) > 0:
        open_classes = np.flatnonzero(shares < sizes)
        each, odd = divmod(missing, len(open_classes))
        shares[open_classes] += each
        shares[generator.permutation(open_classes)[:odd]] += 1
        shares = np.minimum(shares, sizes)
    return shares
