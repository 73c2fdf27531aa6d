import pytest
import torch

from paretune.anatomy import anatomy
from paretune.delta import delta_bytes
from paretune.errors import PareError
from paretune.methods import choose, make_method
from paretune.search.field import Candidate, make_field, read_method
from paretune.search.front_table import NAME, _fitting
from paretune.task import Task
from tests.tiny import tiny_model, tiny_rows, write_jsonl


@pytest.mark.parametrize("kind", ["rows", "columns", "blocks", "entries"])
@pytest.mark.parametrize("method", ["fish", "ird", "gradient", "random"])
def test_a_granularity_is_a_setting_of_a_candidate(method, kind):
    name, settings = read_method(f"{method}:granularity={kind}")
    assert (name, settings) == (method, {"granularity": kind})
    candidate = Candidate(name, settings, "0.5%", "0.5%", 0.005)
    assert candidate.name == f"{method} {kind} 0.5%"
    assert candidate.rates


def test_unknown_granularities_are_refused():
    with pytest.raises(PareError, match="granularity='tiles' is none of entries, rows, columns, blocks"):
        read_method("fish:granularity=tiles")
    with pytest.raises(PareError, match="lora has no setting 'granularity'"):
        read_method("lora:granularity=rows")


def test_a_long_name_keeps_its_budget_in_the_table():
    names = [
        f"random {kind} {budget}" for kind in ("rows", "columns", "blocks") for budget in ("0.1%", "0.5%")
    ]
    shown = [_fitting(name) for name in names]
    assert len(set(shown)) == len(names)
    assert all(len(each) < NAME for each in shown)
    assert _fitting("random columns 0.5%") == "random co.. 0.5%"
    assert len(_fitting("mixture " + "x" * 40)) < NAME


def test_blocks_of_the_model_and_blocks_of_weights_have_two_names():
    fields = [read_method(f"fish:{setting}=blocks") for setting in ("within", "granularity")]
    names = [Candidate(name, settings, "1%", "1%", 0.01).name for name, settings in fields]
    assert names == ["fish in blocks 1%", "fish blocks 1%"]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("field")
    rows = write_jsonl(folder / "train.jsonl", tiny_rows("single", 40))
    return Task.from_files(rows, model=tiny_model("bert", folder / "bert", blocks=12))


def test_bytes_hold_what_fits_them_on_a_half_precision_base(task):
    model = task.load_model(dtype=torch.bfloat16)
    parts = anatomy(model)
    plan = choose("bitfit", model, task)
    ships = delta_bytes(plan)
    assert ships < 4 * plan.count  # two bytes a value
    fits, short = f"{(ships + 50) / 1000}KB", f"{(ships - 200) / 1000}KB"
    candidates, skipped = make_field(model, task, parts, ["bitfit", "random"], [fits])
    assert [(each.method, each.group) for each in candidates] == [("bitfit", fits), ("random", fits)]
    assert not skipped
    _, skipped = make_field(model, task, parts, ["bitfit", "random"], [short])
    assert "above every budget given" in skipped[0].reason
    _, skipped = make_field(model, task, parts, ["bitfit", "random"], [fits], delta_dtype=torch.float32)
    assert [each.method for each in skipped] == ["bitfit"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_share_of_a_budget_in_bytes_is_about_what_is_trained(task, dtype):
    model = task.load_model(dtype=dtype)
    methods = ["random", "fish:samples=8", "lora:targets=all"]
    candidates, _ = make_field(model, task, anatomy(model), methods, ["40KB"])
    for each in candidates:
        plan = choose(make_method(each.method, each.settings), model, task, "40KB")
        assert each.share == pytest.approx(plan.count / plan.weights, rel=0.2)


def test_bytes_below_the_smallest_module_are_skipped_and_above_it_tried(task):
    model = task.load_model(dtype=torch.bfloat16)
    smallest = choose("lora", model, task, targets="all", rank=1)
    for spare, tried in ((-200, 0), (50, 1)):
        budget = f"{(delta_bytes(smallest) + spare) / 1000}KB"
        candidates, skipped = make_field(
            model, task, anatomy(model), ["lora:targets=all", "random"], [budget]
        )
        assert (len(candidates), len(skipped)) == (1 + tried, 1 - tried)
