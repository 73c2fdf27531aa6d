"""Fisher scores against autograd one example at a time, against curvlinops, and their errors."""

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from paretune.errors import PareError
from paretune.evidence.fisher import Fisher, fisher
from paretune.task import Task
from tests.evidence.models import worst
from tests.tiny import tiny_model, tiny_rows

KINDS = {
    "classification": ("bert", "single"),
    "regression": ("bert", "score"),
    "causal-lm": ("gpt2", "text"),
    "seq2seq": ("t5", "prompt"),
}


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Task, nn.Module]]:
    """A task of a kind and its model in float64."""
    folder = tmp_path_factory.mktemp("models")

    @cache
    def make(kind: str) -> tuple[Task, nn.Module]:
        family, shape = KINDS[kind]
        task = Task.from_rows(
            tiny_rows(shape), model=tiny_model(family, folder / family), kind=kind, heldout=0
        )
        return task, task.load_model(dtype=torch.float64)

    return make


def by_loop(task: Task, model: nn.Module, indices: Any, loss: Any, power: float = 2) -> dict[str, Tensor]:
    """`sum_i |g_i|^power` by batches of one; `loss` gives one or several losses of an example."""
    named = dict(model.named_parameters())
    sums = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    model.eval()
    for batch in task.batches("train", 1, indices):
        for value in loss(model, batch):
            gradients = torch.autograd.grad(value, list(named.values()), allow_unused=True, retain_graph=True)
            for name, gradient in zip(named, gradients, strict=True):
                if gradient is not None:
                    sums[name] += gradient.abs() ** power
    return sums


def logits_of(model: nn.Module, batch: Any) -> Tensor:
    return model(**{key: value for key, value in batch.items() if key != "labels"}).logits


