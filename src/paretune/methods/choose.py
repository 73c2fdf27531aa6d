"""``choose``: from a method's name, a model, a task and a budget to a plan."""

import fnmatch
import importlib.metadata
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from torch import nn

from paretune.anatomy import Anatomy, Tensor, anatomy, base_digest
from paretune.budget import Budget, HeadRule
from paretune.errors import PareError, near
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
    k = asked.resolve(parts.weights, parts.head_weights, head) if asked else None
    training = model.training
    model.eval()
    try:
        choice = method.choose(Question(model, task, parts, _candidates(parts, exclude), k, seed))
    finally:
        model.train(training)
    return Plan(
        base=Base(
            model=str(getattr(task, "model_id", type(model).__name__)),
            digest=base_digest(model, [tensor.name for tensor in parts.head]),
            dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        ),
        selections=choice.selections,
        additions=choice.additions,
        head=whole(parts.head),
        head_rule=head,
        asked=str(asked) if asked else None,
        budget=None if k is None else k + (parts.head_weights if head == "inside" else 0),
        method=method.name,
        settings=asdict(method) | ({"exclude": list(exclude)} if exclude else {}),  # type: ignore[call-overload]
        seed=seed,
        data=task.fingerprint,
        weights=parts.weights,
        places=_places(parts, choice),
        notes=choice.notes,
        versions={name: importlib.metadata.version(name) for name in _RECORDED},
    )


def _candidates(parts: Anatomy, exclude: Sequence[str]) -> tuple[Tensor, ...]:
    for pattern in exclude:
        if not any(fnmatch.fnmatch(tensor.name, pattern) for tensor in parts.body):
            raise PareError(
                f"exclude pattern {pattern!r} matches no tensor; names look like {parts.body[0].name!r}"
            )
    return tuple(t for t in parts.body if not any(fnmatch.fnmatch(t.name, pattern) for pattern in exclude))


def _places(parts: Anatomy, choice: Choice) -> dict[str, list[Any]]:
    """Block number and kind of everything chosen, for the map."""
    places: dict[str, list[Any]] = {}
    for selection in choice.selections:
        tensor = parts.tensor(selection.tensor)
        places[selection.tensor] = [tensor.block, tensor.kind]
    for addition in choice.additions:
        block = next((b.index for b in parts.blocks if f"{addition.module}.".startswith(f"{b.path}.")), None)
        places[f"{addition.strategy}:{addition.module}"] = [block, addition.strategy]
    return places
