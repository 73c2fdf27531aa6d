"""Families that the other tests have not; a short list always, all with ``make test-slow``."""

import re
from pathlib import Path

import pytest
import torch

from paretune.errors import PareError
from paretune.methods import METHODS, choose
from paretune.strategies import STRATEGIES
from paretune.tuning import Recipe, attach, detach, train
from tests.families import FAMILIES

# Results changed in place, no attention, experts in one tensor.
QUICK = ("Longformer", "Mamba", "Qwen 3 with experts")
NEEDS = {"head", "design"}  # a new head, a file
PAGE = Path(__file__).parents[1] / "docs" / "models.md"
FEW = {"samples": 16}
FEWER = {"ird": {"samples": 4}}  # it starts from eight times as many


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    made = {}

    def task(family):
        if family not in made:
            made[family] = FAMILIES[family].task(tmp_path_factory.mktemp("family"))
        return made[family]

    return task


def trained_and_given_back(task, method, folder):
    model = task.load_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kind = METHODS[method]
    settings = FEWER.get(method, FEW if "samples" in kind.__dataclass_fields__ else {})
    plan = choose(method, model, task, "5%" if kind.sized else None, **settings)
    attach(model, plan)
    sizes = {addition.module: addition.size for addition in plan.additions if addition.strategy == "lora"}
    ranks = {name: len(module.weight) for name, module in model.named_modules() if "lora_A." in name}
    assert ranks == {f"{module}.lora_A.paretune": size for module, size in sizes.items()}
    train(model, task, folder, Recipe(lr=1e-2, steps=2, batch_size=8, checkpoints=0))
    delta, scores = model.delta(), task.score(model)
    detach(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with delta.apply(model):
        assert task.score(model) == scores


@pytest.mark.parametrize("method", ["fish", "lora", "mixture"])
@pytest.mark.parametrize("family", QUICK)
def test_a_model_is_trained_and_given_back(tasks, family, method, tmp_path):
    trained_and_given_back(tasks(family), method, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_trains_a_family_or_says_why_not(tasks, family, tmp_path):
    refused = set()
    for method in METHODS.keys() - NEEDS:
        try:
            trained_and_given_back(tasks(family), method, tmp_path / method)
        except PareError as problem:
            assert re.search("nothing|no biases|cannot carry|no feed-forward", str(problem)), problem
            refused.add(method)
    assert refused == FAMILIES[family].refused


def test_the_page_lists_them():
    rows = re.findall(r"^\| (.+?) \| (.*?) \|$", PAGE.read_text(), re.MULTILINE)[1:]
    listed = {name: frozenset(re.findall(r"`(\w+)`", refused)) for name, refused in rows}
    assert listed == {name: family.refused for name, family in FAMILIES.items()}


def test_lora_is_added_to_what_can_carry_it(tasks):
    for family in QUICK:
        model = tasks(family).load_model()
        plan = choose("lora", model, tasks(family), "20%")
        added = {addition.module.rpartition(".")[2] for addition in plan.additions}
        assert added
        assert not added & {"gate", "experts", "conv1d"}
        assert family != "Mamba" or "out_proj" not in added
    with pytest.raises(PareError, match="Mamba's kernels"):
        STRATEGIES["lora"].count(tasks("Mamba").load_model(), "backbone.layers.0.mixer.out_proj", 1, {})
