"""The field of a front: which methods compete at which budgets, and which of them cannot."""

import fnmatch
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from paretune.anatomy import Anatomy
from paretune.budget import Budget, HeadRule
from paretune.errors import PareError
from paretune.methods import METHODS, Question, learning_rates, make_method
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

    Raises:
        PareError: A method or a budget that cannot be read, one of them twice, or nothing is possible.
    """
    parsed = sorted((Budget.parse(budget) for budget in budgets), key=lambda b: (b.unit == "bytes", b.value))
    if not parsed:
        raise PareError("a front needs a budget at least: --budgets 0.5%, or several")
    sizes = {b.text: _weights(b, parts, head) for b in parsed}
    candidates: list[Candidate] = []
    skipped: list[Skipped] = []
    tensors = tuple(t for t in parts.body if not any(fnmatch.fnmatch(t.name, each) for each in exclude))
    for text in methods:
        name, settings = read_method(text)
        if METHODS[name].sized:
            asked: list[str | None] = [budget.text for budget in parsed]
        else:
            asked = [None]
        for budget in asked:
            limit = sizes[budget] if budget else None
            question = Question(model, _Unseen(), parts, tensors, limit, 0)  # type: ignore[arg-type]
            group = budget
            try:
                choice = make_method(name, settings).choose(question)
            except _LookedError:
                pass  # whether it is possible shows when it has looked
            except PareError as problem:
                skipped.append(Skipped(name, budget or "", str(problem)))
                continue
            else:
                count = sum(s.count for s in choice.selections) + sum(a.count for a in choice.additions)
                if budget is None and name != "full":
                    group = next((text for text, size in sizes.items() if count <= size), None)
                    if group is None:
                        reason = f"{name} trains {count:,} weights, above every budget given"
                        skipped.append(Skipped(name, parsed[-1].text, reason))
                        continue
            share = (limit or parts.weights) / parts.weights
            candidates.append(Candidate(name, settings, budget, group, share))
    names = [candidate.name for candidate in candidates]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise PareError(f"{twice} is asked for twice; give each method and budget once")
    if not any(not candidate.is_reference for candidate in candidates) and skipped:
        raise PareError(f"nothing can be tried at this budget: {skipped[0].method}: {skipped[0].reason}")
    return candidates, skipped


def _weights(budget: Budget, parts: Anatomy, head: HeadRule) -> int:
    """A budget in weights; one in bytes by four bytes a weight, the head's taken off."""
    if budget.unit != "bytes":
        return budget.resolve(parts.weights, parts.head_weights, head)
    left = int(budget.value) // 4 - parts.head_weights
    if left < 1:
        raise PareError(
            f"a delta of {budget} has no room beside the head's {parts.head_weights:,} weights; ask for more"
        )
    return min(left, parts.weights)
