import pytest
import torch

from paretune.errors import PareError
from paretune.plan import Addition
from paretune.strategies import STRATEGIES
from paretune.strategies.base import check_name, master_dtype, seeded
from tests.strategies.models import assert_same, build, design, layers, logits, mixture, shake, snapshot

BLOCK = "model.layers.0"
CARRIERS = {
    "lora": f"{BLOCK}.mlp.up_proj",
    "bias": f"{BLOCK}.mlp.up_proj",
    "adapter": BLOCK,
    "prefix": BLOCK,
}


def one(strategy, size=1, **settings):
    """A Llama and one addition of a strategy."""
    model = build("llama")
    return model, design(model, [(strategy, CARRIERS[strategy], size, settings)])


def seeds_of(strategy):
    return "seed" in STRATEGIES[strategy].defaults


@pytest.mark.parametrize("name", STRATEGIES)
class TestEveryStrategy:
    def test_registered_under_its_own_name(self, name):
        assert STRATEGIES[name].name == name

    def test_count_is_exact_and_size_is_its_inverse(self, name):
        strategy, model = STRATEGIES[name], build("llama")
        most = 1 if name == "bias" else 5
        for size in range(1, most + 1):
            count = strategy.count(model, CARRIERS[name], size, {})
            attached = strategy.attach(model, [Addition(name, CARRIERS[name], size, count)])
            assert sum(tensor.numel() for tensor in attached.tensors.values()) == count
            attached.detach()
            assert strategy.size(model, CARRIERS[name], count, {}) == size
            assert strategy.size(model, CARRIERS[name], count - 1, {}) == size - 1
        assert strategy.size(model, CARRIERS[name], 0, {}) == 0
        assert strategy.size(model, CARRIERS[name], -5, {}) == 0

    def test_only_added_tensors_require_gradients_and_the_models_flags_stay(self, name):
        model, additions = one(name)
        for number, parameter in enumerate(model.parameters()):
            parameter.requires_grad_(number % 3 == 0)
        before = {id(p): p.requires_grad for p in model.parameters()}
        attached = STRATEGIES[name].attach(model, additions)
        assert all(tensor.requires_grad for tensor in attached.tensors.values())
        assert all(p.requires_grad == before[id(p)] for p in model.parameters() if id(p) in before)
        added = {id(p) for p in model.parameters()} - before.keys()
        assert added == {id(tensor) for tensor in attached.tensors.values()}

    def test_same_seed_same_values_and_the_callers_random_state_stays(self, name):
        values = []
        for _ in range(2):
            model, additions = one(name, **({"seed": 3} if seeds_of(name) else {}))
            torch.rand(1)
            state = torch.get_rng_state()
            attached = STRATEGIES[name].attach(model, additions)
            assert torch.equal(state, torch.get_rng_state())
            values.append(attached.tensors)
        for key, tensor in values[0].items():
            assert torch.equal(tensor, values[1][key])

    def test_keys_name_strategy_module_and_tensor(self, name):
        model, additions = one(name)
        keys = list(STRATEGIES[name].attach(model, additions).tensors)
        assert keys == sorted(keys)
        assert all(key.startswith(f"{name}:{CARRIERS[name]}:") for key in keys)

    def test_two_names_on_one_module_detach_in_any_order(self, name):
        for first in (0, 1):
            model, additions = one(name)
            before, plain = snapshot(model), logits(model, "llama")
            pair = [STRATEGIES[name].attach(model, additions, each) for each in ("one", "two")]
            for seed, attached in enumerate(pair):
                shake(attached.tensors, seed)
            both = logits(model, "llama")
            pair.pop(first).detach()
            alone = logits(model, "llama")
            assert not torch.equal(both, alone) and not torch.equal(alone, plain)
            # What is left behaves as if the other had never been there.
            lonely, additions = one(name)
            shake(STRATEGIES[name].attach(lonely, additions).tensors, 1 - first)
            torch.testing.assert_close(logits(lonely, "llama"), alone, rtol=0, atol=0)
            pair.pop().detach()
            assert_same(before, snapshot(model))

    def test_detaching_twice_does_nothing(self, name):
        model, additions = one(name)
        before = snapshot(model)
        attached = STRATEGIES[name].attach(model, additions)
        attached.detach()
        attached.detach()
        assert attached.tensors == {}
        assert_same(before, snapshot(model))

    def test_name_taken(self, name):
        model, additions = one(name)
        STRATEGIES[name].attach(model, additions, "mine")
        attached = snapshot(model)
        with pytest.raises(PareError, match=r"named 'mine' already"):
            STRATEGIES[name].attach(model, additions, "mine")
        assert_same(attached, snapshot(model))

    @pytest.mark.parametrize("size", [0, -1, 1.0, True, "2"])
    def test_size_below_one_or_no_whole_number(self, name, size):
        with pytest.raises(PareError, match="not a whole number of at least 1"):
            STRATEGIES[name].count(build("llama"), CARRIERS[name], size, {})

    def test_unknown_setting_names_those_there_are(self, name):
        with pytest.raises(PareError, match="no setting 'colour'; there are"):
            STRATEGIES[name].count(build("llama"), CARRIERS[name], 1, {"colour": 1})

    @pytest.mark.parametrize("seed", [-1, 0.5, "x"])
    def test_bad_seed(self, name, seed):
        with pytest.raises(PareError, match=r"seed"):
            STRATEGIES[name].count(build("llama"), CARRIERS[name], 1, {"seed": seed})

    def test_unknown_module(self, name):
        with pytest.raises(PareError, match=r"did you mean"):
            STRATEGIES[name].size(build("llama"), CARRIERS[name][:-1] + "x", 100, {})

    def test_count_of_another_model(self, name):
        model, additions = one(name)
        before = snapshot(model)
        (good,) = additions
        bad = Addition(name, good.module, good.size, good.count + 1)
        with pytest.raises(PareError, match="made for another model"):
            STRATEGIES[name].attach(model, [bad])
        assert_same(before, snapshot(model))

    def test_twice_on_one_module(self, name):
        model, additions = one(name)
        with pytest.raises(PareError, match="twice"):
            STRATEGIES[name].attach(model, [*additions, *additions])

    def test_addition_of_another_strategy(self, name):
        model, _ = one(name)
        with pytest.raises(PareError, match="was given to"):
            STRATEGIES[name].attach(model, [Addition("full", "lm_head", 1, 1)])

    def test_added_tensors_are_fp32_masters_of_a_bf16_model_and_the_forward_is_right_without_autocast(
        self, name
    ):
        model, additions = one(name)
        exact = STRATEGIES[name].attach(model, additions)
        shake(exact.tensors)
        wanted = logits(model, "llama")
        model = build("llama", dtype=torch.bfloat16)
        attached = STRATEGIES[name].attach(model, additions)
        shake(attached.tensors)
        assert {tensor.dtype for tensor in attached.tensors.values()} == {torch.float32}
        found = logits(model, "llama")
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), wanted, rtol=0.05, atol=0.05)
        attached.detach()
        assert all(p.dtype == torch.bfloat16 for p in model.parameters())

    def test_fp64_model_gets_fp64_tensors(self, name):
        model = build("llama", dtype=torch.float64)
        attached = STRATEGIES[name].attach(model, design(model, [(name, CARRIERS[name], 1, {})]))
        assert {tensor.dtype for tensor in attached.tensors.values()} == {torch.float64}

    def test_follows_the_models_mode(self, name):
        model, additions = one(name)
        known = {id(module) for module in model.modules()}
        STRATEGIES[name].attach(model, additions)
        assert not any(module.training for module in model.modules() if id(module) not in known)


