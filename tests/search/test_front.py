import json
import shlex
from dataclasses import fields, replace

import pytest

from paretune.cli import BAD_INPUT, INTERRUPTED, OK, main
from paretune.errors import PareError
from paretune.plan import Plan
from paretune.progress import set_quiet
from paretune.search.field import FIELD, make_field, read_method
from paretune.search.front import front
from paretune.search.front_file import CandidateRow, TrialRow, read_front
from paretune.search.front_table import front_table
from paretune.search.front_trial import FrontSpec, FrontTrial
from paretune.search.ration import Limits
from paretune.task import Task
from paretune.tuning import Recipe
from tests.tiny import tiny_model, tiny_rows, write_jsonl

RECIPE = Recipe(lr=1.0, steps=8, batch_size=8, checkpoints=0)
METHODS = ("head", "lora:targets=peft", "random", "fish:samples=16")
SMALL = {"methods": METHODS, "budgets": ("5%",), "recipe": RECIPE, "seeds": 1, "limits": Limits(trials=14)}
COST = {"trials", "equivalents", "seconds", "trial_seconds", "training_seconds", "stated"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("front")
    write_jsonl(folder / "train.jsonl", tiny_rows("pair", 80))
    write_jsonl(folder / "validation.jsonl", tiny_rows("pair", 20, seed=1))
    tiny_model("bert", folder / "bert", blocks=2)
    return folder


@pytest.fixture(scope="module")
def task(folder):
    return Task.from_files(
        folder / "train.jsonl", folder / "validation.jsonl", model=folder / "bert", heldout=0.25
    )


@pytest.fixture(scope="module")
def made(task, folder):
    """A whole front, with what was looked at, said and shown."""
    looked_at, said, shown, states = [], [], [], []
    score = Task.score

    def looks(self, model, split, **more):
        looked_at.append(split)
        return score(self, model, split, **more)

    def show(progress):
        shown.append(progress)
        states.append(read_front(folder / "run")["status"])

    words = ["--model", str(folder / "bert"), "--train", str(folder / "train.jsonl")]
    words += ["--validation", str(folder / "validation.jsonl"), "--heldout", "0.25"]
    set_quiet(True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Task, "score", looks)
        result = front(task, folder / "run", **SMALL, task_words=words, say=said.append, show=show)
    set_quiet(False)
    return result, looked_at, said, shown, states


def test_the_file_says_everything(made, folder, task):
    result, looked_at, _, shown, states = made
    assert result == read_front(folder / "run")
    assert set(looked_at) == {"heldout"}
    assert set(states) == {"running"} and result["status"] == "finished"
    assert set(result["trials"][0]) == {each.name for each in fields(TrialRow)}
    assert set(result["candidates"][0]) == {each.name for each in fields(CandidateRow)}
    assert result["model_weights"] == sum(
        p.numel() for n, p in task.load_model().named_parameters() if "classifier" not in n
    )
    assert set(result["cost"]) == COST
    assert result["cost"]["trials"] == len(result["trials"]) == len(shown) <= 14
    assert result["request"]["metric"] == "accuracy"
    finished = [row for row in result["trials"] if row["state"] == "finished"]
    assert all(row["peak_bytes"] > 0 and row["step_seconds"] > 0 and row["losses"] for row in finished)
    for row in result["candidates"]:
        plan = Plan.load(folder / "run" / row["plan"])
        assert (plan.count, plan.head_count) == (row["trained"], row["head"])
    assert result["recommendation"]["candidate"] in {row["name"] for row in result["candidates"]}
    assert any(row["on_front"] for row in result["candidates"])


def test_the_table_fits_a_terminal(made):
    table = front_table(made[0])
    assert max(map(len, table.splitlines())) <= 80
    assert "lora peft 5%" in table and made[0]["recommendation"]["text"][:20] in table


def test_a_trial_is_reproduced_by_its_command(made, folder, tmp_path):
    row = next(row for row in made[0]["trials"] if row["method"] == "random" and row["share"] == 1)
    words = shlex.split(row["command"])
    assert words[:2] == ["paretune", "tune"]
    words[words.index("--out") + 1] = str(tmp_path / "again")
    assert main([*words[1:], "--quiet"]) == OK
    result = json.loads((tmp_path / "again/result.json").read_text())
    assert result["losses"] == row["losses"]
    assert result["trained"] == row["trained"]


def test_a_command_draws_the_same_held_out_rows(folder, tmp_path):
    words = f"front --model {folder}/bert --train {folder}/train.jsonl --heldout-seed 7 --seed 1".split()
    words += f"--validation {folder}/validation.jsonl --methods head --trials 2 --seeds 1".split()
    words += f"--budgets 5% --steps 4 --batch-size 8 --quiet --out {tmp_path}/run".split()
    assert main(words) == OK
    row = read_front(tmp_path / "run")["trials"][-1]
    again = shlex.split(row["command"])
    assert again[again.index("--heldout-seed") + 1] == "7"
    again[again.index("--out") + 1] = str(tmp_path / "again")
    assert main([*again[1:], "--quiet"]) == OK
    assert json.loads((tmp_path / "again/result.json").read_text())["losses"] == row["losses"]


def test_a_candidate_is_trained_by_its_command(made, tmp_path):
    row = next(row for row in made[0]["candidates"] if row["method"] == "lora")
    words = shlex.split(row["command"])
    words[words.index("--out") + 1] = str(tmp_path / "run")
    assert main([*words[1:], "--quiet"]) == OK
    assert json.loads((tmp_path / "run/result.json").read_text())["trained"] == row["trained"]


def test_a_finished_front_is_read_back(made, task, folder, monkeypatch):
    monkeypatch.setattr("paretune.search.front_trial.run_trial", None)
    again = front(task, folder / "run", **SMALL)
    assert [row["score"] for row in again["trials"]] == [row["score"] for row in made[0]["trials"]]


def test_another_request_or_data_set_in_the_folder_is_refused(made, task, folder, tmp_path):
    other = write_jsonl(tmp_path / "train.jsonl", tiny_rows("pair", 80, seed=5))
    elsewhere = Task.from_files(other, model=folder / "bert", heldout=0.25)
    with pytest.raises(PareError, match=r"belongs to another search: data was .* give another --out"):
        front(elsewhere, folder / "run", **SMALL)
    with pytest.raises(PareError, match="budgets was"):
        front(task, folder / "run", **SMALL | {"budgets": ("6%",)})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("")
    with pytest.raises(PareError, match="holds no front"):
        front(task, tmp_path / "mine", **SMALL)
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned/request.json").write_text("{}")
    with pytest.raises(PareError, match="holds a run of `paretune tune`"):
        front(task, tmp_path / "tuned", **SMALL)


def test_bad_requests_leave_no_folder(task, tmp_path):
    for changed, said in [
        ({"methods": ("fisch",)}, "did you mean 'fish'"),
        ({"methods": ("lora:rank",)}, "name=value"),
        ({"methods": ("random", "random")}, "random 5% is asked for twice"),
        ({"budgets": ("lots",)}, "cannot read budget"),
        ({"budgets": ()}, "needs a budget"),
        ({"methods": ("lora:targets=all",), "budgets": ("3",)}, "nothing can be tried"),
        ({"seeds": 0}, "--seeds 0"),
    ]:
        with pytest.raises(PareError, match=said):
            front(task, tmp_path / "run", **SMALL | changed)
    with pytest.raises(PareError, match="heldout"):
        front(replace(task, heldout=None), tmp_path / "run", **SMALL)
    assert not (tmp_path / "run").exists()


def test_an_impossible_method_is_skipped_and_the_rest_runs(task, tmp_path):
    said = []
    methods = ("lora:targets=all", "random", "bitfit")
    few = SMALL | {"methods": methods, "budgets": ("30",), "limits": Limits(trials=3)}
    result = front(task, tmp_path / "run", **few, say=said.append)
    assert {row["method"] for row in result["skipped"]} == {"lora", "bitfit"}
    assert "raise the budget" in result["skipped"][0]["reason"]
    assert {row["method"] for row in result["candidates"]} == {"random"}
    assert any(str(line).startswith("skipped lora 30: ") for line in said)


def test_the_default_field_is_made_without_looking_at_data(task):
    from paretune.anatomy import anatomy

    model = task.load_model()
    candidates, skipped = make_field(model, task, anatomy(model), FIELD, ["5%", "20%"])
    names = {each.name for each in candidates} | {f"{each.method} {each.budget}" for each in skipped}
    assert len({name.split()[0] for name in names}) == len({read_method(text)[0] for text in FIELD})
    assert {each.group for each in candidates if each.method == "head"} == {"5%"}
    assert {each.group for each in candidates if each.method == "full"} == {None}


def trial(task, folder, **settings):
    return FrontTrial(task, RECIPE, folder / "plans", **settings)


SPEC = FrontSpec("random 5%", "random", {}, "5%", 1e-3, 0.5, 0)


def test_a_trial_that_breaks_says_why_and_the_next_one_works(task, tmp_path, monkeypatch):
    runs = trial(task, tmp_path)
    diverged = runs(replace(SPEC, lr=1e30).job.spec)
    assert diverged.score is None and diverged.failed.startswith("diverged: ")
    with monkeypatch.context() as patch:
        patch.setattr("paretune.search.front_trial.run_trial", out_of_memory)
        broken = runs(SPEC.job.spec)
    assert broken.failed.startswith("out of memory: ")
    assert broken.details["trained"] > 0
    assert runs(SPEC.job.spec).score is not None


def out_of_memory(*arguments, **settings):
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 bytes")


def test_a_trial_above_a_memory_limit_is_impossible(task, tmp_path):
    scored = trial(task, tmp_path, most_bytes=1000)(SPEC.job.spec)
    assert scored.score is None and scored.details["impossible"]
    assert "GiB, above" in scored.failed


def test_a_plan_is_chosen_once_for_all_rates_and_shares(task, tmp_path, monkeypatch):
    runs = trial(task, tmp_path)
    first = runs(SPEC.job.spec)
    monkeypatch.setattr("paretune.search.front_trial.choose", None)
    again = runs(replace(SPEC, lr=1e-2, share=1.0).job.spec)
    assert again.details["plan"] == first.details["plan"]
    assert again.details["choosing"] == first.details["choosing"]


def test_the_command(folder, tmp_path, capsys, monkeypatch):
    words = [
        *f"front --model {folder}/bert --train {folder}/train.jsonl".split(),
        *f"--methods head,random --budgets 5% --trials 4 --seeds 1 --steps 4 --out {tmp_path}/run".split(),
    ]

    def stop(*arguments, **settings):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("paretune.search.race.Race._finals", stop)
        assert main(words) == INTERRUPTED
    assert "the same command goes on where it was" in capsys.readouterr().err
    assert read_front(tmp_path / "run")["status"] == "interrupted"
    assert main(words) == OK
    text = capsys.readouterr().out
    assert "* on the front" in text and "train it: paretune tune --model" in text
    assert main([*words, "--json"]) == OK
    assert json.loads(capsys.readouterr().out)["status"] == "finished"
    for changed, said in [
        (["--engine", "worker"], "did you mean 'workers'"),
        (["--trials", "1"], "--trials 1: the shortest look"),
        (["--minutes", "0"], "--minutes 0"),
    ]:
        assert main([*words, "--out", str(tmp_path / "new"), *changed]) == BAD_INPUT
        assert said in capsys.readouterr().err
