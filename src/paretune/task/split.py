"""Seeded choice of rows, with the classes in their proportions."""

from collections.abc import Sequence

import numpy as np

from paretune.errors import PareError


def draw(
    size: int, count: int, seed: int, classes: Sequence[int] | None = None, spare: int = 0
) -> np.ndarray:
    """Draw rows without replacement.

    Args:
        size: How many rows there are.
        count: How many to draw; fewer come back where `spare` leaves no more.
        seed: Seed of the draw.
        classes: The class of each row, to draw from every class its share (largest remainders); None draws
            from all alike.
        spare: How many rows of every class (or of all) must stay behind.

    Returns:
        Row numbers, int64, strictly increasing.
    """
    generator = np.random.default_rng(seed)
    groups = [np.arange(size)]
    if classes is not None:
        numbers = np.asarray(classes)
        groups = [np.flatnonzero(numbers == number) for number in np.unique(numbers)]
    quotas = _quotas([len(group) for group in groups], min(count, size), spare)
    drawn = [generator.permutation(group)[:quota] for group, quota in zip(groups, quotas, strict=True)]
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def hold_out(
    size: int, share: float, seed: int, name: str, classes: Sequence[int] | None = None
) -> np.ndarray:
    """Draw the held-out rows: the share of all, at least one, with one of each class left to train on.

    Raises:
        PareError: The rows are too few to hold any out.
    """
    held = draw(size, max(1, round(share * size)), seed, classes, spare=1)
    if not len(held):
        raise PareError(
            f"{name}: {size} rows are too few to hold {share:.0%} of them out; give more rows, or heldout=0"
        )
    return held


def _quotas(sizes: Sequence[int], count: int, spare: int) -> list[int]:
    """How many of each group: its share of `count`, rounded by largest remainders, leaving `spare` behind."""
    room = [max(0, size - spare) for size in sizes]
    exact = [count * size / max(1, sum(sizes)) for size in sizes]
    quotas = [min(int(share), most) for share, most in zip(exact, room, strict=True)]
    order = sorted(range(len(sizes)), key=lambda group: (quotas[group] - exact[group], group))
    while sum(quotas) < count and any(quota < most for quota, most in zip(quotas, room, strict=True)):
        for group in order:
            if sum(quotas) < count and quotas[group] < room[group]:
                quotas[group] += 1
    return quotas
