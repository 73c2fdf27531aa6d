"""Evidence in bf16: near the truth, summed in float32, the same every time, refused where it cannot be."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from paretune.errors import PareError
from paretune.evidence import gradients as module
from paretune.evidence.collector import Collector
from paretune.evidence.consumers import Consumer, ExampleNorms, SquaredSum, Sum
from paretune.evidence.gradients import ExampleGradients, Outer
from paretune.evidence.precision import casting
from paretune.methods import choose
from paretune.task import Task
from tests.evidence.models import EXAMPLES, FAMILIES, batch_for, build, losses, one_by_one
from tests.tiny import tiny_model, tiny_rows


def feed(model: nn.Module, consumer: Consumer, batch: Any, precision: Any, loss: Any = losses) -> Collector:
    with Collector(model, [consumer], precision) as collector:
        collector.run(loss, batch, range(len(batch["labels"])))
    return collector


def flat(values: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten().double() for value in values.values()])


@pytest.mark.parametrize("kind", FAMILIES)
def test_squares_are_near_the_truth_and_float32(kind: str, tmp_path: Path) -> None:
    model, batch = build(kind, tmp_path, torch.float32), batch_for(kind)
    truth = one_by_one(build(kind, tmp_path), losses, batch)
    expected = flat({name: values.square().sum(0) for name, values in truth.items()})
    fine, coarse = (SquaredSum(dict(model.named_parameters())) for _ in range(2))
    feed(model, fine, batch, "fp32")
    assert feed(model, coarse, batch, "bf16").slow == ()
    assert {values.dtype for values in coarse.values.values()} == {torch.float32}
    off = (flat(coarse.values) - expected).norm() / expected.norm()
    assert (flat(fine.values) - expected).norm() < 1e-4 * expected.norm()
    assert 1e-4 < off < 0.1  # it is another precision, and no worse than a model in bf16


def test_other_consumers_take_bf16_too(tmp_path: Path) -> None:
    model, batch = build("bert", tmp_path, torch.float32), batch_for("bert")
    truth = one_by_one(build("bert", tmp_path), losses, batch)
    named = dict(model.named_parameters())
    sums, norms = Sum(named), ExampleNorms(EXAMPLES, dict.fromkeys(named))
    feed(model, sums, batch, "bf16")
    feed(model, norms, batch, "bf16")
    total = flat({name: values.sum(0) for name, values in truth.items()})
    squares = sum(values.flatten(1).square().sum(1) for values in truth.values())
    assert (flat(sums.values) - total).norm() < 0.1 * total.norm()
    torch.testing.assert_close(norms.values, squares, rtol=0.1, atol=0)


def test_tensors_without_a_rule_are_in_bf16_as_well(tmp_path: Path) -> None:
    class Odd(nn.Module):
        """Has no rule: the weight is used in a product of its own."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))

        def forward(self, x: Tensor) -> Tensor:
            return (x @ self.weight) @ self.weight

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return model(batch["x"]).float().square().sum((1, 2))

    model = Odd()
    batch = {"x": torch.randn(4, 3, 8), "labels": torch.zeros(4)}
    fine, coarse = (SquaredSum(dict(model.named_parameters())) for _ in range(2))
    assert feed(model, fine, batch, "fp32", loss).slow == ("weight",)
    assert feed(model, coarse, batch, "bf16", loss).slow == ("weight",)
    off = (flat(coarse.values) - flat(fine.values)).norm() / flat(fine.values).norm()
    assert 1e-4 < off < 0.1


def test_a_second_pass_is_bit_equal_and_nothing_stays_cast(tmp_path: Path) -> None:
    model, batch = build("bert", tmp_path, torch.float32), batch_for("bert")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (SquaredSum(dict(model.named_parameters())) for _ in range(2))
    feed(model, first, batch, "bf16")
    feed(model, second, batch, "bf16")
    assert all(torch.equal(values, second.values[name]) for name, values in first.values.items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not torch.is_autocast_enabled("cpu")
    assert losses(model, batch).dtype == torch.float32


@pytest.mark.parametrize("size", [7, 60, 200, 10_000])
def test_blocks_of_half_precision_cover_each_gradient_once(size: int, monkeypatch: Any) -> None:
    """Products of several blocks, blocks of several examples, rows that do not divide."""
    monkeypatch.setattr(module, "_BLOCK_CPU", size)
    monkeypatch.setattr(module, "_HALF_PRODUCT_CPU", 4 * size)
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(5, 6, width, generator=generator).bfloat16() for width in (11, 7))
    found, seen = torch.zeros(5, 11, 7), torch.zeros(5, 11)
    for block in ExampleGradients("w", (11, 7), [Outer(left, right)]).blocks():
        assert block.values.dtype == torch.float32
        found[block.examples, block.rows] += block.values
        seen[block.examples, block.rows] += 1
    assert torch.equal(seen, torch.ones(5, 11))
    truth = torch.einsum("btr,btc->brc", left.float(), right.float())
    torch.testing.assert_close(found, truth, rtol=2**-8, atol=1e-6)


def test_fused_attention_stays_in_float32_on_a_cpu() -> None:
    model, x = nn.Linear(2, 2), torch.randn(1, 1, 4, 8).bfloat16()
    mask = torch.zeros(4, 4).bfloat16()
    with casting(model, "bf16"):
        wide = scaled_dot_product_attention(x, x, x, attn_mask=mask)
        assert model(torch.randn(1, 2)).dtype == torch.bfloat16
    with casting(model, "fp32"):
        narrow = scaled_dot_product_attention(x, x, x, attn_mask=mask)
        assert model(torch.randn(1, 2)).dtype == torch.float32
    assert wide.dtype == torch.float32 and narrow.dtype == torch.bfloat16


@pytest.mark.parametrize("method", ["fish", "ird", "gradient"])
def test_methods_pass_their_precision_on(method: str, tmp_path: Path) -> None:
    task = Task.from_rows(
        tiny_rows("single"), model=tiny_model("bert", tmp_path), kind="classification", heldout=0
    )
    plans = {
        precision: choose(method, task.load_model(), task, 300, precision=precision, samples=4)
        for precision in ("fp32", "bf16")
    }
    assert plans["bf16"].settings["precision"] == "bf16"
    fine, coarse = (
        {(s.tensor, int(i)) for s in plan.selections for i in s.flat()} for plan in plans.values()
    )
    assert len(fine) == 300 and len(fine & coarse) > 240
    with pytest.raises(PareError, match=r"precision=bf16.*float64"):
        choose(method, task.load_model(dtype=torch.float64), task, 300, precision="bf16", samples=4)
    with pytest.raises(PareError, match="precision='half' is none of fp32, bf16"):
        choose(method, task.load_model(), task, 300, precision="half", samples=4)
