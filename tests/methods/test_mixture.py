import numpy as np
import pytest

from paretune.errors import PareError
from paretune.methods import choose
from paretune.methods.mixture import Mixture
from paretune.task import Task
from tests.tiny import tiny_model, tiny_rows, write_jsonl


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    rows = write_jsonl(folder / "train.jsonl", tiny_rows("pair", 80))
    return Task.from_files(rows, model=tiny_model("bert", folder / "bert", blocks=4))


def test_every_kind_of_part_competes_and_the_budget_is_kept(task):
    plan = choose("mixture", task.load_model(), task, "8%", samples=64)
    assert 0.8 * plan.budget < plan.count <= plan.budget
    assert sum(plan.notes["spent"].values()) == plan.count
    assert plan.notes["gain"] > 0
    assert set(plan.notes["spent"]) <= {"entries", "rows", "vectors", "lora", "adapter"}
    assert len(plan.notes["spent"]) >= 2


def test_of_a_matrix_one_thing_is_trained(task):
    model = task.load_model()
    for seed in range(3):
        plan = choose("mixture", model, task, "12%", samples=64, seed=seed)
        matrices = {s.tensor.rpartition(".")[0] for s in plan.selections if len(s.shape) > 1}
        loras = {a.module for a in plan.additions if a.strategy == "lora"}
        assert not matrices & loras
        assert len({s.tensor for s in plan.selections}) == len(plan.selections)


def test_entries_are_the_steepest_of_their_matrix(task):
    model = task.load_model()
    plan = choose("mixture", model, task, "2%", samples=64, added="", row_blocks=1)
    entries = [s for s in plan.selections if s.granularity == "entries"]
    assert entries
    from paretune.methods.probe import halves

    first, _ = halves(task, 64, 0)
    for batch in task.batches("train", len(first), first):
        model.eval()
        task.example_losses(model, batch).sum().backward()
    for selection in entries:
        gradient = model.get_parameter(selection.tensor).grad.abs().flatten().numpy()
        floor = np.sort(gradient)[-selection.count]
        assert gradient[selection.indices].min() >= 0.99 * floor


def test_it_can_do_without_modules_and_without_entries(task):
    model = task.load_model()
    alone = choose("mixture", model, task, "5%", samples=64, added="")
    assert not alone.additions
    rows = choose("mixture", model, task, "5%", samples=64, entries="", added="")
    assert all(s.granularity != "entries" for s in rows.selections)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"entries": "some"}, "whole numbers such as 1\\+4"),
        ({"entries": "0"}, "at least 1"),
        ({"size": 0}, "size 0 is below 1"),
    ],
)
def test_settings_out_of_range(settings, said):
    with pytest.raises(PareError, match=said):
        Mixture(**settings)
