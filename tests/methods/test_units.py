from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paretune.errors import BudgetError, PareError
from paretune.evidence import fisher
from paretune.evidence.decreasing import Cached, Evidence, Recomputed
from paretune.evidence.units import unit_sums
from paretune.methods import choose, make_method
from paretune.methods.ranking import Ranks
from paretune.methods.units import UnitPicker, fill
from paretune.plan import Plan
from paretune.selection import Selection, unit_bound
from paretune.task import Task
from tests.tiny import tiny_model, tiny_rows, write_jsonl

KINDS = ("rows", "columns", "blocks")
METHODS = ("fish", "gradient", "ird", "random")
QUICK = {"fish": {"samples": 16}, "gradient": {"samples": 16}, "ird": {"samples": 4}, "random": {}}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    rows = write_jsonl(folder / "train.jsonl", tiny_rows("pair", 80))
    return Task.from_files(rows, rows, model=tiny_model("bert", folder / "bert"))


def every_unit(shape, kind):
    """Flat indices of every unit, by numpy indexing."""
    flat = np.arange(np.prod(shape)).reshape(shape)
    if kind == "rows":
        return [flat[row].reshape(-1) for row in range(shape[0])]
    if kind == "columns":
        return [flat[..., column].reshape(-1) for column in range(shape[-1])]
    corners = [(row, column) for row in range(0, shape[0], 16) for column in range(0, shape[1], 16)]
    return [flat[row : row + 16, column : column + 16].reshape(-1) for row, column in corners]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(40, 33), (16, 16), (3, 5), (7,), (4, 3, 2, 5)])
def test_units_score_the_sum_of_their_weights(shape, kind):
    if kind == "blocks" and len(shape) != 2:
        pytest.skip("no matrix")
    values = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = [values.reshape(-1)[unit].sum() for unit in every_unit(shape, kind)]
    torch.testing.assert_close(unit_sums(values, kind), torch.stack(wanted), rtol=1e-13, atol=0)


@given(st.lists(st.integers(1, 20), max_size=40), st.integers(0, 120))
def test_units_are_taken_in_order_where_they_fit(sizes, budget):
    taken, left = [], budget
    for place, size in enumerate(sizes):
        if size <= left:
            taken.append(place)
            left -= size
    assert fill(np.array(sizes, dtype=np.int64), budget).tolist() == taken


def picker(units, sizes, even=True, power=0.0, waits=None):
    """Tensors of so many units, each unit of its tensor's size."""
    each = np.repeat(sizes, units)
    waits = np.ones(len(each)) if waits is None else waits
    owner = np.repeat(np.arange(len(units)), units)
    return UnitPicker(even, power, waits, owner, each, np.array(units), int(each.sum()))


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 9)), min_size=1, max_size=5),
    st.floats(0.01, 1),
    st.integers(0, 9),
)
def test_even_shares_are_whole_numbers_and_largest_remainders(tensors, share, seed):
    units, sizes = (list(each) for each in zip(*tensors, strict=True))
    pick = picker(units, sizes)
    budget = int(share * pick.weights)
    scores = np.random.default_rng(seed).random(sum(units)) * pick.sizes
    if budget < min(sizes):
        with pytest.raises(BudgetError, match="raise the budget"):
            pick(np.arange(len(scores)), scores, budget)
        return
    taken = pick(np.arange(len(scores)), scores, budget)
    spent = pick.sizes[taken].sum()
    counts = np.bincount(pick.owner[taken], minlength=len(units))
    owed = budget * np.array(units) / pick.weights
    assert spent <= budget
    left_out = np.setdiff1d(np.arange(len(scores)), taken)
    assert not len(left_out) or pick.sizes[left_out].min() > budget - spent
    assert (counts >= np.floor(owed + 1e-9)).all()
    for number in range(len(units)):  # inside a tensor the best by mean
        mine = np.flatnonzero(pick.owner == number)
        best = mine[np.argsort(-scores[mine] / pick.sizes[mine], kind="stable")[: counts[number]]]
        assert set(best) == set(taken[pick.owner[taken] == number])


