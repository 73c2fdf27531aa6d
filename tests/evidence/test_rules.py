"""Layers are recognised by what they do."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm
from transformers.pytorch_utils import Conv1D

from paretune.evidence.gradients import ExampleGradients
from paretune.evidence.rules import Call, Convolution, Embedding, Linear, Scale, find_rule

EXAMPLES, WIDTH = 3, 6


class Offset(nn.Embedding):
    """Positions from a mask, with an offset, scaled."""

    def forward(self, mask: Tensor) -> Tensor:
        return super().forward(mask.cumsum(1) + 1) * 4.0


class Wide(nn.Linear):
    """A linear layer that is more than one."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def conv1d() -> nn.Module:
    layer = Conv1D(WIDTH, WIDTH)
    nn.init.normal_(layer.bias)
    return layer


def eval_norm() -> nn.Module:
    norm = nn.BatchNorm2d(WIDTH)
    norm(torch.randn(8, WIDTH, 4, 4))
    return norm.eval()


TOKENS = (EXAMPLES, 5, WIDTH)
IMAGES = (EXAMPLES, WIDTH, 8, 8)
LAYERS: dict[str, tuple[Any, Any, Any]] = {
    "linear": (lambda: nn.Linear(WIDTH, 4), TOKENS, Linear(transposed=False)),
    "linear without bias": (
        lambda: nn.Linear(WIDTH, 4, bias=False),
        (EXAMPLES, WIDTH),
        Linear(transposed=False),
    ),
    "linear, four dimensions": (lambda: nn.Linear(8, 4), IMAGES, Linear(transposed=False)),
    "conv1d, square": (conv1d, TOKENS, Linear(transposed=True)),
    "embedding": (lambda: nn.Embedding(9, 4, padding_idx=1), None, Embedding(9, 1.0, direct=True)),
    "positions": (lambda: Offset(9, 4), "mask", Embedding(9, 4.0, direct=False)),
    "layer norm": (lambda: nn.LayerNorm(WIDTH), TOKENS, Scale(2, offset=False)),
    "layer norm without bias": (lambda: nn.LayerNorm(WIDTH, bias=False), TOKENS, Scale(2, offset=False)),
    "rms norm": (lambda: nn.RMSNorm(WIDTH), TOKENS, Scale(2, offset=False)),
    "llama's": (lambda: LlamaRMSNorm(WIDTH), TOKENS, Scale(2, offset=False)),
    "t5's": (lambda: T5LayerNorm(WIDTH), TOKENS, Scale(2, offset=False)),
    "gemma's": (lambda: GemmaRMSNorm(WIDTH), TOKENS, Scale(2, offset=True)),
    "group norm": (lambda: nn.GroupNorm(2, WIDTH), IMAGES, Scale(1, offset=False)),
    "batch norm": (eval_norm, IMAGES, Scale(1, offset=False)),
    "prelu": (lambda: nn.PReLU(WIDTH), IMAGES, Scale(1, offset=True)),
    "patches": (lambda: nn.Conv2d(WIDTH, 4, 4, stride=4), IMAGES, Convolution()),
    "convolution": (lambda: nn.Conv2d(WIDTH, 4, 3, padding=1, dilation=2), IMAGES, Convolution()),
}
UNKNOWN: dict[str, tuple[Any, Any]] = {
    "grouped": (lambda: nn.Conv2d(WIDTH, WIDTH, 3, groups=2), IMAGES),
    "same": (lambda: nn.Conv2d(WIDTH, 4, 3, padding="same"), IMAGES),
    "reflected": (lambda: nn.Conv2d(WIDTH, 4, 3, padding=1, padding_mode="reflect"), IMAGES),
    "more than linear": (lambda: Wide(WIDTH, WIDTH), TOKENS),
    "bilinear": (lambda: nn.Sequential(nn.Linear(WIDTH, 4)), TOKENS),
    "two weights": (lambda: nn.GRUCell(WIDTH, WIDTH), (EXAMPLES, WIDTH)),
}


def call(make: Any, shape: Any) -> tuple[Call, Tensor]:
    torch.manual_seed(0)
    layer = make()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter))
    if shape is None:
        x = torch.tensor([[1, 2, 2, 0], [3, 3, 3, 1], [8, 1, 1, 1]])
    elif shape == "mask":
        x = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    else:
        layer, x = layer.double(), torch.randn(shape, dtype=torch.float64)
    made = Call.of(layer, (x,), {})
    assert made is not None
    return made, layer(x)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_found_and_their_gradients_are_autograds(name: str) -> None:
    make, shape, rule = LAYERS[name]
    made, output = call(make, shape)
    with torch.no_grad():
        assert find_rule(made, output) == rule
    seed = torch.randn_like(output)
    factors = rule.factors(made, seed)
    for local, parameter in made.module.named_parameters():
        gradients = ExampleGradients(
            local, parameter.shape, [factors["bias" if local == "bias" else "weight"]()]
        )
        for example in range(EXAMPLES):
            part = torch.zeros_like(seed)
            part[example] = seed[example]
            (truth,) = torch.autograd.grad(output, parameter, part, retain_graph=True)
            found = torch.zeros(1, gradients.rows, gradients.columns, dtype=truth.dtype)
            gradients.add_to(found, slice(example, example + 1), slice(0, gradients.rows))
            torch.testing.assert_close(found.reshape(parameter.shape), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_is_left_alone(name: str) -> None:
    made, output = call(*UNKNOWN[name])
    with torch.no_grad():
        assert find_rule(made, output) is None


def test_a_call_without_a_tensor_is_no_call() -> None:
    assert Call.of(nn.Linear(2, 2), (3, "x"), {"size": None}) is None


def test_the_input_may_be_a_keyword() -> None:
    layer, x = nn.Linear(WIDTH, 4), torch.randn(2, WIDTH)
    made = Call.of(layer, (), {"input": x})
    assert made is not None and find_rule(made, layer(x)) == Linear(transposed=False)
