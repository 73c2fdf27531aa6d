import json
from dataclasses import replace

import pytest
import torch

from paretune.delta import Delta
from paretune.errors import PareError
from paretune.methods import choose, learning_rates, make_method
from paretune.plan import Plan
from paretune.search.sweep import best_rate, sweep, sweep_table
from paretune.search.tune import rates_of, tune
from paretune.task import Task
from paretune.tuning import Recipe
from tests.tiny import tiny_model, tiny_rows, write_jsonl

RECIPE = Recipe(lr=1.0, steps=8, batch_size=8, checkpoints=2)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    train = write_jsonl(folder / "train.jsonl", tiny_rows("pair", 100))
    validation = write_jsonl(folder / "validation.jsonl", tiny_rows("pair", 40, seed=1))
    return Task.from_files(train, validation, model=tiny_model("bert", folder / "bert"))


def fresh_score(task, path, seed):
    model = task.load_model(seed=seed)
    Delta.load(path).apply(model)
    return task.score(model, "validation")


@pytest.mark.parametrize(
    ("method", "budget"), [("random", "3%"), ("lora", "3%"), ("bitfit", None), ("head", None)]
)
def test_the_delta_on_a_fresh_base_gives_the_reported_score(task, tmp_path, method, budget):
    result = tune(task, method, budget, tmp_path / "run", recipe=RECIPE, seed=1, lr=1e-2)
    assert fresh_score(task, tmp_path / "run/delta.safetensors", seed=9) == result["scores"]
    assert result["score"] == result["scores"][task.metric]
    assert json.loads((tmp_path / "run/result.json").read_text()) == json.loads(json.dumps(result))
    assert result["delta_bytes"] == (tmp_path / "run/delta.safetensors").stat().st_size
    assert not (tmp_path / "run/checkpoints").exists()


def test_rounded_values_are_what_is_scored(task, tmp_path):
    result = tune(task, "random", "3%", tmp_path / "run", recipe=RECIPE, lr=1e-2, delta_dtype="bf16")
    delta = Delta.load(tmp_path / "run/delta.safetensors")
    assert all(values.values.dtype == torch.bfloat16 for values in delta.tensors.values())
    assert fresh_score(task, tmp_path / "run/delta.safetensors", seed=4) == result["scores"]


def test_a_precision_of_the_delta_that_there_is_not_is_told(task, tmp_path):
    with pytest.raises(PareError, match="delta_dtype 'fp16' is none of fp32, bf16"):
        tune(task, "random", "3%", tmp_path / "run", recipe=RECIPE, lr=1e-2, delta_dtype="fp16")
    assert not (tmp_path / "run").exists()


def test_a_bf16_base_gives_its_score_again(task, tmp_path):
    recipe = replace(RECIPE, precision="bf16")
    result = tune(task, "random", "3%", tmp_path / "run", recipe=recipe, lr=1e-2)
    model = task.load_model(seed=5, dtype=torch.bfloat16)
    Delta.load(tmp_path / "run/delta.safetensors").apply(model)
    assert task.score(model, "validation") == result["scores"]


def test_a_finished_run_is_read_back(task, tmp_path, monkeypatch):
    first = tune(task, "random", "3%", tmp_path / "run", recipe=RECIPE)
    monkeypatch.setattr("paretune.search.tune.run_trial", None)
    assert tune(task, "random", "3%", tmp_path / "run", recipe=RECIPE) == json.loads(json.dumps(first))


def test_an_interrupted_run_goes_on_to_the_same_result(task, tmp_path, monkeypatch):
    whole = tune(task, "random", "3%", tmp_path / "whole", recipe=RECIPE)

    class StopError(Exception):
        pass

    def stop(*args, **kwargs):
        raise StopError

    with monkeypatch.context() as patched:
        patched.setattr(type(task), "score", stop)
        with pytest.raises(StopError):
            tune(task, "random", "3%", tmp_path / "run", recipe=RECIPE)
    again = tune(task, "random", "3%", tmp_path / "run", recipe=RECIPE)
    assert again["scores"] == whole["scores"]
    deltas = [Delta.load(tmp_path / name / "delta.safetensors") for name in ("whole", "run")]
    assert deltas[0].digest == deltas[1].digest


