import json
import pickle
import shlex
from dataclasses import replace

import pytest

from paretune.budget import Budget
from paretune.cli import main
from paretune.delta import delta_bytes
from paretune.errors import PareError
from paretune.methods import choose
from paretune.methods.design import Design
from paretune.methods.designed import Designed
from paretune.search.designs import DesignTrial, Feasible, read_prices
from paretune.search.ration import Limits
from paretune.search.search import read_search, search
from paretune.search.space import make_space
from paretune.task import Task
from paretune.tuning import Recipe
from tests.tiny import tiny_model, tiny_rows, write_jsonl

RECIPE = Recipe(lr=1.0, steps=4, batch_size=8, checkpoints=0)
SMALL = {"groups": 1, "strategies": ("bias", "lora"), "rates": (1e-2,), "recipe": RECIPE}
TEN = Limits(trials=10)  # one draw for each of three allocations and three sets of strategies


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    write_jsonl(folder / "train.jsonl", tiny_rows("pair", 80))
    write_jsonl(folder / "validation.jsonl", tiny_rows("pair", 20, seed=1))
    tiny_model("bert", folder / "bert", blocks=4)
    return folder


@pytest.fixture(scope="module")
def task(folder):
    return Task.from_files(
        folder / "train.jsonl", folder / "validation.jsonl", model=folder / "bert", heldout=0.25
    )


def test_a_search_writes_a_design_that_can_be_trained(task, tmp_path, monkeypatch):
    looked_at = []
    score = Task.score
    monkeypatch.setattr(
        Task, "score", lambda self, model, split, **more: looked_at.append(split) or score(self, model, split)
    )
    said, shown = [], []
    out = tmp_path / "run"
    result = search(task, "10%", out, **SMALL, limits=TEN, say=said.append, show=shown.append)
    assert result == read_search(out) == json.loads(json.dumps(result))
    assert set(looked_at) == {"heldout"}
    assert result["trials"] == len(shown) == shown[-1].done == 10
    assert shown[-1].ahead == 0
    assert any("at most 10 trials, worth 7 whole trainings" in str(line) for line in said)
    assert any("the same as increasing" in str(line) for line in said)
    assert [stage["name"] for stage in result["stages"]][:4] == [
        "S0 rate",
        "S1 grouping",
        "S2 allocation",
        "S3 tuned",
    ]
    design = Design.load(out / "design.yaml")
    assert design.document() == result["design"]
    plan = choose("design", task.load_model(), task, "10%", file=str(out / "design.yaml"))
    assert plan.count <= plan.budget

    monkeypatch.setattr("paretune.search.designs.run_trial", None)
    again = search(task, "10%", out, **SMALL, limits=TEN)
    assert again["stages"] == result["stages"]
    assert again["trials"] == result["trials"]
    with pytest.raises(PareError, match=r"another search: budget was \"10%\", now \"11%\""):
        search(task, "11%", out, **SMALL, limits=TEN)


@pytest.mark.slow
def test_two_workers_score_as_one_does(task, tmp_path):
    small = SMALL | {"strategies": ("bias",)}
    one = search(task, "20%", tmp_path / "one", **small)
    two = search(task, "20%", tmp_path / "two", **small, limits=Limits(workers=2))
    assert one["stages"] == two["stages"]


def test_a_trial_can_go_to_another_process_and_is_reproducible(task):
    prices = read_prices(task.load_model(), task, "10%")
    space = make_space(prices, (1e-2,), 2)
    point = {name: options[0] for name, options in space.components.items()}
    trial = DesignTrial(task, "10%", space, RECIPE)
    spec = {"point": point, "share": 1.0, "seed": 5}
    first = trial(spec)
    again = pickle.loads(pickle.dumps(trial))(spec)  # noqa: S301 - our own bytes
    assert (first.score, first.loss) == (again.score, again.loss)
    assert Feasible(space, prices, Budget.parse("10%"))(point) is None
    assert "raise the budget" in Feasible(space, prices, Budget.parse(10))(point)
    assert trial(spec | {"point": {**point, "rate": "1e30"}}).score is None


def test_a_budget_in_bytes_is_one_for_the_search_and_its_trials(task):
    model = task.load_model()
    prices = read_prices(model, task, "10KiB")
    space = make_space(prices, (1e-2,), 2, ("bias", "lora", "adapter"))
    names = [name for name in space.components if name.startswith("group ")]
    point = {name: options[0] for name, options in space.components.items()}
    for strategies in space.components[names[0]]:
        point |= dict.fromkeys(names, strategies)
        for kib in (3, 4, 6, 8, 12, 20, 40):
            refused = Feasible(space, prices, Budget.parse(f"{kib}KiB"))(point)
            method = Designed(**space.design(point).document())
            if refused:
                with pytest.raises(PareError):
                    choose(method, model, task, f"{1024 * kib - 128}e-3KB")
            else:
                plan = choose(method, model, task, f"{kib}KiB")
                assert 0.5 * 1024 * kib < delta_bytes(plan) <= 1024 * kib or strategies == "bias"


