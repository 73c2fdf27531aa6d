import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from paretune.delta import Delta
from paretune.errors import PareError
from paretune.methods import choose, rechoose
from paretune.plan import Plan, Selection
from paretune.task import Task
from paretune.tuning import Recipe, Reselection, attach, detach, train
from tests.tiny import tiny_model, tiny_rows, write_jsonl

QUICK = Recipe(lr=5e-3, steps=9, batch_size=8, checkpoints=0, weight_decay=0.1)
EVERY = Reselection(3, rechoose)
SETTINGS = {"fish": {"samples": 16}, "gradient": {"samples": 16}, "ird": {"samples": 8, "steps": 1}}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    write_jsonl(folder / "train.jsonl", tiny_rows("pair", 80))
    return Task.from_files(folder / "train.jsonl", model=tiny_model("bert", folder / "bert"))


class Watch(TrainerCallback):
    """The plans, and the weights and moments as they are after each step's callbacks."""

    def __init__(self, model):
        self.model, self.plans, self.weights = model, [], []

    def on_step_begin(self, args, state, control, **kwargs):
        self.plans.append(self.model.paretune.plan)
        for slot in self.model.paretune.slots.values():
            slot.synchronise()
        self.weights.append({n: t.detach().clone() for n, t in self.model.state_dict().items()})


def outside(plan, name, weight):
    """The weights of a tensor that a plan leaves alone."""
    free = np.ones(weight.numel(), dtype=bool)
    for selection in (*plan.selections, *plan.head):
        if selection.tensor == name:
            free[selection.flat()] = False
    return weight.reshape(-1)[torch.from_numpy(free)]


@pytest.mark.parametrize(
    ("method", "precision", "more"),
    [
        ("random", "bf16", {}),
        ("magnitude", "fp32", {}),
        ("gradient", "amp", {}),
        ("fish", "bf16", {}),
        ("ird", "fp32", {}),
        ("fish", "fp32", {"granularity": "rows"}),
        ("gradient", "fp32", {"granularity": "columns"}),
        ("random", "bf16", {"granularity": "blocks"}),
    ],
)
def test_at_every_step_only_the_mask_of_that_step_differs_from_the_base(
    task, tmp_path, method, precision, more
):
    recipe = replace(QUICK, precision=precision)
    model = task.load_model(dtype=recipe.dtype)
    before = copy.deepcopy(model.state_dict())
    budget = "8%" if more else "2%"
    plan = choose(method, model, task, budget, **SETTINGS.get(method, {}), **more)
    attach(model, plan)
    watch = Watch(model)
    train(model, task, tmp_path, recipe, reselect=EVERY, callbacks=[watch])
    last = model.paretune.plan
    assert [p.digest for p in watch.plans[:3]] == [plan.digest] * 3
    assert [entry["step"] for entry in last.notes["reselected"]] == [3, 6]
    assert watch.plans[-1].digest == last.digest
    if method != "magnitude":  # trained weights need not leave the largest
        assert last.notes["reselected"][0]["kept"] < last.notes["reselected"][0]["of"]
    for now, weights in [*zip(watch.plans, watch.weights, strict=True), (last, model.state_dict())]:
        assert now.count <= plan.budget if more else now.count == plan.count
        assert {s.granularity for s in now.selections} == {more.get("granularity", "entries")}
        for name, weight in weights.items():
            assert torch.equal(outside(now, name, weight), outside(now, name, before[name])), name
    delta = model.delta()
    assert delta.plan_digest == last.digest
    assert delta.count == last.count + last.head_count
    trained = {name: t.clone() for name, t in model.state_dict().items()}
    detach(model)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    delta.apply(model)
    assert all(torch.equal(t, trained[n]) for n, t in model.state_dict().items())


