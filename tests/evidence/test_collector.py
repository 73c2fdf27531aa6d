"""Per-example gradients in batches against autograd on batches of one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from paretune.errors import PareError
from paretune.evidence.collector import Collector
from paretune.evidence.consumers import (
    AbsSum,
    Consumer,
    Dots,
    ExampleEntries,
    ExampleNorms,
    SquaredSum,
    Sum,
)
from tests.evidence.models import EXAMPLES, FAMILIES, batch_for, build, losses, one_by_one, worst


def feed(model: nn.Module, consumer: Consumer, loss: Any, batch: dict[str, Tensor]) -> Collector:
    """One batch through one consumer."""
    with Collector(model, [consumer]) as collector:
        collector.run(loss, batch, range(len(batch["labels"])))
    return collector


def squared(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: values.square().sum(0) for name, values in gradients.items()}


@pytest.mark.parametrize("kind", FAMILIES)
def test_squares_equal_the_loop_in_float64_without_slow_tensors(kind: str, tmp_path: Path) -> None:
    model, batch = build(kind, tmp_path), batch_for(kind)
    squares = SquaredSum(dict(model.named_parameters()))
    collector = feed(model, squares, losses, batch)
    assert collector.slow == ()
    assert worst(squares.values, squared(one_by_one(model, losses, batch))) < 1e-10


@pytest.mark.parametrize("kind", FAMILIES)
def test_squares_equal_the_loop_in_float32(kind: str, tmp_path: Path) -> None:
    model, batch = build(kind, tmp_path, torch.float32), batch_for(kind)
    truth = squared(one_by_one(build(kind, tmp_path), losses, batch))
    squares = SquaredSum(dict(model.named_parameters()))
    assert feed(model, squares, losses, batch).slow == ()
    assert all(values.dtype == torch.float32 for values in squares.values.values())
    assert worst(squares.values, truth) < 1e-4


@pytest.mark.parametrize("kind", FAMILIES)
def test_half_precision_models_are_summed_in_float32(kind: str, tmp_path: Path) -> None:
    model, batch = build(kind, tmp_path, torch.bfloat16), batch_for(kind)
    reference = build(kind, tmp_path, torch.bfloat16).double()  # the same rounded weights
    truth = squared(one_by_one(reference, losses, batch))
    squares = SquaredSum(dict(model.named_parameters()))
    assert feed(model, squares, losses, batch).slow == ()
    total = torch.cat([values.flatten().double() for values in squares.values.values()])
    expected = torch.cat([values.flatten() for values in truth.values()])
    assert total.dtype == torch.float64 and (total - expected).norm() < 0.1 * expected.norm()
    assert {values.dtype for values in squares.values.values()} == {torch.float32}


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_consumer_sees_the_same_gradients(kind: str, tmp_path: Path) -> None:
    model, batch = build(kind, tmp_path), batch_for(kind)
    truth = one_by_one(model, losses, batch)
    named = dict(model.named_parameters())
    torch.manual_seed(3)
    directions = {name: torch.randn_like(parameter) for name, parameter in named.items()}
    chosen = {
        name: torch.randperm(p.numel())[: p.numel() // 3 + 1].sort().values for name, p in named.items()
    }
    some = {name: indices if number % 2 else None for number, (name, indices) in enumerate(chosen.items())}
    consumers = {
        "squares": SquaredSum(named),
        "sum": Sum(named),
        "absolute": AbsSum(named),
        "dots": Dots(EXAMPLES, directions),
        "norms": ExampleNorms(EXAMPLES, some),
        "entries": ExampleEntries(EXAMPLES, chosen),
        "squared entries": ExampleEntries(EXAMPLES, chosen, squared=True, dtype=torch.float64),
    }
    with Collector(model, list(consumers.values())) as collector:
        # Positions need not be in order: here the last example comes first.
        flipped = {key: value.flip(0) for key, value in batch.items()}
        collector.run(losses, flipped, list(range(EXAMPLES))[::-1])
    at: Any = {name: values.flatten(1)[:, chosen[name]] for name, values in truth.items()}
    assert worst(consumers["squares"].values, squared(truth)) < 1e-10
    assert worst(consumers["sum"].values, {name: values.sum(0) for name, values in truth.items()}) < 1e-9
    assert worst(consumers["absolute"].values, {n: values.abs().sum(0) for n, values in truth.items()}) < 1e-9
    assert worst(consumers["entries"].values, at) < 1e-6  # float32
    assert worst(consumers["squared entries"].values, {n: values**2 for n, values in at.items()}) < 1e-10
    dots = torch.stack([(truth[name] * directions[name]).flatten(1).sum(1) for name in named], 1)
    torch.testing.assert_close(consumers["dots"].values, dots, rtol=1e-9, atol=1e-12)
    norms = sum(
        (truth[name].flatten(1) if indices is None else at[name]).square().sum(1)
        for name, indices in some.items()
    )
    torch.testing.assert_close(consumers["norms"].values, norms, rtol=1e-9, atol=0)


def test_several_batches_add_up_and_a_first_batch_of_one_does_no_harm(tmp_path: Path) -> None:
    model, batch = build("bert", tmp_path), batch_for("bert")
    named = dict(model.named_parameters())
    squares, norms = SquaredSum(named), ExampleNorms(EXAMPLES, dict.fromkeys(named))
    with Collector(model, [squares, norms]) as collector:
        for start, stop in ((0, 1), (1, 4), (4, 5)):
            part = {key: value[start:stop] for key, value in batch.items()}
            collector.run(losses, part, range(start, stop))
    truth = one_by_one(model, losses, batch)
    assert collector.slow == ()
    assert worst(squares.values, squared(truth)) < 1e-10
    expected = sum(values.flatten(1).square().sum(1) for values in truth.values())
    torch.testing.assert_close(norms.values, expected, rtol=1e-9, atol=0)


def test_several_losses_of_an_example_are_differentiated_apart(tmp_path: Path) -> None:
    model, batch = build("bert", tmp_path), batch_for("bert")

    def both(model: nn.Module, batch: Any) -> Tensor:
        logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
        return torch.stack([logits[:, 0] * 2, logits[:, 1]])

    squares = SquaredSum(dict(model.named_parameters()))
    feed(model, squares, both, batch)
    parts = [squared(one_by_one(model, lambda m, b, row=row: both(m, b)[row], batch)) for row in (0, 1)]
    truth = {name: parts[0][name] + parts[1][name] for name in parts[0]}
    assert worst(squares.values, truth) < 1e-10


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_padding_changes_nothing(kind: str, tmp_path: Path) -> None:
    model, batch = build(kind, tmp_path), batch_for(kind)
    wider = {key: functional.pad(value, (0, 7)) if value.ndim == 2 else value for key, value in batch.items()}
    if kind in ("llama", "t5"):
        wider["labels"] = functional.pad(batch["labels"], (0, 7), value=-100)
    narrow, wide = (SquaredSum(dict(model.named_parameters())) for _ in range(2))
    feed(model, narrow, losses, batch)
    feed(model, wide, losses, wider)
    assert worst(wide.values, narrow.values) < 1e-10


def test_only_what_is_wanted_is_taken_and_the_backward_goes_no_further(tmp_path: Path) -> None:
    model, batch = build("bert", tmp_path), batch_for("bert")
    names = ["classifier.weight", "bert.encoder.layer.1.output.dense.weight", "bert.pooler.dense.bias"]
    squares = SquaredSum({name: model.get_parameter(name) for name in names})
    reached = []

    def note(module: nn.Module, args: Any, output: Tensor) -> None:
        if output.requires_grad:
            reached.append(module)

    handles = [
        model.get_submodule(f"bert.encoder.layer.{i}.attention.output").register_forward_hook(note)
        for i in (0, 1)
    ]
    with Collector(model, [squares]) as collector:
        collector.run(losses, batch, range(EXAMPLES))
        reached.clear()
        collector.run(losses, batch, range(EXAMPLES))
    for handle in handles:
        handle.remove()
    assert reached == []  # the graph begins above both attentions
    truth = squared(one_by_one(model, losses, batch))
    assert worst(squares.values, {name: 2 * truth[name] for name in names}) < 1e-10


class Odd(nn.Module):
    """What no table of layer names foresees."""

    def __init__(self, width: int = 6, tokens: int = 11) -> None:
        super().__init__()
        self.table = nn.Embedding(tokens, width, padding_idx=2)
        self.once = nn.Parameter(torch.randn(1, 1, width))  # stands for all examples
        self.positions = nn.Embedding(20, width)  # looked up once for all examples
        self.twice = nn.Linear(width, width)  # called twice
        self.norm = OneNorm(width)
        self.scale = LayerScale(width)
        self.mixed = nn.Parameter(torch.randn(width, width))  # used without a module
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)  # uses its parts' weights itself
        self.channels = nn.GroupNorm(2, width)
        self.grouped = nn.Conv1d(width, width, 3, padding=1, groups=3)
        self.unused = nn.Linear(width, width)
        self.out = nn.Linear(width, tokens, bias=False)
        self.out.weight = self.table.weight  # tied

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids) + self.once + self.positions(torch.arange(ids.shape[1])[None])
        x = self.twice(self.twice(x).tanh()) @ self.mixed
        x = self.scale(self.norm(x))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = self.grouped(self.channels(x.transpose(1, 2))).transpose(1, 2)
        return self.out(x)


class OneNorm(nn.Module):
    """RMSNorm with a weight around zero, as Gemma's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * (1 + self.weight)


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def odd_losses(model: nn.Module, batch: Any) -> Tensor:
    return functional.cross_entropy(
        model(batch["ids"]).transpose(1, 2), batch["labels"], reduction="none"
    ).sum(1)


