import copy

import numpy as np
import pytest
import torch

from paretune.anatomy import base_digest
from paretune.delta import weights
from paretune.delta.weights import DigestCache, Kept, Parameters, read, write
from paretune.strategies import attach_additions
from tests.delta.examples import HEAD, Net, same_bits, snapshot
from tests.strategies.models import build, mixture


def test_a_tied_tensor_has_its_first_name():
    model = Net()
    parameters = Parameters.of(model)
    assert "output.weight" not in parameters.by_name
    assert parameters.first_names["output.weight"] == "embedding.weight"
    assert list(parameters.by_name) == [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5"])
def test_names_are_those_of_the_plain_model(kind):
    model = build(kind)
    plain = {name: id(p) for name, p in model.named_parameters()}
    attached = attach_additions(model, mixture(model), name="x")
    assert {name for name, _ in model.named_parameters()} != set(plain)
    assert {name: id(p) for name, p in Parameters.of(model).by_name.items()} == plain
    attached.detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("contiguous", [True, False])
def test_read_and_write_flat_places(dtype, contiguous):
    weight = torch.randn(4, 6).to(dtype)
    weight = weight if contiguous else weight.T.contiguous().T
    places = torch.tensor([0, 7, 8, 23])
    assert torch.equal(read(weight, places), weight.reshape(-1)[places])
    expected = weight.clone().reshape(-1)
    expected[places] = torch.arange(4.0).to(dtype)
    write(weight, places, torch.arange(4.0))
    assert torch.equal(weight.reshape(-1), expected)
    whole = read(weight, None)
    write(weight, None, torch.zeros(24))
    assert not weight.any() and torch.equal(whole.reshape(-1), expected)


def test_kept_values_against_plain_sets():
    """Random unions and cuts, checked with a dict of place -> base value."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        model = torch.nn.Linear(5, 4)
        base = model.weight.detach().clone().reshape(-1)
        parameters, kept, sets = Parameters.of(model), Kept(), []
        for _ in range(4):
            count = int(rng.integers(0, 21))
            places = None if rng.random() < 0.2 else torch.from_numpy(np.sort(rng.permutation(20)[:count]))
            sets.append({"weight": places})
            kept = kept.with_places(parameters, {"weight": places})
            write(model.weight, places, torch.randn(20 if places is None else count))
        _check(kept, sets, base)
        left = [each for each in sets if rng.random() < 0.5]
        _check(kept.only(left), left, base)
        kept.restore(parameters, ["weight"])
        assert torch.equal(model.weight.reshape(-1), base)


def _check(kept: Kept, sets: list, base: torch.Tensor) -> None:
    if not sets:
        assert kept.values == {}
        return
    known, values = kept.values["weight"]
    if any(each["weight"] is None for each in sets):
        assert known is None and torch.equal(values.reshape(-1), base)
    else:
        union = sorted({int(place) for each in sets for place in each["weight"]})
        assert known.tolist() == union and torch.equal(values, base[union])


@pytest.fixture
def counted(monkeypatch):
    """How often the digest was really computed."""
    calls = []
    monkeypatch.setattr(weights, "base_digest", lambda *args: calls.append(args) or base_digest(*args))
    return calls


def test_the_digest_is_computed_once_until_somebody_changes_a_weight(counted):
    model, cache, kept = Net(), DigestCache(), Kept()
    parameters = Parameters.of(model)
    first = cache.get(model, parameters, kept, HEAD)
    assert first == base_digest(model, HEAD)
    assert cache.get(model, parameters, kept, HEAD) == first and len(counted) == 1
    assert cache.get(model, parameters, kept, ()) != first and len(counted) == 2

    optimizer = torch.optim.SGD([model.layer.weight], lr=1.0)
    model.layer.weight.grad = torch.ones_like(model.layer.weight)
    optimizer.step()
    assert cache.get(model, parameters, kept, HEAD) == base_digest(model, HEAD) != first
    assert len(counted) == 3
    model.load_state_dict(Net(1).state_dict())
    assert cache.get(model, parameters, kept, HEAD) == base_digest(Net(1), HEAD)
    model.to(torch.bfloat16)
    assert cache.get(model, parameters, kept, HEAD) == base_digest(model, HEAD)
    model.layer = copy.deepcopy(Net(2).layer).to(torch.bfloat16)
    assert cache.get(model, Parameters.of(model), kept, HEAD) == base_digest(model, HEAD)


def test_the_digest_is_that_of_the_base_and_the_weights_stay():
    model = Net()
    parameters, digest = Parameters.of(model), base_digest(model, HEAD)
    kept = Kept().with_places(parameters, {"layer.weight": torch.tensor([1, 5]), "scale": None})
    write(model.layer.weight, torch.tensor([1, 5]), torch.tensor([8.0, 9.0]))
    write(model.scale, None, torch.tensor(7.0))
    before = snapshot(model)
    assert DigestCache().get(model, parameters, kept, HEAD) == digest != base_digest(model, HEAD)
    assert same_bits(before, snapshot(model))


def test_tensors_without_version_counters_are_always_looked_at(counted):
    with torch.inference_mode():
        model = Net()
    cache, parameters = DigestCache(), Parameters.of(model)
    for _ in range(2):
        cache.get(model, parameters, Kept(), HEAD)
    assert len(counted) == 2
