import fnmatch
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from paretune.anatomy import anatomy
from paretune.errors import PareError
from paretune.evidence import fisher
from paretune.evidence.curvature import Average
from paretune.evidence.horizon import during_training
from paretune.methods import choose
from paretune.methods.adapeft import refuse_unusable
from paretune.methods.items import native_items, rivals
from paretune.methods.probe import halves
from paretune.methods.transfer import retarget
from paretune.plan import Plan
from paretune.plan_table import WIDTH
from paretune.search.trial import run_trial
from paretune.task import Task
from paretune.tuning import Recipe, attach, detach
from tests.tiny import tiny_model, tiny_rows, write_jsonl

QUICK = {"samples": 32, "batch_size": 16}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    rows = write_jsonl(folder / "train.jsonl", tiny_rows("pair", 60))
    return Task.from_files(rows, rows, model=tiny_model("bert", folder / "bert", blocks=4), max_length=24)


def plan(task, budget="10%", **settings):
    model = task.load_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    state = torch.get_rng_state()
    try:
        return choose("adapeft", model, task, budget, **(QUICK | settings))
    finally:
        after = model.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(value, after[name]) for name, value in before.items())
        assert flags == [p.requires_grad for p in model.parameters()]
        assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("level", ["type", "block-kind", "tensor", "rows"])
def test_items_are_every_weight_once(task, level):
    parts = anatomy(task.load_model())
    items = native_items(parts, parts.body, level, 3)
    assert sum(item.count for item in items) == parts.weights
    assert len({item.name for item in items}) == len(items)
    chosen = plan(task, "60%", items=level)
    assert 0 < chosen.count <= chosen.budget


@pytest.mark.parametrize("select", ["prefix", "knapsack", "joint"])
@pytest.mark.parametrize("estimator", ["sampled-fisher", "exact"])
def test_every_way_to_select(task, select, estimator):
    if select == "joint" and estimator == "exact":
        with pytest.raises(PareError, match="never negative"):
            plan(task, select=select, estimator=estimator)
        return
    found = plan(task, select=select, estimator=estimator, items="tensor")
    sizes = [weights for weights, _, _ in found.notes["front"]]
    assert sizes == sorted(sizes)
    assert len(sizes) > 5
    assert 0 < found.notes["usable_share"] <= 1
    assert found.notes["states"]["no gradient"] == 4  # the biases of attention's keys
    taken = [row for row in found.notes["table"]["rows"] if row[1]]
    assert sum(row[3] for row in taken) == found.count
    assert all(
        len(line) <= WIDTH for line in str(found).splitlines() if not line.startswith(("settings", "adap"))
    )
    assert "by predicted gain per weight" in str(found)


def test_forward_fit_and_the_gradient(task):
    found = plan(task, estimator="forward-fit", direction="gradient", items="block-kind", budget="40%")
    assert found.count


@pytest.mark.parametrize(
    "settings", [{"score": "slope"}, {"score": "slope", "direction": "gradient"}, {"score": "fisher"}]
)
def test_scores_without_a_curvature(task, settings):
    found = plan(task, items="tensor", **settings)
    gains = [row[4] for row in found.notes["table"]["rows"]]
    assert found.count
    assert sum(gain is not None for gain in gains) >= len(gains) - 4


def test_fisher_is_the_mean_square_summed(task):
    found = plan(task, items="tensor", score="fisher", samples=54)
    scores = fisher(task.load_model(), task, samples=54).scores
    for row in found.notes["table"]["rows"]:
        if row[4] is not None:
            assert row[4] == pytest.approx(float(scores[row[2]].double().sum()) / 54, rel=1e-4)


def test_added_modules_compete(task):
    found = plan(task, "30%", added="lora+adapter+prefix", size=2, items="tensor")
    names = [row[2] for row in found.notes["table"]["rows"]]
    gains = {row[2]: row[4] for row in found.notes["table"]["rows"]}
    loras = [name for name in names if "lora" in name]
    assert len(loras) == 4 * 6
    assert sum("adapter" in name for name in names) == sum("prefix" in name for name in names) == 4
    # B of a LoRA is where its gain is, in spite of its zeros; all are usable.
    assert all(gains[name] > 0 for name in loras)
    weights = {s.tensor.rpartition(".")[0] for s in found.selections if len(s.shape) == 2}
    assert not weights & {a.module for a in found.additions if a.strategy == "lora"}
    joint = plan(task, "30%", added="lora+prefix", size=2, select="joint")
    assert joint.additions


