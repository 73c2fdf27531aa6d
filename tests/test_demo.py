import contextlib
import io
import json
import multiprocessing

import pytest

from paretune import demo
from paretune.cli import BAD_INPUT, main
from paretune.delta import Delta
from paretune.errors import PareError
from paretune.methods import METHODS
from paretune.plan import Plan
from paretune.task import Task
from tests.tiny import tiny_model, tiny_rows, write_jsonl

CALL, MODEL_FOLDER = demo.call, demo.model_folder  # before the story replaces them


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A tiny model and data in the place of the built-in ones, and commands run in this process."""
    root = tmp_path_factory.mktemp("demo")
    model = tiny_model("bert", root / "model")

    def write_data(folder):
        folder.mkdir(parents=True, exist_ok=True)
        train = write_jsonl(folder / "train.jsonl", tiny_rows("single", 60))
        return train, write_jsonl(folder / "validation.jsonl", tiny_rows("single", 30, seed=1))

    def call(arguments):
        calls.append(list(arguments))
        with contextlib.redirect_stdout(io.StringIO()) as said:
            assert main([*arguments, "--quiet"]) == 0
        return said.getvalue()

    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "model_folder", lambda: model)
        patch.setattr(demo, "write_data", write_data)
        patch.setattr(demo, "call", call)
        patch.setattr(demo, "BUDGET", "10%")
        patch.setattr(demo, "EPOCHS", 1)
        patch.setattr(demo, "FRONT_STEPS", 4)
        patch.setattr(demo, "SETTINGS", {"ird": {"samples": 4}})
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            demo.run(root / "out")
        yield root, printed.getvalue(), calls


def test_one_command_a_method_is_shown_and_run(story):
    root, printed, calls = story
    shown = printed.replace("\\\n", "").replace("$MODEL", str(root / "model"))
    commands = [line.split()[2:] for line in shown.splitlines() if line.startswith("$ ")]
    assert commands == calls
    *tuned, front = commands
    assert [command[command.index("--method") + 1] for command in tuned] == [run[0] for run in demo.RUNS]
    assert front[0] == "front"


def test_it_ends_with_a_front_and_one_sentence_of_advice(story):
    root, printed, _ = story
    advice = json.loads((root / "out/front/front.json").read_text())["recommendation"]
    end = printed.partition("Which to take?")[2]
    assert " ".join(advice["text"].split()) in " ".join(end.split())
    assert "* on the front" in end
    page = root / "out/front/report.html"
    assert f"in a browser: {page}" in end
    assert advice["text"].split(":")[0] in page.read_text()
    assert max(map(len, end.partition("candidate")[2].partition("The same as a page")[0].splitlines())) <= 80


def test_the_table_has_the_results_and_fits(story):
    root, printed, _ = story
    for method, _ in demo.RUNS:
        result = json.loads((root / "out" / method / "result.json").read_text())
        row = next(line for line in printed.splitlines() if line.startswith(method) and "iB" in line)
        assert f"{result['score']:.3f}" in row
        assert f"{result['trained']:,}" in row
        assert len(row) <= 80


def test_a_table_of_large_figures_fits(story):
    result = {
        "metric": "accuracy",
        "method": "adapeft",
        "score": 0.12345,
        "trained": 109_482_240,
        "head": 592_130,
        "seconds": {"choose": 1234.5, "train": 12345.6},
        "peak_bytes": 12 * 2**30,
        "delta_bytes": 900 * 2**20,
    }
    assert max(map(len, demo.table([result, result]).splitlines())) <= 80


def test_maps_are_shown(story):
    _, printed, _ = story
    maps = printed[printed.index("What fish chose") : printed.index("Each delta on")]
    assert [line.split()[1] for line in maps.splitlines() if line.startswith("What ")] == list(demo.MAPPED)
    assert maps.count("\nblock ") == len(demo.MAPPED)
    assert all(len(line) <= 80 for line in maps.splitlines())


def test_the_predicted_front_is_shown(story):
    root, printed, _ = story
    plan = Plan.load(root / "out" / "adapeft" / "plan")
    rows = printed[printed.index("Predicted front") :].split("\n\n")[0].splitlines()
    assert rows[0].endswith(f": {plan.notes['gain']:.3g}")
    assert rows[1].split() == ["weights", "share", "gain", "items"]
    sizes = [int(row.split()[0].replace(",", "")) for row in rows[2:]]
    assert sizes == sorted(set(sizes))
    known = {weights: f"{gain:.3g}" for weights, gain, _ in plan.notes["front"]}
    assert sizes[-1] == max(known)
    assert all(known[size] == row.split()[2] for size, row in zip(sizes, rows[2:], strict=True))


def test_each_method_is_proved(story):
    _, printed, _ = story
    assert printed.count("taken off, every bit is back") == len(demo.RUNS)


def test_the_data_and_the_examples_are_shown(story):
    root, printed, _ = story
    assert "60 texts of installed packages in" in printed
    assert "would score 0.500" in printed
    assert str(root / "out" / "data" / "train.jsonl") in printed


def test_finished_runs_are_read_back(story, capsys):
    root, printed, _ = story
    deltas = [root / "out" / method / "delta.safetensors" for method, _ in demo.RUNS]
    before = [path.stat().st_mtime_ns for path in deltas]
    demo.run(root / "out")
    assert capsys.readouterr().out == printed
    assert [path.stat().st_mtime_ns for path in deltas] == before


def test_a_delta_with_another_score_is_an_error(story):
    root, _, _ = story
    data = root / "out" / "data"
    task = Task.from_files(data / "train.jsonl", data / "validation.jsonl", model=root / "model")
    path = root / "out" / "fish" / "delta.safetensors"
    result = json.loads((path.parent / "result.json").read_text())
    demo.prove(task, path, result)
    with pytest.raises(PareError, match=r"its run reported 2\.0 and .*; remove .*fish"):
        demo.prove(task, path, result | {"score": 2.0})


def test_a_delta_that_was_changed_gives_another_score(story, tmp_path):
    root, _, _ = story
    data = root / "out" / "data"
    task = Task.from_files(data / "train.jsonl", data / "validation.jsonl", model=root / "model")
    delta = Delta.load(root / "out" / "fish" / "delta.safetensors")
    for name in delta.head:
        delta.tensors[name].values.neg_()
    delta.save(tmp_path / "changed.safetensors")
    result = json.loads((root / "out" / "fish" / "result.json").read_text())
    with pytest.raises(PareError, match="its run reported"):
        demo.prove(task, tmp_path / "changed.safetensors", result)


def test_every_method_of_the_story_is_there():
    methods = [method for method, _ in demo.RUNS]
    assert set(methods) <= set(METHODS)
    assert set(demo.MAPPED) <= set(methods)


def test_a_command_that_fails_stops_the_story(capfd, monkeypatch):
    # Copies speak where the first of them was started, which another test may have done.
    monkeypatch.setattr(demo, "_copies", lambda: multiprocessing.get_context("spawn"))
    with pytest.raises(PareError, match="failed with exit status 2"):
        CALL(["tune", "--method", "fish"])
    assert "the following arguments are required" in capfd.readouterr().err


def test_a_command_gives_what_it_prints():
    assert "fish" in CALL(["methods"])


def test_the_command_line_says_what_is_missing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(demo, "model_folder", MODEL_FOLDER)
    monkeypatch.setattr("paretune.task.demo.MODEL_PACKAGE", "no_such_package")
    assert main(["demo", "--out", str(tmp_path)]) == BAD_INPUT
    assert "pip install 'paretune[demo]'" in capsys.readouterr().err