def odd_batch(length: int = 7) -> dict[str, Tensor]:
    ids = torch.randint(0, 11, (EXAMPLES, length), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = 2
    return {"ids": ids, "labels": ids.flip(1)}


@pytest.mark.parametrize("length", [7, EXAMPLES, 2, 1])
def test_shared_tied_odd_and_unused_tensors(length: int) -> None:
    """Length 2 and the batch's own: a dimension that is not the examples' may be as long as theirs."""
    torch.manual_seed(0)
    model, batch = Odd().double(), odd_batch(length)
    squares, norms = (
        SquaredSum(dict(model.named_parameters())),
        ExampleNorms(EXAMPLES, dict.fromkeys(dict(model.named_parameters()))),
    )
    with Collector(model, [squares, norms]) as collector:
        collector.run(odd_losses, batch, range(EXAMPLES))
    truth = one_by_one(model, odd_losses, batch)
    assert worst(squares.values, squared(truth)) < 1e-10
    expected = sum(values.flatten(1).square().sum(1) for values in truth.values())
    torch.testing.assert_close(norms.values, expected, rtol=1e-9, atol=0)
    if length == 7:
        slow = {"mixed", "attention.in_proj_weight", "attention.in_proj_bias", "attention.out_proj.weight"}
        assert set(collector.slow) == slow | {"attention.out_proj.bias", "grouped.weight", "grouped.bias"}


def test_a_module_that_is_first_called_in_a_later_batch_is_not_missed() -> None:
    class Routed(nn.Module):
        """An expert that only some batches need, on the tokens of all examples together."""

        def __init__(self) -> None:
            super().__init__()
            self.table, self.expert, self.out = nn.Embedding(11, 4), nn.Linear(4, 4), nn.Linear(4, 11)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.table(ids)
            rare = (ids == 10).nonzero(as_tuple=True)
            if len(rare[0]):
                x = x.index_put(rare, self.expert(x[rare]))
            return self.out(x)

    torch.manual_seed(0)
    model = Routed().double()
    first = {"ids": torch.randint(0, 10, (3, 6))}
    second = {"ids": first["ids"].index_fill(1, torch.tensor([4]), 10)}  # as many tokens as examples
    batches = [{**batch, "labels": batch["ids"]} for batch in (first, second)]
    squares = SquaredSum(dict(model.named_parameters()))
    with Collector(model, [squares]) as collector:
        for batch in batches:
            collector.run(odd_losses, batch, range(3))
    parts = [squared(one_by_one(model, odd_losses, batch)) for batch in batches]
    assert float(parts[1]["expert.weight"].abs().max()) > 0
    assert worst(squares.values, {name: parts[0][name] + parts[1][name] for name in parts[0]}) < 1e-10


def test_a_linear_layer_by_another_name_needs_no_loop() -> None:
    class Projection(nn.Module):
        def __init__(self, rows: int, columns: int) -> None:
            super().__init__()
            self.weight, self.bias = (
                nn.Parameter(torch.randn(rows, columns)),
                nn.Parameter(torch.randn(columns)),
            )

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight + self.bias

    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(11, 4), Projection(4, 4), nn.Tanh(), Projection(4, 11)).double()
    batch = odd_batch()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(
            model(batch["ids"]).transpose(1, 2), batch["labels"], reduction="none"
        ).sum(1)

    squares = SquaredSum(dict(model.named_parameters()))
    assert feed(model, squares, loss, batch).slow == ()
    assert worst(squares.values, squared(one_by_one(model, loss, batch))) < 1e-10