def test_a_lora_rivals_the_rows_of_its_matrix(task):
    model = task.load_model()
    parts = anatomy(model)
    from paretune.methods.items import added_items

    items = [
        *native_items(parts, parts.body, "rows", 2),
        *added_items(model, parts, parts.body, ["lora"], 2, 0),
    ]
    pairs = rivals(items)
    assert len(pairs) == 4 * 6 * 2
    assert all(items[a].parts[0].tensor.module == items[b].addition.module for a, b in pairs)


def test_further_limits(task):
    free = plan(task)
    by_delta = plan(task, delta_bytes=2000)
    assert sum(4 * s.count + 80 for s in by_delta.selections) <= 2000
    by_optimiser = plan(task, optimiser_bytes=6000)
    assert 12 * by_optimiser.count <= 6000
    assert by_delta.count < free.count > by_optimiser.count


def test_a_horizon_is_averaged(task):
    found = plan(task, horizon=0.5, probes=2, items="tensor")
    shares = {row[5] for row in found.notes["table"]["rows"]}
    assert shares <= {0.0, 0.5, 1.0}
    assert sum(found.notes["states"].values()) == 2 * len(found.notes["table"]["rows"])


def after_the_horizon(task, model, steps):
    """Every weight after the training that a horizon is."""
    parameters = dict(model.named_parameters())

    def look(number, optimiser):
        return {name: parameter.detach().clone() for name, parameter in parameters.items()}

    settings = {"steps": steps, "probes": 1, "lr": 5e-5, "batch_size": 16}
    return during_training(model, task, list(parameters.values()), look, **settings)[0]


def test_going_on_begins_with_what_the_horizon_made_of_the_chosen_weights(task, tmp_path):
    found = plan(task, horizon=0.5, probes=2, items="tensor", go_on=True)
    rewound = plan(task, horizon=0.5, probes=2, items="tensor")
    assert [s.tensor for s in found.selections] == [s.tensor for s in rewound.selections]
    assert not rewound.start
    assert found.digest != rewound.digest
    model = task.load_model()
    pretrained = {name: value.clone() for name, value in model.state_dict().items()}
    trained = after_the_horizon(task, model, round(0.5 * 3 * 54 / 16))
    chosen = {s.tensor for s in (*found.selections, *found.head)}
    assert set(found.start) == chosen
    found.save(tmp_path / "plan")
    attach(model, Plan.load(tmp_path / "plan"))
    assert not model.paretune.changed
    for name, value in model.state_dict().items():
        assert torch.equal(value, trained[name] if name in chosen else pretrained[name]), name
    assert any(not torch.equal(trained[name], pretrained[name]) for name in chosen)
    delta = model.delta()
    logits = model.eval()(**next(task.batches("validation", 4))).logits
    detach(model)
    assert all(torch.equal(value, pretrained[name]) for name, value in model.state_dict().items())
    with delta.apply(model):
        assert torch.equal(model(**next(task.batches("validation", 4))).logits, logits)


def test_going_on_takes_rows_and_added_modules_along(task, tmp_path):
    found = plan(task, "30%", horizon=0.4, go_on=True, added="lora", size=2, row_blocks=4)
    assert found.additions and any(s.granularity == "rows" for s in found.selections)
    model = task.load_model()
    attach(model, found)
    delta = model.delta()
    assert set(found.start) == set(delta.tensors) | set(delta.added)
    held = {name: values.values for name, values in delta.tensors.items()} | delta.added
    assert all(
        np.array_equal(held[name].numpy().reshape(-1), v.reshape(-1)) for name, v in found.start.items()
    )
    assert any(values.any() for name, values in found.start.items() if "lora_B" in name)
    outcome = run_trial(
        task.load_model(), task, found, Recipe(lr=1e-3, steps=3, checkpoints=0), split="validation"
    )
    assert outcome.scores["loss"] > 0


def test_a_damaged_start_is_refused(task, tmp_path):
    plan(task, horizon=0.4, go_on=True, items="tensor").save(tmp_path)
    path = tmp_path / "start.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(PareError, match=r"start\.safetensors: missing, damaged"):
        Plan.load(tmp_path)
    path.unlink()
    with pytest.raises(PareError, match=r"start\.safetensors: missing"):
        Plan.load(tmp_path)


def test_a_start_of_something_else_is_refused_and_the_model_is_as_it_was(task):
    found = plan(task, horizon=0.4, go_on=True, items="tensor")
    model = task.load_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for start in ({"nothing": np.ones(3, np.float32)}, {found.selections[0].tensor: np.ones(1, np.float32)}):
        with pytest.raises(PareError, match="which it does not train so"):
            attach(model, replace(found, start=start))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_shallow_copy_maps_to_the_whole(task):
    found = plan(task, probe_depth=0.5, items="tensor")
    assert found.count > 0.5 * found.budget
    assert len(found.notes["table"]["rows"]) == len(anatomy(task.load_model()).body)


