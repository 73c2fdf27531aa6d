"""How large the delta of a plan will be, before anything trains."""

import math
from collections.abc import Callable

import torch

from paretune.delta.contents import Contents, Values
from paretune.delta.format import encode
from paretune.errors import BudgetError, PareError
from paretune.plan import Plan

ADDED_TENSORS = 2  # of an added module, about: their names and shapes take a little of the file
ADDED_WIDTH = 4  # bytes: values of added modules are fp32, unless a dtype is asked for
DESCRIPTION = 1024  # bytes kept for the task, scores and settings
TRIES = 6  # at most, to come near a number of bytes by what a weight took before
UNUSED = 0.1  # of the bytes; when more is left over, a larger plan is tried
SHORT = 0.05  # of a correction: a little below the number of bytes is near enough, above it is not


def largest_within(
    limit: int, width: int, head: int, weights: int, attempt: Callable[[int], Plan], dtype: torch.dtype | None
) -> Plan | None:
    """The plan whose delta is about as large as a number of bytes allows: measured, then corrected.

    Args:
        limit: Bytes of delta.
        width: Bytes of a value.
        head: Number of weights of the head, which ship as well.
        weights: Number of weights that may be selected, the most a plan may train.
        attempt: From a budget in weights to a plan.
        dtype: See `delta_bytes`.

    Returns:
        None when the smallest that was tried is too large.

    Raises:
        BudgetError: As `attempt`, where it refuses as many weights as the bytes could ever hold.
        PareError: As `attempt`.
    """
    found: Plan | None = None
    refused: BudgetError | None = None
    fixed = DESCRIPTION + width * head
    most = min(weights, (limit - fixed) // min(width, ADDED_WIDTH))
    low, high = 0, most  # up to `low` nothing larger is had, above `high` all is too large
    k = min(most, max(1, (limit - fixed) // (width + 1)))
    before, each = (0, fixed), float(width)  # weights and bytes of the last plan, bytes a weight
    tries = 0
    while low < high:
        tries += 1
        try:
            plan = attempt(k)
        except PareError as problem:
            if found is not None:
                break  # more than the method can use
            if not isinstance(problem, BudgetError):
                raise
            refused, low = problem, k
            k = (low + high + 1) // 2
            continue
        paid = plan.count - (plan.head_count if plan.head_rule == "inside" else 0)
        size = delta_bytes(plan, dtype)
        # What a weight takes differs: indices or none, values of two widths, names of many tensors.
        if paid != before[0] and size != before[1]:
            each = abs((size - before[1]) / (paid - before[0]))
        before = paid, size
        step = (limit - size) / each
        step -= SHORT * abs(step)
        if size <= limit:
            if found is None or plan.count > found.count:
                found = plan
            low, k = k, min(high, paid + math.floor(step))
            if limit - size <= UNUSED * limit or k <= low or tries >= TRIES:
                break
        elif found is not None:
            break
        else:
            high = min(k, paid) - 1  # whole sizes: between the two it is the same plan again
            k = paid + math.floor(step) if tries < TRIES else (low + high + 1) // 2
            k = min(max(k, low + 1), high)
    if found is None and refused is not None and high == most:
        raise refused
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
