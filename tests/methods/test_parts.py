from dataclasses import replace

import numpy as np
import pytest
import torch

from paretune.delta import Delta
from paretune.errors import PareError
from paretune.evidence import top_k
from paretune.methods import choose, rechoose
from paretune.methods.parts import deal
from paretune.plan import Plan
from paretune.task import Task
from paretune.tuning import attach, detach, train
from tests.tiny import tiny_model, tiny_rows, write_jsonl


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_entries_are_dealt_out_in_the_order_of_their_scores(parts):
    generator = torch.Generator().manual_seed(0)
    scores = {"a": torch.rand(4, 5, generator=generator), "b": torch.rand(30, generator=generator)}
    chosen = top_k(scores, 23)
    dealt = deal(chosen, scores, parts)
    every = sorted(
        ((float(scores[name].reshape(-1)[i]), name, i) for name, at in chosen.items() for i in at),
        reverse=True,
    )
    for number, part in enumerate(dealt):
        found = {(name, i) for name, at in part.items() for i in at}
        assert found == {(name, i) for _, name, i in every[number::parts]}
        assert all((np.diff(at) > 0).all() for at in part.values())


def test_equal_scores_are_dealt_out_too():
    dealt = deal({"a": np.array([1, 4, 6, 7])}, {"a": torch.ones(9)}, 2)
    assert [part["a"].tolist() for part in dealt] == [[1, 6], [4, 7]]


def test_nothing_chosen_is_nothing_dealt():
    assert deal({}, {}, 3) == [{}, {}, {}]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    write_jsonl(folder / "train.jsonl", tiny_rows("pair", 60))
    return Task.from_files(folder / "train.jsonl", model=tiny_model("bert", folder / "bert"))


def places(plan):
    return {(s.tensor, int(i)) for s in plan.selections for i in s.flat()}


def test_fish_deals_out_the_best_of_all(task, tmp_path):
    model = task.load_model()
    plan = choose("fish", model, task, 300, samples=16, parts=3)
    parts = [places(part) for part in plan.others]
    assert [len(part) for part in parts] == [300, 300, 300]
    assert parts[0] == places(plan)
    assert len(set.union(*parts)) == 900
    assert set.union(*parts) == places(choose("fish", model, task, 900, samples=16))
    assert [part.notes["part"] for part in plan.others] == [[0, 3], [1, 3], [2, 3]]
    assert [part.budget for part in plan.others] == [300] * 3
    plan.save(tmp_path / "plan")
    assert [places(Plan.load(tmp_path / f"plan/other-{n}")) for n in range(3)] == parts
    assert choose("fish", model, task, 300, samples=16).others == ()


def test_what_does_not_fit_is_refused(task):
    model = task.load_model()
    with pytest.raises(PareError, match="parts=0 is below 1"):
        choose("fish", model, task, 300, parts=0)
    with pytest.raises(PareError, match=r"3 disjoint masks of .* are more than"):
        choose("fish", model, task, "40%", parts=3)
    plan = choose("fish", model, task, 300, samples=16, parts=2)
    with pytest.raises(PareError, match="they would overlap"):
        rechoose(plan, model, task, 5)


def test_the_workers_deltas_add_up(task, tmp_path):
    model = task.load_model()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    deltas, changes = [], []
    for part in choose("fish", model, task, 300, samples=16, parts=3).others:
        attach(model, part)
        train(model, task, tmp_path / "nowhere", lr=1e-2, steps=3, batch_size=8, checkpoints=0)
        deltas.append(model.delta())
        changes.append({name: tensor - base[name] for name, tensor in model.state_dict().items()})
        detach(model)
    with pytest.raises(PareError, match=r"classifier\.\w+: the deltas disagree .*'head' is the mean"):
        Delta.merge(deltas)
    merged = Delta.merge(deltas, "head")
    assert merged.count == sum(delta.count for delta in deltas) - 2 * sum(
        model.get_parameter(name).numel() for name in merged.head
    )
    merged.apply(model)
    for name, tensor in model.state_dict().items():
        change = sum(one[name] for one in changes)
        if name in merged.head:
            torch.testing.assert_close(tensor, base[name] + change / 3, rtol=1e-6, atol=1e-7, msg=name)
        else:
            where = change != 0
            torch.testing.assert_close(tensor - base[name], change, rtol=0, atol=0, msg=name)
            assert torch.equal(tensor[~where], base[name][~where])
    twice = [deltas[0], replace(deltas[1], tensors=deltas[1].tensors | _shifted(deltas[0]))]
    with pytest.raises(PareError, match="the deltas disagree"):  # no worker's own weight is averaged
        Delta.merge(twice, "head")


def _shifted(delta):
    """The first tensor that is no head, with other values."""
    name = next(name for name in delta.tensors if name not in delta.head)
    return {name: replace(delta.tensors[name], values=delta.tensors[name].values + 1)}
