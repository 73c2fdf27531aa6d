"""``choose``: from a method's name, a model, a task and a budget to a plan."""

import fnmatch
import importlib.metadata
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import nn

from paretune.anatomy import Anatomy, Tensor, anatomy, base_digest
from paretune.budget import Budget, HeadRule
from paretune.delta.estimate import largest_within
from paretune.errors import BudgetError, PareError, near
from paretune.methods.base import Choice, Method, Question, whole
from paretune.methods.registry import METHODS
from paretune.plan import Base, Plan
from paretune.task import Task

_RECORDED = ("paretune", "torch", "transformers", "peft")


def make_method(name: str, settings: dict[str, Any] | None = None) -> Method:
    """A method by name, with its settings.

    Raises:
        PareError: Unknown method or setting (near misses are named), or a setting out of range.
    """
    if name not in METHODS:
        raise PareError(f"no method {name!r}{near(name, METHODS)}; `paretune methods` lists them")
    kind = METHODS[name]
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for setting in settings or {}:
        if setting not in known:
            there = ", ".join(known) if known else "none"
            raise PareError(f"{name} has no setting {setting!r}{near(setting, known)}; there are: {there}")
    return kind(**(settings or {}))


def choose(
    method: str | Method,
    model: nn.Module,
    task: Task,
    budget: Budget | str | int | None = None,
    *,
    seed: int = 0,
    head: HeadRule = "outside",
    exclude: Sequence[str] = (),
    delta_dtype: torch.dtype | None = None,
    **settings: Any,
) -> Plan:
    """Choose what to train; the model is left bit-equal.

    Args:
        method: A method's name (``paretune methods`` lists them) or a method.
        model: The pretrained model, as ``task.load_model()`` gives it.
        task: The data; only its training part is looked at.
        budget: ``"0.5%"``, ``"120k"``, ``"2MiB"`` of delta, or a number of weights. None for a method that
            has a size of its own.
        seed: For everything drawn.
        head: Whether parameters new to the task are ``outside`` the budget (default) or ``inside``.
        exclude: Shell patterns of tensor names that may not be selected, such as ``"*pooler*"``.
        delta_dtype: Of the shipped values, for a budget in bytes; None takes the base's.
        settings: The method's settings, when ``method`` is a name.

    Raises:
        PareError: Unknown method or setting, a budget that does not fit, a pattern that matches nothing.
    """
    if isinstance(method, str):
        method = make_method(method, settings)
    elif settings:
        raise PareError(f"{method.name}: give settings to the method itself, not to choose()")
    parts = anatomy(model)
    asked = Budget.parse(budget) if budget is not None else None
    base = Base(
        model=str(getattr(task, "model_id", type(model).__name__)),
        digest=base_digest(model, [tensor.name for tensor in parts.head]),
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
    )
    request = _Request(method, model, task, parts, base, asked, seed, head, tuple(exclude))
    training = model.training
    model.eval()
    try:
        if asked is not None and asked.unit == "bytes":
            return _within_bytes(request, delta_dtype)
        k = asked.resolve(parts.weights, parts.head_weights, head) if asked else None
        return _plan(request, k)
    finally:
        model.train(training)


@dataclass(frozen=True)
class _Request:
    """What ``choose`` was asked, read and checked."""

    method: Method
    model: nn.Module
    task: Task
    parts: Anatomy
    base: Base
    asked: Budget | None
    seed: int
    head: HeadRule
    exclude: tuple[str, ...]


def _within_bytes(request: _Request, dtype: torch.dtype | None) -> Plan:
    """The plan whose delta is as large as a budget in bytes allows: measured, then corrected.

    Raises:
        PareError: Not even the head fits, or nothing beside it.
    """
    assert request.asked is not None
    width = (dtype or getattr(torch, request.base.dtype)).itemsize
    selectable = sum(tensor.count for tensor in candidates_of(request.parts, request.exclude))
    found = largest_within(
        int(request.asked.value),
        width,
        request.parts.head_weights,
        max(selectable, 1),  # where nothing is left, the method says so
        lambda k: _plan(request, k),
        dtype,
    )
    if found is not None:
        return found
    raise BudgetError(
        f"a delta of {request.asked} has no room for '{request.method.name}' beside the head's "
        f"{request.parts.head_weights:,} weights; ask for more, or ship bf16 values"
    )


def _plan(request: _Request, k: int | None) -> Plan:
    method, parts, head = request.method, request.parts, request.head
    candidates = candidates_of(parts, request.exclude)
    choice = method.choose(Question(request.model, request.task, parts, candidates, k, request.seed))
    settings = asdict(method)  # type: ignore[call-overload]
    plan = Plan(
        base=request.base,
        selections=choice.selections,
        additions=choice.additions,
        head=whole(parts.head),
        head_rule=head,
        asked=str(request.asked) if request.asked else None,
        budget=None if k is None else k + (parts.head_weights if head == "inside" else 0),
        method=method.name,
        settings=settings | ({"exclude": list(request.exclude)} if request.exclude else {}),
        seed=request.seed,
        data=request.task.fingerprint,
        weights=parts.weights,
        places=places_of(parts, choice),
        notes=choice.notes,
        start=choice.start,
        versions={name: importlib.metadata.version(name) for name in _RECORDED},
    )
    return replace(plan, others=tuple(_other(plan, parts, other) for other in choice.others))


def _other(plan: Plan, parts: Anatomy, choice: Choice) -> Plan:
    """A plan that the same method call gave; one of another size is not of the budget that was asked for."""
    same = sum(s.count for s in choice.selections) == sum(s.count for s in plan.selections)
    return replace(
        plan,
        selections=choice.selections,
        additions=choice.additions,
        places=places_of(parts, choice),
        notes=choice.notes,
        asked=plan.asked if same else None,
        budget=plan.budget if same else None,
    )


def candidates_of(parts: Anatomy, exclude: Sequence[str]) -> tuple[Tensor, ...]:
    """The pretrained tensors that may be selected.

    Raises:
        PareError: A pattern matches none.
    """
    for pattern in exclude:
        if not any(fnmatch.fnmatch(tensor.name, pattern) for tensor in parts.body):
            raise PareError(
                f"exclude pattern {pattern!r} matches no tensor; names look like {parts.body[0].name!r}"
            )
    return tuple(t for t in parts.body if not any(fnmatch.fnmatch(t.name, pattern) for pattern in exclude))


def places_of(parts: Anatomy, choice: Choice) -> dict[str, list[Any]]:
    """Block number and kind of everything chosen, for the map."""
    places: dict[str, list[Any]] = {}
    for selection in choice.selections:
        tensor = parts.tensor(selection.tensor)
        places[selection.tensor] = [tensor.block, tensor.kind]
    for addition in choice.additions:
        block = next((b.index for b in parts.blocks if f"{addition.module}.".startswith(f"{b.path}.")), None)
        places[f"{addition.strategy}:{addition.module}"] = [block, addition.strategy]
    return places
