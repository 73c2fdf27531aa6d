from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from paretune.delta import Delta, Values
from paretune.errors import PareError
from tests.delta.examples import HEAD, Net, base_of, net_delta, same_bits, snapshot


def refused(delta: Delta, model: nn.Module) -> str:
    """The message, having checked that the model did not change."""
    before = snapshot(model)
    with pytest.raises(PareError) as caught:
        delta.apply(model)
    assert same_bits(snapshot(model), before)
    return str(caught.value)


def test_another_base():
    message = refused(net_delta(Net(), 0), Net(1))
    assert "made for some/net (weights" in message and "this model, Net, has other weights" in message
    assert "delta.load_model()" in message


def test_one_changed_weight_anywhere_is_another_base():
    delta = net_delta(Net(), 0)
    for name, _ in Net().named_parameters():
        model = Net()
        with torch.no_grad():
            flat = model.get_parameter(name).reshape(-1)
            flat[-1] = torch.nextafter(flat[-1], torch.tensor(9.0))
        if name in HEAD:
            delta.apply(model)  # a fresh head is different every time
        else:
            assert "other weights" in refused(delta, model)


def test_another_dtype_says_how_to_load():
    message = refused(net_delta(Net(), 0), Net().to(torch.bfloat16))
    assert "in float32, this model is in bfloat16: load it with dtype=torch.float32" in message
    message = refused(net_delta(Net().to(torch.bfloat16), 0), Net())
    assert "load it with dtype=torch.bfloat16" in message


def test_values_that_would_be_rounded():
    model = Net().to(torch.bfloat16)
    delta = net_delta(model, 0, dtype=torch.float32)
    message = refused(delta, model)
    assert "no bfloat16 numbers" in message and "delta.to(torch.bfloat16)" in message
    delta.to(torch.bfloat16).apply(model)
    exact = delta.to(torch.bfloat16).to(torch.float32)  # wider, but nothing is lost
    exact.apply(Net().to(torch.bfloat16))


def test_half_precision_values_on_a_full_precision_base():
    model = Net()
    delta = net_delta(model, 0).to(torch.bfloat16)
    with delta.apply(model):
        values = delta.tensors["head.weight"].values
        assert model.head.weight.dtype == torch.float32
        assert torch.equal(model.head.weight, values.float())


def test_another_shape():
    model = Net()
    values = Values((9,), "entries", np.array([0]), torch.zeros(1))
    delta = Delta(base_of(model), "x", tensors={"head.bias": values})
    message = refused(delta, model)
    assert "head.bias has shape (9,) in the delta and (3,) in this Net" in message


def test_a_tensor_that_is_not_there():
    values = Values((9, 6), "entries", np.array([0]), torch.zeros(1))
    model = Net()
    delta = Delta(base_of(model), "x", tensors={"layers.weight": values})
    assert "this Net has no 'layers.weight' (it has layer.weight" in refused(delta, model)


def test_a_head_that_is_not_there():
    delta, model = net_delta(Net(), 0), Net()
    del model.head
    assert "'head.bias', which is part of the delta's head" in refused(delta, model)


def test_a_model_under_a_plan():
    model = Net()
    delta = net_delta(model, 0)
    model.add_module("paretune", nn.Module())
    assert "paretune.detach(model)" in refused(delta, model)


def test_a_model_in_two_dtypes_is_told_by_its_digest():
    model = Net()
    model.layer.to(torch.bfloat16)
    delta = net_delta(model, 0)
    assert delta.base.dtype == "float32"
    delta.apply(model)
    assert "other weights" in refused(replace(delta), Net())
