"""What each strategy costs in each block of a model, and the plan that whole sizes make."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from paretune.anatomy import Tensor
from paretune.errors import PareError
from paretune.methods.accountant import Part, Price, whole_sizes
from paretune.methods.base import Choice, Question, whole
from paretune.methods.design import Design
from paretune.methods.lora import PEFT_TARGETS, linear_modules
from paretune.plan import Addition
from paretune.strategies import STRATEGIES
from paretune.strategies.blocks import width_of

LORA_TARGETS = "auto"  # query and value where peft knows the model, else all of attention
LORA_SCALE = 2.0
_ENDLESS = 1 << 62  # weights; more than any size costs


@dataclass(frozen=True)
class Carrier:
    """A module that carries a strategy, and the largest size it takes."""

    module: str
    most: int


@dataclass
class Prices:
    """Prices by block and strategy, read from a model once and kept.

    Args:
        question: The model and which of its tensors may be touched. A block whose tensors are all excluded
            takes nothing.
        settings: As in :class:`~paretune.methods.design.Design`.
    """

    question: Question
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    _known: dict[tuple[int, str], Price | PareError] = field(default_factory=dict, init=False, repr=False)

    @property
    def blocks(self) -> int:
        """Number of blocks of the model."""
        return len(self.question.anatomy.blocks)

    def price(self, block: int, strategy: str) -> Price:
        """What a strategy costs in a block.

        Raises:
            PareError: The block cannot carry it; the message says which block, and why.
        """
        if (block, strategy) not in self._known:
            try:
                self._known[block, strategy] = self._price(block, strategy)
            except PareError as problem:
                self._known[block, strategy] = problem
        known = self._known[block, strategy]
        if isinstance(known, PareError):
            raise PareError(f"{strategy} in block {block}: {known}")
        return known

    def refusal(self, strategy: str) -> str | None:
        """Why some block that may be touched cannot carry a strategy; None when all can."""
        for block in sorted(self._open):
            try:
                self.price(block, strategy)
            except PareError as problem:
                return str(problem)
        return None

    def parts(self, design: Design) -> list[Part]:
        """What a design tunes in this model, block by block.

        Raises:
            PareError: The model has no blocks, none is tuned, or one cannot carry what its group gets.
        """
        if not self.blocks:
            raise PareError("this model has no repeated blocks, so there is nothing to divide into groups")
        parts = []
        for block, group in design.tuned_blocks(self.blocks).items():
            if block not in self._open:
                continue
            for strategy in design.strategies[group - 1]:
                try:
                    parts.append(Part(block, strategy, self.price(block, strategy)))
                except PareError as problem:
                    raise PareError(f"group {group}: {problem}") from None
        if not parts:
            where = f"the tuned groups {list(design.tuned or ())} hold none of the {self.blocks} blocks"
            raise PareError(f"{where}; tune other groups, have fewer of them, or exclude less")
        return parts

    def sizes(self, design: Design, budget: int) -> tuple[list[Part], list[int]]:
        """The parts of a design and their sizes under a budget.

        Raises:
            PareError: As :meth:`parts` and :func:`~paretune.methods.accountant.whole_sizes`.
        """
        parts = self.parts(design)
        shares = design.shares(sorted({part.block for part in parts}))
        return parts, whole_sizes(parts, shares, budget)

    def choice(self, parts: Sequence[Part], sizes: Sequence[int]) -> Choice:
        """The selections and additions of parts at their sizes."""
        selections: list[Tensor] = []
        additions: list[Addition] = []
        for part, size in zip(parts, sizes, strict=True):
            existing = self._existing_biases(part.block) if part.strategy == "bias" else []
            selections += existing
            if not existing:
                additions += self._additions(part.block, part.strategy, size)
        return Choice(whole(tuple(selections)), tuple(additions))

    def _price(self, block: int, strategy: str) -> Price:
        if strategy == "bias":
            existing = self._existing_biases(block)
            added = [] if existing else self._additions(block, strategy, 1)
            return Price(sum(tensor.count for tensor in existing) + sum(added.count for added in added))
        fixed, slopes = 0, []
        for carrier in self._carriers(block, strategy):
            first = self._addition(strategy, carrier, 1).count
            step = self._addition(strategy, carrier, 2).count - first if carrier.most > 1 else first
            fixed += first - step
            slopes.append((step, carrier.most))
        return Price(fixed, tuple(slopes))

    def _additions(self, block: int, strategy: str, size: int) -> list[Addition]:
        """One addition for each module of a block that carries the strategy."""
        return [
            self._addition(strategy, carrier, min(size, carrier.most))
            for carrier in self._carriers(block, strategy)
        ]

    def _addition(self, strategy: str, carrier: Carrier, size: int) -> Addition:
        settings = self._strategy_settings(strategy, size)
        count = STRATEGIES[strategy].count(self.question.model, carrier.module, size, settings)
        return Addition(strategy, carrier.module, size, count, settings)

    def _carriers(self, block: int, strategy: str) -> list[Carrier]:
        """The modules of a block that carry a strategy.

        Raises:
            PareError: There is none.
        """
        model = self.question.model
        if strategy == "lora":
            paths = [path for path in self._lora_modules if self._block_of[path] == block]
            if not paths:
                raise PareError("no linear layer to target may be touched; give lora other targets")
            # A rank above the smaller side buys nothing.
            return [Carrier(path, min(width_of(model.get_submodule(path)))) for path in paths]
        if strategy == "bias":
            paths = self._without_bias(block)
            if not paths:
                raise PareError("it has neither biases nor layers to add them to; leave bias out there")
            return [Carrier(path, 1) for path in paths]
        path = self.question.anatomy.blocks[block].path
        settings = self._strategy_settings(strategy, 1)
        return [Carrier(path, STRATEGIES[strategy].size(model, path, _ENDLESS, settings))]

    def _strategy_settings(self, strategy: str, size: int) -> dict[str, Any]:
        """The settings of an addition: those of the design, and the seed where there is one."""
        settings = dict(self.settings.get(strategy, {}))
        if strategy == "lora":
            settings.pop("targets", None)
            scale = settings.pop("scale", LORA_SCALE)
            if isinstance(scale, bool) or not isinstance(scale, int | float) or not scale > 0:
                raise PareError(f"scale {scale!r} is not a number above 0")
            settings.setdefault("alpha", scale * size)
        if "seed" in STRATEGIES[strategy].defaults:
            settings.setdefault("seed", self.question.seed)
        return settings

    @cached_property
    def _open(self) -> set[int]:
        """Blocks of which something may be touched."""
        return {tensor.block for tensor in self.question.candidates if tensor.block is not None}

    @cached_property
    def _block_of(self) -> dict[str, int]:
        """Module path -> block, of the modules inside the blocks that may be touched."""
        return {t.module: t.block for t in self.question.candidates if t.block is not None}

    @cached_property
    def _lora_modules(self) -> list[str]:
        targets = self.settings.get("lora", {}).get("targets", LORA_TARGETS)
        if targets not in ("auto", "all", "attention", "mlp", "peft"):
            raise PareError(f"targets {targets!r} is none of auto, all, attention, mlp, peft")
        if targets != "auto":
            return linear_modules(self.question, targets)
        config = getattr(self.question.model, "config", None)
        by_peft = getattr(config, "model_type", None) in PEFT_TARGETS
        return linear_modules(self.question, "peft" if by_peft else "attention")

    def _existing_biases(self, block: int) -> list[Tensor]:
        """Bias vectors that a block has, those of its norms included."""
        return [t for t in self.question.candidates if t.block == block and _is_bias(t)]

    def _without_bias(self, block: int) -> list[str]:
        """Linear and norm layers of a block without biases: where vectors can be added."""
        layers = [t for t in self.question.candidates if t.block == block and _takes_bias(self.question, t)]
        return list(dict.fromkeys(tensor.module for tensor in layers))


def _is_bias(tensor: Tensor) -> bool:
    return tensor.kind == "bias" or (tensor.kind == "norm" and tensor.name.endswith("bias"))


def _takes_bias(question: Question, tensor: Tensor) -> bool:
    module = question.model.get_submodule(tensor.module)
    return tensor.kind == "norm" or isinstance(module, nn.Linear | Conv1D)