def test_examples_that_see_each_other_are_taken_one_at_a_time() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    batch = {"x": torch.randn(4, 3, dtype=torch.float64), "labels": torch.tensor([0, 1, 0, 1])}

    def loss(model: nn.Module, batch: Any) -> Tensor:
        logits = model(batch["x"])
        return functional.cross_entropy(
            logits - logits.mean(0, keepdim=True) / 2, batch["labels"], reduction="none"
        )

    squares = SquaredSum(dict(model.named_parameters()))
    collector = feed(model, squares, loss, batch)
    assert set(collector.slow) == set(dict(model.named_parameters()))
    assert worst(squares.values, squared(one_by_one(model, loss, batch))) < 1e-10


class Traces:
    """All that must be the same afterwards."""

    def __init__(self, model: nn.Module) -> None:
        self.modes = [module.training for module in model.modules()]
        self.flags = [parameter.requires_grad for parameter in model.parameters()]
        self.identities = [id(parameter) for parameter in model.parameters()]
        self.weights = [parameter.detach().clone() for parameter in model.parameters()]
        self.gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        self.hooks = [
            (list(m._forward_hooks), list(m._forward_pre_hooks), list(m._backward_hooks))
            for m in model.modules()
        ]
        self.attributes = [sorted(vars(module)) for module in model.modules()]
        self.random = torch.get_rng_state()

    def same(self, other: "Traces") -> bool:
        weights = all(a.equal(b) for a, b in zip(self.weights, other.weights, strict=True))
        gradients = all(
            (a is None) == (b is None) and (a is None or a.equal(b))
            for a, b in zip(self.gradients, other.gradients, strict=True)
        )
        plain = ("modes", "flags", "identities", "hooks", "attributes")
        equal = all(getattr(self, name) == getattr(other, name) for name in plain)
        return weights and gradients and equal and self.random.equal(other.random)


