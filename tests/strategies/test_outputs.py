import copy

import pytest
import torch

from paretune.strategies import attach_additions
from tests.strategies.models import assert_same, build, design, logits, shake, snapshot

BLOCK = "model.layers.0"
END = f"{BLOCK}.mlp.down_proj"


def parts(model):
    """A LoRA, a bias and an adapter that all meet in one layer's output."""
    return {
        "lora": design(model, [("lora", END, 2, {})]),
        "bias": design(model, [("bias", END, 1, {})]),
        "adapter": design(model, [("adapter", BLOCK, 3, {})]),
    }


def test_the_whole_output_goes_through_vector_then_adapter():
    model = build("llama", dtype=torch.float64)
    plain = model.get_submodule(END)
    x = torch.randn(5, 24, dtype=torch.float64)
    additions = parts(model)
    attached = attach_additions(model, [a for group in additions.values() for a in group])
    shake(attached.tensors)
    get = {key.rpartition(":")[2]: tensor for key, tensor in attached.tensors.items()}

    y = x @ plain.weight.T + 2 * (x @ get["lora_A.weight"].T) @ get["lora_B.weight"].T + get["bias"]
    hidden = torch.relu(y @ get["mlp.down.weight"].T + get["mlp.down.bias"])
    y = y + hidden @ get["mlp.up.weight"].T + get["mlp.up.bias"]
    torch.testing.assert_close(model.get_submodule(END)(x), y)


ORDERS = [("lora", "bias", "adapter"), ("adapter", "bias", "lora"), ("bias", "lora", "adapter")]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("leaving", ORDERS)
def test_order_of_coming_and_going_does_not_matter(order, leaving):
    model = build("llama")
    before = snapshot(model)
    additions = parts(model)
    together = attach_additions(model, [a for group in additions.values() for a in group])
    shake(together.tensors)
    values = {key: tensor.clone() for key, tensor in together.tensors.items()}
    wanted = logits(model, "llama")
    together.detach()

    attached = {kind: attach_additions(model, additions[kind], kind) for kind in order}
    with torch.no_grad():
        for each in attached.values():
            for key, tensor in each.tensors.items():
                tensor.copy_(values[key])
    assert torch.equal(logits(model, "llama"), wanted)
    for kind in leaving:
        attached[kind].detach()
        assert not attached[kind].tensors
    assert_same(before, snapshot(model))


def test_hook_is_there_once_and_goes_with_the_last():
    model = build("llama")
    layer = model.get_submodule(END)
    additions = parts(model)
    bias, adapter = (attach_additions(model, additions[kind]) for kind in ("bias", "adapter"))
    assert len(layer._forward_hooks) == 1
    bias.detach()
    assert len(layer._forward_hooks) == 1
    adapter.detach()
    assert len(layer._forward_hooks) == 0


def test_a_copy_is_independent():
    model = build("llama")
    additions = parts(model)
    attached = attach_additions(model, [a for group in additions.values() for a in group])
    shake(attached.tensors)
    wanted = logits(model, "llama")
    twin, twin_attached = copy.deepcopy((model, attached))
    shake(attached.tensors, 1)
    assert torch.equal(logits(twin, "llama"), wanted)
    attached.detach()
    assert torch.equal(logits(twin, "llama"), wanted)
    shake(twin_attached.tensors, 2)
    assert not torch.equal(logits(twin, "llama"), wanted)
    twin_attached.detach()
    assert torch.equal(logits(twin, "llama"), logits(build("llama"), "llama"))
