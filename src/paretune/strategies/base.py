"""What a strategy is: a kind of added module, its size, its exact count, and how it comes and goes."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from paretune.errors import PareError
from paretune.plan import Addition


class Attached(Protocol):
    """Added modules that are part of a model now."""

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """Trained tensors by key ``strategy:module path in the plain model:tensor``, sorted by key."""
        ...

    @property
    def unmergeable(self) -> str | None:
        """Why the added modules cannot be folded into the base weights, or None when they can."""
        ...

    def detach(self) -> None:
        """Take the added modules away: the model is what it was, bit for bit, with the same module objects.

        Detaching twice does nothing the second time.

        Raises:
            PareError: The modules were merged.
        """
        ...

    def merge(self) -> None:
        """Fold the added modules into the base weights and take them away.

        Raises:
            PareError: This cannot be done exactly (``unmergeable`` says why), or they are gone already.
                Nothing was changed.
        """
        ...


class Strategy(Protocol):
    """A kind of added module."""

    name: ClassVar[str]
    unit: ClassVar[str]  # what a size counts: "rank", "width", ...
    defaults: ClassVar[Mapping[str, Any]]  # every setting there is, with what holds when it is not given

    def count(self, model: nn.Module, module: str, size: int, settings: Mapping[str, Any]) -> int:
        """Exact number of weights that a size adds to a module.

        Raises:
            PareError: The module does not exist or cannot carry it, a setting is unknown, the size is < 1.
        """
        ...

    def size(self, model: nn.Module, module: str, count: int, settings: Mapping[str, Any]) -> int:
        """The largest size whose count is at most ``count``; 0 when there is none.

        Raises:
            PareError: The module does not exist or cannot carry it, or a setting is unknown.
        """
        ...

    def attach(self, model: nn.Module, additions: Sequence[Addition], name: str = "paretune") -> Attached:
        """Add the modules. Everything is checked first; after an error the model is as it was.

        Args:
            model: The model, plain or with other attachments on it; changed in place.
            additions: Additions of this strategy, at most one a module.
            name: The attachment's name; several attachments on one model need different ones.

        Raises:
            PareError: An addition does not fit the model, or the name is taken.
        """
        ...


def tensor_key(strategy: str, module: str, tensor: str) -> str:
    """The name of one added tensor in a delta."""
    return f"{strategy}:{module}:{tensor}"


def check_size(strategy: Strategy, module: str, size: int) -> None:
    """Refuse a size that is not a whole number >= 1."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise PareError(
            f"{strategy.name} on {module}: {strategy.unit} {size!r} is not a whole number of at least 1"
        )


def read_settings(strategy: Strategy, module: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with defaults filled in.

    Raises:
        PareError: A setting that the strategy does not have, or a seed that is no whole number >= 0.
    """
    unknown = sorted(set(settings) - set(strategy.defaults))
    if unknown:
        known = ", ".join(strategy.defaults)
        raise PareError(f"{strategy.name} on {module}: no setting {unknown[0]!r}; there are {known}")
    full = {**strategy.defaults, **settings}
    seed = full.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise PareError(f"{strategy.name} on {module}: seed {seed!r} is not a whole number of at least 0")
    return full


def check_number(strategy: str, module: str, name: str, value: Any, low: float, high: float) -> None:
    """Refuse a setting that is not a finite number in [low, high)."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value < high:
        raise PareError(f"{strategy} on {module}: {name} {value!r} is not a number in [{low:g}, {high:g})")


def check_additions(strategy: Strategy, model: nn.Module, additions: Sequence[Addition], name: str) -> None:
    """Refuse, before anything is changed, additions that the strategy cannot attach.

    Raises:
        PareError: Another strategy's addition, two on one module, a wrong size, count or setting, a module
            that does not exist or cannot carry it, a name that cannot be used.
    """
    check_name(name)
    seen: set[str] = set()
    for addition in additions:
        if addition.strategy != strategy.name:
            raise PareError(f"{addition.module}: a {addition.strategy} addition was given to {strategy.name}")
        if addition.module in seen:
            raise PareError(f"{strategy.name} is added to {addition.module} twice; one a module and name")
        seen.add(addition.module)
        count = strategy.count(model, addition.module, addition.size, addition.settings)
        if count != addition.count:
            raise PareError(
                f"{strategy.name} on {addition.module}: {strategy.unit} {addition.size} adds {count:,} "
                f"weights to this model, the plan says {addition.count:,}; it was made for another model"
            )


def check_name(name: str) -> None:
    """Refuse a name that cannot be a key of an ``nn.ModuleDict``."""
    if not name.replace("-", "_").isidentifier() or hasattr(nn.ModuleDict(), name):
        raise PareError(f"attachment name {name!r} cannot be used; take letters, digits, '_' and '-'")


def seeded(seed: int, key: str) -> torch.Generator:
    """A CPU generator that depends on the seed and the tensor's key alone, not on order or global state."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def master_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of added parameters beside base weights of ``dtype``: never less than fp32."""
    return torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else torch.float32
