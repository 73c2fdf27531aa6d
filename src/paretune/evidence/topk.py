"""The k largest of hundreds of millions of scores: exact, deterministic, without a second copy of them.

Scores are mapped to unsigned integers of the same order; the k-th key is then found 16 bits at a time from
counts of the keys that share the bits found so far (a radix select). Only one chunk is copied at any time.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from paretune.errors import PareError

__all__ = ["top_k"]

_CHUNK = 1 << 20
_DIGIT = 16  # bits found in one sweep

Scores = torch.Tensor | np.ndarray[Any, Any]


def top_k(
    scores: Mapping[str, Scores],
    k: int,
    *,
    largest: bool = True,
    scale: Mapping[str, float] | None = None,
) -> dict[str, np.ndarray]:
    """Choose the k largest (or smallest) of all scores together.

    Of equal scores those of earlier tensors come first (in the mapping's order), within a tensor those of
    smaller flat index. Minus zero equals zero. Beside the scores, memory is one chunk and the answer.

    Args:
        scores: By tensor its scores, any shape and floating dtype, any device.
        k: How many to choose, from 0 to the number of scores.
        largest: Choose the largest, else the smallest.
        scale: By tensor a factor on its scores (a tensor not named has 1); the products are compared in
            float64.

    Returns:
        By tensor, in the order of `scores`, the chosen flat indices (int64, strictly increasing, C order), k
        in all; tensors of which nothing was chosen are left out.

    Raises:
        PareError: k is out of range, a score is NaN, or a factor is not a finite number above zero.
    """
    total = sum(_size(values) for values in scores.values())
    if not 0 <= k <= total:
        raise PareError(f"cannot choose {k} of {total} scores; ask for 0 to {total}")
    for name, factor in (scale or {}).items():
        if not (np.isfinite(factor) and factor > 0):
            raise PareError(f"{name}: the factor {factor} on its scores must be a finite number above zero")
    selection = _Selection(scores, largest, scale or {})
    selection.refuse_nan()
    if k == 0:
        return {}
    threshold, ties = selection.threshold(k)
    return selection.above(threshold, ties)


def _size(values: Scores) -> int:
    """How many scores a tensor has."""
    return values.numel() if isinstance(values, torch.Tensor) else values.size


class _Selection:
    """Sweeps over all scores, a chunk of keys at a time; a greater key is chosen earlier."""

    def __init__(self, scores: Mapping[str, Scores], largest: bool, scale: Mapping[str, float]) -> None:
        self._scores, self._largest, self._scale = scores, largest, scale
        wide = bool(scale) or any(values.dtype in (torch.float64, np.float64) for values in scores.values())
        self._float: Any = np.float64 if wide else np.float32
        self._key: Any = np.uint64 if wide else np.uint32
        self._bits = np.dtype(self._key).itemsize * 8

    def _values(self) -> Iterator[tuple[str, int, np.ndarray]]:
        """Chunks of scores: the tensor, the flat index of the first, the scores."""
        for name, values in self._scores.items():
            flat = values.reshape(-1)
            for start in range(0, _size(values), _CHUNK):
                chunk = flat[start : start + _CHUNK]
                if isinstance(chunk, torch.Tensor):
                    wide = torch.float64 if self._float is np.float64 else torch.float32
                    chunk = chunk.detach().to("cpu", wide).numpy()
                chunk = chunk.astype(self._float)
                factor = self._scale.get(name)
                yield name, start, chunk if factor is None else chunk * factor

    def refuse_nan(self) -> None:
        """See `top_k`."""
        for name, start, chunk in self._values():
            if np.isnan(chunk).any():
                index = start + int(np.isnan(chunk).argmax())
                raise PareError(
                    f"{name}: the score at flat index {index} is NaN; look for gradients that overflowed"
                )

    def _keys(self) -> Iterator[tuple[str, int, np.ndarray]]:
        """Chunks of keys, as `_values`."""
        sign = self._key(1 << (self._bits - 1))
        for name, start, chunk in self._values():
            chunk += 0.0  # minus zero becomes zero
            keys = chunk.view(self._key)
            # Floats of one sign are ordered as their bits, the negative ones the other way round.
            keys = np.where(keys & sign, ~keys, keys | sign)
            yield name, start, keys if self._largest else ~keys

    def threshold(self, k: int) -> tuple[int, int]:
        """The k-th greatest key and how many keys equal to it are chosen."""
        prefix, remaining = 0, k
        for shift in range(self._bits - _DIGIT, -1, -_DIGIT):
            counts = np.zeros(1 << _DIGIT, np.int64)
            for _, _, keys in self._keys():
                digits = keys >> self._key(shift)
                if shift + _DIGIT < self._bits:
                    mine = digits >> self._key(_DIGIT) == prefix
                    digits = digits[mine] & self._key((1 << _DIGIT) - 1)
                counts += np.bincount(digits.astype(np.int64), minlength=1 << _DIGIT)
            from_above = counts[::-1].cumsum()
            place = int(np.searchsorted(from_above, remaining))
            digit = (1 << _DIGIT) - 1 - place
            remaining -= int(from_above[place] - counts[digit])
            prefix = prefix << _DIGIT | digit
        return prefix, remaining

    def above(self, threshold: int, ties: int) -> dict[str, np.ndarray]:
        """Flat indices of all keys above a threshold and of the first few equal to it."""
        found: dict[str, list[np.ndarray]] = {}
        for name, start, keys in self._keys():
            chosen = keys > self._key(threshold)
            if ties:
                equal = np.flatnonzero(keys == self._key(threshold))[:ties]
                chosen[equal] = True
                ties -= len(equal)
            indices = np.flatnonzero(chosen)
            if len(indices):
                found.setdefault(name, []).append(indices + start)
        return {name: np.concatenate(parts) for name, parts in found.items()}
