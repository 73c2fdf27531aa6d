import copy
import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from paretune.delta import Delta, Values, applied_to, weights
from paretune.delta import apply as application
from paretune.errors import PareError
from tests.delta.examples import HEAD, Net, base_of, expected, net_delta, same_bits, snapshot
from tests.strategies import models

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(6))
def test_apply_sets_the_places_and_revert_brings_the_base_back(dtype, seed):
    model = Net().to(dtype)
    before = snapshot(model)
    delta = net_delta(model, seed)
    applied = delta.apply(model)
    assert same_bits(snapshot(model), expected(before, [delta]))
    assert not same_bits(snapshot(model), before)
    assert model.output.weight is model.embedding.weight
    applied.revert()
    applied.revert()
    assert same_bits(snapshot(model), before)


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.data())
@settings(max_examples=60)
def test_any_order_of_applying_and_reverting(dtype, data):
    """Overlapping deltas of every granularity, against plain assignment onto the base."""
    model = Net().to(dtype)
    before = snapshot(model)
    deltas = [net_delta(model, seed, head=seed != 2) for seed in range(4)]
    active: list = []
    for _ in range(data.draw(st.integers(1, 10))):
        free = [delta for delta in deltas if delta not in [a.delta for a in active]]
        if free and (not active or data.draw(st.booleans())):
            active.append(data.draw(st.sampled_from(free)).apply(model))
        else:
            active.pop(data.draw(st.integers(0, len(active) - 1))).revert()
        assert same_bits(snapshot(model), expected(before, [a.delta for a in active]))
        assert applied_to(model) == tuple(active)
    for applied in data.draw(st.permutations(active)):
        applied.revert()
    assert same_bits(snapshot(model), before)
    assert application._STATE not in vars(model)


