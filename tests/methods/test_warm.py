import copy

import pytest
import torch

from paretune.errors import PareError
from paretune.methods import choose, make_method
from paretune.task import Task
from tests.tiny import tiny_model, tiny_rows, write_jsonl


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    rows = write_jsonl(folder / "train.jsonl", tiny_rows("pair", 80))
    return Task.from_files(rows, rows, model=tiny_model("bert", folder / "bert"))


@pytest.mark.parametrize(("method", "samples"), [("fish", 32), ("gradient", 32), ("ird", 4)])
def test_a_warm_head_changes_the_choice_and_nothing_else(task, method, samples):
    model = task.load_model()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    fresh = choose(method, model, task, 300, samples=samples)
    warm = choose(method, model, task, 300, samples=samples, warm_head=20)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert fresh.count == warm.count == 300
    assert fresh.digest != warm.digest
    assert warm.digest == choose(method, model, task, 300, samples=samples, warm_head=20).digest


def test_a_model_without_a_head_is_looked_at_as_it_is(tmp_path):
    rows = write_jsonl(tmp_path / "train.jsonl", tiny_rows("text", 40))
    task = Task.from_files(rows, rows, model=tiny_model("gpt2", tmp_path / "gpt2"))
    plain, warm = (
        choose("fish", task.load_model(), task, 100, samples=16, warm_head=steps) for steps in (0, 5)
    )
    assert all(one == other for one, other in zip(plain.selections, warm.selections, strict=True))


@pytest.mark.parametrize("settings", [{"warm_head": -1}, {"warm_lr": 0.0}], ids=["steps", "rate"])
def test_settings_out_of_range(settings):
    with pytest.raises(PareError, match=next(iter(settings))):
        make_method("fish", settings)
