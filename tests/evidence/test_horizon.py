import pytest
import torch

from paretune.errors import DivergedError, PareError
from paretune.evidence.horizon import during_training
from paretune.task import Task
from tests.evidence.test_curvature import same, state_of
from tests.tiny import tiny_model, tiny_rows, write_jsonl


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    rows = write_jsonl(folder / "train.jsonl", tiny_rows("pair", 20))
    return Task.from_files(rows, rows, model=tiny_model("bert", folder / "bert"))


def train(task, model, probe, **settings):
    given = {"steps": 6, "probes": 3, "lr": 1e-3, "batch_size": 8} | settings
    return during_training(model, task, list(model.parameters()), probe, **given)


def test_probes_see_a_training_that_is_undone(task):
    model = task.load_model().train()
    list(model.parameters())[2].grad = torch.ones_like(list(model.parameters())[2])
    before = state_of(model)
    weight = model.classifier.weight

    def probe(number, optimiser):
        assert model.training
        return number, weight.detach().clone(), float(optimiser.state[weight]["step"])

    found = train(task, model, probe)
    assert same(before, state_of(model))
    assert [(number, step) for number, _, step in found] == [(0, 2), (1, 4), (2, 6)]
    assert not torch.equal(found[0][1], before[0]["classifier.weight"])
    assert not torch.equal(found[0][1], found[2][1])
    again = train(task, model, probe)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(found, again, strict=True))


def test_an_error_in_a_probe_undoes_it_too(task):
    model = task.load_model()
    before = state_of(model)

    def probe(number, optimiser):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(task, model, probe)
    assert same(before, state_of(model))


def test_what_cannot_be_done_is_said(task):
    model = task.load_model()
    before = state_of(model)
    with pytest.raises(PareError, match="9 probes in 6 steps"):
        train(task, model, lambda *_: None, probes=9)
    with pytest.raises(DivergedError, match="step 2 is"):
        train(task, model, lambda *_: None, lr=1e30)
    assert same(before, state_of(model))