def test_the_largest_remainders_come_first():
    pick = picker([10, 7, 3], [4, 4, 4])  # owed of 40 weights: 5, 3.5, 1.5
    assert np.bincount(pick.owner[pick(np.arange(20), np.ones(20), 40)]).tolist() == [5, 4, 1]


def test_units_are_compared_by_the_mean_of_their_weights():
    pick = picker([2, 2], [10, 1], even=False)
    scores = np.array([10.0, 30.0, 2.0, 0.5])  # means 1, 3, 2, 0.5
    assert pick(np.arange(4), scores, 21).tolist() == [0, 1, 2]
    assert pick(np.arange(4), scores, 12).tolist() == [1, 2, 3]  # the unit of ten no longer fits


def test_units_are_drawn_in_proportion_to_the_power_of_their_mean():
    ranks, counts = Ranks("all", "global", 0.5, "rows"), np.zeros(4)
    scores = torch.tensor([1.0, 4.0, 16.0, 0.0], dtype=torch.float64)[:, None].repeat(1, 3)
    for seed in range(4000):
        (chosen,) = ranks.take({"w": scores.clone()}, 3, seed).values()
        counts[chosen] += 1
    assert counts[3] == 0
    np.testing.assert_allclose(counts / 4000, [1 / 7, 2 / 7, 4 / 7, 0], atol=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_as_published_the_largest_means_of_all_tensors_are_taken(task, kind):
    model = task.load_model(dtype=torch.float64)
    plan = choose("fish", model, task, 900, samples=40, reading="published", seed=3, granularity=kind)
    body = {n: p for n, p in model.named_parameters() if not n.startswith("classifier")}
    scores = fisher(model, task, samples=40, seed=3, tensors=body).scores
    units = []
    for name, parameter in body.items():
        if kind != "blocks" or parameter.ndim == 2:
            for index, unit in enumerate(every_unit(tuple(parameter.shape), kind)):
                values = scores[name].reshape(-1)[unit]
                units.append((float(values.mean()), name, index, len(unit)))
    wanted, left = set(), 900
    for _, name, index, size in sorted(units, key=lambda unit: -unit[0]):
        if size <= left:
            wanted.add((name, index))
            left -= size
    found = {(s.tensor, index) for s in plan.selections for index in s.indices.tolist()}
    assert found == wanted
    assert plan.count == 900 - left


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_spends_its_budget_on_whole_units(task, tmp_path, method, kind):
    settings = QUICK[method] | {"granularity": kind}
    plan = choose(method, task.load_model(), task, "5%", seed=2, **settings)
    assert {selection.granularity for selection in plan.selections} == {kind}
    assert all(".layer." in s.tensor and len(s.shape) == 2 for s in plan.selections)
    assert 0.9 * plan.budget < plan.count <= plan.budget
    plan.save(tmp_path)
    assert Plan.load(tmp_path) == plan
    again = choose(method, task.load_model(), task, "5%", seed=2, **settings)
    assert again.digest == plan.digest
    assert choose(method, task.load_model(), task, "5%", seed=3, **settings).digest != plan.digest
    assert f"granularity={kind}" in str(plan)


@pytest.mark.parametrize("kind", KINDS)
def test_by_default_every_matrix_gets_the_same_share_of_its_units(task, kind):
    plan = choose("fish", task.load_model(), task, "20%", samples=16, granularity=kind)
    matrices = [t for t in task.load_model().named_parameters() if ".layer." in t[0] and t[1].ndim == 2]
    total = sum(p.numel() for _, p in matrices)
    counts = {s.tensor: len(s.indices) for s in plan.selections}
    for name, parameter in matrices:
        owed = plan.budget * unit_bound(name, tuple(parameter.shape), kind) / total
        assert abs(counts.get(name, 0) - owed) < 2


@pytest.mark.parametrize("method", ["fish", "gradient", "ird"])
def test_evidence_in_half_precision_chooses_nearly_the_same_units(task, method):
    settings = QUICK[method] | {"granularity": "rows", "power": 0.0}
    full, half = (
        choose(method, task.load_model(), task, "20%", precision=each, **settings)
        for each in ("fp32", "bf16")
    )
    assert _shared(full, half) > 0.8 * full.count


def test_scaled_scores_spread_the_units(task):
    shares = []
    for share in ("global", "scaled"):
        settings = {"reading": "published", "share": share, "granularity": "rows"}
        plan = choose("fish", task.load_model(), task, "3%", samples=32, **settings)
        shares.append(max(selection.count for selection in plan.selections) / plan.count)
    assert shares[1] < shares[0]


def test_random_units_are_drawn_uniformly_over_weights(task):
    model, counts = task.load_model(), {}
    for seed in range(300):
        for selection in choose("random", model, task, "10%", seed=seed, granularity="columns").selections:
            counts.setdefault(selection.tensor, np.zeros(selection.shape[-1]))[selection.indices] += 1
    matrices = {n: p for n, p in model.named_parameters() if ".layer." in n and p.ndim == 2}
    assert counts.keys() == matrices.keys()
    body = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("classifier"))
    rate = 0.1 * body / sum(p.numel() for p in matrices.values())
    for seen in counts.values():
        assert abs(seen.mean() / 300 - rate) < 5 * np.sqrt(0.25 / 300 / len(seen))