def test_values_and_moments_stay_with_their_weights(task, tmp_path):
    model = task.load_model()
    name = "bert.encoder.layer.1.attention.self.query.weight"
    shape = tuple(model.get_parameter(name).shape)
    other = "bert.encoder.layer.0.output.dense.weight"
    plan = choose("random", model, task, 12)
    first = replace(plan, selections=(Selection(name, shape, "entries", np.arange(12)),))
    wanted = np.array([2, 3, 5, 11, 40, 41])
    there = Selection(other, tuple(model.get_parameter(other).shape), "entries", np.arange(6))
    second = replace(first, selections=(Selection(name, shape, "entries", wanted), there))
    attach(model, first, check=False)
    seen = {}

    class Look(TrainerCallback):
        def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
            slot = model.paretune.slots[name]
            seen[state.global_step] = {
                "values": slot.values.detach().clone(),
                "state": {k: v.clone() for k, v in optimizer.state.get(slot.values, {}).items()},
                "fresh": optimizer.state.get(model.paretune.slots[other].values)
                if other in model.paretune.slots
                else None,
            }

    def keep(plan, plain, task, step):
        assert not hasattr(plain, "paretune")
        seen["plain"] = plain.get_parameter(name).detach().reshape(-1)[:12].clone()
        return second

    base = model.paretune.slots[name].original.clone()
    train(model, task, tmp_path, replace(QUICK, steps=8), reselect=Reselection(5, keep), callbacks=[Look()])
    after = seen[5]
    kept, new = [2, 3, 5, 11], slice(4, 6)
    # The look at step 5 comes after the choice; what was there before it is what the plain model showed.
    assert torch.equal(after["values"][:4], seen["plain"][kept])
    assert not torch.equal(after["values"][:4], base[kept])
    assert torch.equal(after["values"][new], model.paretune.slots[name].original[new])
    assert after["state"]["step"] == 5
    for moment in ("exp_avg", "exp_avg_sq"):
        assert after["state"][moment].shape == (6,)
        assert after["state"][moment][:4].any()
        assert not after["state"][moment][new].any()
    assert after["fresh"] is None  # a tensor new to the mask has an optimiser's fresh start
    assert not torch.equal(model.paretune.slots[other].values, model.paretune.slots[other].original)


def test_the_same_mask_again_changes_nothing(task, tmp_path):
    found = []
    for reselect in (None, Reselection(2, lambda plan, model, task, step: plan)):
        model = task.load_model()
        attach(model, choose("random", model, task, "3%"))
        train(model, task, tmp_path / str(len(found)), QUICK, reselect=reselect)
        found.append(model.delta().digest)
    assert found[0] == found[1]


class Stop(TrainerCallback):
    """Ends the run after a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_stopped_run_resumes_to_the_same_bits(tmp_path, precision):
    write_jsonl(tmp_path / "train.jsonl", tiny_rows("pair", 80))
    task = Task.from_files(tmp_path / "train.jsonl", model=tiny_model("bert", tmp_path / "bert"))
    recipe = Recipe(lr=5e-3, steps=12, batch_size=8, checkpoints=6, precision=precision)
    plan = choose("fish", task.load_model(dtype=recipe.dtype), task, "2%", samples=16)

    def run(out, *callbacks):
        model = attach(task.load_model(dtype=recipe.dtype), plan)
        train(model, task, tmp_path / out, recipe, reselect=Reselection(4, rechoose), callbacks=callbacks)
        return model

    whole = run("whole")
    for step in (3, 7, 11):  # before a choice and after; in the first epoch, in the second
        with pytest.raises(KeyboardInterrupt):
            run("stopped", Stop(step))
    last = run("stopped").paretune.plan
    assert last.digest == whole.paretune.plan.digest
    assert [entry["step"] for entry in last.notes["reselected"]] == [4, 8]
    first = Delta.load(tmp_path / "whole/checkpoint-12/delta.safetensors")
    second = Delta.load(tmp_path / "stopped/checkpoint-12/delta.safetensors")
    assert first.digest == second.digest
    assert first.plan_digest == Plan.load(tmp_path / "stopped/checkpoint-12/plan").digest == last.digest


def test_what_cannot_be_chosen_again_is_said_at_once(task, tmp_path):
    model = task.load_model()
    for method, budget in (("lora", "3%"), ("bitfit", None), ("head", None)):
        attach(model, choose(method, model, task, budget))
        with pytest.raises(PareError, match=f"the plan of '{method}' does not select entries only"):
            train(model, task, tmp_path, QUICK, reselect=EVERY)
        detach(model)
    attach(model, choose("random", model, task, "20KB"))
    with pytest.raises(PareError, match="budget in bytes"):
        train(model, task, tmp_path, QUICK, reselect=EVERY)
    detach(model)
    plan = choose("random", model, task, "1%")
    begun = {s.tensor: np.zeros(s.count, dtype=np.float32) for s in plan.selections}
    attach(model, replace(plan, start=begun))
    with pytest.raises(PareError, match="which values training begins with"):
        train(model, task, tmp_path, QUICK, reselect=EVERY)
    with pytest.raises(PareError, match="every 0 steps"):
        Reselection(0, rechoose)


def test_a_run_without_it_does_not_go_on_with_it(task, tmp_path):
    model = task.load_model()
    attach(model, choose("random", model, task, "1%"))
    recipe = replace(QUICK, checkpoints=1)
    train(model, task, tmp_path, recipe)
    with pytest.raises(PareError, match="reselect None there, 3 now"):
        train(model, task, tmp_path, recipe, reselect=EVERY)
