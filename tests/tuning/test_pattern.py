"""Every way to a gradient at selected entries gives the dense one's, and the cheapest is picked."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paretune.tuning.pattern import CHUNK, Pattern

WAYS = ("dense", "restricted", "sampled")


def pattern(rows, columns, count, seed=0):
    chosen = np.random.default_rng(seed).choice(rows * columns, count, replace=False)
    return Pattern(torch.from_numpy(np.sort(chosen).astype(np.int32)), (rows, columns))


def tiles(rows, columns, chosen):
    """Flat indices of whole 16 x 16 tiles."""
    mask = np.zeros((rows, columns), dtype=bool)
    for row, column in chosen:
        mask[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = True
    return torch.from_numpy(np.flatnonzero(mask).astype(np.int32))


@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    tokens=st.integers(1, 2 * CHUNK + 3),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
    way=st.sampled_from(WAYS),
)
def test_every_way_equals_the_dense_gradient(rows, columns, tokens, share, seed, way):
    count = max(1, round(share * rows * columns))
    chosen = np.sort(np.random.default_rng(seed).choice(rows * columns, count, replace=False))
    some = Pattern(torch.from_numpy(chosen.astype(np.int32)), (rows, columns))
    rng = torch.Generator().manual_seed(seed)
    left = torch.randn(tokens, rows, generator=rng, dtype=torch.float64)
    right = torch.randn(tokens, columns, generator=rng, dtype=torch.float64)
    found = some.gradient(left, right, way)
    assert found.shape == (count,)
    torch.testing.assert_close(found, (left.T @ right).reshape(-1)[chosen], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("way", WAYS)
def test_half_precision_is_summed_no_worse_than_by_the_dense_product(way):
    some = pattern(64, 96, 300)
    left, right = (torch.randn(500, size).bfloat16() for size in (64, 96))
    exact = some.gradient(left.double(), right.double(), "dense")
    found = some.gradient(left, right, way)
    assert (found - exact).norm() <= 1.001 * (some.gradient(left, right, "dense") - exact).norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cheapest_way_by_shape(dtype):
    tokens = torch.empty(1024, 1, dtype=dtype)
    rows = torch.cat([torch.arange(512, dtype=torch.int32) + 512 * row for row in (3, 40, 41)])
    columns = (torch.arange(512, dtype=torch.int32)[:, None] * 512 + torch.tensor([7, 80])).reshape(-1)
    assert Pattern(rows, (512, 512)).cheapest(tokens) == "restricted"
    assert Pattern(columns.int(), (512, 512)).cheapest(tokens) == "restricted"
    assert Pattern(tiles(512, 512, [(1, 3), (30, 2)]), (512, 512)).cheapest(tokens) == "restricted"
    assert pattern(512, 512, 1300).cheapest(tokens) == "sampled"
    assert pattern(512, 512, 200_000).cheapest(tokens) == "dense"
    assert pattern(8, 8, 3).cheapest(tokens[:16]) == "dense"


def test_a_device_without_measured_costs_takes_the_smaller_product():
    elsewhere = torch.empty(1024, 1, device="meta")
    assert pattern(64, 64, 3).cheapest(elsewhere) == "restricted"
    assert pattern(64, 64, 2000).cheapest(elsewhere) == "dense"
