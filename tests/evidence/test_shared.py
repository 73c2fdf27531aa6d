"""Values that stand for all examples get a gradient for each, and everything is put back."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paretune.evidence.gradients import ExampleGradients, Factor
from paretune.evidence.shared import SharedBias, SharedParameter, find_shared, slots


class Attention(nn.Module):
    """Relative positions as T5's."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.other = nn.Embedding(5, 2), nn.Linear(2, 2)

    def compute_bias(self, queries: int, keys: int) -> Tensor:
        bucket = (torch.arange(keys)[None] - torch.arange(queries)[:, None]).clamp(-2, 2) + 2
        return self.table(bucket).permute(2, 0, 1).unsqueeze(0)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 3))
        self.flat = nn.Parameter(torch.randn(3))
        self.attention = Attention()
        self.linear = nn.Linear(3, 1)  # its weight's first dimension is 1, too


def test_what_looks_shared() -> None:
    model = Model()
    found = find_shared(model, slots(model, dict(model.named_parameters())))
    assert {type(value): value.slot.name for value in found} == {
        SharedParameter: "token",
        SharedBias: "attention.table.weight",
    }


def test_tied_tensors_have_several_slots_of_one_name() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    assert [(slot.module, slot.name) for slot in slots(model, ["0.weight"])] == [
        (model[0], "0.weight"),
        (model[1], "0.weight"),
    ]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", ["token", "attention.table.weight"])
def test_each_example_has_its_gradient(name: str, frozen: bool) -> None:
    torch.manual_seed(0)
    model = Model().double()
    (shared,) = (value for value in find_shared(model, slots(model, [name])))
    parameter = model.get_parameter(name)
    seeds = torch.randn(4, 2, 3, 6).double() if "table" in name else torch.randn(4, 1, 3).double()

    def value() -> Tensor:
        return model.attention.compute_bias(3, 6) if "table" in name else model.token

    truth = [torch.autograd.grad((value() * seed).sum(), parameter)[0] for seed in seeds]
    model.requires_grad_(not frozen)
    uses: list[str] = []
    parts: list[Factor] = []
    shared.begin(4, uses.append, lambda _, part: parts.append(part))
    try:
        (value() * seeds).sum().backward()
    finally:
        shared.end()
    gradients = ExampleGradients(name, parameter.shape, parts)
    found = torch.zeros(4, gradients.rows, gradients.columns, dtype=torch.float64)
    gradients.add_to(found, slice(0, 4), slice(0, gradients.rows))
    torch.testing.assert_close(found, torch.stack(truth).view_as(found))
    assert uses == [name]
    assert model.get_parameter(name) is parameter
    assert "compute_bias" not in vars(model.attention)


def test_the_table_is_back_when_the_method_fails() -> None:
    model = Model()
    (shared,) = (value for value in find_shared(model, slots(model, ["attention.table.weight"])))

    def ignore(*_: Any) -> None: ...

    shared.begin(2, ignore, ignore)
    with pytest.raises(TypeError):
        model.attention.compute_bias("three", 2)
    shared.end()
    assert isinstance(model.attention.table.weight, nn.Parameter)
    assert model.attention.compute_bias(1, 2).shape == (1, 2, 1, 2)
