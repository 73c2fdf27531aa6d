import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paretune.errors import PareError
from paretune.evidence import fisher, top_k
from paretune.methods import choose, make_method
from paretune.methods.ranking import Ranks, even_counts
from paretune.task import Task
from tests.tiny import tiny_model, tiny_rows, write_jsonl

K = 300


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    rows = write_jsonl(folder / "train.jsonl", tiny_rows("pair", 80))
    return Task.from_files(rows, rows, model=tiny_model("bert", folder / "bert"))


def mask(plan):
    return {selection.tensor: selection.flat().tolist() for selection in plan.selections}


def test_as_published_the_largest_scores_of_all_tensors_are_taken(task):
    model = task.load_model()
    plan = choose("fish", model, task, K, samples=40, reading="published", seed=3)
    body = [name for name, _ in model.named_parameters() if not name.startswith("classifier")]
    scores = fisher(model, task, samples=40, seed=3, tensors=body).scores
    assert mask(plan) == {name: chosen.tolist() for name, chosen in top_k(scores, K).items()}


@pytest.mark.parametrize("method", ["fish", "gradient", "ird"])
def test_by_default_every_matrix_of_the_blocks_gets_the_same_share(task, method):
    samples = 5 if method == "ird" else 32
    plan = choose(method, task.load_model(), task, K, samples=samples)
    assert plan.count == K
    sizes = {s.tensor: int(np.prod(s.shape)) for s in plan.selections}
    assert all(
        ".layer." in name and len(s.shape) == 2 for name, s in zip(sizes, plan.selections, strict=True)
    )
    for selection in plan.selections:
        assert abs(selection.count - K * sizes[selection.tensor] / sum(sizes.values())) < 1


def test_a_budget_above_the_blocks_takes_everything_in(task):
    model = task.load_model()
    blocks = sum(p.numel() for name, p in model.named_parameters() if ".layer." in name and p.ndim == 2)
    plan = choose("fish", model, task, blocks + 10, samples=16)
    assert plan.count == blocks + 10
    assert any("embeddings" in selection.tensor for selection in plan.selections)


def test_scaled_scores_spread_the_mask(task):
    shares = []
    for share in ("global", "scaled"):
        plan = choose("fish", task.load_model(), task, 500, samples=32, reading="published", share=share)
        assert plan.count == 500
        shares.append(max(selection.count for selection in plan.selections) / plan.count)
    assert shares[1] < shares[0]


def test_the_power_leads_from_chance_to_the_largest(task):
    model = task.load_model()
    names = [name for name, p in model.named_parameters() if ".layer." in name and p.ndim == 2]
    scores = fisher(model, task, samples=32, tensors=names).scores
    held = []
    for power in (0.01, 0.25, 1.0, 0):
        plan = choose("fish", model, task, K, samples=32, power=power)
        held.append(
            sum(float(scores[s.tensor].flatten()[torch.from_numpy(s.flat())].sum()) for s in plan.selections)
        )
    assert held == sorted(held)
    assert held[0] < 0.5 * held[-1]


def test_weights_are_drawn_in_proportion_to_the_power_of_their_score():
    ranks, scores = Ranks("all", "global", 0.5), np.array([1.0, 4.0, 16.0, 0.0])
    counts = np.zeros(4)
    for seed in range(4000):
        (chosen,) = ranks.take({"w": torch.from_numpy(scores.copy())}, 1, seed).values()
        counts[chosen] += 1
    assert counts[3] == 0
    np.testing.assert_allclose(counts / 4000, [1 / 7, 2 / 7, 4 / 7, 0], atol=0.03)


@pytest.mark.parametrize("share", ["even", "global"])
@pytest.mark.parametrize("power", [0.0, 0.25])
def test_choosing_again_with_the_same_scores_is_the_same_choice(share, power):
    rng = np.random.default_rng(0)
    scores = {name: rng.exponential(size=size) for name, size in (("a", 40), ("b", 200), ("c", 7))}
    ranks = Ranks("all", share, power)
    pool = {name: np.sort(rng.choice(len(v), len(v) // 2, replace=False)) for name, v in scores.items()}
    outside = {name: np.where(np.isin(np.arange(len(v)), pool[name]), v, 0.0) for name, v in scores.items()}
    taken = ranks.take({name: torch.from_numpy(v) for name, v in outside.items()}, 30, 5)
    pick = ranks.pick({name: len(v) for name, v in scores.items()}, pool, 5)
    flat = np.concatenate([scores[name][chosen] for name, chosen in pool.items()])
    places = pick(np.arange(len(flat)), flat, 30)
    names = np.repeat(list(pool), [len(chosen) for chosen in pool.values()])
    everything = np.concatenate(list(pool.values()))
    found = {name: everything[[p for p in places if names[p] == name]].tolist() for name in taken}
    assert found == {name: chosen.tolist() for name, chosen in taken.items()}


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.data())
def test_even_counts_add_up_and_stay_within(sizes, data):
    most = [data.draw(st.integers(0, size)) for size in sizes]
    k = data.draw(st.integers(0, sum(most)))
    counts = even_counts(sizes, k, most)
    assert sum(counts) == k
    assert all(0 <= count <= end for count, end in zip(counts, most, strict=True))


@pytest.mark.parametrize(
    "settings", [{"reading": "other"}, {"within": "head"}, {"share": "rows"}, {"power": -1.0}, {"power": 9.0}]
)
def test_settings_out_of_range(settings):
    with pytest.raises(PareError, match=next(iter(settings))):
        make_method("fish", settings)


def test_the_largest_scores_get_a_lower_range_of_rates():
    usual = make_method("fish", {}).learning_rates
    for settings in ({"reading": "published"}, {"power": 0.0}):
        assert make_method("fish", settings).learning_rates[-1] < usual[-1]
    assert make_method("fish", {"reading": "published", "power": 0.25}).learning_rates == usual


def test_ird_compares_by_one_matrix():
    with pytest.raises(PareError, match="share cannot be scaled"):
        make_method("ird", {"share": "scaled"})
