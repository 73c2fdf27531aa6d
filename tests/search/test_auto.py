import json
from dataclasses import replace

import pytest

from paretune.cli import BAD_INPUT, OK, main
from paretune.delta import Delta
from paretune.errors import PareError
from paretune.progress import set_quiet
from paretune.search.auto import EQUIVALENTS, FOLDER, auto
from paretune.search.front_file import read_front
from paretune.search.narrowing import KEPT
from paretune.search.room import room_for
from paretune.task import Task
from paretune.tuning import Recipe
from tests.tiny import tiny_model, tiny_rows, write_jsonl

RECIPE = Recipe(lr=1.0, steps=48, batch_size=16, checkpoints=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("auto")
    write_jsonl(folder / "train.jsonl", tiny_rows("single", 100))
    write_jsonl(folder / "validation.jsonl", tiny_rows("single", 30, seed=1))
    tiny_model("bert", folder / "bert", blocks=2)
    return folder


@pytest.fixture(scope="module")
def task(folder):
    return Task.from_files(
        folder / "train.jsonl", folder / "validation.jsonl", model=folder / "bert", heldout=0.3
    )


@pytest.fixture(scope="module")
def made(task, folder):
    said, looked_at = [], []
    score = Task.score

    def looks(self, model, split, **more):
        looked_at.append(split)
        return score(self, model, split, **more)

    set_quiet(True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Task, "score", looks)
        result = auto(task, folder / "run", budget="5%", recipe=RECIPE, say=said.append)
    set_quiet(False)
    return json.loads(json.dumps(result)), said, looked_at


def test_the_winner_is_shipped_and_scored_once(made, task, folder):
    result, _, looked_at = made
    assert looked_at.count("validation") == 1
    assert result == json.loads((folder / "run/result.json").read_text())
    model = task.load_model(seed=7)
    Delta.load(folder / "run/delta.safetensors").apply(model)
    assert task.score(model, "validation") == result["scores"]
    budget = 0.05 * read_front(folder / "run" / FOLDER)["model_weights"]
    assert result["trained"] <= budget
    assert result["auto"]["candidate"].startswith(result["method"])


def test_the_total_is_stated_and_kept(made, folder):
    result, said, _ = made
    cost = result["auto"]["equivalents"]
    assert any(f"at most {EQUIVALENTS:g} whole trainings: evidence" in str(line) for line in said)
    assert (
        cost["total"] == pytest.approx(cost["evidence"] + cost["trials"] + 1) and cost["total"] <= EQUIVALENTS
    )
    trials = read_front(folder / "run" / FOLDER)["trials"]
    assert cost["trials"] == pytest.approx(sum(row["share"] for row in trials))
    assert {row["split"] for row in trials} == {"heldout"}


def test_evidence_narrows_the_field_and_controls_stay(made, folder):
    found = read_front(folder / "run" / FOLDER)
    tried = {row["candidate"] for row in found["trials"]}
    assert len(tried) == KEPT < len(made[0]["auto"]["candidates"])
    assert any(name.startswith("random") for name in tried)
    assert any(name.startswith("mixture") for name in made[0]["auto"]["candidates"])
    assert all(row["predicted"] is not None for row in found["candidates"])


def test_a_finished_run_is_read_back_and_another_is_refused(made, task, folder, monkeypatch):
    monkeypatch.setattr("paretune.search.front_trial.run_trial", None)
    monkeypatch.setattr("paretune.search.tune.run_trial", None)
    monkeypatch.setattr("paretune.search.narrowing.predicted_gain", None)
    assert auto(task, folder / "run", budget="5%", recipe=RECIPE) == made[0]
    with pytest.raises(PareError, match=r"another search: budget was \"5%\", now \"6%\""):
        auto(task, folder / "run", budget="6%", recipe=RECIPE)


def test_bad_requests_leave_no_folder(task, folder, tmp_path):
    with pytest.raises(PareError, match="--budget, --for-bytes or --for-memory"):
        auto(task, tmp_path / "run", recipe=RECIPE)
    with pytest.raises(PareError, match="cannot read budget"):
        auto(task, tmp_path / "run", budget="some", recipe=RECIPE)
    assert not (tmp_path / "run").exists()
    with pytest.raises(PareError, match=r"whole training of 64 examples is too short .*--steps"):
        auto(task, tmp_path / "short", budget="5%", recipe=replace(RECIPE, steps=4))
    with pytest.raises(PareError, match="training the head alone takes"):
        auto(task, tmp_path / "run", memory=2**20, recipe=RECIPE)


def test_the_command(folder, tmp_path, capsys):
    words = (
        f"tune --method auto --model {folder}/bert --train {folder}/train.jsonl --out {tmp_path}/run".split()
    )
    words += ["--validation", str(folder / "validation.jsonl"), "--steps", "48", "--batch-size", "16"]
    for changed, said in [
        (["--budget", "5%", "--lr", "1e-3"], "--lr: --method auto settles that itself"),
        (["--budget", "5%", "--granularity", "rows"], "--granularity: --method auto settles that itself"),
        (["--budget", "5%", "--probe-depth", "50%"], "--probe-depth: --method auto settles that itself"),
        (["--budget", "5%", "--for-bytes", "9KiB"], "give one of them"),
        (["--for-bytes", "5%"], "give a size such as"),
        (["--for-memory", "6GiB", "--method", "fish"], "--for-memory goes with --method auto, not fish"),
    ]:
        assert main([*words, *changed]) == BAD_INPUT
        assert said in capsys.readouterr().err
    words += ["--for-bytes", "9KiB", "--for-memory", "30GiB", "--quiet", "--heldout-seed", "5"]
    # The plans are of the size that the shipped values have, not the base's.
    words += ["--precision", "bf16", "--delta-dtype", "fp32"]
    assert main(words) == OK
    assert (tmp_path / "run/delta.safetensors").stat().st_size <= 9 * 2**10
    assert "accuracy" in capsys.readouterr().out
    trials = read_front(tmp_path / "run" / FOLDER)["trials"]
    assert all(0 < row["delta_bytes"] <= 9 * 2**10 for row in trials if row["plan"])
    assert all(" --heldout-seed 5 --delta-dtype fp32 " in row["command"] for row in trials if row["command"])
    assert main([*words, "--delta-dtype", "bf16"]) == BAD_INPUT
    assert 'another search: delta_dtype was "fp32", now "bf16"' in capsys.readouterr().err


def test_room_in_memory_pays_the_head_once(task, tmp_path):
    head = task.load_model().classifier
    of_head = sum(parameter.numel() for parameter in head.parameters())
    asked = {
        rule: int(room_for(task, RECIPE, 2**40, tmp_path / rule, lambda said: None, rule))
        for rule in ("outside", "inside")
    }
    assert asked["inside"] == asked["outside"] + of_head
