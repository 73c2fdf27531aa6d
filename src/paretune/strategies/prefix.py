"""Prefix tuning (arXiv 2101.00190): trained keys and values that a block's attention attends to as well.

The keys and values are trained as they are (no reparameterising network). They have no position: rotary
and relative positions, the cache and the number of tokens a model can read are what they were.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn
from transformers.pytorch_utils import Conv1D

from paretune.errors import PareError
from paretune.plan import Addition
from paretune.strategies.base import (
    Attached,
    check_additions,
    check_number,
    check_size,
    master_dtype,
    read_settings,
    seeded,
    tensor_key,
)
from paretune.strategies.blocks import attention_paths, find_block, width_of
from paretune.strategies.paths import named_slots, plain, slot
from paretune.strategies.prefix_attention import (
    SUPPORTED,
    Prefix,
    carried,
    carry,
    drop,
    plain_config,
    uses_interface,
)

_HEADS = ("num_heads", "n_heads", "num_attention_heads")
_HEAD_WIDTH = ("head_dim", "head_size", "attention_head_size", "key_value_proj_dim")


class PrefixStrategy:
    """Prefix of a block; the size l is its length.

    A prefix cannot start neutral: attaching one changes the outputs, the less the longer the sequence.

    Settings:
        cross_attention: Give the block's cross-attention a prefix of length l too (T5 and BART decoders).
            Default False.
        std: Standard deviation of the initial keys and values (normal, mean 0). Default 0.02.
        seed: Seed of the initial keys and values. Default 0.
    """

    name: ClassVar[str] = "prefix"
    unit: ClassVar[str] = "length"
    defaults: ClassVar[Mapping[str, Any]] = {"cross_attention": False, "std": 0.02, "seed": 0}

    def count(self, model: nn.Module, module: str, size: int, settings: Mapping[str, Any]) -> int:
        """``2 l w`` for each attention, with w = key heads times head width."""
        check_size(self, module, size)
        places = self._places(model, module, settings)
        if size > places[0].longest:
            raise PareError(
                f"prefix on {module}: length {size} is more than the {places[0].longest} positions there are"
            )
        return sum(2 * size * place.width for place in places)

    def size(self, model: nn.Module, module: str, count: int, settings: Mapping[str, Any]) -> int:
        """The largest l whose count is at most ``count`` (and that the positions of the model allow)."""
        places = self._places(model, module, settings)
        size = max(count, 0) // sum(2 * place.width for place in places)
        return int(min(size, places[0].longest))

    def attach(self, model: nn.Module, additions: Sequence[Addition], name: str = "paretune") -> Attached:
        """Add the prefixes; see :class:`~paretune.strategies.base.Strategy`."""
        check_additions(self, model, additions, name)
        places = {a.module: self._places(model, a.module, a.settings) for a in additions}
        every = tuple(place for group in places.values() for place in group)
        for place in every:
            if name in carried(plain(slot(model, place.path))):
                raise PareError(f"{place.module} has a prefix named {name!r} already; take another name")
        attached = AttachedPrefixes(model, name, every)
        try:
            for addition in additions:
                for place in places[addition.module]:
                    module = plain(slot(model, place.path))
                    weight = next(module.parameters())
                    prefix = self._build(addition, place)
                    carry(module, name, prefix.to(weight.device, master_dtype(weight.dtype)))
        except BaseException:
            attached.detach()
            raise
        return attached

    def _build(self, addition: Addition, place: "_Place") -> Prefix:
        settings = read_settings(self, addition.module, addition.settings)
        keys = [tensor_key(self.name, addition.module, place.label + tensor) for tensor in ("key", "value")]
        first, second = (seeded(settings["seed"], key) for key in keys)
        return Prefix(addition.size, place.width, settings["std"], (first, second))

    def _places(self, model: nn.Module, module: str, settings: Mapping[str, Any]) -> list["_Place"]:
        """The attention modules of a block that the prefix goes to, self-attention first."""
        full = read_settings(self, module, settings)
        check_number(self.name, module, "std", full["std"], 0.0, math.inf)
        if not isinstance(full["cross_attention"], bool):
            raise PareError(f"prefix on {module}: cross_attention {full['cross_attention']!r} is not a bool")
        block = find_block(model, module)
        where = f"block {block.index} ({module})"
        outer = attention_paths(model, module) or (module,)
        if full["cross_attention"] and len(outer) < 2:
            raise PareError(f"{where} has no cross-attention; leave the setting cross_attention out")
        labels = ["", "cross_"] if full["cross_attention"] else [""]
        return [_place(model, module, where, label, path) for label, path in zip(labels, outer, strict=False)]


@dataclass(frozen=True)
class _Place:
    """One attention module that carries a prefix.

    Args:
        module: Path of its block.
        label: What its tensors' names start with.
        path: Its own path.
        width: Width of its keys, all heads together.
        longest: How many positions the model has; infinite where the number is not bounded.
    """

    module: str
    label: str
    path: str
    width: int
    longest: float


@dataclass
class AttachedPrefixes:
    """The prefixes of one attachment.

    Args:
        model: The model that carries them.
        name: The attachment's name.
        places: The attention modules.
    """

    model: nn.Module
    name: str
    places: tuple[_Place, ...]

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """Keys and values of shape (length, key heads * head width)."""
        found = {
            tensor_key("prefix", place.module, place.label + tensor): parameter
            for place in self.places
            for tensor, parameter in self._prefixes(place)[self.name].named_parameters()
        }
        return dict(sorted(found.items()))

    @property
    def unmergeable(self) -> str | None:
        """Always: no weight of the model stands for a key that every query sees."""
        return "a prefix cannot be merged: it is no weight of the model; keep the delta beside it"

    def detach(self) -> None:
        """Take the prefixes away."""
        for place in self.places:
            if self.name in self._prefixes(place):
                drop(plain(slot(self.model, place.path)), self.name)
        self.places = ()

    def merge(self) -> None:
        """Always refused: see ``unmergeable``."""
        raise PareError(str(self.unmergeable))

    def _prefixes(self, place: _Place) -> nn.ModuleDict:
        return carried(plain(slot(self.model, place.path)))


def _place(model: nn.Module, block: str, where: str, label: str, outer: str) -> _Place:
    """The module in an attention that calls the interface, and the width of its keys.

    Raises:
        PareError: There is none, or its keys cannot be made out.
    """
    inside = [(outer, slot(model, outer)), *named_slots(slot(model, outer), outer)]
    found = [(path, plain(module)) for path, module in inside if uses_interface(plain(module))]
    if len(found) != 1 or not hasattr(found[0][1], "config"):
        raise PareError(
            f"{where} cannot carry a prefix: its attention ({type(plain(slot(model, outer))).__name__}) does "
            "not go through transformers' attention interface; use lora, adapter or bias there"
        )
    path, module = found[0]
    config = plain_config(module)
    name = config._attn_implementation
    if name not in SUPPORTED or getattr(module, "reorder_and_upcast_attn", False):
        raise PareError(
            f"{where} cannot carry a prefix with {name!r} attention as configured; load the model with "
            f"attn_implementation={SUPPORTED[1]!r} and reorder_and_upcast_attn off"
        )
    longest = getattr(config, "max_position_embeddings", None) or math.inf
    return _Place(block, label, path, _key_width(where, module), longest)


def _key_width(where: str, module: nn.Module) -> int:
    """Key heads times head width of an attention module, checked against its projections."""
    holders = (module, plain_config(module))
    heads = next((getattr(holder, n) for holder in holders for n in _HEADS if hasattr(holder, n)), None)
    head_width = next((getattr(module, n) for n in _HEAD_WIDTH if hasattr(module, n)), None)
    if isinstance(heads, int) and isinstance(head_width, int):
        full = heads * head_width
        width = full // getattr(module, "num_key_value_groups", 1)
        layers = [plain(m) for _, m in named_slots(module) if isinstance(plain(m), nn.Linear | Conv1D)]
        outputs = [width_of(layer)[1] for layer in layers]
        if outputs.count(width) >= 2 or {2 * width, full + 2 * width} & set(outputs):
            return width
    raise PareError(f"{where} cannot carry a prefix: the width of its keys cannot be made out")
