import numpy as np
import pytest
import torch
from torch import nn

from paretune.errors import PareError
from paretune.task.scoring import device_of, evaluating, judge_all


def test_the_model_and_the_random_state_are_left_as_they_were():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Sequential(nn.Dropout()))
    model[1].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="stop"), evaluating(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        torch.rand(3)
        raise RuntimeError("stop")
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


def test_device():
    assert device_of(nn.Linear(1, 1)) == torch.device("cpu")
    assert device_of(nn.ReLU()) == torch.device("cpu")


def judged(values, order, size=2):
    batches = (
        {"x": torch.tensor(values)[order[start : start + size]]} for start in range(0, len(order), size)
    )
    return judge_all(
        lambda batch: {"finite": batch["x"].isfinite(), "seen": batch["x"]},
        batches,
        np.array(order),
        size,
        "validation",
    )


def test_verdicts_come_back_in_order():
    found = judged([0.0, 1.0, 2.0, 3.0, 4.0], [3, 1, 4, 0, 2])
    assert found["seen"].tolist() == [0, 1, 2, 3, 4]
    assert set(found) == {"seen"}


def test_the_first_broken_example_is_named():
    with pytest.raises(PareError, match=r"validation: .*example 1 is not finite \(2 of 4 examples\)"):
        judged([0.0, float("nan"), 2.0, float("inf")], [3, 2, 1, 0])
