"""The pages of the long experiments can be written at any time; their runner passes over what cannot be."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from experiments import adapeft, design_space, front, runner
from experiments.adapeft_choices import compared
from experiments.runner import Job, best_rates, run
from paretune.errors import BudgetError, PareError
from paretune.methods import make_method


def row(task, label, method, budget, score, **more):
    job = asdict(Job(task, method, 1e-3, budget, label=label, **more))
    found = {"score": score, "scores": {"loss": 0.5}, "losses": [[10, 0.6], [20, 0.4]], "trained": 1000}
    return {"key": label, **job, **found, "notes": {"gain": 0.25} if method == "adapeft" else {}}


def failed(task, label, method, budget, **more):
    return {
        "key": label,
        **asdict(Job(task, method, 1e-3, budget, label=label, **more)),
        "failed": "too small",
    }


def look(what, seed, gains, taken):
    return {
        "look": {"task": "cola", "seed": seed, "budget": "0.5%", "what": what, "settings": {}},
        "counts": [10, 20, 30],
        "gains": gains,
        "taken": taken,
    }


def call(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["experiment", *map(str, arguments)])
    module.main()


@pytest.mark.parametrize("module", [adapeft, design_space])
def test_a_page_without_a_row(module, tmp_path, monkeypatch, capsys):
    where = "--results" if module is adapeft else "--out"
    call(module, monkeypatch, "--page-only", where, tmp_path)
    (page,) = tmp_path.glob("*.md")
    assert page.read_text().startswith("# ")
    json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_adapeft_page_has_what_is_there(tmp_path, monkeypatch):
    rows = [
        row("cola", "adapeft", "adapeft", "0.5%", 0.2),
        row("cola", "adapeft", "adapeft", "0.5%", 0.4, seed=1),
        row("cola", "adapeft", "adapeft", "0.02%", 0.1),
        row("cola", "slope", "adapeft", "0.5%", 0.3, settings={"score": "slope"}),
        failed("cola", "lora", "lora", "0.02%"),
        row("cola", "tuned", "lora", "0.5%", 0.9, split="heldout"),
    ]
    (tmp_path / "adapeft.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    looks = [look("pretrained weights", 0, [1, 4, 9], "*--"), look("depth 34%", 0, [3, 2, 1], "**-")]
    (tmp_path / "adapeft_choices.jsonl").write_text("".join(json.dumps(each) + "\n" for each in looks))
    call(adapeft, monkeypatch, "--page-only", "--results", tmp_path)
    lines = (tmp_path / "adapeft.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    assert [line[:2] for line in cells[1:5]] == [
        ["adapeft", "0.02%"],
        ["adapeft", "0.5%"],
        ["slope", "0.5%"],
        ["lora", "0.02%"],
    ]
    assert cells[2][2:] == ["1,000", "2", "0.001", "0.25", "0.400", "30.0 (20.0 to 40.0)"]
    assert cells[3][5] == "-"  # its score is no gain
    assert cells[4][-1] == "too small"
    assert cells[-1] == ["depth 34%", "-1.00", "0.33"]
    assert not any("tuned" in line for line in lines if line.startswith("| tuned"))


def test_choices_are_compared_within_their_seed():
    rows = [
        look("pretrained weights", 0, [1.0, 4.0, 9.0], "-**"),
        look("pretrained weights", 1, [1.0, 4.0, 9.0], "-*-"),
        look("horizon 1%", 1, [9.0, 4.0, 1.0], "**-"),
        look("horizon 1%", 7, [9.0, 4.0, 1.0], "**-"),  # its base has not been looked at yet
    ]
    found = compared(rows)["cola"]
    assert found["seeds"] == pytest.approx([1, 20 / 50])
    assert found["horizon 1%"] == pytest.approx([-1, 20 / 30])


def test_the_design_space_page_has_what_is_there(tmp_path, monkeypatch):
    rows = [
        row("mrpc", "s4", "s4", "0.5%", 0.8, seed=100),
        row("mrpc", "lora", "lora", "0.5%", 0.7, seed=100),
        failed("sst2", "lora", "lora", "0.5%", seed=100),
        row("mrpc", "tune lora 0", "lora", "0.5%", 0.1, split="heldout"),
    ]
    (tmp_path / "design_space.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    call(design_space, monkeypatch, "--page-only", "--out", tmp_path)
    text = (tmp_path / "design_space.md").read_text()
    assert "| s4 | 1,000 | 80.0 (80.0 to 80.0), 1 seeds | - |" in text
    assert "| lora | 1,000 | 70.0 (70.0 to 70.0), 1 seeds | failed |" in text
    assert "1 for the single strategies" in text


def test_a_budget_that_holds_nothing_is_a_row_and_an_error_ends_the_run(tmp_path, monkeypatch):
    problems = {"small": BudgetError("raise the budget"), "wrong": PareError("no such thing")}

    def refuse(job):
        raise problems[job.label]

    monkeypatch.setattr(
        runner, "load_task", lambda name, seed: argparse.Namespace(load_model=lambda seed: None)
    )
    monkeypatch.setattr(runner, "_plan", lambda job, task, model: refuse(job))
    path = Path(tmp_path) / "rows.jsonl"
    (first,) = run([Job("cola", "lora", 1e-3, label="small", split="heldout")], path)
    assert first["failed"] == "raise the budget"
    assert best_rates([first]) == {}
    with pytest.raises(PareError, match="no such thing"):
        run([Job("cola", "lora", 1e-3, label="wrong")], path)
    assert len(path.read_text().splitlines()) == 1


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_what_another_experiment_has_run_is_copied_once_and_in_order(workers, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "WORKERS", workers)
    there = [row("cola", "theirs", "lora", "0.5%", score, seed=seed) for seed, score in enumerate((0.1, 0.2))]
    (tmp_path / "theirs.jsonl").write_text("".join(json.dumps(each) + "\n" for each in there))
    jobs = [Job("cola", "lora", 1e-3, "0.5%", seed=seed, label="ours") for seed in (1, 0)]
    path = tmp_path / "ours.jsonl"
    rows = run([*jobs, jobs[0]], path)
    assert [each["score"] for each in rows] == [0.2, 0.1, 0.2]
    assert {each["key"] for each in rows} == {job.key for job in jobs}
    assert {each["run_for"] for each in rows} == {"theirs"}
    written = path.read_text()
    assert len(written.splitlines()) == 2
    assert run(jobs, path) == rows[:2]
    assert path.read_text() == written


def test_every_variant_is_a_method_with_those_settings():
    for label, method, _, settings in [*adapeft.fronts(), *adapeft.controls()]:
        assert make_method(method, settings).name == method, label


def test_the_page_of_auto_is_written_from_whatever_there_is():
    methods = ["random", "full"]
    budgets = [("mrpc", "0.5%"), ("cola", "0.5%"), ("mrpc", "0.1%")]
    rows = [
        row("mrpc", "auto 0.5%", "auto", "0.5%", 0.86, seed=100)
        | {"chosen": "lora all 0.5%", "chosen_lr": 1e-3, "auto": {"equivalents": {"total": 5.5}}},
        row("mrpc", "random 0.5%", "random", "0.5%", 0.82, seed=100),
        row("mrpc", "random 0.5%", "random", "0.5%", 0.84, seed=101),
        row("mrpc", "random 0.5%", "random", "0.5%", 0.99, seed=0, split="heldout"),
        failed("cola", "auto 0.5%", "auto", "0.5%", seed=100),
    ]
    text = front.page(rows, budgets, methods)
    assert "| auto | 86.0 (86.0 to 86.0, 1) | none |  |" in text
    assert "| random | 83.0 (82.0 to 84.0, 2) | none |  |" in text
    assert "| mrpc | 100 | lora all 0.5% | 0.001 | 5.5 |" in text
    found = front.summary(rows, budgets[:1])
    assert (round(found["auto"], 6), found["best_single"][0], found["full"]) == (86.0, "random", None)


def test_what_chooses_native_weights_otherwise_takes_the_rate_of_adapeft(tmp_path, monkeypatch):
    asked = []

    def ran(jobs, path):
        asked.extend(jobs)
        return [
            asdict(job) | {"score": -100 * abs(job.lr - 3e-3), "scores": {"loss": job.lr}} for job in jobs
        ]

    monkeypatch.setattr(adapeft, "run", ran)
    only = ["--only", "adapeft as published", "adapeft with lora", "norm"]
    call(
        adapeft,
        monkeypatch,
        *only,
        "--tasks",
        "cola",
        "--middle-tasks",
        "--stability-seeds",
        0,
        "--results",
        tmp_path,
    )
    tuned = {job.label for job in asked if job.split == "heldout"}
    assert tuned == {"adapeft", "adapeft with lora", "norm"}
    scored = {(job.label, job.lr) for job in asked if job.split == "validation"}
    assert ("adapeft as published", 3e-3) in scored
    assert {label for label, _ in scored} == set(only[1:])
