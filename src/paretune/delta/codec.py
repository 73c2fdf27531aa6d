"""Sorted indices as Rice-coded gaps: about ``log2(bound / count) + 1.6`` bits an index.

A stream of ``count`` strictly increasing indices below ``bound`` is one string of bits, lowest bit of each
byte first: the low ``b`` bits of every gap, then the rest of every gap in unary (that many zeros and a one),
then zeros up to a whole byte. A gap is the number of indices skipped since the one before. ``b`` follows
from ``count`` and ``bound`` alone, so one set of indices has exactly one stream and the other way round
(Rice 1979; Golomb 1966; the choice of ``b`` is Kiely 2004).
"""

import numpy as np

from paretune.errors import PareError

LARGEST_BOUND = 1 << 60  # sums of gaps stay well inside int64
CHUNK = 1 << 16  # indices whose low bits are spread out at a time; a multiple of 8


def low_bits(count: int, bound: int) -> int:
    """How many low bits of a gap are written as they are.

    The smallest ``b`` with ``count / bound * 2**b >= ln((1 + sqrt 5) / 2) = 0.4812``, in whole numbers so
    that every machine finds the same one.

    Args:
        count: Number of indices, at least 1.
        bound: One above the largest possible index.
    """
    bits = 0
    while (count << bits) * 10_000 < bound * 4_812:
        bits += 1
    return bits


def encode(indices: np.ndarray, bound: int) -> bytes:
    """Code strictly increasing indices.

    Args:
        indices: int64, shape (count,), each in ``0..bound - 1``.
        bound: One above the largest possible index, at most 2**60.

    Raises:
        PareError: The bound is too large, or indices are out of order or out of range.
    """
    indices = np.asarray(indices, dtype=np.int64)
    _check_bound(len(indices), bound)
    if not len(indices):
        return b""
    gaps = np.diff(indices, prepend=-1) - 1
    if (gaps < 0).any() or indices[-1] >= bound:
        raise PareError(f"indices must be strictly increasing and lie in 0..{bound - 1}")
    bits = low_bits(len(indices), bound)
    ends = np.cumsum((gaps >> bits) + 1) - 1
    unary = np.zeros(ends[-1] + 1, dtype=np.uint8)
    unary[ends] = 1
    whole = len(gaps) // CHUNK * CHUNK
    parts = [_pack(_spread(gaps[start : start + CHUNK], bits)) for start in range(0, whole, CHUNK)]
    parts.append(_pack(np.concatenate([_spread(gaps[whole:], bits), unary])))
    return b"".join(parts)


def decode(stream: bytes | memoryview, count: int, bound: int) -> tuple[np.ndarray, int]:
    """Read ``count`` indices from the start of a stream.

    Args:
        stream: Bytes that start with the coded indices; what follows them is left alone.
        count: Number of indices.
        bound: One above the largest possible index.

    Returns:
        The indices, int64 of shape (count,), and how many bytes they took.

    Raises:
        PareError: The stream ends early, holds an index outside ``0..bound - 1``, or is not what
            :func:`encode` writes.
    """
    _check_bound(count, bound)
    if not count:
        return np.empty(0, dtype=np.int64), 0
    bits = low_bits(count, bound)
    if (count * (bits + 1) + 7) // 8 > len(stream):
        raise PareError(f"{count} indices need more than the {len(stream)} bytes there are")
    data = np.frombuffer(stream, dtype=np.uint8)
    first, skip = divmod(count * bits, 8)
    longest = count + (bound >> bits)  # a longer unary part would end outside the range
    unary = np.unpackbits(data[first : first + (skip + longest + 7) // 8], bitorder="little")[skip:]
    ends = np.flatnonzero(unary)[:count]
    if len(ends) < count or ends[-1] >= longest:
        raise PareError(f"indices end early or lie outside 0..{bound - 1}")
    used = (count * bits + int(ends[-1]) + 8) // 8
    if unary[ends[-1] + 1 : used * 8 - count * bits].any():
        raise PareError("bits after the last index are not zero")
    high = np.diff(ends, prepend=-1) - 1
    gaps = (high << bits) | _gather(data, count, bits)
    indices = np.cumsum(gaps + 1) - 1
    if indices[-1] >= bound:
        raise PareError(f"index {indices[-1]} is outside 0..{bound - 1}")
    return indices, used


def _check_bound(count: int, bound: int) -> None:
    """Refuse more indices than there are places, and bounds beyond exact arithmetic."""
    if not 0 <= bound <= LARGEST_BOUND:
        raise PareError(f"a tensor of {bound} elements is outside what can be indexed (2**60)")
    if not 0 <= count <= bound:
        raise PareError(f"{count} indices do not fit below {bound}")


def _spread(gaps: np.ndarray, bits: int) -> np.ndarray:
    """The low bits of each gap, lowest first: uint8 of 0 and 1, shape (len(gaps) * bits,)."""
    return ((gaps[:, None] >> np.arange(bits)) & 1).astype(np.uint8).reshape(-1)


def _gather(data: np.ndarray, count: int, bits: int) -> np.ndarray:
    """The low bits of each gap as int64, shape (count,): the inverse of :func:`_spread`."""
    low = np.zeros(count, dtype=np.int64)
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        first = start * bits // 8
        spread = np.unpackbits(data[first : first + (size * bits + 7) // 8], bitorder="little")
        table = spread[: size * bits].reshape(size, bits)
        for bit in range(bits):
            low[start : start + size] |= table[:, bit].astype(np.int64) << bit
    return low


def _pack(bits: np.ndarray) -> bytes:
    """Bits into bytes, the first bit lowest; the last byte is filled with zeros."""
    return np.packbits(bits, bitorder="little").tobytes()