@pytest.mark.parametrize("name", [name for name in STRATEGIES if seeds_of(name)])
def test_another_seed_other_values(name):
    drawn = []
    for seed in (0, 1):
        model, additions = one(name, size=2, seed=seed)
        attached = STRATEGIES[name].attach(model, additions)
        drawn.append(next(t for t in attached.tensors.values() if t.count_nonzero()))
    assert not torch.equal(*drawn)


@pytest.mark.parametrize("name", ["a.b", "", "keys", "a b", "1st"])
def test_names_that_cannot_be_used(name):
    with pytest.raises(PareError, match="attachment name"):
        check_name(name)


def test_draws_depend_on_seed_and_key_alone():
    draw = torch.rand(3, generator=seeded(0, "a"))
    assert torch.equal(draw, torch.rand(3, generator=seeded(0, "a")))
    assert not torch.equal(draw, torch.rand(3, generator=seeded(1, "a")))
    assert not torch.equal(draw, torch.rand(3, generator=seeded(0, "b")))


def test_master_dtype():
    assert master_dtype(torch.bfloat16) == master_dtype(torch.float16) == torch.float32
    assert master_dtype(torch.float64) == torch.float64
    assert master_dtype(torch.uint8) == torch.float32


def test_every_layer_of_the_mixture_is_different():
    model = build("t5")
    additions = mixture(model)
    assert {a.strategy for a in additions} == set(STRATEGIES)
    assert len({a.size for a in additions if a.strategy == "lora"}) == 3
    assert len(layers(model)) == 33
