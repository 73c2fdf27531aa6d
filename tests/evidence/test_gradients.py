"""Factors say the same as the gradients they stand for, whole and block by block."""

import pytest
import torch
from torch import Tensor

from paretune.evidence import gradients
from paretune.evidence.gradients import Dense, ExampleGradients, Factor, Outer, Scatter, matrix_shape

EXAMPLES, ROWS, COLUMNS, POSITIONS = 4, 7, 5, 6


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def outer() -> tuple[Factor, Tensor]:
    left, right = rand(EXAMPLES, POSITIONS, ROWS), rand(EXAMPLES, POSITIONS, COLUMNS)
    return Outer(left, right), torch.einsum("etr,etc->erc", left, right)


def scatter() -> tuple[Factor, Tensor]:
    rows, values = torch.randint(0, ROWS, (EXAMPLES, POSITIONS)), rand(EXAMPLES, POSITIONS, COLUMNS)
    whole = torch.zeros(EXAMPLES, ROWS, COLUMNS, dtype=torch.float64)
    for example in range(EXAMPLES):
        whole[example].index_add_(0, rows[example], values[example])
    return Scatter(rows, values, ROWS), whole


def dense() -> tuple[Factor, Tensor]:
    values = rand(EXAMPLES, ROWS, COLUMNS)
    return Dense(values), values


SORTS = {
    "outer": [outer],
    "scatter": [scatter],
    "dense": [dense],
    "outer twice": [outer, outer],
    "scatter twice": [scatter, scatter],
    "dense twice": [dense, dense],
    "tied": [outer, scatter],
    "everything": [outer, scatter, dense, outer],
}


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("size", [1, 10, 3 * ROWS * COLUMNS, 1 << 20])
def test_blocks_dots_and_parts(sort: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "_BLOCK_CPU", size)
    torch.manual_seed(0)
    made = [make() for make in SORTS[sort]]
    whole = torch.stack([values for _, values in made]).sum(0)
    found = ExampleGradients("w", (ROWS, COLUMNS), [factor for factor, _ in made])
    assert (found.examples, found.rows, found.columns) == (EXAMPLES, ROWS, COLUMNS)

    blocks, seen = torch.zeros_like(whole), torch.zeros(EXAMPLES, ROWS)
    for block in found.blocks():
        blocks[block.examples, block.rows] += block.values
        seen[block.examples, block.rows] += 1
    torch.testing.assert_close(blocks, whole)
    assert seen.max() == 1

    direction = rand(ROWS, COLUMNS)
    torch.testing.assert_close(found.dot(direction), (whole * direction).sum((1, 2)))

    part = torch.ones(2, 3, COLUMNS, dtype=torch.float64)
    found.add_to(part, slice(1, 3), slice(2, 5))
    torch.testing.assert_close(part, whole[1:3, 2:5] + 1)


def test_the_sum_by_one_product() -> None:
    factor, whole = outer()
    torch.testing.assert_close(factor.sum(), whole.sum(0))


@pytest.mark.parametrize("sort", ["outer", "scatter", "dense"])
def test_runs_of_examples_become_one(sort: str) -> None:
    factor, whole = SORTS[sort][0]()
    found = torch.zeros(2, ROWS, COLUMNS, dtype=torch.float64)
    factor.regrouped(2).add_to(found, slice(0, 2), slice(0, ROWS))
    torch.testing.assert_close(found, whole.unflatten(0, (2, 2)).sum(1))


def test_repeated_rows_of_an_example_are_merged_before_anything_is_squared() -> None:
    values = torch.tensor([[[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]]])
    factor = Scatter(torch.tensor([[3, 0, 3], [0, 0, 0]]), values, 4)
    examples, rows, merged = factor.merged()
    assert examples.tolist() == [0, 0, 1]
    assert rows.tolist() == [0, 3, 0]
    assert merged.flatten().tolist() == [2.0, 4.0, 15.0]


def test_zero_examples_are_told_from_others() -> None:
    left, right = rand(2, 3, 4), rand(2, 3, 5)
    left[0] = 0
    assert Outer(left, right).is_zero(0) and not Outer(left, right).is_zero(1)
    values = rand(2, 3, 4)
    values[1] = 0
    assert Scatter(torch.zeros(2, 3, dtype=torch.int64), values, 4).is_zero(1)
    assert Dense(values).is_zero(1) and not Dense(values).is_zero(0)
    assert not ExampleGradients("w", (3, 4), [Dense(values), outer()[0]]).is_zero(1)


def test_half_precision_comes_out_in_float32() -> None:
    factor, whole = outer()
    half = Outer(factor.left.bfloat16(), factor.right.bfloat16())
    (block,) = half.blocks()
    assert block.values.dtype == torch.float32
    assert (block.values - whole).norm() < 0.02 * whole.norm()


@pytest.mark.parametrize(("shape", "matrix"), [((), (1, 1)), ((4,), (4, 1)), ((2, 3, 4), (2, 12))])
def test_every_tensor_is_a_matrix(shape: tuple[int, ...], matrix: tuple[int, int]) -> None:
    assert matrix_shape(shape) == matrix
