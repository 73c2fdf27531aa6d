import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.delta.codec import CHUNK, LARGEST_BOUND, decode, encode, low_bits
from paretune.errors import PareError


def by_the_page(indices: list[int], bound: int) -> bytes:
    """The stream as the docstring describes it, one bit at a time."""
    if not indices:
        return b""
    width = low_bits(len(indices), bound)
    gaps = [b - a - 1 for a, b in zip([-1, *indices], indices, strict=False)]
    bits = [gap >> bit & 1 for gap in gaps for bit in range(width)]
    for gap in gaps:
        bits += [0] * (gap >> width) + [1]
    bits += [0] * (-len(bits) % 8)
    return bytes(
        sum(bit << place for place, bit in enumerate(bits[n : n + 8])) for n in range(0, len(bits), 8)
    )


@st.composite
def selections(draw: st.DrawFn) -> tuple[list[int], int]:
    bound = draw(st.one_of(st.integers(1, 60), st.integers(1, 1 << 40), st.just(LARGEST_BOUND)))
    indices = draw(st.sets(st.integers(0, bound - 1), max_size=60))
    return sorted(indices), bound


@given(selections(), st.binary(max_size=3))
@settings(max_examples=300)
def test_round_trip_and_the_described_bits(selection, following):
    indices, bound = selection
    stream = encode(np.array(indices, dtype=np.int64), bound)
    assert stream == by_the_page(indices, bound)
    decoded, used = decode(stream + following, len(indices), bound)
    assert decoded.tolist() == indices
    assert decoded.dtype == np.int64
    assert used == len(stream)


@given(selections().filter(lambda s: s[0]), st.data())
@settings(max_examples=200)
def test_no_flipped_bit_gives_the_same_indices(selection, data):
    """One set of indices has one stream: a changed one is refused or says something else."""
    indices, bound = selection
    stream = bytearray(encode(np.array(indices, dtype=np.int64), bound))
    stream[data.draw(st.integers(0, len(stream) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        decoded, used = decode(bytes(stream), len(indices), bound)
    except PareError:
        return
    assert decoded.tolist() != indices or used != len(stream)
    assert encode(decoded, bound) == bytes(stream[:used])
    assert decoded[0] >= 0 and decoded[-1] < bound and (np.diff(decoded) > 0).all()


@given(selections().filter(lambda s: s[0]), st.data())
@settings(max_examples=100)
def test_every_cut_stream_is_refused(selection, data):
    indices, bound = selection
    stream = encode(np.array(indices, dtype=np.int64), bound)
    cut = data.draw(st.integers(0, len(stream) - 1))
    with pytest.raises(PareError):
        decode(stream[:cut], len(indices), bound)


@pytest.mark.parametrize("count", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5])
def test_chunks_join_without_a_seam(count):
    rng = np.random.default_rng(count)
    indices = np.sort(rng.choice(50 * count, count, replace=False))
    stream = encode(indices, 50 * count)
    assert stream == by_the_page(indices.tolist(), 50 * count)
    assert np.array_equal(decode(stream, count, 50 * count)[0], indices)


@pytest.mark.parametrize("density", [0.0002, 0.001, 0.005, 0.02, 0.1, 0.5])
def test_size_is_within_three_percent_of_the_entropy(density):
    bound = 4_000_000
    rng = np.random.default_rng(0)
    indices = np.flatnonzero(rng.random(bound) < density)
    bits = len(encode(indices, bound)) * 8 / len(indices)
    entropy = -(density * math.log2(density) + (1 - density) * math.log2(1 - density)) / density
    assert entropy * 0.98 < bits < entropy * 1.03
    if density == 0.005:
        assert bits / 8 < 1.2


def test_everything_selected_costs_one_bit_each():
    assert len(encode(np.arange(1000), 1000)) == 125


@given(st.integers(1, 10_000), st.integers(1, 1 << 40))
def test_low_bits_are_the_best_for_random_indices(count, bound):
    """Against the expected length of a geometric gap, over all widths."""
    count = min(count, bound)
    share = count / bound

    def length(width: int) -> float:
        return width + 1 / -math.expm1(-share * 2.0**width)

    best = min(length(width) for width in range(45))
    assert length(low_bits(count, bound)) <= best * 1.001 + 0.01


@pytest.mark.parametrize(
    ("indices", "bound", "word"),
    [
        ([3, 3], 9, "strictly increasing"),
        ([4, 3], 9, "strictly increasing"),
        ([-1, 3], 9, "strictly increasing"),
        ([3, 9], 9, "0..8"),
        ([0, 1], 1, "do not fit"),
        ([0], LARGEST_BOUND + 1, "2\\*\\*60"),
    ],
)
def test_wrong_indices_are_refused(indices, bound, word):
    with pytest.raises(PareError, match=word):
        encode(np.array(indices), bound)


def test_an_index_outside_the_range_built_by_hand_is_refused():
    # 4 of 40 and 4 of 37 have the same number of low bits; 39 is outside the second.
    assert low_bits(4, 40) == low_bits(4, 37)
    stream = encode(np.array([1, 2, 3, 39]), 40)
    with pytest.raises(PareError, match=r"index 39 is outside 0\.\.36"):
        decode(stream, 4, 37)


def test_bits_after_the_end_must_be_zero():
    stream = bytearray(encode(np.array([0, 5]), 8))
    stream[-1] |= 0x80
    with pytest.raises(PareError, match="not zero"):
        decode(bytes(stream), 2, 8)


def test_a_huge_count_is_refused_before_memory_is_taken():
    with pytest.raises(PareError, match="need more"):
        decode(b"\x00" * 16, 1 << 50, 1 << 55)
