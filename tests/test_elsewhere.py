"""A model that is not on the CPU is chosen from, trained and scored there: nothing is left behind."""

import pytest
import torch

from paretune import attach, detach
from paretune.delta import Delta
from paretune.methods import METHODS, choose
from paretune.task import Task
from tests.elsewhere import DEVICE, DeviceElsewhere, move
from tests.tiny import tiny_model, tiny_rows

BUDGET = "10%"
CASES = [(name, {}) for name in METHODS if name not in ("design", "magnitude")]
CASES += [
    ("adapeft", {"added": "lora", "size": 2}),
    ("adapeft", {"estimator": "exact", "items": "type"}),
    ("adapeft", {"estimator": "forward-fit", "items": "type"}),
    ("adapeft", {"horizon": 0.3}),
    ("adapeft", {"score": "fisher"}),
    ("adapeft", {"select": "joint"}),
    ("fish", {"granularity": "blocks"}),
    ("fish", {"labels": "exact"}),
    ("fish", {"labels": "sampled"}),
    ("gradient", {"granularity": "columns"}),
    ("ird", {"granularity": "rows", "samples": 4}),
]


@pytest.fixture(scope="module", params=["bert", pytest.param("t5", marks=pytest.mark.slow)])
def task(request, tmp_path_factory):
    folder = tiny_model(request.param, tmp_path_factory.mktemp("elsewhere") / request.param)
    return Task.from_rows(tiny_rows("single", 40), tiny_rows("single", 16, seed=1), model=folder)


def load(task):
    return task.load_model(attn_implementation="eager", device="cpu")  # fused attention knows real devices


def asked(name):
    return BUDGET if METHODS[name].sized else None


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_the_choice_is_the_same(task, name, settings):
    if name == "bitfit" and task.model_id.endswith("t5"):
        pytest.skip("T5 has no bias")
    here = choose(name, load(task), task, asked(name), **settings)
    model = load(task)
    with DeviceElsewhere():
        there = choose(name, move(model), task, asked(name), **settings)
    assert there.digest == here.digest


@pytest.mark.parametrize("name", ["bias", "full", "lora", "prefix", "s4"])
def test_whole_tensors_and_modules_train_and_are_scored(task, name, tmp_path):
    model = load(task)
    with DeviceElsewhere():
        move(model)
        attach(model, choose(name, model, task, asked(name)))
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for batch in task.batches("train", 8, device=DEVICE):
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        scores = task.score(model)
        model.delta().save(tmp_path / "delta.safetensors")
        detach(model)
    base = load(task)
    with Delta.load(tmp_path / "delta.safetensors").apply(base):
        again = task.score(base)
    assert again == pytest.approx(scores)


def test_a_delta_is_applied_and_taken_off(task, tmp_path):
    model = load(task)
    attach(model, choose("random", model, task, BUDGET))
    with torch.no_grad():
        for values in model.paretune.trained.values():
            values.add_(0.1)
    trained = task.score(model)
    delta = model.delta()
    base = load(task)
    with DeviceElsewhere():
        before = task.score(move(base))
        with delta.apply(base):
            assert task.score(base) == pytest.approx(trained)
        assert task.score(base) == before


def test_what_is_left_behind_is_found():
    with DeviceElsewhere():
        layer = move(torch.nn.Linear(2, 2))
        with pytest.raises(RuntimeError, match="same device"):
            layer(torch.ones(1, 2))
        with pytest.raises(RuntimeError, match="generator"):
            torch.empty(2, device=DEVICE).normal_(generator=torch.Generator())
        assert layer(torch.tensor([[1.0, 1.0]], device=DEVICE)).sum().item() == pytest.approx(
            float(layer.weight.detach().cpu().sum() + layer.bias.detach().cpu().sum())
        )
