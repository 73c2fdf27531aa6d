"""What every method promises; a method joins by being registered."""

import copy

import pytest
import torch

from paretune.errors import PareError
from paretune.methods import METHODS, choose
from paretune.plan import Plan
from paretune.task import Task
from paretune.tuning import attach, detach
from tests.tiny import tiny_model, tiny_rows, write_jsonl

FAMILIES = {"bert": "pair", "gpt2": "text", "llama": "prompt", "t5": "prompt"}
BUDGET = "4%"
QUICK = {"samples": 16}  # for the methods that look at examples
FEWER = {"ird": {"samples": 4}}  # that draw several times as many


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    made = {}
    for kind, shape in FAMILIES.items():
        folder = tmp_path_factory.mktemp(kind)
        rows = write_jsonl(folder / "train.jsonl", tiny_rows(shape, 60))
        made[kind] = Task.from_files(rows, rows, model=tiny_model(kind, folder / "model"), max_length=32)
    return made


def plan_for(name, task, seed=0, budget=BUDGET, model=None, **settings):
    method = METHODS[name]
    known = method.__dataclass_fields__
    settings = {k: v for k, v in QUICK.items() if k in known} | FEWER.get(name, {}) | settings
    model = model if model is not None else task.load_model()
    return choose(name, model, task, budget if method.sized else None, seed=seed, **settings)


def can_serve(name, family):
    return not (name == "head" and family != "bert") and not (name == "bitfit" and family in ("llama", "t5"))


@torch.no_grad()
def predict(model, batch):
    """Without gradients: attention picks its kernel by what requires them."""
    return model(**batch).logits


CASES = [(name, family) for name in METHODS for family in FAMILIES]


@pytest.mark.parametrize(("name", "family"), CASES)
def test_a_plan_fits_its_budget_and_trains(tasks, tmp_path, name, family):
    task = tasks[family]
    model = task.load_model()
    before = copy.deepcopy(model.state_dict())
    if not can_serve(name, family):
        with pytest.raises(PareError, match="train"):
            plan_for(name, task, model=model)
        return
    plan = plan_for(name, task, model=model)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items()), "choosing changed the model"
    assert all(p.requires_grad for p in model.parameters())
    assert plan.budget is None or plan.count <= plan.budget
    assert plan.method == name
    assert "\n" in str(plan)

    plan.save(tmp_path)
    assert Plan.load(tmp_path) == plan

    attach(model, plan)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == plan.trained
    optimiser = torch.optim.AdamW(trained, lr=1e-2)
    batch = next(iter(task.batches("train", 8)))
    losses = []
    for _ in range(4):
        optimiser.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    delta = model.delta()
    logits = predict(model, batch)
    detach(model)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    delta.apply(model)
    assert torch.equal(predict(model, batch), logits)


UNITED = [name for name, method in METHODS.items() if "granularity" in method.__dataclass_fields__]


def test_who_chooses_units():
    assert UNITED == ["random", "gradient", "fish", "ird"]


@pytest.mark.parametrize("kind", ["rows", "columns", "blocks"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", UNITED)
def test_whole_units_train_and_ship(tasks, name, family, kind):
    task = tasks[family]
    model = task.load_model()
    plan = plan_for(name, task, model=model, granularity=kind, within="all")
    assert {selection.granularity for selection in plan.selections} == {kind}
    assert 0.5 * plan.budget < plan.count <= plan.budget
    attach(model, plan)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == plan.trained
    batch = next(iter(task.batches("train", 8)))
    model(**batch).loss.backward()
    torch.optim.SGD(trained, lr=1e-2).step()
    delta = model.delta()
    logits = predict(model, batch)
    detach(model)
    delta.apply(model)
    assert torch.equal(predict(model, batch), logits)


@pytest.mark.parametrize("name", METHODS)
def test_the_same_seed_gives_the_same_plan(tasks, name):
    assert plan_for(name, tasks["bert"], seed=3).digest == plan_for(name, tasks["bert"], seed=3).digest


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.sized])
@pytest.mark.parametrize("budget", ["0.3%", "2%", "700", "20%"])
def test_a_sized_method_spends_its_budget(tasks, name, budget):
    try:
        plan = plan_for(name, tasks["bert"], budget=budget)
    except PareError as refusal:  # a rank of one may not fit; single weights always do
        assert plan_for("random", tasks["bert"], budget=budget).count
        assert "raise the budget" in str(refusal)
        return
    assert 0.5 * plan.budget < plan.count <= plan.budget
    if plan.selections and plan.selections[0].granularity == "entries":
        assert plan.count == plan.budget


@pytest.mark.parametrize("name", METHODS)
def test_excluded_tensors_are_left_alone(tasks, name):
    plan = plan_for(name, tasks["bert"], exclude=["*pooler*", "*layer.0.*"])
    places = [s.tensor for s in plan.selections] + [a.module for a in plan.additions]
    assert not any("pooler" in place or "layer.0." in place for place in places)


@pytest.mark.parametrize("name", METHODS)
def test_learning_rates_ascend_and_settings_have_defaults(name):
    method = METHODS[name]
    assert len(method.learning_rates) >= 4
    assert list(method.learning_rates) == sorted(method.learning_rates)
    assert method().name == name
    assert method.summary


def test_the_head_inside_the_budget_is_paid_for(tasks):
    plan = choose("random", tasks["bert"].load_model(), tasks["bert"], "2%", head="inside")
    assert plan.count == plan.budget
    assert plan.count == plan.head_count + sum(s.count for s in plan.selections)