@pytest.mark.parametrize(
    ("budget", "settings", "said"),
    [
        (
            10,
            {"granularity": "rows"},
            r"10 weights is below one of the rows: the smallest, of bert.* has \d+; r",
        ),
        (100, {"granularity": "blocks"}, r"below one of the blocks.*raise the budget"),
        ("99%", {"granularity": "blocks"}, "of the tensors that have blocks; lower it"),
        (500, {"granularity": "blocks", "exclude": ["*.weight"]}, "no tensor .* has blocks"),
    ],
)
@pytest.mark.parametrize("method", ["fish", "random"])
def test_budgets_that_units_cannot_have(task, method, budget, settings, said):
    with pytest.raises(PareError, match=said):
        choose(method, task.load_model(), task, budget, **QUICK[method], **settings)


@pytest.mark.parametrize("method", METHODS)
def test_unknown_granularities_are_refused(method):
    for kind in ("all", "tiles"):
        with pytest.raises(
            PareError, match=f"granularity='{kind}' is none of entries, rows, columns, blocks"
        ):
            make_method(method, {"granularity": kind})


def test_disjoint_masks_are_of_entries():
    with pytest.raises(PareError, match="parts=2 deals out single entries"):
        make_method("fish", {"parts": 2, "granularity": "rows"})