def test_another_request_in_the_folder_is_refused(task, tmp_path):
    tune(task, "random", "3%", tmp_path / "run", recipe=RECIPE)
    with pytest.raises(PareError, match=r"another run \(seed was 0, now 1\)"):
        tune(task, "random", "3%", tmp_path / "run", recipe=RECIPE, seed=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("")
    with pytest.raises(PareError, match="holds no run"):
        tune(task, "random", "3%", tmp_path / "mine", recipe=RECIPE)


def test_nothing_is_written_for_a_request_that_cannot_work(task, tmp_path):
    with pytest.raises(PareError, match="did you mean"):
        tune(task, "randon", "3%", tmp_path / "run")
    with pytest.raises(PareError, match="cannot read budget"):
        tune(task, "random", "three", tmp_path / "run")
    with pytest.raises(PareError, match="validation"):
        tune(replace(task, validation=None), "random", "3%", tmp_path / "run")
    with pytest.raises(PareError, match="the model has"):
        tune(task, "random", "900G", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("lr", [0, -1e-3, float("nan"), float("inf"), "swep"])
def test_a_rate_that_cannot_be_is_refused_before_anything_is_loaded(task, tmp_path, monkeypatch, lr):
    monkeypatch.setattr(type(task), "load_model", None)
    with pytest.raises(PareError, match="lr "):
        tune(task, "random", "3%", tmp_path / "run", recipe=RECIPE, lr=lr)
    assert not (tmp_path / "run").exists()


def test_only_one_process_trains_in_a_folder(task, tmp_path):
    def other(_):
        with pytest.raises(PareError, match=r"run: another process is training here; wait for it"):
            tune(task, "random", "3%", tmp_path / "run", recipe=RECIPE, lr=1e-2)
        said.append(True)

    said = []
    first = tune(task, "random", "3%", tmp_path / "run", recipe=RECIPE, lr=1e-2, say=other)
    assert said
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "delta.safetensors",
        "plan",
        "request.json",
        "result.json",
    ]
    again = tune(task, "random", "3%", tmp_path / "run", recipe=RECIPE, lr=1e-2)
    assert again == json.loads(json.dumps(first))


@pytest.mark.parametrize("lr", [None, "sweep"])
def test_an_interrupted_run_keeps_its_rate_when_the_defaults_change(task, tmp_path, monkeypatch, lr):
    class StopError(Exception):
        pass

    def stop(*args, **kwargs):
        raise StopError

    with monkeypatch.context() as patched:  # with checkpoints, before it is finished
        patched.setattr("paretune.delta.Delta.with_info", stop)
        with pytest.raises(StopError):
            tune(task, "random", "3%", tmp_path / "run", recipe=RECIPE, lr=lr)
    before = json.loads((tmp_path / "run/lr.json").read_text())["lr"]
    monkeypatch.setattr("paretune.search.tune.rates_of", lambda plan: (0.5, 0.6, 0.7))
    assert tune(task, "random", "3%", tmp_path / "run", recipe=RECIPE, lr=lr)["lr"] == before


def test_a_sweep_keeps_its_table_and_repeats_nothing(task, tmp_path, monkeypatch):
    model = task.load_model()
    from paretune.methods import choose

    plan = choose("random", model, task, "3%")
    table = tmp_path / "sweep.json"
    rows = sweep(model, task, plan, RECIPE, (1e-3, 1e-2), table=table)
    assert [row["lr"] for row in json.loads(table.read_text())] == [1e-3, 1e-2]
    assert {"loss", task.metric, "steps"} <= rows[0].keys()
    monkeypatch.setattr("paretune.search.sweep.run_trial", None)
    assert sweep(model, task, plan, RECIPE, (1e-3, 1e-2), table=table) == rows
    assert "<- chosen" in sweep_table(rows, task.metric, best_rate(rows, task))


def test_a_rate_that_diverges_is_an_answer(task):
    from paretune.methods import choose

    model = task.load_model()
    plan = choose("full", model, task)
    rows = sweep(model, task, plan, replace(RECIPE, steps=20), (1e-3, 1e30))
    assert "failed" in rows[1]
    assert best_rate(rows, task) == 1e-3
    assert "diverged" in sweep_table(rows, task.metric, 1e-3)
    with pytest.raises(PareError, match="no learning rate worked"):
        best_rate(rows[1:], task)


def test_ties_go_to_the_lower_loss(task):
    rows = [
        {"lr": lr, "steps": 1, task.metric: 0.5, "loss": loss} for lr, loss in ((1, 0.9), (2, 0.3), (3, 0.7))
    ]
    assert best_rate(rows, task) == 2


def test_sweep_and_default_rates(task, tmp_path):
    result = tune(task, "random", "3%", tmp_path / "run", recipe=RECIPE, lr="sweep")
    assert result["lr"] in rates_of(Plan.load(tmp_path / "run" / "plan"))
    model = task.load_model()
    for settings in ({}, {"reading": "published"}):
        plan = choose("fish", model, task, "3%", samples=16, exclude=["*query*"], **settings)
        assert rates_of(plan) == learning_rates(make_method("fish", settings), plan.count / plan.weights)


def test_rates_follow_the_share_without_the_head_under_either_rule(task):
    model = task.load_model()
    inside = choose("random", model, task, "100", head="inside")
    beside = inside.count - inside.head_count
    outside = choose("random", model, task, str(beside))
    assert 0 < beside < inside.count
    assert (
        rates_of(inside)
        == rates_of(outside)
        == learning_rates(make_method("random"), beside / inside.weights)
    )
