"""Linear layers and look-ups with partly trained weights: the same numbers, without the dense gradient."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

from paretune.plan import Selection
from paretune.tuning.pattern import Pattern
from paretune.tuning.writethrough import Slot
from tests.tuning.test_writethrough import batch, make, slots_on

WAYS = ("dense", "restricted", "sampled")


def slot_on(parameter, count, seed=0):
    chosen = np.random.default_rng(seed).choice(parameter.numel(), count, replace=False)
    return Slot(parameter, Selection("w", tuple(parameter.shape), "entries", np.sort(chosen)))


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """Every gradient is taken this way, whatever is the cheapest."""
    monkeypatch.setattr(Pattern, "cheapest", lambda self, left: request.param)
    return request.param


@pytest.mark.parametrize("case", ["bert", "gpt2", "llama", "t5"])
def test_whole_models_get_the_dense_gradients(case, way):
    dense = make(case)
    dense(**batch(case)).loss.backward()
    model = make(case)
    slots = slots_on(model, share=0.1)
    model(**batch(case)).loss.backward()
    for name, parameter in dense.named_parameters():
        wanted = parameter.grad.reshape(-1)[slots[name].index]
        torch.testing.assert_close(slots[name].values.grad, wanted, rtol=1e-9, atol=1e-14, msg=name)


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_inputs_and_biases_get_theirs(kind, way):
    torch.manual_seed(0)
    plain = kind(6, 4).double()
    tuned = kind(6, 4).double()
    tuned.load_state_dict(plain.state_dict())
    slots = slot_on(tuned.weight, 5), slot_on(tuned.bias, 2)
    x = torch.randn(2, 3, 6 if kind is nn.Linear else 4, dtype=torch.float64)
    first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
    (plain(first) ** 2).sum().backward()
    (tuned(second) ** 2).sum().backward()
    torch.testing.assert_close(first.grad, second.grad)
    for parameter, slot in zip((plain.weight, plain.bias), slots, strict=True):
        torch.testing.assert_close(slot.values.grad, parameter.grad.reshape(-1)[slot.index])


class Shapes(TorchDispatchMode):
    """The shapes of everything that operations make."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, torch.Tensor) and each.layout is torch.strided:
                self.seen.add(tuple(each.shape))
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_dense_gradient_is_made(dtype):
    layer = nn.Linear(600, 768).to(dtype)
    slot = slot_on(layer.weight, 1000)
    loss = layer(torch.randn(300, 600, dtype=dtype)).float().square().sum()
    with Shapes() as made:
        loss.backward()
    assert slot.values.grad.shape == (1000,)
    assert not made.seen & {(768, 600), (600, 768), (768 * 600,)}


def test_rows_cost_a_product_of_their_size():
    layer = nn.Linear(512, 768)
    Slot(layer.weight, Selection("w", (768, 512), "rows", np.array([5, 700])))
    loss = layer(torch.randn(300, 512)).square().sum()
    with Shapes() as made:
        loss.backward()
    assert (2, 512) in made.seen and (768, 512) not in made.seen


def test_the_graph_ends_below_the_first_selected_layer():
    layers = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))
    for parameter in layers.parameters():
        parameter.requires_grad_(False)
    slot_on(layers[1].weight, 4)
    assert not layers[0](torch.randn(2, 8)).requires_grad
    out = layers(torch.randn(2, 8))
    out.sum().backward()
    assert layers[1].weight.slot.values.grad is not None


def test_no_copy_of_the_weight_waits_between_the_passes_under_autocast():
    layer = nn.Linear(64, 96)
    slot_on(layer.weight, 50)
    kept = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)
    with torch.autocast("cpu", torch.bfloat16), hooks:
        out = layer(torch.randn(10, 64))
    assert out.dtype == torch.bfloat16
    assert [t.dtype for t in kept if t.shape == (96, 64)] == [torch.float32]
    assert {t.data_ptr() for t in kept if t.shape == (96, 64)} == {layer.weight.data_ptr()}


def test_a_second_derivative_is_the_dense_one():
    torch.manual_seed(0)
    layer = nn.Linear(5, 4).double()
    start = torch.randn(3, 5, dtype=torch.float64)

    def twice(weight, x, read):
        (slope,) = torch.autograd.grad(torch.tanh(F.linear(x, weight)).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), [read, x])

    x = start.clone().requires_grad_()
    wanted, of_x = twice(layer.weight, x, layer.weight)
    slot = slot_on(layer.weight, 7)
    x = start.clone().requires_grad_()
    found, of_x_too = twice(layer.weight, x, slot.values)
    torch.testing.assert_close(found, wanted.reshape(-1)[slot.index])
    torch.testing.assert_close(of_x_too, of_x)


def test_mixed_precision_without_autocast_is_refused_as_by_pytorch():
    layer = nn.Linear(8, 8).bfloat16()
    slot_on(layer.weight, 3)
    with pytest.raises(RuntimeError, match="dtype"):
        layer(torch.randn(2, 8))


def test_a_pattern_follows_the_device():
    layer = nn.Linear(8, 8)
    slot = slot_on(layer.weight, 3)
    assert slot.pattern is slot.pattern
    assert slot.pattern.count == 3
    assert Slot(nn.Parameter(torch.ones(4)), Selection("b", (4,), "entries", np.array([1]))).pattern is None
    if torch.cuda.is_available():
        layer.cuda()
        layer(torch.randn(2, 8, device="cuda")).sum().backward()
        assert slot.values.grad.is_cuda


def test_a_result_may_be_changed_in_place(way):
    """Longformer divides its queries in place; `nn.ReLU(inplace=True)` does the like."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Embedding(9, 6), nn.Dropout(0, inplace=True), nn.Linear(6, 4), nn.ReLU(inplace=True)
    )
    tuned = nn.Sequential(
        nn.Embedding(9, 6), nn.Dropout(0, inplace=True), nn.Linear(6, 4), nn.ReLU(inplace=True)
    )
    tuned.load_state_dict(plain.state_dict())
    slots = [slot_on(parameter, 3) for parameter in tuned.parameters()]
    tokens = torch.tensor([[1, 2, 3], [4, 5, 1]])
    for model in (plain, tuned):
        model[0].register_forward_hook(lambda module, args, output: output.mul_(2))
        model(tokens).square().sum().backward()
    for parameter, slot in zip(plain.parameters(), slots, strict=True):
        torch.testing.assert_close(slot.values.grad, parameter.grad.reshape(-1)[slot.index])