def _mixed(model: nn.Module, kind: str, seed: int, bare: bool = False) -> Delta:
    """Selected entries and every strategy at once, for a transformers model."""
    rng = np.random.default_rng(seed)
    additions = () if bare else tuple(models.mixture(model, seed))
    attached = models_attach(model, additions, seed)
    added = {key: value.detach().clone() for key, value in attached.tensors.items()}
    attached.detach()
    tensors = {}
    for name, parameter in model.named_parameters():
        if rng.random() < 0.5:
            places = np.sort(rng.permutation(parameter.numel())[: max(1, parameter.numel() // 9)])
            values = torch.from_numpy(rng.standard_normal(len(places))).to(parameter.dtype)
            tensors[name] = Values(tuple(parameter.shape), "entries", places, values)
    return Delta(base_of(model, (), kind), f"{seed}", tensors=tensors, additions=additions, added=added)


def models_attach(model, additions, seed):
    attached = application.attach_additions(model, additions, name="made")
    models.shake(attached.tensors, seed)
    return attached


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5"])
def test_added_modules_come_and_go_with_the_weights(kind):
    model = models.build(kind)
    deltas = [_mixed(model, kind, 1), _mixed(model, kind, 2), _mixed(model, kind, 3, bare=True)]
    state = models.snapshot(model)
    plain = models.logits(model, kind)

    def alone(*which: int) -> torch.Tensor:
        fresh = models.build(kind)
        for index in which:
            deltas[index].apply(fresh)
        return models.logits(fresh, kind)

    first, second, third = (delta.apply(model) for delta in deltas)
    assert torch.equal(models.logits(model, kind), alone(0, 1, 2))
    first.revert()
    assert torch.equal(models.logits(model, kind), alone(1, 2))
    first = deltas[0].apply(model)
    second.revert()
    assert torch.equal(models.logits(model, kind), alone(2, 0))
    third.revert()
    assert torch.equal(models.logits(model, kind), alone(0))
    first.revert()
    assert torch.equal(models.logits(model, kind), plain)
    models.assert_same(state, models.snapshot(model))


def _lora_only(model: nn.Module, kind: str, seed: int) -> Delta:
    delta = _mixed(model, kind, seed)
    additions = tuple(a for a in delta.additions if a.strategy == "lora" and "lm_head" not in a.module)
    prefixes = tuple(f"lora:{a.module}:" for a in additions)
    added = {key: value for key, value in delta.added.items() if key.startswith(prefixes)}
    return replace(delta, additions=additions, added=added)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_merging_folds_modules_in_and_reverts_bit_exactly(kind):
    model = models.build(kind)
    state = models.snapshot(model)
    delta = _lora_only(model, kind, 1)
    with delta.apply(model):
        attached = models.logits(model, kind)
    with delta.apply(model, merge=True):
        assert sum(p.numel() for p in model.parameters()) == sum(
            p.numel() for p in models.build(kind).parameters()
        )
        torch.testing.assert_close(models.logits(model, kind), attached, rtol=1e-4, atol=1e-4)
    models.assert_same(state, models.snapshot(model))


def test_merged_deltas_and_others_in_any_order():
    kind = "bert"
    model = models.build(kind)
    state = models.snapshot(model)
    one, two, three = (_lora_only(model, kind, seed) for seed in (1, 2, 3))

    def alone(*which: tuple[Delta, bool]) -> dict[str, torch.Tensor]:
        fresh = models.build(kind)
        for delta, merge in which:
            delta.apply(fresh, merge=merge)
        return snapshot(fresh)

    first, second, third = one.apply(model, merge=True), two.apply(model), three.apply(model, merge=True)
    first.revert()
    second.revert()
    assert same_bits(snapshot(model), alone((three, True)))
    second = two.apply(model, merge=True)
    third.revert()
    assert same_bits(snapshot(model), alone((two, True)))
    second.revert()
    models.assert_same(state, models.snapshot(model))


def test_merged_for_good_is_an_ordinary_model_of_other_weights():
    model = models.build("bert")
    delta = _lora_only(model, "bert", 1)
    with delta.apply(model, merge=True):
        wanted = snapshot(model)
    assert delta.merged(model) is model
    assert same_bits(snapshot(model), wanted)
    assert applied_to(model) == ()
    with pytest.raises(PareError, match="other weights"):
        delta.apply(model)


def test_merged_for_good_wants_the_model_alone():
    model = Net()
    net_delta(model, 0).apply(model)
    with pytest.raises(PareError, match="revert them"):
        net_delta(Net(), 1).merged(model)


def test_what_cannot_be_merged_is_refused_and_the_model_stays():
    model = models.build("bert")
    state = models.snapshot(model)
    with pytest.raises(PareError, match="merge"):
        _mixed(model, "bert", 1).apply(model, merge=True)
    models.assert_same(state, models.snapshot(model))


def test_values_of_a_tied_tensor_may_come_under_each_of_its_names():
    model = Net()
    before = snapshot(model)
    values = Values((13, 6), "rows", np.array([2]), torch.ones(6))
    delta = Delta(base_of(model, ()), "x", tensors={"output.weight": values})
    with delta.apply(model):
        assert model.embedding.weight[2].tolist() == [1] * 6
        assert model.output.weight is model.embedding.weight
    assert same_bits(snapshot(model), before)
    twice = replace(delta, tensors={"output.weight": values, "embedding.weight": values})
    with pytest.raises(PareError, match="one tied tensor"):
        twice.apply(model)


def test_the_base_is_recognised_under_other_deltas_without_hashing_again(monkeypatch):
    model = Net()
    calls = []
    digest = weights.base_digest
    monkeypatch.setattr(weights, "base_digest", lambda *args: calls.append(1) or digest(*args))
    deltas = [net_delta(Net(), seed) for seed in range(3)]
    first = deltas[0].apply(model)
    second = deltas[1].apply(model)
    first.revert()
    deltas[2].apply(model)
    second.revert()
    assert len(calls) == 1


def test_a_weight_changed_under_an_applied_delta_is_noticed():
    model = Net()
    applied = net_delta(model, 0).apply(model)
    with torch.no_grad():
        model.convolution.bias.add_(1)
        model.layer.bias.add_(1)
    before = snapshot(model)
    with pytest.raises(PareError, match="other weights"):
        net_delta(Net(), 1).apply(model)
    assert same_bits(snapshot(model), before)
    applied.revert()


def test_a_weight_changed_after_its_delta_is_gone_is_noticed():
    """What a reverted delta touched is watched again, though another delta is still on the model."""
    model = Net()
    base = base_of(model, ())
    bias = Values((9,), "all", None, torch.zeros(9))
    first = Delta(base, "x", tensors={"layer.bias": bias}).apply(model)
    Delta(base, "y", tensors={"scale": Values((), "all", None, torch.zeros(()))}).apply(model)
    first.revert()
    with torch.no_grad():
        model.layer.bias.add_(1)
    with pytest.raises(PareError, match="other weights"):
        Delta(base, "z", tensors={"layer.bias": bias}).apply(model)


def test_a_change_that_the_delta_covers_goes_with_it():
    """Training on top of an applied delta changes what is reverted, not what comes back."""
    model = Net()
    before = snapshot(model)
    values = Values((9,), "all", None, torch.zeros(9))
    applied = Delta(base_of(model, ()), "x", tensors={"layer.bias": values}).apply(model)
    with torch.no_grad():
        model.layer.bias.add_(1)
    second = net_delta(Net(), 1).apply(model)
    applied.revert()
    second.revert()
    assert same_bits(snapshot(model), before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("others", [0, 1])
def test_a_failure_in_the_middle_leaves_the_model_bit_equal(dtype, others, monkeypatch):
    model = Net().to(dtype)
    for seed in range(others):
        net_delta(model, seed).apply(model)
    before = snapshot(model)
    plain = Net().to(dtype)
    delta = net_delta(plain, 9)
    write = application.write
    for fails_at in range(len(delta.tensors)):
        calls = iter(range(1000))

        def failing(*args, calls=calls, fails_at=fails_at):
            if next(calls) == fails_at:
                raise MemoryError
            write(*args)

        with monkeypatch.context() as patch:
            patch.setattr(application, "write", failing)
            with pytest.raises(MemoryError):
                delta.apply(model)
        assert same_bits(snapshot(model), before)
        assert len(applied_to(model)) == others
    applied = delta.apply(model)
    applied.revert()
    assert same_bits(snapshot(model), before)


def test_an_added_module_that_does_not_fit_leaves_the_model_as_it_was():
    model = models.build("bert")
    state = models.snapshot(model)
    delta = _mixed(model, "bert", 1)
    key = next(iter(delta.added))
    for added, word in (
        ({**delta.added, key: torch.zeros(3, 3)}, "shape"),
        ({k: v for k, v in delta.added.items() if k != key}, "not in both"),
        ({**delta.added, key: delta.added[key].double() + 1e-12}, "float32"),
    ):
        with pytest.raises(PareError, match=word):
            replace(delta, added=added).apply(model)
        models.assert_same(state, models.snapshot(model))
    far = replace(delta.additions[0], module="encoder.layer.77")
    keys = f"{far.strategy}:{far.module}:x"
    with pytest.raises(PareError, match=r"layer\.77"):
        replace(delta, additions=(far,), added={keys: torch.zeros(1)}).apply(model)
    models.assert_same(state, models.snapshot(model))


def test_a_copy_of_a_model_with_deltas_on_it_is_a_model_of_its_own():
    model = Net()
    before = snapshot(model)
    applied = net_delta(model, 0).apply(model)
    copied = copy.deepcopy(model)
    applied.revert()
    assert same_bits(snapshot(model), before)
    assert not same_bits(snapshot(copied), before)
    net_delta(Net(), 1).apply(copied)
    for each in applied_to(copied):
        each.revert()
    assert same_bits(snapshot(copied), before)


def test_nothing_keeps_a_model_alive():
    model = Net()
    net_delta(model, 0).apply(model)
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


def test_checking_leaves_no_trace():
    model = models.build("bert")
    state = models.snapshot(model)
    application.check(_mixed(model, "bert", 1), model)
    models.assert_same(state, models.snapshot(model))
    with pytest.raises(PareError, match="other weights"):
        application.check(replace(net_delta(Net(1), 0)), Net())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu_and_across_a_move(dtype):
    model = Net().to(dtype)
    before = snapshot(model)
    deltas = [net_delta(model, seed) for seed in range(3)]
    first = deltas[0].apply(model.cuda())
    second = deltas[1].apply(model)
    model.cpu()
    third = deltas[2].apply(model)
    first.revert()
    model.cuda()
    second.revert()
    assert same_bits(snapshot(model.cpu()), expected(before, [deltas[2]]))
    third.revert()
    assert same_bits(snapshot(model), before)


def test_a_weight_that_is_not_contiguous():
    model = nn.Linear(4, 3)
    model.weight = nn.Parameter(model.weight.detach().T.contiguous().T)
    assert not model.weight.is_contiguous()
    before = snapshot(model)
    values = Values((3, 4), "rows", np.array([1]), torch.arange(4.0))
    with Delta(base_of(model, ()), "x", tensors={"weight": values}).apply(model):
        assert model.weight[1].tolist() == [0, 1, 2, 3]
        assert torch.equal(model.weight[0], before["weight"][0])
    assert torch.equal(model.weight, before["weight"])


def test_requires_grad_and_training_are_left_alone():
    model = Net().train()
    model.layer.weight.requires_grad_(False)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    with net_delta(model, 0).apply(model):
        assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
        assert all(p.is_leaf for p in model.parameters())
    assert model.training


def test_the_head_comes_back_too():
    model = Net()
    before = snapshot(model)
    delta = net_delta(model, 0)
    with delta.apply(model):
        assert torch.equal(model.head.weight, delta.tensors["head.weight"].values)
    assert same_bits({n: snapshot(model)[n] for n in HEAD}, {n: before[n] for n in HEAD})