def test_what_is_excluded_is_no_matter_of_the_model_that_is_looked_at(task):
    # A copy of one block: it has another block's place and name there.
    depth = 1 / len(anatomy(task.load_model()).blocks)
    for block in (0, 1):
        excluded = f"*layer.{block}.*"
        found = plan(task, probe_depth=depth, items="tensor", budget="40%", exclude=[excluded])
        names = {selection.tensor for selection in found.selections}
        assert names and not any(fnmatch.fnmatch(name, excluded) for name in names)
        assert any(".layer." in name for name in names)


def test_a_smaller_model_maps_to_the_large_one(task, tmp_path):
    small = tiny_model("bert", tmp_path / "small", seed=5, blocks=2)
    found = plan(task, probe_model=str(small), items="block-kind", budget="40%")
    assert len(found.notes["table"]["rows"]) == 4 * 4 + 4
    other = tiny_model("distilbert", tmp_path / "other")
    found = plan(task, probe_model=str(other), items="block-kind", budget="40%", exclude=["*pooler*"])
    assert found.count
    with pytest.raises(PareError, match="nothing to map other from"):
        plan(task, probe_model=str(other), items="block-kind", budget="40%")
    with pytest.raises(PareError, match=r"tokenizer has .* entries differ"):
        plan(task, probe_model=str(tiny_model("roberta", tmp_path / "third")))


def test_retargeting_interpolates_in_relative_depth(task):
    parts = anatomy(task.load_model())
    items = [i for i in native_items(parts, parts.body, "block-kind", 1) if i.kind == "norm" and i.part]
    ends = [items[0], items[-1]]
    counts = np.array([item.count for item in ends])
    seen = Average(("a", "b"), counts * np.array([1.0, 4.0]), np.zeros(2), None, np.ones(2), {})
    found = retarget(seen, ends, items)
    assert found.gain / items[0].count == pytest.approx([1, 2, 3, 4])


@pytest.mark.parametrize(
    ("budget", "settings", "said"),
    [
        (20, {"items": "tensor"}, "smallest item, .* has 32 weights, the budget is 20"),
        ("10%", {"items": "tensors"}, "items 'tensors' is none of"),
        ("10%", {"select": "greedy"}, "select 'greedy'"),
        ("10%", {"horizon": 2.0}, "horizon 2.0"),
        ("10%", {"probe_depth": 0.0}, "probe_depth 0.0"),
        ("10%", {"row_blocks": 0}, "row_blocks 0"),
        ("10%", {"lr": 0.0}, "lr 0"),
        ("10%", {"select": "joint", "estimator": "forward-fit"}, "joint needs a curvature"),
        ("10%", {"go_on": True}, "give a horizon"),
        ("10%", {"go_on": True, "horizon": 0.5, "probe_depth": 0.5}, "no probe_depth"),
        ("10%", {"go_on": True, "horizon": 0.5, "added": "prefix"}, "add no prefix"),
        ("10%", {"score": "hessian"}, "score 'hessian' is none of"),
        ("10%", {"score": "slope", "estimator": "exact"}, "score=slope has no curvature"),
        ("10%", {"score": "fisher", "added": "prefix"}, "add no prefix"),
        ("10%", {"horizon": "10%"}, "horizon '10%' is not a number"),
        ("10%", {"samples": 2}, "samples=2"),
        ("10%", {"samples": 900}, "train has 54"),
        ("10%", {"added": "loar"}, "did you mean 'lora'"),
        ("10%", {"delta_bytes": 90}, "raise the budget or the limits"),
        ("10%", {"horizon": 1e-9}, "no step of training"),
        ("40", {"select": "prefix", "items": "type"}, "raise the budget"),
    ],
)
def test_bad_requests_give_numbers_and_no_plan(task, budget, settings, said):
    with pytest.raises(PareError, match=said):
        plan(task, budget, **settings)


def test_evidence_that_prefers_nothing_is_refused():
    none = np.full(2, math.nan)
    seen = Average(("a", "b"), none, none, None, np.zeros(2), {"curvature <= 0": 2})
    with pytest.raises(PareError, match=r"none of the 2 items has a positive curvature.*2 curvature <= 0"):
        refuse_unusable(seen, [None, None])
    flat = Average(("a",), np.zeros(1), none[:1], None, np.ones(1), {"usable": 1})
    with pytest.raises(PareError, match="none of the 1 items lowers the loss"):
        refuse_unusable(flat, [None])


def test_halves_have_nothing_in_common_and_the_classes_in_proportion(task):
    first, second = halves(task, 32, 3)
    assert not set(first) & set(second)
    labels = np.array(task.train["labels"])
    assert abs(labels[first].mean() - labels[second].mean()) <= 1 / 16
    assert len(first) == len(second) == 16