@pytest.mark.parametrize("kind", KINDS)
def test_empirical_fisher_is_the_sum_of_squared_gradients(kind: str, setting: Any) -> None:
    task, model = setting(kind)
    found = fisher(model, task, samples=13, batch_size=4, seed=5)
    assert worst(found.scores, by_loop(task, model, found.indices, task.example_losses)) < 1e-10
    expected = [task.example_losses(model, batch).item() for batch in task.batches("train", 1, found.indices)]
    np.testing.assert_allclose(found.losses, expected, rtol=1e-10)
    assert list(found.scores) == [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labels", ["data", "exact", "sampled"])
def test_batching_changes_nothing_but_rounding(kind: str, labels: Any, setting: Any) -> None:
    task, model = setting(kind)
    if labels == "exact" and kind in ("causal-lm", "seq2seq"):
        with pytest.raises(PareError, match="take data or sampled"):
            fisher(model, task, samples=11, labels=labels)
        return
    one, three, all_ = (
        fisher(model, task, samples=11, batch_size=size, labels=labels) for size in (1, 3, 50)
    )
    assert worst(three.scores, one.scores) < 1e-10
    assert worst(all_.scores, one.scores) < 1e-10
    np.testing.assert_allclose(three.losses, one.losses, rtol=1e-10)


@pytest.mark.parametrize("form", ["squared", "absolute"])
def test_exact_labels_weigh_each_class_by_its_probability(form: Any, setting: Any) -> None:
    task, model = setting("classification")
    found = fisher(model, task, samples=7, labels="exact", form=form)
    power = 2 if form == "squared" else 1

    def weighted(model: nn.Module, batch: Any) -> list[Tensor]:
        log = logits_of(model, batch).log_softmax(-1)[0]
        return [-value * value.detach().exp() ** (1 / power) for value in log]

    assert worst(found.scores, by_loop(task, model, found.indices, weighted, power)) < 1e-10


def test_absolute_form(setting: Any) -> None:
    task, model = setting("classification")
    found = fisher(model, task, samples=7, form="absolute")
    assert worst(found.scores, by_loop(task, model, found.indices, task.example_losses, 1)) < 1e-10


def test_exact_regression_squares_the_output_gradient(setting: Any) -> None:
    task, model = setting("regression")
    found = fisher(model, task, samples=7, labels="exact")
    truth = by_loop(task, model, found.indices, lambda model, batch: logits_of(model, batch)[0])
    assert worst(found.scores, truth) < 1e-10


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_sampled_labels_converge_to_exact_ones(kind: str, setting: Any) -> None:
    task, model = setting(kind)
    names = [name for name, _ in model.named_parameters() if "classifier" in name or "pooler" in name]

    def scores(labels: Any, seed: int) -> Tensor:
        found = fisher(model, task, tensors=names, indices=range(24), labels=labels, seed=seed)
        return torch.cat([values.flatten() for values in found.scores.values()])

    exact = scores("exact", 0)
    sampled = torch.stack([scores("sampled", seed) for seed in range(64)])
    errors = [float((sampled[:count].mean(0) - exact).norm() / exact.norm()) for count in (1, 64)]
    assert errors[1] < 0.06 and errors[1] < errors[0] / 2
    assert not sampled[0].equal(sampled[1])
    assert sampled[0].equal(scores("sampled", 0))


def test_the_seed_decides_the_draw(setting: Any) -> None:
    task, model = setting("classification")
    first, again, other = (fisher(model, task, samples=9, seed=seed) for seed in (1, 1, 2))
    assert first.indices.tolist() == again.indices.tolist() != other.indices.tolist()
    assert all(values.equal(again.scores[name]) for name, values in first.scores.items())
    assert len(set(first.indices.tolist())) == 9


def test_examples_may_be_given_and_come_from_any_split(setting: Any) -> None:
    task, model = setting("classification")
    there = fisher(model, task, indices=[5, 2])
    here = fisher(model, task, indices=[0, 1], split=task.train.select([5, 2]))
    assert there.indices.tolist() == [5, 2]
    assert worst(here.scores, there.scores) < 1e-12
    np.testing.assert_allclose(here.losses, there.losses)


def test_only_the_named_tensors(setting: Any) -> None:
    task, model = setting("classification")
    names = ["bert.encoder.layer.1.attention.self.value.weight", "bert.embeddings.LayerNorm.bias"]
    found = fisher(model, task, samples=9, tensors=names)
    full = fisher(model, task, samples=9)
    assert list(found.scores) == names
    assert worst(found.scores, {name: full.scores[name] for name in names}) < 1e-10


def test_balanced_samples(setting: Any) -> None:
    task, model = setting("classification")
    found = fisher(model, task, samples=10, balanced=True)
    classes = np.asarray(task.train["labels"])[found.indices]
    assert np.bincount(classes).tolist() == [5, 5]


def fails(setting: Any, match: str, kind: str = "classification", **settings: Any) -> None:
    task, model = setting(kind)
    with pytest.raises(PareError, match=match):
        fisher(model, task, **settings)


def test_more_samples_than_examples(setting: Any) -> None:
    fails(setting, "samples=41: train has 40 examples", samples=41)
    fails(setting, "samples=0: train has 40", samples=0)


def test_a_class_that_was_not_drawn(setting: Any) -> None:
    fails(setting, r"class '(bad|good)' has none of the 1 examples drawn \(20 of train\)", samples=1)
    task, model = setting("classification")
    assert len(fisher(model, task, samples=1, labels="exact").indices) == 1  # labels play no part


def test_settings_that_make_no_sense(setting: Any) -> None:
    fails(setting, "no tensor bert.nothing", tensors=["bert.nothing"])
    fails(setting, "no tensor named", tensors=[])
    fails(setting, "labels 'true' is none of data", samples=4, labels="true")
    fails(setting, "labels 'contrasts' is none of", samples=4, labels="contrasts")
    fails(setting, "labels 'data', form 'cubed'", samples=4, form="cubed")
    fails(setting, "batch_size=0", samples=4, batch_size=0)
    fails(setting, "indices of train go from 0 to 39", indices=[40])
    fails(setting, "indices of train go from 0 to 39", indices=[])
    fails(
        setting,
        "a balanced draw needs classes; for a regression task",
        "regression",
        samples=4,
        balanced=True,
    )


def test_zero_gradients_everywhere(setting: Any) -> None:
    task, _ = setting("classification")
    model = task.load_model(dtype=torch.float64)
    nn.init.zeros_(model.classifier.weight)
    body = [name for name, _ in model.named_parameters() if "classifier" not in name]
    with pytest.raises(PareError, match="every gradient is zero on the 8 examples"):
        fisher(model, task, samples=8, tensors=body)
    assert float(fisher(model, task, samples=8).scores["classifier.weight"].sum()) > 0


def test_an_example_with_an_infinite_loss_is_named(setting: Any) -> None:
    task, _ = setting("classification")
    model = task.load_model()
    token = task.train[7]["input_ids"][1]
    others = [index for index in range(40) if token not in task.train[index]["input_ids"]]
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = float("inf")
    with pytest.raises(PareError, match="example 7 of train has the loss nan"):
        fisher(model, task, indices=[*others[:5], 7])
    fisher(model, task, indices=others)


def test_an_example_with_an_infinite_gradient_is_named(setting: Any) -> None:
    task, _ = setting("regression")
    model = task.load_model()
    task = Task.from_rows(
        [
            {**row, "score": 1e30 if index == 7 else row["score"]}
            for index, row in enumerate(tiny_rows("score"))
        ],
        model=task.model_id,
        heldout=0,
    )

    class Steep(torch.autograd.Function):
        """The finite loss of an example of huge score has no finite gradient."""

        @staticmethod
        def forward(ctx: Any, loss: Tensor, score: Tensor) -> Tensor:
            ctx.save_for_backward(score)
            return loss.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
            (score,) = ctx.saved_tensors
            return gradient.masked_fill(score > 1e20, float("inf")), None

    class SteepTask:
        def __getattr__(self, name: str) -> Any:
            return getattr(task, name)

        def example_losses(self, model: nn.Module, batch: Any) -> Tensor:
            return Steep.apply(logits_of(model, batch)[:, 0] ** 2, batch["labels"])

    with pytest.raises(PareError, match="example 7 of train has a gradient that is not finite, in bert"):
        fisher(model, SteepTask(), indices=range(12), batch_size=5)  # type: ignore[arg-type]


def test_a_random_model_is_refused(setting: Any) -> None:
    task, _ = setting("classification")
    model = task.load_model()
    model.dropout.forward = lambda x: torch.nn.functional.dropout(x, 0.5)
    with pytest.raises(PareError, match="the model's forward is random"):
        fisher(model, task, samples=8)


def test_random_data_is_refused(setting: Any) -> None:
    task, model = setting("classification")

    class Shuffled:
        def __getattr__(self, name: str) -> Any:
            return getattr(task, name)

        def batches(self, *args: Any) -> Any:
            for batch in task.batches(*args):
                width = batch["input_ids"].shape[1]
                yield {**batch, "input_ids": batch["input_ids"][:, torch.randperm(width)]}

    with pytest.raises(PareError, match="the data is random: 'input_ids'"):
        fisher(model, Shuffled(), samples=20)  # type: ignore[arg-type]


def test_the_model_is_left_as_it_was(setting: Any) -> None:
    task, model = setting("classification")
    model.train().requires_grad_(False)
    state = torch.get_rng_state()
    fisher(model, task, samples=4)
    assert all(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert torch.get_rng_state().equal(state)
    model.requires_grad_(True)


class Logits(nn.Module):
    """A model whose output is a tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any) -> Tensor:
        return self.model(**inputs).logits


def diagonal(operator: Any, count: int) -> Tensor:
    return torch.as_tensor(operator @ torch.eye(count, dtype=torch.float64)).diagonal()


@pytest.mark.parametrize(
    ("labels", "operator"), [("data", "EFLinearOperator"), ("exact", "GGNLinearOperator")]
)
@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_equals_curvlinops(kind: str, labels: Any, operator: str, setting: Any) -> None:
    """The empirical Fisher, and the true one: for these losses, the generalised Gauss-Newton matrix."""
    curvlinops = pytest.importorskip("curvlinops", reason="not installed; make test installs it")
    task, _ = setting(kind)
    # Eager attention, since curvlinops differentiates twice.
    model = task.load_model(dtype=torch.float64, attn_implementation="eager").eval()
    names = [
        name
        for name, p in model.named_parameters()
        if (p.numel() <= 64 and ".1." in name) or "classifier" in name
    ]
    found: Fisher = fisher(model, task, indices=range(6), labels=labels, tensors=names)
    (batch,) = task.batches("train", 6, range(6))
    loss = nn.CrossEntropyLoss(reduction="sum") if kind == "classification" else nn.MSELoss(reduction="sum")
    target = batch.pop("labels")
    target = target if kind == "classification" else target.double()[:, None]
    parameters = [model.get_parameter(name) for name in names]
    matrix = getattr(curvlinops, operator)(
        Logits(model),
        loss,
        parameters,
        [(batch, target)],
        batch_size_fn=lambda inputs: len(inputs["input_ids"]),
    )
    expected = diagonal(matrix, sum(parameter.numel() for parameter in parameters))
    scores = torch.cat([found.scores[name].flatten() for name in names])
    if kind == "regression" and labels == "exact":
        expected = expected / 2  # the squared error has no half: its curvature is twice the Gaussian's
    torch.testing.assert_close(scores, expected, rtol=1e-9, atol=1e-9 * float(expected.max()))


def test_float32_is_close_to_float64(setting: Any) -> None:
    task, model = setting("classification")
    found = fisher(deepcopy(model).float(), task, samples=16)
    assert {values.dtype for values in found.scores.values()} == {torch.float32}
    assert worst(found.scores, fisher(model, task, samples=16).scores) < 1e-4
