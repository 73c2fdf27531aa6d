"""``tune`` under a launcher: one run, one folder, one voice."""

import json
import math

import pytest

from paretune.cli import BAD_INPUT, main
from paretune.delta import Delta
from paretune.plan import Plan
from paretune.task import Task
from tests.processes import launch
from tests.tiny import tiny_model, tiny_rows, write_jsonl

ROWS, BATCH, EPOCHS = 60, 8, 2


def files(folder):
    model = tiny_model("bert", folder / "model")
    train = write_jsonl(folder / "train.jsonl", tiny_rows("single", ROWS))
    validation = write_jsonl(folder / "validation.jsonl", tiny_rows("single", 30, seed=1))
    return model, train, validation


def test_two_processes_train_as_many_epochs_and_the_first_one_writes_and_speaks(tmp_path):
    model, train, validation = files(tmp_path)
    out = tmp_path / "run"
    asked = (
        f"tune --model {model} --train {train} --validation {validation} --method fish --budget 5% --lr sweep"
    )
    asked += f" --epochs {EPOCHS} --batch-size {BATCH} --out {out}"
    launch(2, tmp_path, main, asked.split())
    result = json.loads((out / "result.json").read_text())
    assert result["steps"] == EPOCHS * math.ceil(ROWS / (2 * BATCH))
    assert {path.name for path in out.iterdir()} == {
        "delta.safetensors",
        "lr.json",
        "plan",
        "report.html",
        "report.json",
        "request.json",
        "result.json",
        "sweep.json",
    }
    first, second = ((tmp_path / f"said-{rank}/stdout").read_text() for rank in (0, 1))
    assert "on validation with" in first
    assert second == ""
    assert result["delta_bytes"] == (out / "delta.safetensors").stat().st_size
    assert len(Plan.load(out / "plan").selections)
    task = Task.from_files(train, validation, model=model)
    base = task.load_model(seed=1)
    with Delta.load(out / "delta.safetensors").apply(base):
        assert task.score(base)[task.metric] == result["score"]


@pytest.mark.parametrize("command", ["front", "search", "tune --method auto"])
def test_what_is_one_process_says_so_under_a_launcher(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    out = tmp_path / "out"
    asked = f"{command} --model m --train t --validation v --out {out}"
    asked += " --methods fish --budgets 1%" if command == "front" else " --budget 1%"
    assert main(asked.split()) == BAD_INPUT
    assert f"paretune {command} is one process, and 2 were launched" in capsys.readouterr().err
    assert not out.exists()
