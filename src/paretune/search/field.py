"""The field of a front: which methods compete at which budgets, and which of them cannot."""

import fnmatch
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from paretune.anatomy import Anatomy
from paretune.budget import Budget, HeadRule
from paretune.delta import delta_bytes
from paretune.errors import PareError
from paretune.methods import Question, learning_rates, make_method
from paretune.plan_table import readable_bytes
from paretune.search.sizing import Sizing
from paretune.task import Task

# The cheapest, the plainest added modules, the controls, what looks at the data, and the whole model.
FIELD = (
    "head",
    "bitfit",
    "lora:targets=all",
    "lora:targets=peft",
    "adapter",
    "prefix",
    "s4",
    "random",
    "fish",
    "ird",
    "adapeft",
    "full",
)
REFERENCES = ("head", "full")  # the two ends of the scale: they are always trained to the end


@dataclass(frozen=True)
class Candidate:
    """One method at one budget.

    Args:
        method: Its name.
        settings: Its settings.
        budget: As typed; None for a method that has a size of its own.
        group: The budget it competes at; None for full fine-tuning, which has none.
        share: Of the model's weights that it may train, which its learning rates follow.
    """

    method: str
    settings: dict[str, Any]
    budget: str | None
    group: str | None
    share: float

    @property
    def label(self) -> str:
        """The method with its settings, such as ``lora all``."""
        return " ".join([self.method, *(_short(*setting) for setting in self.settings.items())])

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.label} {self.budget}" if self.budget else self.label

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates that are sensible for it, ascending."""
        return learning_rates(make_method(self.method, self.settings), self.share)

    @property
    def is_reference(self) -> bool:
        """Whether it is an end of the scale rather than a competitor."""
        return self.method in REFERENCES

    def document(self) -> dict[str, Any]:
        """The candidate as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Skipped:
    """What cannot compete, and why."""

    method: str
    budget: str
    reason: str


def read_method(text: str) -> tuple[str, dict[str, Any]]:
    """``lora:targets=all:rank=4`` as a name and settings; values are JSON, or text when they are none.

    Raises:
        PareError: No such method or setting, no ``=``, or a value out of range.
    """
    name, *pairs = text.split(":")
    settings: dict[str, Any] = {}
    for pair in pairs:
        setting, equals, value = pair.partition("=")
        if not equals:
            raise PareError(f"method {text!r}: write settings as name=value, such as lora:targets=all")
        try:
            settings[setting] = json.loads(value)
        except json.JSONDecodeError:
            settings[setting] = value
    make_method(name, settings)
    return name, settings


def _short(setting: str, value: Any) -> str:
    """A setting in a name: its value where that speaks for itself."""
    if setting == "samples":
        return f"n{value}"
    if setting == "within":  # blocks of the model; "blocks" alone is a granularity
        return f"in {value}"
    return value if isinstance(value, str) and value else f"{setting}={json.dumps(value)}"


class _Unseen:
    """Stands for data that a method has not looked at yet."""

    def __getattr__(self, name: str) -> Any:
        raise _LookedError(name)


class _LookedError(Exception):
    """A method wants to see the data."""


def make_field(
    model: nn.Module,
    task: Task,
    parts: Anatomy,
    methods: Sequence[str],
    budgets: Sequence[str],
    *,
    head: HeadRule = "outside",
    exclude: Sequence[str] = (),
    delta_dtype: torch.dtype | None = None,
) -> tuple[list[Candidate], list[Skipped]]:
    """All candidates; what arithmetic alone shows to be impossible is skipped. No data are looked at.

    Args:
        model: The model, left as it was.
        task: For which.
        parts: Of the model.
        methods: As :func:`read_method` reads them.
        budgets: As :func:`paretune.choose` reads them.
        head: Whether the head is ``outside`` or ``inside`` the budget.
        exclude: Patterns of tensors that may not be selected.
        delta_dtype: Of the shipped values, for budgets in bytes; None takes the base's.

    Raises:
        PareError: A method or a budget that cannot be read, one of them twice, or nothing is possible.
    """
    parsed = sorted((Budget.parse(budget) for budget in budgets), key=lambda b: (b.unit == "bytes", b.value))
    if not parsed:
        raise PareError("a front needs a budget at least: --budgets 0.5%, or several")
    tensors = tuple(t for t in parts.body if not any(fnmatch.fnmatch(t.name, each) for each in exclude))
    question = Question(model, _Unseen(), parts, tensors, None, 0)  # type: ignore[arg-type]
    sizing = Sizing(question, task, head, delta_dtype)
    sizes = {budget.text: sizing.weights(budget) for budget in parsed}
    candidates: list[Candidate] = []
    skipped: list[Skipped] = []
    for text in methods:
        name, settings = read_method(text)
        method = make_method(name, settings)
        asked: list[Budget | None] = [*parsed] if method.sized else [None]
        for budget in asked:
            typed = group = budget.text if budget else None
            limit = sizes[typed] if typed else parts.weights
            try:
                plan = sizing.plan(method, budget)
            except _LookedError:
                pass  # whether it is possible shows when it has looked
            except PareError as problem:
                skipped.append(Skipped(name, typed or "", str(problem)))
                continue
            else:
                if budget is not None and budget.unit == "bytes":
                    limit = plan.count
                if budget is None and name != "full":
                    group = next((each.text for each in parsed if sizing.holds(each, plan)), None)
                    if group is None:
                        delta = readable_bytes(delta_bytes(plan, delta_dtype))
                        reason = f"{name} trains {plan.count:,} weights ({delta}), above every budget given"
                        skipped.append(Skipped(name, parsed[-1].text, reason))
                        continue
            candidates.append(Candidate(name, settings, typed, group, limit / parts.weights))
    names = [candidate.name for candidate in candidates]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise PareError(f"{twice} is asked for twice; give each method and budget once")
    if not any(not candidate.is_reference for candidate in candidates) and skipped:
        raise PareError(f"nothing can be tried at this budget: {skipped[0].method}: {skipped[0].reason}")
    return candidates, skipped