@pytest.mark.parametrize("kind", KINDS)
def test_ird_sums_the_squares_of_units(task, kind):
    """The matrix of an example's sums by unit: cached, recomputed, and by one backward an example."""
    model = task.load_model(dtype=torch.float64)
    drawn = np.array([5, 0, 33, 7, 60])
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters() if not n.startswith("classifier")}
    shapes = {name: shape for name, shape in shapes.items() if kind != "blocks" or len(shape) == 2}
    rng = np.random.default_rng(0)
    pool = {}
    for name, shape in shapes.items():
        bound = unit_bound(name, shape, kind)
        pool[name] = np.sort(rng.choice(bound, max(1, bound // 2), replace=False))
    matrix = []
    batches = list(task.batches("train", 1))
    for example in drawn:
        model.zero_grad()
        task.example_losses(model, batches[example]).sum().backward()
        squares = {name: model.get_parameter(name).grad.reshape(-1) ** 2 for name in pool}
        units = {name: every_unit(shapes[name], kind) for name in pool}
        matrix.append([float(squares[name][units[name][i]].sum()) for name in pool for i in pool[name]])
    model.zero_grad()
    wanted = np.array(matrix)
    evidence = Evidence(model, task, drawn, 2, "data", 0)
    some, places = np.array([3, 1]), np.sort(rng.choice(wanted.shape[1], 20, replace=False))
    for squares, close in (
        (Cached.collect(evidence, pool, torch.float32, kind), 1e-6),
        (Cached.collect(evidence, pool, torch.bfloat16, kind), 3e-2),
        (Recomputed(evidence, pool, kind), 1e-9),
    ):
        ends = wanted[some][:, places].sum(1), wanted[some].sum(0)
        np.testing.assert_allclose(squares.of_samples(some, places), ends[0], rtol=close)
        np.testing.assert_allclose(squares.of_weights(some), ends[1], rtol=close, atol=1e-30)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reading", ["robust", "published"])
def test_irds_ladder_counts_weights(task, kind, reading):
    settings = {"samples": 4, "steps": 2, "granularity": kind, "reading": reading}
    plan = choose("ird", task.load_model(), task, "4%", **settings)
    rungs = [*plan.others, plan]
    for times, rung in zip((4, 2, 1), rungs, strict=True):
        assert 0.5 * times * plan.budget < rung.count <= times * plan.budget
        assert rung.notes["weights"] == rung.count
    for wide, narrow in pairwise(rungs):
        above = {s.tensor: s.indices for s in wide.selections}
        assert all(np.isin(s.indices, above[s.tensor]).all() for s in narrow.selections)
    recomputed = choose("ird", task.load_model(), task, "4%", cache_bytes=0, **settings)
    assert recomputed.notes["held"] == "recomputed"
    assert _shared(recomputed, plan) > 0.95 * plan.count  # ties at the edge fall by rounding


def _shared(one, other):
    places = {s.tensor: s.flat() for s in one.selections}
    return sum(np.isin(s.flat(), places.get(s.tensor, [])).sum() for s in other.selections)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("asked", ["12KiB", "40KB"])
def test_a_budget_in_bytes_is_the_size_of_the_file(task, tmp_path, kind, asked):
    from paretune.tuning import attach

    model = task.load_model()
    plan = choose("random", model, task, asked, granularity=kind)
    attach(model, plan)
    path = tmp_path / "delta.safetensors"
    model.delta(scores={"accuracy": 0.123456789}, lr=1e-3).save(path)
    limit = {"12KiB": 12 * 1024, "40KB": 40_000}[asked]
    assert 0.7 * limit < path.stat().st_size <= limit


def test_rows_of_a_vector_are_its_weights():
    ranks = Ranks("all", "global", 0, "rows")
    scores = {"bias": torch.tensor([3.0, 9.0, 1.0]), "weight": torch.tensor([[4.0, 6.0], [1.0, 1.0]])}
    chosen = ranks.take(scores, 4, 0)
    assert {name: indices.tolist() for name, indices in chosen.items()} == {"bias": [0, 1], "weight": [0]}


def test_a_score_that_is_no_number_is_named():
    with pytest.raises(PareError, match="w: a score is NaN"):
        Ranks("all", "even", 0.25, "rows").take({"w": torch.tensor([[1.0, float("nan")]])}, 2, 0)


def test_selections_are_what_attach_trains(task):
    """A unit is trained whole and nothing beside it."""
    from paretune.tuning import attach, detach

    model = task.load_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    name = "bert.encoder.layer.0.attention.self.query.weight"
    plan = choose("random", model, task, "5%", granularity="blocks")
    plan = replace(plan, selections=(Selection(name, tuple(before[name].shape), "blocks", np.array([1])),))
    attach(model, plan)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(**next(iter(task.batches("train", 8)))).loss.backward()
    optimiser.step()
    delta = model.delta()
    changed = torch.zeros_like(before[name], dtype=torch.bool)
    changed[:16, 16:32] = True
    detach(model)
    delta.apply(model)
    moved = model.get_parameter(name) != before[name]
    assert moved[changed].any() and not moved[~changed].any()
