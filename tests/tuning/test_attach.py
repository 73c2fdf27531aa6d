import copy

import numpy as np
import pytest
import torch
from torch import nn

from paretune.anatomy import base_digest, mark_head
from paretune.delta import Delta
from paretune.errors import PareError
from paretune.plan import Addition, Base, Plan, Selection
from paretune.strategies import STRATEGIES
from paretune.tuning import attach, detach
from tests.tuning.test_writethrough import batch, make, some

HEAD = ("classifier.weight", "classifier.bias")


def base_of(model, head=()):
    return Base("tiny", base_digest(model, head), str(next(model.parameters()).dtype).removeprefix("torch."))


def mixed_plan(model, case):
    """Single entries everywhere, some whole tensors, a LoRA, and a head where there is one."""
    head = HEAD if case == "bert" else ()
    names = [name for name, _ in model.named_parameters() if name not in head]
    whole = {names[2], names[-1]}
    linear = next(
        name
        for name, m in model.named_modules()
        if type(m).__name__ in ("Linear", "Conv1D") and name not in head
    )
    width = STRATEGIES["lora"].count(model, linear, 2, {})
    return Plan(
        base=base_of(model, head),
        selections=tuple(
            Selection(n, tuple(model.get_parameter(n).shape), "all")
            if n in whole
            else some(model.get_parameter(n), 0.2, name=n)
            for n in names
        ),
        additions=(Addition("lora", linear, 2, width, {}),),
        head=tuple(Selection(n, tuple(model.get_parameter(n).shape), "all") for n in head),
    )


def step(model, case, decay=0.0, steps=2):
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=0.05, weight_decay=decay)
    for _ in range(steps):
        optimiser.zero_grad()
        model(**batch(case)).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ["bert", "gpt2", "llama", "t5"])
def test_attach_train_detach_is_bit_exact(case, dtype):
    model = make(case, dtype)
    names = [name for name, _ in model.named_parameters()]
    flags = [p.requires_grad for p in model.parameters()]
    before = copy.deepcopy(model.state_dict())
    attach(model, mixed_plan(model, case))
    step(model, case)
    detach(model)
    assert [name for name, _ in model.named_parameters()] == names
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not hasattr(model, "delta")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ["bert", "gpt2", "llama", "t5"])
def test_the_delta_on_a_fresh_base_gives_the_same_logits(tmp_path, case, dtype):
    model, fresh = make(case, dtype), make(case, dtype)
    attach(model, mixed_plan(model, case))
    step(model, case)
    model.delta(score=0.5).save(tmp_path / "delta.safetensors")
    wanted = model(**batch(case)).logits
    applied = Delta.load(tmp_path / "delta.safetensors").apply(fresh)
    assert torch.equal(fresh(**batch(case)).logits, wanted)
    applied.revert()
    assert (
        base_digest(fresh, HEAD if case == "bert" else ()) == mixed_plan(make(case, dtype), case).base.digest
    )


@pytest.mark.parametrize("autocast", [False, True])
def test_unselected_weights_are_bit_equal_under_everything(autocast):
    model = make("bert", torch.float32)
    before = copy.deepcopy(model.state_dict())
    plan = mixed_plan(model, "bert")
    attach(model, plan)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=0.05, weight_decay=0.1)
    for _ in range(2):
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = model(**batch("bert")).loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.1)
        optimiser.step()
        optimiser.zero_grad()
    state = {n.replace(".base_layer", ""): t for n, t in model.state_dict().items() if "lora_" not in n}
    assert state.keys() == before.keys()
    for selection in (*plan.selections, *plan.head):
        mask = np.ones(selection.numel, dtype=bool)
        mask[selection.flat()] = False
        old, new = before[selection.tensor].reshape(-1).numpy(), state[selection.tensor].reshape(-1).numpy()
        assert np.array_equal(old[mask], new[mask]), selection.tensor
        assert not mask.any() or not np.array_equal(old, new) or selection.tensor.endswith("key.bias")


def test_only_what_is_selected_requires_grad():
    model = make("bert", torch.float32)
    plan = mixed_plan(model, "bert")
    attach(model, plan)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == plan.trained


def test_the_state_dict_is_that_of_a_plain_model():
    model = make("bert", torch.float32)
    names = list(model.state_dict())
    plan = Plan(base_of(model), (some(model.bert.pooler.dense.weight, name="bert.pooler.dense.weight"),))
    attach(model, plan)
    assert list(model.state_dict()) == names
    fresh = make("bert", torch.float32)
    fresh.load_state_dict(model.state_dict())
    model.load_state_dict(fresh.state_dict())


def test_save_pretrained_writes_the_tuned_model(tmp_path):
    model = make("bert", torch.float32)
    plan = Plan(base_of(model), (some(model.bert.pooler.dense.weight, name="bert.pooler.dense.weight"),))
    attach(model, plan)
    step(model, "bert")
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(**batch("bert")).logits, model(**batch("bert")).logits)


def one(model):
    return Plan(base_of(model), (some(model.bert.pooler.dense.weight, name="bert.pooler.dense.weight"),))


def test_two_plans_at_once_are_refused():
    model = make("bert", torch.float32)
    plan = one(model)
    attach(model, plan)
    with pytest.raises(PareError, match="attached to this model already"):
        attach(model, plan)


def test_a_plan_for_other_weights_is_refused_and_changes_nothing():
    plan = one(make("bert", torch.float32))
    model = make("bert", torch.float32)
    with torch.no_grad():
        model.bert.pooler.dense.bias[0] += 1e-6
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(PareError, match="other weights"):
        attach(model, plan)
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_a_plan_for_another_shape_names_the_tensor():
    model = make("bert", torch.float32)
    plan = Plan(base_of(model), (Selection("bert.pooler.dense.weight", (3, 3), "all"),))
    with pytest.raises(PareError, match=r"bert\.pooler\.dense\.weight.*\(3, 3\)"):
        attach(model, plan)
    plan = Plan(base_of(model), (Selection("bert.pooler.weight", (16, 16), "all"),))
    with pytest.raises(PareError, match="does not have"):
        attach(model, plan)


def test_a_failing_addition_leaves_the_model_as_it_was():
    model = make("bert", torch.float32)
    before = copy.deepcopy(model.state_dict())
    good = one(model)
    plan = Plan(good.base, good.selections, additions=(Addition("lora", "bert.nowhere", 2, 64, {}),))
    with pytest.raises(PareError, match="nowhere"):
        attach(model, plan)
    assert all(type(p) is nn.Parameter and p.requires_grad for p in model.parameters())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_detach_without_a_plan_says_so():
    with pytest.raises(PareError, match="no plan is attached"):
        detach(make("bert"))


def test_the_head_of_the_plan_is_remembered():
    model = make("bert", torch.float32)
    mark_head(model, [])
    attach(model, mixed_plan(model, "bert"))
    assert model.paretune_head == HEAD


def test_a_delta_of_another_plan_is_not_loaded():
    model = make("bert", torch.float32)
    attach(model, one(model))
    delta = model.delta()
    detach(model)
    attach(model, mixed_plan(model, "bert"))
    with pytest.raises(PareError, match="another plan"):
        model.paretune.load(delta)
