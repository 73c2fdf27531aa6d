"""How large the delta of a plan will be, before anything trains."""

import torch

from paretune.delta.contents import Contents, Values
from paretune.delta.format import encode
from paretune.plan import Plan

ADDED_TENSORS = 2  # of an added module, about: their names and shapes take a little of the file
DESCRIPTION = 1024  # bytes kept for the task, scores and settings


def delta_bytes(plan: Plan, dtype: torch.dtype | None = None) -> int:
    """Bytes of the file at most: the real encoder on zeros in place of the values.

    Args:
        plan: What will be trained.
        dtype: Of the shipped values; None takes the base's (added modules: fp32).
    """
    base = getattr(torch, plan.base.dtype)
    tensors = {
        s.tensor: Values(s.shape, s.granularity, s.indices, torch.zeros(s.count, dtype=dtype or base))
        for s in (*plan.selections, *plan.head)
    }
    added = {
        f"{a.strategy}:{a.module}:{part}": torch.zeros(len(share), dtype=dtype or torch.float32)
        for a in plan.additions
        for part, share in enumerate(torch.empty(a.count, device="meta").tensor_split(ADDED_TENSORS))
    }
    contents = Contents(
        base=plan.base,
        plan_digest=plan.digest,
        head=tuple(s.tensor for s in plan.head),
        task={},
        tensors=tensors,
        additions=plan.additions,
        added=added,
        info={},
    )
    return len(encode(contents)) + DESCRIPTION