def test_a_search_under_bytes(task, tmp_path):
    result = search(task, "8KiB", tmp_path / "run", **SMALL, limits=TEN)
    plan = choose("design", task.load_model(), task, "8KiB", file=str(tmp_path / "run" / "design.yaml"))
    assert result["trials"] >= 6
    assert 0.5 * 8192 < delta_bytes(plan) <= 8192


def test_the_space_of_a_model(task):
    model = task.load_model()
    prices = read_prices(model, task, "10%")
    space = make_space(prices, (1e-3, 1e-2))
    assert space.components["tuned"][0] == "1+2+3+4"
    assert len(space.components["tuned"]) == 10
    assert len(space.components["group 1"]) == 15
    assert space.groups == 4
    assert space.components["grouping"] == ("increasing",)  # four blocks, one each
    assert make_space(prices, (1e-3,), 9).groups == 4
    with pytest.raises(PareError, match="one group"):
        make_space(prices, (1e-3,), 0)

    model.config._attn_implementation = "flex_attention"
    prices = read_prices(model, task, "10%")
    space = make_space(prices, (1e-3,))
    assert len(space.components["group 1"]) == 7
    assert any("cannot carry a prefix" in reason for reason in space.left_out)
    with pytest.raises(PareError, match=r"can carry none of the strategies: prefix in block 0"):
        make_space(prices, (1e-3,), strategies=("prefix",))


def test_bad_requests_leave_no_folder(task, tmp_path):
    for budget, changed, said in [
        ("three", {}, "cannot read budget"),
        ("10", {}, r"no design .* raise the budget"),
        ("10%", {"settings": {"lora": {"targets": "most"}}}, "targets 'most'"),
        ("10%", {"rates": (1e-3, 0.0)}, "lr is 0.0"),
        ("10%", {"rates": (float("nan"),)}, "lr is nan"),
    ]:
        with pytest.raises(PareError, match=said):
            search(task, budget, tmp_path / "run", **SMALL | {"strategies": ("lora",)} | changed)
    with pytest.raises(PareError, match="heldout"):
        search(replace(task, heldout=None), "10%", tmp_path / "run", **SMALL)
    with pytest.raises(PareError, match="no finished search there"):
        read_search(tmp_path / "run")


def test_the_command(folder, tmp_path, capsys):
    words = (
        f"search --model {folder}/bert --train {folder}/train.jsonl --validation {folder}/validation.jsonl "
        f"--budget 10% --out {tmp_path}/run --trials 10 --groups 1 --strategies bias lora --lr 1e-2 "
        "--steps 4 --batch-size 8 --head inside --exclude *pooler* --heldout 0.25 --heldout-seed 3"
    )
    request = words.split()
    assert main(request) == 0
    text = capsys.readouterr().out
    assert "S4 group 1" in text
    line = next(line for line in text.splitlines() if line.startswith("train it: "))
    again = shlex.split(line.removeprefix("train it: "))
    assert again[:2] == ["paretune", "tune"]
    again[again.index("--out") + 1] = str(tmp_path / "tuned")
    assert main([*again[1:], "--quiet"]) == 0
    tuned = json.loads((tmp_path / "tuned/request.json").read_text())
    assert (tuned["head"], tuned["exclude"], tuned["lr"]) == ("inside", ["*pooler*"], 1e-2)
    data = Task.from_files(
        folder / "train.jsonl", folder / "validation.jsonl", model=folder / "bert", heldout=0.25, seed=3
    )
    assert tuned["data"] == data.fingerprint
    assert tuned["settings"] == {"file": f"{tmp_path}/run/design.yaml"}
    capsys.readouterr()
    assert max(len(line) for line in text.splitlines() if str(tmp_path) not in line) <= 80
    assert main([*request, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lr"] == 1e-2
    assert main([*request, "--seed", "1"]) == 2
    assert "another search" in capsys.readouterr().err
    assert main([*request, "--strategies", "lara"]) == 2
    assert "did you mean 'lora'" in capsys.readouterr().err


def test_a_rate_that_cannot_be_is_told_before_anything_is_read(tmp_path, capsys):
    words = f"search --model no/such --train t --validation v --budget 10% --lr 1e-3 0 --out {tmp_path}/run"
    assert main(words.split()) == 2
    assert "lr is 0.0; it must be a number above 0" in capsys.readouterr().err
