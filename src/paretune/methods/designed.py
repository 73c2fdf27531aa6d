"""Methods that are designs: any design, the published one, and each single strategy."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

from paretune.errors import BudgetError
from paretune.methods.accountant import spent
from paretune.methods.base import Choice, Question
from paretune.methods.design import Design
from paretune.methods.layout import group_sizes
from paretune.methods.prices import Prices

# Found for T5 (arXiv 2301.01821): a spindle of four groups, uniform allocation, all groups tuned.
S4_STRATEGIES = (
    ("adapter", "lora"),
    ("adapter", "prefix"),
    ("adapter", "prefix", "bias"),
    ("prefix", "bias", "lora"),
)


@dataclass(frozen=True)
class Designed:
    """A design of one's own: the published S4 with what is given here changed.

    Args:
        file: A YAML file to start from instead of S4.
        grouping: See :class:`~paretune.methods.design.Design`, as all that follow.
        allocation: Of the budget.
        tuned: Numbers of the tuned groups, from 1.
        strategies: A list for each group.
        ratio: Of the largest share to the smallest.
        settings: Further settings by strategy.

    Raises:
        PareError: It is no design.
    """

    name: ClassVar[str] = "design"
    summary: ClassVar[str] = "a strategy mix for each group of blocks (PEFT design spaces)"
    learning_rates: ClassVar[tuple[float, ...]] = (5e-4, 1e-3, 2e-3, 5e-3)
    rate_power: ClassVar[float] = 0.0
    sized: ClassVar[bool] = True

    file: str | None = None
    grouping: str | None = None
    allocation: str | None = None
    tuned: list[int] | None = None
    strategies: list[list[str]] | None = None
    ratio: float | None = None
    settings: dict[str, dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        _ = self.design  # what is wrong with it is said before anything is loaded

    @cached_property
    def design(self) -> Design:
        """The design as given."""
        start = Design(S4_STRATEGIES) if self.file is None else Design.load(self.file)
        names = ("grouping", "allocation", "tuned", "strategies", "ratio", "settings")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if "strategies" in given and "tuned" not in given:
            given["tuned"] = None  # the groups may be others now
        return replace(start, **given)

    def choose(self, question: Question) -> Choice:
        """Solve the sizes for the budget.

        Raises:
            PareError: As :func:`choose_design`.
        """
        return choose_design(question, self.design)


@dataclass(frozen=True)
class S4:
    """The design that arXiv 2301.01821 found for T5, scaled to the depth of the model.

    Args:
        lora_targets: ``attention``, ``mlp``, ``all``, ``peft`` (query and value for most models) or ``auto``:
            ``peft`` where that knows the model, else ``attention``. Our reading; the paper does not say.
    """

    name: ClassVar[str] = "s4"
    summary: ClassVar[str] = "adapter, prefix, bias and lora mixed over four groups of blocks (S4)"
    learning_rates: ClassVar[tuple[float, ...]] = (5e-4, 1e-3, 2e-3, 5e-3)
    rate_power: ClassVar[float] = 0.0
    sized: ClassVar[bool] = True

    lora_targets: str = "auto"

    def choose(self, question: Question) -> Choice:
        """Solve the sizes for the budget.

        Raises:
            PareError: As :func:`choose_design`.
        """
        settings = {"lora": {"targets": self.lora_targets}}
        return choose_design(question, Design(S4_STRATEGIES, settings=settings))


@dataclass(frozen=True)
class Adapter:
    """Bottleneck adapters in every block, all of one width as far as the budget allows.

    Args:
        after: ``mlp``: after the feed-forward; ``both``: after the self-attention too.
        activation: ``relu``, ``gelu``, ``silu`` or ``tanh``.
    """

    name: ClassVar[str] = "adapter"
    summary: ClassVar[str] = "bottleneck adapters in every block"
    learning_rates: ClassVar[tuple[float, ...]] = (5e-4, 1e-3, 2e-3, 5e-3)
    rate_power: ClassVar[float] = 0.0
    sized: ClassVar[bool] = True

    after: str = "mlp"
    activation: str = "relu"

    def choose(self, question: Question) -> Choice:
        """Solve the widths for the budget.

        Raises:
            PareError: As :func:`choose_design`.
        """
        settings = {"after": self.after, "activation": self.activation}
        return choose_design(question, single("adapter", settings))


@dataclass(frozen=True)
class Prefix:
    """Trained keys and values in every block, all of one length as far as the budget allows.

    Args:
        cross_attention: In the cross-attention of a decoder too.
        std: Standard deviation of their initial values.
    """

    name: ClassVar[str] = "prefix"
    summary: ClassVar[str] = "trained keys and values in every block (prefix tuning)"
    learning_rates: ClassVar[tuple[float, ...]] = (1e-3, 3e-3, 1e-2, 3e-2)
    rate_power: ClassVar[float] = 0.0
    sized: ClassVar[bool] = True

    cross_attention: bool = False
    std: float = 0.02

    def choose(self, question: Question) -> Choice:
        """Solve the lengths for the budget.

        Raises:
            PareError: As :func:`choose_design`.
        """
        settings = {"cross_attention": self.cross_attention, "std": self.std}
        return choose_design(question, single("prefix", settings))


@dataclass(frozen=True)
class Bias:
    """The biases of every block: those it has, or added vectors where it has none (T5, Llama)."""

    name: ClassVar[str] = "bias"
    summary: ClassVar[str] = "biases in every block; added ones where a model has none"
    learning_rates: ClassVar[tuple[float, ...]] = (3e-4, 1e-3, 3e-3, 1e-2)
    rate_power: ClassVar[float] = 0.0
    sized: ClassVar[bool] = False

    def choose(self, question: Question) -> Choice:
        """Take them all.

        Raises:
            PareError: As :func:`choose_design`.
        """
        return choose_design(question, single("bias", {}))


def single(strategy: str, settings: dict[str, Any]) -> Design:
    """One strategy in every block, the budget divided evenly."""
    return Design(((strategy,),), "uniform", settings={strategy: settings} if settings else {})


def choose_design(question: Question, design: Design, prices: Prices | None = None) -> Choice:
    """What a design trains under a budget.

    Args:
        question: What is asked.
        design: The design.
        prices: Those of the same question and the design's settings, where they are known already.

    Raises:
        PareError: A block cannot carry what its group gets, size 1 of everything is above the budget, or
            there is none.
    """
    prices = prices or Prices(question, design.settings)
    parts = prices.parts(design)
    if any(part.price.slopes for part in parts):
        parts, sizes = prices.sizes(design, question.k)
    else:
        sizes = [1] * len(parts)
        _refuse_above(question.budget, spent(parts, sizes))
    choice = prices.choice(parts, sizes)
    by_block: dict[str, dict[str, int]] = {}
    for part, size in zip(parts, sizes, strict=True):
        by_block.setdefault(str(part.block), {})[part.strategy] = size
    notes: dict[str, Any] = {
        "design": design.document(),
        "group_sizes": group_sizes(design.grouping, design.groups, prices.blocks),
        "sizes": by_block,
        "count": spent(parts, sizes),
    }
    if question.budget is not None:
        notes["left_over"] = question.budget - spent(parts, sizes)
        if all(size == part.price.most for part, size in zip(parts, sizes, strict=True)):
            notes["at_its_end"] = "every size is the largest there is; the rest of the budget buys nothing"
    return replace(choice, notes=notes)


def _refuse_above(budget: int | None, count: int) -> None:
    if budget is not None and count > budget:
        raise BudgetError(
            f"the biases of the tuned blocks are {count:,} weights, the budget is {budget:,}; raise the "
            "budget to that, or tune fewer groups"
        )
