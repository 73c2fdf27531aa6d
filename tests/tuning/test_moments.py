import math

import pytest
import torch
from torch import nn

from paretune.tuning.moments import BORN, Move, OwnAge, follow

SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.999), "weight_decay": 0.1, "eps": 0.0}


def gradients(steps, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(width, generator=generator, dtype=torch.float64) for _ in range(steps)]


def steps_of(parameter, optimiser, some):
    for gradient in some:
        parameter.grad = gradient.clone()
        optimiser.step()


def swap(optimiser, old, old_at, new_at, values):
    new = nn.Parameter(values.clone())
    follow(optimiser, [Move(old, new, *(torch.tensor(at, dtype=torch.int64) for at in (old_at, new_at)))])
    optimiser.param_groups[0]["params"] = [new]
    return new


def test_moments_follow_their_weights():
    old = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    optimiser = torch.optim.AdamW([old], **SETTINGS)
    steps_of(old, optimiser, gradients(3, 4))
    before = {key: value.clone() for key, value in optimiser.state[old].items()}
    new = swap(optimiser, old, [0, 3], [2, 1], torch.zeros(3, dtype=torch.float64))
    state = optimiser.state[new]
    assert old not in optimiser.state
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(
            state[key], torch.stack([torch.zeros(()).double(), before[key][3], before[key][0]])
        )
    assert state["step"] == 3
    assert state[BORN].tolist() == [3, 0, 0]


@pytest.mark.parametrize("late", [1, 50, 1000])
def test_a_new_entry_steps_as_under_a_fresh_optimiser(late):
    """And an old one as if nothing had happened, bit for bit."""
    start = torch.tensor([0.5, -0.3], dtype=torch.float64)
    whole = nn.Parameter(start.clone())
    alone = torch.optim.AdamW([whole], **SETTINGS)
    old = nn.Parameter(start.clone())
    optimiser = torch.optim.AdamW([old], **SETTINGS)
    OwnAge(optimiser)
    first = gradients(late, 2)
    steps_of(whole, alone, first)
    steps_of(old, optimiser, first)
    new = swap(optimiser, old, [0], [0], torch.tensor([old[0].item(), 2.0], dtype=torch.float64))
    fresh = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    other = torch.optim.AdamW([fresh], **SETTINGS)
    for one in gradients(20, 2, seed=1):
        steps_of(new, optimiser, [one])
        steps_of(whole, alone, [one])
        steps_of(fresh, other, [one[1:]])
        assert new[0].item() == whole[0].item()
        torch.testing.assert_close(new[1:], fresh, rtol=1e-12, atol=0)


def test_without_the_correction_the_first_steps_are_too_long():
    """What the correction is for: the size of a step with a constant gradient."""
    lengths = {}
    for corrected in (False, True):
        old = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimiser = torch.optim.AdamW([old], lr=1.0, weight_decay=0.0)
        if corrected:
            OwnAge(optimiser)
        steps_of(old, optimiser, [torch.ones(1).double()] * 5000)
        new = swap(optimiser, old, [], [], torch.zeros(1, dtype=torch.float64))
        steps_of(new, optimiser, [torch.ones(1).double()] * 10)
        before = new.item()
        steps_of(new, optimiser, [torch.ones(1).double()])
        lengths[corrected] = before - new.item()
    assert lengths[True] == pytest.approx(1, rel=1e-6)
    assert lengths[False] > 6


def test_entries_can_join_twice_and_the_state_survives_its_file(tmp_path):
    old = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimiser = torch.optim.AdamW([old], **SETTINGS)
    OwnAge(optimiser)
    steps_of(old, optimiser, gradients(4, 2))
    middle = swap(optimiser, old, [1], [0], torch.zeros(2, dtype=torch.float64))
    steps_of(middle, optimiser, gradients(3, 2))
    new = swap(optimiser, middle, [0, 1], [0, 2], torch.zeros(3, dtype=torch.float64))
    assert optimiser.state[new][BORN].tolist() == [0, 7, 4]
    torch.save(optimiser.state_dict(), tmp_path / "state.pt")
    twin = nn.Parameter(new.detach().clone())
    resumed = torch.optim.AdamW([twin], **SETTINGS)
    OwnAge(resumed)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    more = gradients(5, 3, seed=2)
    steps_of(new, optimiser, more)
    steps_of(twin, resumed, more)
    assert torch.equal(new, twin)


def test_a_tensor_that_left_the_mask_is_forgotten():
    gone, stays = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimiser = torch.optim.AdamW([gone, stays], lr=0.1)
    for parameter in (gone, stays):
        parameter.grad = torch.ones(2)
    optimiser.step()
    kept = optimiser.state[stays]["exp_avg"].clone()
    nowhere = torch.empty(0, dtype=torch.int64)
    follow(optimiser, [Move(gone, None, nowhere, nowhere)])
    assert set(optimiser.state) == {stays}
    assert torch.equal(optimiser.state[stays]["exp_avg"], kept)


def test_what_the_docstring_says_of_the_first_steps():
    ratio = [(1 - 0.9**n) / math.sqrt(1 - 0.999**n) for n in range(1, 200)]
    assert 6 < max(ratio) < 7
