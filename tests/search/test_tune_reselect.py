import json

import pytest

from paretune.delta import Delta
from paretune.errors import PareError
from paretune.plan import Plan
from paretune.search.tune import tune
from paretune.task import Task
from paretune.tuning import Recipe
from tests.tiny import tiny_model, tiny_rows, write_jsonl

RECIPE = Recipe(lr=1.0, steps=8, batch_size=8, checkpoints=4)
FISH = {"samples": 16}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    train = write_jsonl(folder / "train.jsonl", tiny_rows("pair", 60))
    validation = write_jsonl(folder / "validation.jsonl", tiny_rows("pair", 40, seed=1))
    return Task.from_files(train, validation, model=tiny_model("bert", folder / "bert"))


def test_the_last_mask_is_the_plan_of_the_run_also_after_an_interruption(task, tmp_path, monkeypatch):
    settings = {"recipe": RECIPE, "lr": 1e-2, "settings": FISH, "reselect": 3}
    whole = tune(task, "fish", "3%", tmp_path / "whole", **settings)
    plan = Plan.load(tmp_path / "whole/plan")
    first = Plan.load(tmp_path / "whole/first-plan")
    delta = Delta.load(tmp_path / "whole/delta.safetensors")
    assert delta.plan_digest == plan.digest != first.digest
    assert [entry["step"] for entry in plan.notes["reselected"]] == [3, 6]
    assert (plan.count, plan.budget, plan.base) == (first.count, first.budget, first.base)
    model = task.load_model(seed=9)
    delta.apply(model)
    assert task.score(model, "validation") == whole["scores"]

    class StopError(Exception):
        pass

    def stop(*args, **kwargs):
        raise StopError

    with monkeypatch.context() as patch:  # after the training, before the last plan is the run's
        patch.setattr("paretune.delta.Delta.with_info", stop)
        with pytest.raises(StopError):
            tune(task, "fish", "3%", tmp_path / "stopped", **settings)
    again = tune(task, "fish", "3%", tmp_path / "stopped", **settings)
    assert again["scores"] == whole["scores"]
    for file in ("plan/plan.json", "plan/plan.safetensors", "first-plan/plan.json", "delta.safetensors"):
        assert (tmp_path / "stopped" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


def test_what_cannot_be_chosen_again_is_refused_before_training(task, tmp_path):
    with pytest.raises(PareError, match="does not select entries only"):
        tune(task, "lora", "3%", tmp_path / "lora", recipe=RECIPE, reselect=3)
    with pytest.raises(PareError, match="every 0 steps"):
        tune(task, "fish", "3%", tmp_path / "fish", recipe=RECIPE, reselect=0)
    assert not (tmp_path / "lora").exists() and not (tmp_path / "fish").exists()


def test_a_run_with_it_is_another_run(task, tmp_path):
    tune(task, "random", "3%", tmp_path / "run", recipe=RECIPE, lr=1e-2)
    assert json.loads((tmp_path / "run/request.json").read_text())["reselect"] is None
    with pytest.raises(PareError, match="another run \\(reselect was None, now 3\\)"):
        tune(task, "random", "3%", tmp_path / "run", recipe=RECIPE, lr=1e-2, reselect=3)
