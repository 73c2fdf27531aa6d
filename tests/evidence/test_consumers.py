"""Consumers take blocks of any form, and anybody may write one."""

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from paretune.evidence.consumers import AbsSum, Consumer, Dots, ExampleEntries, ExampleNorms, SquaredSum, Sum
from paretune.evidence.gradients import Block, Dense, ExampleGradients, Factor, Outer, Scatter

EXAMPLES, ROWS, COLUMNS = 4, 7, 5
WEIGHT = torch.zeros(ROWS, COLUMNS, dtype=torch.float64)


def feed(consumer: Consumer, gradients: ExampleGradients, positions: Iterable[int] = range(EXAMPLES)) -> None:
    """As the collector does."""
    where = torch.tensor(list(positions))
    if not consumer.whole(gradients, where):
        for block in gradients.blocks():
            consumer.block(gradients.name, block, where)


def factors(sort: str) -> list[Factor]:
    torch.manual_seed(0)
    outer = Outer(torch.randn(EXAMPLES, 3, ROWS).double(), torch.randn(EXAMPLES, 3, COLUMNS).double())
    single = Outer(outer.left[:, :1], outer.right[:, :1])
    scatter = Scatter(torch.randint(0, ROWS, (EXAMPLES, 6)), torch.randn(EXAMPLES, 6, COLUMNS).double(), ROWS)
    dense = Dense(torch.randn(EXAMPLES, ROWS, COLUMNS).double())
    return {
        "outer": [outer],
        "single": [single],
        "scatter": [scatter],
        "dense": [dense],
        "tied": [outer, scatter],
    }[sort]


@pytest.mark.parametrize("sort", ["outer", "single", "scatter", "dense", "tied"])
def test_all_agree_with_the_gradients(sort: str) -> None:
    gradients = ExampleGradients("w", WEIGHT.shape, factors(sort))
    whole = torch.zeros(EXAMPLES, ROWS, COLUMNS, dtype=torch.float64)
    gradients.add_to(whole, slice(0, EXAMPLES), slice(0, ROWS))
    flat = whole.flatten(1)
    chosen = torch.tensor([0, 3, 4, 17, 34])
    direction = torch.randn(ROWS, COLUMNS, dtype=torch.float64)
    expected: list[tuple[Consumer, Tensor]] = [
        (SquaredSum({"w": WEIGHT}), whole.square().sum(0)),
        (Sum({"w": WEIGHT}), whole.sum(0)),
        (AbsSum({"w": WEIGHT}), whole.abs().sum(0)),
        (ExampleNorms(EXAMPLES, {"w": None}), flat.square().sum(1)),
        (ExampleNorms(EXAMPLES, {"w": chosen}), flat[:, chosen].square().sum(1)),
        (ExampleNorms(EXAMPLES, {"w": chosen[:0]}), torch.zeros(EXAMPLES, dtype=torch.float64)),
        (ExampleEntries(EXAMPLES, {"w": chosen}, dtype=torch.float64), flat[:, chosen]),
        (
            ExampleEntries(EXAMPLES, {"w": chosen}, squared=True, dtype=torch.float64),
            flat[:, chosen].square(),
        ),
        (ExampleEntries(EXAMPLES, {"w": chosen[:0]}, dtype=torch.float64), flat[:, :0]),
        (Dots(EXAMPLES, {"w": direction}), (flat @ direction.flatten())[:, None]),
    ]
    for consumer, values in expected:
        feed(consumer, gradients)
        (found,) = consumer.totals()
        torch.testing.assert_close(found, values, msg=lambda text, c=consumer: f"{type(c).__name__}: {text}")


def test_positions_say_where_and_repeated_ones_add_up() -> None:
    gradients = ExampleGradients("w", WEIGHT.shape, factors("outer"))
    norms, entries = ExampleNorms(9, {"w": None}), ExampleEntries(9, {"w": torch.tensor([2])}, squared=True)
    for consumer in (norms, entries):
        feed(consumer, gradients, [7, 0, 5, 2])
        feed(consumer, gradients, [7, 0, 5, 2])
    once = ExampleNorms(EXAMPLES, {"w": None})
    feed(once, gradients)
    torch.testing.assert_close(norms.values[[7, 0, 5, 2]], 2 * once.values)
    assert not norms.values[[1, 3, 4, 6, 8]].any() and not entries.values["w"][[1, 3, 4, 6, 8]].any()


def test_a_vector_keeps_its_shape() -> None:
    bias = torch.zeros(ROWS)
    consumer = SquaredSum({"b": bias})
    feed(consumer, ExampleGradients("b", bias.shape, [Dense(torch.ones(EXAMPLES, ROWS, 1))]))
    assert consumer.values["b"].tolist() == [4.0] * ROWS


def test_half_precision_tensors_are_summed_in_float32() -> None:
    assert SquaredSum({"w": WEIGHT.bfloat16()}).values["w"].dtype == torch.float32
    assert SquaredSum({"w": WEIGHT}).values["w"].dtype == torch.float64


def test_one_of_ones_own() -> None:
    class Largest(Consumer):
        """The largest gradient of any example."""

        def __init__(self) -> None:
            self.value = torch.zeros(1, dtype=torch.float64)

        def wants(self, name: str) -> bool:
            return name == "w"

        def block(self, name: str, block: Block, positions: Tensor) -> None:
            self.value = torch.maximum(self.value, block.values.abs().max())

        def totals(self) -> Iterable[Tensor]:
            return [self.value]

    consumer = Largest()
    gradients = ExampleGradients("w", WEIGHT.shape, factors("tied"))
    feed(consumer, gradients)
    whole = torch.zeros(EXAMPLES, ROWS, COLUMNS, dtype=torch.float64)
    gradients.add_to(whole, slice(0, EXAMPLES), slice(0, ROWS))
    torch.testing.assert_close(consumer.value, whole.abs().max()[None])
