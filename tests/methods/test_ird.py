import numpy as np
import pytest
import torch

from paretune.errors import PareError
from paretune.evidence.decreasing import largest
from paretune.methods import choose, make_method
from paretune.plan import Plan
from paretune.task import Task
from tests.tiny import tiny_model, tiny_rows, write_jsonl


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    rows = write_jsonl(folder / "train.jsonl", tiny_rows("pair", 80))
    return Task.from_files(rows, rows, model=tiny_model("bert", folder / "bert"))


def matrix(task, model):
    """Every squared gradient of every training example, one example at a time: A in float64."""
    names = [n for n, _ in model.named_parameters() if not n.startswith("classifier")]
    rows = []
    for batch in task.batches("train", 1):
        model.zero_grad()
        task.example_losses(model, batch).sum().backward()
        rows.append(torch.cat([model.get_parameter(n).grad.reshape(-1) for n in names]) ** 2)
    model.zero_grad()
    sizes = [model.get_parameter(n).numel() for n in names]
    return torch.stack(rows).numpy(), dict(zip(names, np.cumsum([0, *sizes[:-1]]), strict=True))


def positions(plan, starts):
    return np.sort(np.concatenate([starts[s.tensor] + s.flat() for s in plan.selections]))


def brute_force(squares, samples, k, steps, factor, order, nested, first):
    """The ladder by plain arithmetic on the whole matrix."""
    chosen, pool = first, largest(squares[first].sum(0), k * factor**steps)
    among = pool
    for step in reversed(range(steps)):
        count, weights = samples * factor**step, k * factor**step
        if order == "parameters":
            kept = among[largest(squares[chosen][:, among].sum(0), weights)]
            chosen = np.sort(chosen[largest(squares[chosen][:, kept].sum(1), count)])
            among = kept
            continue
        before = chosen
        chosen = np.sort(chosen[largest(squares[chosen][:, among].sum(1), count)])
        seen = chosen if order == "samples" else before
        source = among if nested else pool
        among = source[largest(squares[seen][:, source].sum(0), weights)]
    return set(chosen.tolist()), among


@pytest.mark.parametrize("held", ["fp32", "recomputed"])
@pytest.mark.parametrize("order", ["samples", "parameters", "together"])
@pytest.mark.parametrize("nested", [True, False])
def test_pairs_are_those_of_brute_force(task, order, nested, held):
    model = task.load_model(dtype=torch.float64)
    squares, starts = matrix(task, model)
    settings = {"reading": "published", "samples": 5, "steps": 3, "order": order, "nested": nested}
    settings |= {"cache_bytes": 0} if held == "recomputed" else {}
    plan = choose("ird", model, task, 200, seed=4, **settings)
    assert plan.notes["held"] == held
    drawn = np.random.default_rng(4).choice(len(task.train), 40, replace=False)
    samples, weights = brute_force(squares, 5, 200, 3, 2, order, nested, drawn)
    assert {kept["index"] for kept in plan.notes["kept"]} == samples
    found = positions(plan, starts)
    assert len(np.setdiff1d(found, weights)) <= 0.01 * 200  # ties at the edge fall by rounding


def test_the_ladder_comes_with_the_plan(task, tmp_path):
    plan = choose("ird", task.load_model(), task, 150, samples=4, steps=3)
    sizes = [(p.notes["samples"], p.notes["weights"], p.count) for p in (*plan.others, plan)]
    assert sizes == [(32, 1200, 1200), (16, 600, 600), (8, 300, 300), (4, 150, 150)]
    plan.save(tmp_path)
    again = Plan.load(tmp_path)
    assert again == plan
    assert [other.count for other in again.others] == [1200, 600, 300]
    assert Plan.load(tmp_path / "other-1").count == 600
    assert plan.budget == 150


def test_another_rung_can_be_asked_for(task):
    wide = choose("ird", task.load_model(), task, 150, samples=4, steps=2)
    assert choose("ird", task.load_model(), task, 150, samples=4, steps=2, rung=2).count == 150
    assert wide.others[0].count == 600


def test_half_precision_keeps_nearly_the_same_weights(task):
    model = task.load_model()
    full = choose("ird", model, task, 300, samples=8)
    cells = 64 * 8 * 300
    half = choose("ird", model, task, 300, samples=8, cache_bytes=2 * cells)
    assert (full.notes["held"], half.notes["held"]) == ("fp32", "bf16")
    assert half.notes["cache_bytes"] == 2 * cells
    one, other = ({(s.tensor, i) for s in p.selections for i in s.indices.tolist()} for p in (full, half))
    assert len(one & other) > 0.9 * 300


@pytest.mark.parametrize("keep", ["top", "bottom", "random", "balanced"])
@pytest.mark.parametrize("score", ["sum", "token", "loss"])
def test_controls_keep_other_samples(task, keep, score):
    plan = choose("ird", task.load_model(), task, 150, samples=6, steps=2, keep=keep, score=score)
    rows = {row[0]: row[1:] for row in plan.notes["table"]["rows"]}
    assert rows["samples"] == [24, 6]
    if keep == "balanced":
        assert rows["share of same"][1] == 0.5
    if (keep, score) == ("top", "sum"):
        bottom = choose("ird", task.load_model(), task, 150, samples=6, steps=2, keep="bottom")
        assert not {k["index"] for k in plan.notes["kept"]} & {k["index"] for k in bottom.notes["kept"]}


def test_the_report_shows_texts_and_labels(task):
    plan = choose("ird", task.load_model(), task, 150, samples=6)
    kept = plan.notes["kept"][0]
    assert kept["label"] in task.labels
    assert len(kept["text"]) > 3
    assert "mean loss" in str(plan)
    assert max(map(len, str(plan).splitlines()[1:])) <= 80


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": 0}, "steps=0 is below 1"),
        ({"factor": 1}, "factor=1 is below 2"),
        ({"rung": 9}, "rung=9"),
    ],
)
def test_settings_out_of_range(settings, said):
    with pytest.raises(PareError, match=said):
        make_method("ird", settings)


def test_more_samples_than_there_are(task):
    with pytest.raises(PareError, match=r"80 samples at the end need 640 at the start.*use samples=9"):
        choose("ird", task.load_model(), task, 150, samples=80)
