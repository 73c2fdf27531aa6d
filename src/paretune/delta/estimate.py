"""How large the delta of a plan will be, before anything trains."""

import math
from collections.abc import Callable

import torch

from paretune.delta.contents import Contents, Values
from paretune.delta.format import encode
from paretune.plan import Plan

ADDED_TENSORS = 2  # of an added module, about: their names and shapes take a little of the file
DESCRIPTION = 1024  # bytes kept for the task, scores and settings
TRIES = 6  # at most, to come near a number of bytes
UNUSED = 0.1  # of the bytes; when more is left over, a larger plan is tried


def largest_within(
    limit: int, width: int, head: int, weights: int, attempt: Callable[[int], Plan], dtype: torch.dtype | None
) -> Plan | None:
    """The plan whose delta is as large as a number of bytes allows: measured, then corrected.

    Args:
        limit: Bytes of delta.
        width: Bytes of a value.
        head: Number of weights of the head, which ship as well.
        weights: Number of weights of the model, the most a plan may train.
        attempt: From a budget in weights to a plan.
        dtype: See `delta_bytes`.

    Returns:
        None when the smallest that was tried is too large.

    Raises:
        PareError: As `attempt`.
    """
    found: Plan | None = None
    k = min(weights, (limit - DESCRIPTION - width * head) // (width + 1))
    for _ in range(TRIES):
        if k < 1:
            break
        plan = attempt(k)
        left = limit - delta_bytes(plan, dtype)
        if left >= 0:
            if found is None or plan.count > found.count:
                found = plan
            if left <= UNUSED * limit or k == weights:
                break
            larger = min(weights, k + left // (width + 1))
            if larger == k:
                break
            k = larger
        elif found is not None:
            break
        else:
            # Whole sizes: a little less of a budget may give the same plan again.
            paid = plan.count - (plan.head_count if plan.head_rule == "inside" else 0)
            k = min(math.floor(k + left / width), paid) - 1
    return found


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
