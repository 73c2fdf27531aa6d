"""The optimiser's moments follow their weights when the mask changes.

Adam divides its moments by ``1 - beta^t`` to make up for their start at zero. ``t`` is one number a
parameter, so an entry that joins at step 1000 with moments of zero would step as if it had been there all
along: up to six times the learning rate at first. Here each entry's step is corrected for its own age.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

BORN = "born"  # in the optimiser's state, and so in its checkpoints: the parameter's step at an entry's birth


@dataclass(frozen=True)
class Move:
    """Where the values of one tensor went.

    Args:
        old: The parameter that held them.
        new: The parameter that holds them now; None for a tensor that has none any more.
        old_at: Places in ``old`` of the entries that stay (m,), int64.
        new_at: Their places in ``new`` (m,).
    """

    old: nn.Parameter
    new: nn.Parameter | None
    old_at: Tensor
    new_at: Tensor


@torch.no_grad()
def follow(optimiser: torch.optim.Optimizer, moves: Sequence[Move]) -> None:
    """Give entries that stay their moments, new ones zeros; forget the others.

    The parameter groups are the caller's affair.

    Args:
        optimiser: Its state holds tensors of a parameter's shape, or numbers for the whole parameter.
        moves: One for each parameter that was replaced.
    """
    for move in moves:
        state = optimiser.state.pop(move.old, None)
        if not state or move.new is None:
            continue
        moved: dict[str, Any] = {}
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == move.old.shape:
                moved[key] = value.new_zeros(move.new.shape)
                moved[key][move.new_at] = value[move.old_at]
            else:
                moved[key] = value
        if "step" in state:
            born = torch.full_like(move.new, float(state["step"]))
            born[move.new_at] = state[BORN][move.old_at] if BORN in state else 0.0
            moved[BORN] = born
        optimiser.state[move.new] = moved


class OwnAge:
    """Hooks on an AdamW: an entry's step has the size that it has under a fresh optimiser (but for eps).

    Entries that were there from the beginning step as they do without the hooks, bit for bit.
    """

    def __init__(self, optimiser: torch.optim.Optimizer) -> None:
        self._before: dict[nn.Parameter, Tensor] = {}
        optimiser.register_step_pre_hook(self._keep)
        optimiser.register_step_post_hook(self._correct)

    def _keep(self, optimiser: torch.optim.Optimizer, *_: Any) -> None:
        self._before = {p: p.detach().clone() for p, _, _ in _young(optimiser)}

    @torch.no_grad()
    def _correct(self, optimiser: torch.optim.Optimizer, *_: Any) -> None:
        for parameter, state, group in _young(optimiser):
            start = self._before.pop(parameter) * (1 - group["lr"] * group["weight_decay"])
            born, step = state[BORN], float(state["step"])
            beta1, beta2 = group["betas"]
            age = (step - born).double()
            first = (1 - beta1**step) / (1 - beta1**age)
            second = (1 - beta2**age) / (1 - beta2**step)
            factor = (first * second.sqrt()).to(parameter.dtype)
            parameter.copy_(torch.where(born > 0, start + factor * (parameter - start), parameter))


def _young(optimiser: torch.optim.Optimizer) -> Iterator[tuple[nn.Parameter, dict[str, Any], dict[str, Any]]]:
    """Parameters that make this step and have entries younger than themselves."""
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            state = optimiser.state.get(parameter)
            if parameter.grad is not None and state and BORN in state and bool(state[BORN].any()):
                yield parameter, state, group
