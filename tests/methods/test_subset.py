import ctypes
import os
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.methods.subset import SHRINK, Problem, joint, knapsack, prefix


@st.composite
def problems(draw):
    count = draw(st.integers(1, 8))
    gains = draw(st.lists(st.floats(-1, 10) | st.just(float("nan")), min_size=count, max_size=count))
    resources = draw(st.integers(1, 2))
    costs = [draw(st.lists(st.integers(1, 10**6), min_size=count, max_size=count)) for _ in range(resources)]
    limits = [draw(st.integers(1, 2 * 10**6)) for _ in range(resources)]
    pairs = draw(st.lists(st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)), max_size=2))
    rivals = tuple((a, b) for a, b in pairs if a != b)
    return Problem(np.array(gains), np.array(costs), np.array(limits), rivals)


def best(problem):
    count = len(problem.gains)
    subsets = (s for size in range(count + 1) for s in combinations(range(count), size) if problem.fits(s))
    return max(float(np.nan_to_num(problem.gains, nan=0)[list(s)].sum()) if s else 0.0 for s in subsets)


@settings(max_examples=60)
@given(problems())
def test_the_knapsack_is_the_best_of_all_subsets(problem):
    found = knapsack(problem)
    assert problem.fits(found.chosen)
    assert found.gain == pytest.approx(best(problem), rel=1e-5, abs=1e-9)
    assert [step.weights for step in found.front] == sorted(step.weights for step in found.front)
    gains = [step.gain for step in found.front]
    assert gains == sorted(gains)


@settings(max_examples=60)
@given(problems())
def test_each_prefix_is_the_best_of_its_own_size(problem):
    problem = Problem(problem.gains, problem.costs[:1], problem.limits[:1])
    found = prefix(problem)
    assert problem.fits(found.chosen)
    for step in found.front:
        own = Problem(problem.gains, problem.costs, np.array([step.weights]))
        assert step.gain == pytest.approx(best(own))
    longer = [step for step in found.front if step.items == len(found.chosen) + 1]
    assert all(step.weights > problem.limits[0] for step in longer)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_joint_gain_is_that_of_the_best_steps_together(seed, count):
    rng = np.random.default_rng(seed)
    factor, slopes = rng.normal(size=(12, count)), rng.uniform(0.1, 1, count)
    matrix = factor.T @ factor / 12
    gains = slopes**2 / (2 * np.diagonal(matrix))
    problem = Problem(gains, rng.integers(1, 9, (1, count)), np.array([10**6]))
    found = joint(problem, slopes, matrix)
    shrunk = (1 - SHRINK) * matrix + SHRINK * np.diag(np.diagonal(matrix))
    first = found.front[0]
    assert first.gain == pytest.approx(gains[problem.worth()[0]])
    if all(gain.gain > 0 for gain in found.front) and len(found.chosen) == count:
        exact = slopes @ np.linalg.solve(shrunk, slopes) / 2
        assert found.gain <= exact * (1 + 1e-9)
    assert found.gain == pytest.approx(found.front[len(found.chosen) - 1].gain)


def test_joint_passes_over_what_is_done_already():
    problem = Problem(np.array([1.0, 0.99, 0.5]), np.ones((1, 3), int), np.array([2]))
    slopes = np.sqrt(2 * problem.gains)
    matrix = np.array([[1.0, 0.999, 0], [0.999, 1, 0], [0, 0, 1]])
    assert prefix(problem).chosen == (0, 1)
    assert knapsack(problem).chosen == (0, 1)
    assert joint(problem, slopes, matrix).chosen == (0, 2)


def test_nothing_worth_taking():
    problem = Problem(np.array([np.nan, 0.0]), np.ones((1, 2), int), np.array([2]))
    assert prefix(problem).chosen == knapsack(problem).chosen == ()


def test_a_subset_never_passes_a_limit_by_the_solvers_tolerance():
    costs = np.array([[10**9, 10**9 + 1, 10**9 + 2]])
    found = knapsack(Problem(np.array([1.0, 1.1, 1.2]), costs, np.array([2 * 10**9 + 1])))
    assert costs[0, list(found.chosen)].sum() <= 2 * 10**9 + 1
    assert found.chosen == (0, 1)


def test_the_solver_says_nothing(capfd):
    """`paretune choose --json` prints JSON; HiGHS has a line of its own for some problems, as for this."""
    gains = [2.825e-4, 2.284e-4, 3.3e-5, 1.682e-5, 8.43e-2, 3.528e-3, 4.912e-3]
    costs = [36.0, 1154.0, 13.0, 46.0, 1885.0, 855.0, 1309.0]
    knapsack(Problem(np.array(gains), np.array([costs]), np.array([3235.0])))
    ctypes.CDLL("ucrtbase" if os.name == "nt" else None).fflush(None)
    assert capfd.readouterr().out == ""
