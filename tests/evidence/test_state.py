"""What `undisturbed` puts back."""

import pytest
import torch
from torch import nn

from paretune.evidence.state import undisturbed


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_modes_flags_and_random_state_come_back(error: type[BaseException] | None) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Sequential(nn.Linear(2, 2)))
    model.train()
    model[2].eval()
    model[0].weight.requires_grad_(False)
    model[0].bias.grad = torch.ones(2)
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    state = torch.get_rng_state()

    def disturb() -> None:
        with undisturbed(model):
            assert not any(module.training for module in model.modules())
            assert not any(parameter.requires_grad for parameter in model.parameters())
            torch.rand(3)
            if error:
                raise error

    if error:
        with pytest.raises(error):
            disturb()
    else:
        disturb()
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert torch.get_rng_state().equal(state)
    assert model[0].bias.grad.tolist() == [1.0, 1.0]
