"""LoRA (arXiv 2106.09685) with rank and targets solved from the budget; peft's own layers."""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS
from torch import nn

from paretune.errors import BudgetError, PareError
from paretune.methods.base import Choice, Question
from paretune.plan import Addition
from paretune.strategies import STRATEGIES
from paretune.strategies.lora import carries_lora

Targets = Literal["auto", "all", "attention", "mlp", "peft"]


@dataclass(frozen=True)
class Lora:
    """Low-rank updates of linear layers.

    Args:
        targets: ``all`` linear layers of the blocks, those of ``attention`` or ``mlp``, ``peft``'s default
            for the model (query and value for most), or ``auto``: the first of all, attention and peft that
            a rank of 1 fits. Default ``auto``.
        rank: The rank, instead of the largest that fits the budget.
        scale: ``alpha / rank``, the same for every layer. Default 2.
        dropout: On the input of the update. Default 0.

    Raises:
        PareError: A setting out of range.
    """

    name: ClassVar[str] = "lora"
    summary: ClassVar[str] = "low-rank updates of linear layers (peft's LoRA)"
    learning_rates: ClassVar[tuple[float, ...]] = (3e-4, 8e-4, 2e-3, 5e-3)
    rate_power: ClassVar[float] = 0.0
    sized: ClassVar[bool] = True

    targets: Targets = "auto"
    rank: int | None = None
    scale: float = 2.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.targets not in get_args(Targets):
            raise PareError(f"lora: targets {self.targets!r} is none of {', '.join(get_args(Targets))}")
        if self.rank is not None and self.rank < 1:
            raise PareError(f"lora: rank {self.rank} is below 1")
        if not self.scale > 0:
            raise PareError(f"lora: scale {self.scale} is not above 0")

    def choose(self, question: Question) -> Choice:
        """Solve targets and ranks; what is left over of the budget raises the rank of some layers by one.

        Raises:
            PareError: No linear layer to target.
            BudgetError: A rank of 1 does not fit the budget.
        """
        known = ["peft"] if _model_type(question) in PEFT_TARGETS else []
        tried = ["all", "attention", *known] if self.targets == "auto" else [self.targets]
        smallest = 0
        for targets in tried:
            modules = linear_modules(question, targets)
            costs = [self._count(question.model, module, 1) for module in modules]
            if modules and (question.budget is None or sum(costs) <= question.budget):
                ranks = self._ranks(costs, question)
                return self._choice(question, targets, modules, ranks)
            smallest = sum(costs)
        if not smallest:
            raise PareError(f"lora: this model has no linear layer for targets {self.targets!r}")
        raise BudgetError(
            f"lora: rank 1 on targets {tried[-1]!r} needs {smallest:,} weights, the budget is "
            f"{question.budget:,}; raise the budget or use a method that selects single weights"
        )

    def _ranks(self, costs: Sequence[int], question: Question) -> list[int]:
        if self.rank is not None:
            if question.budget is not None and self.rank * sum(costs) > question.budget:
                raise BudgetError(
                    f"lora: rank {self.rank} needs {self.rank * sum(costs):,} weights, the budget is "
                    f"{question.budget:,}; leave rank out to have it solved"
                )
            return [self.rank] * len(costs)
        return fill_ranks(costs, question.k)

    def _choice(
        self, question: Question, targets: str, modules: Sequence[str], ranks: Sequence[int]
    ) -> Choice:
        additions = tuple(
            Addition(
                "lora",
                module,
                rank,
                self._count(question.model, module, rank),
                {"alpha": self.scale * rank, "dropout": self.dropout, "seed": question.seed},
            )
            for module, rank in zip(modules, ranks, strict=True)
        )
        return Choice(additions=additions, notes={"targets": targets, "ranks": sorted(set(ranks))})

    def _count(self, model: nn.Module, module: str, rank: int) -> int:
        return STRATEGIES["lora"].count(model, module, rank, {})


def fill_ranks(costs: Sequence[int], k: int) -> list[int]:
    """The largest uniform rank, then one more for the layers nearest the output that it still fits.

    Args:
        costs: Weights one rank costs in each layer, in order from the input.
        k: The budget, at least ``sum(costs)``.
    """
    rank, left = divmod(k, sum(costs))
    ranks = [rank] * len(costs)
    for place in reversed(range(len(costs))):
        if costs[place] <= left:
            ranks[place] += 1
            left -= costs[place]
    return ranks


def linear_modules(question: Question, targets: str) -> list[str]:
    """Paths of the linear layers of a target group, in the model's order; excluded tensors are left out.

    Raises:
        PareError: peft has no default for this model.
    """
    modules = [
        tensor.module
        for tensor in question.candidates
        if tensor.block is not None
        and len(tensor.shape) == 2
        and tensor.kind in ("attention", "mlp")
        and carries_lora(question.model, tensor.module)
        and (targets in ("all", "peft") or tensor.kind == targets)
    ]
    if targets != "peft":
        return modules
    model_type = _model_type(question)
    patterns = PEFT_TARGETS.get(model_type or "")
    if not patterns:
        raise PareError(f"lora: peft has no default targets for model type {model_type!r}; use targets=all")
    return [m for m in modules if any(fnmatch.fnmatch(m, f"*.{p}") or m == p for p in patterns)]


def _model_type(question: Question) -> str | None:
    return getattr(getattr(question.model, "config", None), "model_type", None)