@pytest.mark.parametrize("kind", ["bert", "t5", "vit"])
@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ZeroDivisionError, RuntimeError])
@pytest.mark.parametrize("when", ["check", "forward", "backward"])
def test_the_model_is_left_as_it_was(
    kind: str, error: type[BaseException] | None, when: str, tmp_path: Path
) -> None:
    model, batch = build(kind, tmp_path), batch_for(kind)
    next(model.children()).eval()  # modes that differ
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 2 == 0)
        parameter.grad = torch.ones_like(parameter) if number % 3 == 0 else None
    before = Traces(model)
    calls = []

    def loss(model: nn.Module, batch: Any) -> Tensor:
        torch.rand(1)  # draws, without effect on the loss
        calls.append(1)
        values = losses(model, batch)
        if error and (when == "check" or (when == "forward" and len(calls) > 2)):
            raise error
        return values

    class Failing(SquaredSum):
        def whole(self, gradients: Any, positions: Tensor) -> bool:
            if error and when == "backward":
                raise error
            return super().whole(gradients, positions)

    squares = Failing(dict(model.named_parameters()))
    if error is None:
        feed(model, squares, loss, batch)
    else:
        with pytest.raises(error):
            feed(model, squares, loss, batch)
    assert Traces(model).same(before)


def test_frozen_models_have_gradients_too(tmp_path: Path) -> None:
    model, batch = build("gpt2", tmp_path), batch_for("gpt2")
    truth = squared(one_by_one(model, losses, batch))
    model.requires_grad_(False)
    squares = SquaredSum(dict(model.named_parameters()))
    with torch.no_grad():
        feed(model, squares, losses, batch)
    assert worst(squares.values, truth) < 1e-10
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_random_forward_is_refused() -> None:
    model = nn.Linear(3, 2)
    batch = {"x": torch.randn(4, 3), "labels": torch.tensor([0, 1, 0, 1])}

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(
            functional.dropout(model(batch["x"])), batch["labels"], reduction="none"
        )

    with pytest.raises(PareError, match="forward is random"):
        feed(model, SquaredSum(dict(model.named_parameters())), loss, batch)


def test_wanting_nothing_is_an_error() -> None:
    with pytest.raises(PareError, match="no tensor of the model is wanted"):
        Collector(nn.Linear(2, 2), [SquaredSum({"other": torch.zeros(2)})])


def test_indices_must_increase() -> None:
    with pytest.raises(PareError, match="w: flat indices must be strictly increasing"):
        ExampleNorms(3, {"w": torch.tensor([1, 1])})
    with pytest.raises(PareError, match="w: flat indices must be strictly increasing"):
        ExampleEntries(3, {"w": torch.tensor([2, 1])})
