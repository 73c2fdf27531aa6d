"""LoRA (arXiv 2106.09685): ``y = W x + (alpha / r) B A x``, by peft's own layers."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
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
from paretune.strategies.blocks import check_called, width_of
from paretune.strategies.outputs import move_outputs
from paretune.strategies.paths import named_slots, plain, put, slot

_FACTORS = ("lora_A", "lora_B")
# Their fused kernels read this weight past its layer, so that peft refuses it.
_MAMBA = frozenset({"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"})
_FUSED = "out_proj"


class Lora:
    """Low-rank update of a Linear or Conv1D layer; the size is the rank.

    Settings:
        alpha: Numerator of the scale ``alpha / r``. None (default) means ``2 * r``, so that the scale is 2 at
            every rank and one learning rate serves modules of different ranks.
        dropout: Probability that an input of A is dropped while training. Default 0.0.
        seed: Seed of A's initial values (uniform as peft's, Kaiming with a = sqrt 5); B starts at zero, so
            that attaching changes no output. Default 0.
    """

    name: ClassVar[str] = "lora"
    unit: ClassVar[str] = "rank"
    defaults: ClassVar[Mapping[str, Any]] = {"alpha": None, "dropout": 0.0, "seed": 0}

    def count(self, model: nn.Module, module: str, size: int, settings: Mapping[str, Any]) -> int:
        """``r * (in + out)``."""
        check_size(self, module, size)
        return size * self._width(model, module, settings)

    def size(self, model: nn.Module, module: str, count: int, settings: Mapping[str, Any]) -> int:
        """``count // (in + out)``."""
        return max(count, 0) // self._width(model, module, settings)

    def attach(self, model: nn.Module, additions: Sequence[Addition], name: str = "paretune") -> Attached:
        """Wrap the modules in peft's layers; see :class:`~paretune.strategies.base.Strategy`."""
        check_additions(self, model, additions, name)
        _refuse_shared(model, additions)
        for addition in additions:
            _refuse_taken(addition.module, slot(model, addition.module), name)
        attached = AttachedLora(model, name, tuple(addition.module for addition in additions))
        try:
            _inject(model, additions, name)
            for addition in additions:
                layer = slot(model, addition.module)
                move_outputs(plain(layer), layer)
            _initialise(model, additions, name)
        except BaseException:
            attached.detach()
            raise
        return attached

    def _width(self, model: nn.Module, module: str, settings: Mapping[str, Any]) -> int:
        """Inputs plus outputs of a module that can carry LoRA."""
        full = read_settings(self, module, settings)
        check_number(self.name, module, "dropout", full["dropout"], 0.0, 1.0)
        if full["alpha"] is not None:
            check_number(self.name, module, "alpha", full["alpha"], 0.0, math.inf)
            if not full["alpha"]:
                raise PareError(f"lora on {module}: alpha 0 switches it off; leave the addition out instead")
        target = plain(slot(model, module))
        check_called(model, module)
        if carries_lora(model, module):
            return sum(width_of(target))
        if isinstance(target, nn.Linear):
            raise PareError(
                f"lora cannot be added to {module}: Mamba's kernels read its weight past the layer"
            )
        raise PareError(f"lora fits Linear and Conv1D layers; {module} is a {type(target).__name__}")


def carries_lora(model: nn.Module, module: str) -> bool:
    """Whether the module at a path is a layer that LoRA can be added to."""
    mamba = getattr(getattr(model, "config", None), "model_type", None) in _MAMBA
    fused = mamba and module.rpartition(".")[2] == _FUSED
    return isinstance(plain(slot(model, module)), nn.Linear | Conv1D) and not fused


@dataclass
class AttachedLora:
    """The LoRA layers of one attachment.

    Args:
        model: The model that carries them.
        name: The attachment's name, peft's adapter name.
        modules: Paths of the wrapped modules in the plain model.
    """

    model: nn.Module
    name: str
    modules: tuple[str, ...]
    merged: bool = False

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """A of shape (r, in) and B of shape (out, r) of every module."""
        found = {
            tensor_key("lora", module, f"{factor}.weight"): getattr(layer, factor)[self.name].weight
            for module, layer in self._layers()
            for factor in _FACTORS
        }
        return dict(sorted(found.items()))

    @property
    def unmergeable(self) -> str | None:
        """Set when a base weight is quantised or tied to another module's."""
        for module, layer in self._layers():
            weight = _weight(layer)
            if not weight.is_floating_point():
                return f"{module} has quantised weights; load the model in a floating-point dtype"
            sharing = [path for path, other in named_slots(self.model) if _owns(plain(other), weight)]
            others = [path for path in sharing if path != module]
            if others:
                return f"the weight of {module} is tied to {others[0]}; untie it first"
        return None

    def detach(self) -> None:
        """Put the plain modules back."""
        if self.merged:
            raise PareError(f"attachment {self.name!r} was merged; load the base model again to get it back")
        self._unwrap()

    def merge(self) -> None:
        """``W + (alpha / r) B A``, computed in fp32 at least and rounded once to the base dtype."""
        if self.merged or not self.modules:
            raise PareError(f"attachment {self.name!r} is not on the model any more; nothing to merge")
        if self.unmergeable:
            raise PareError(self.unmergeable)
        with torch.no_grad():
            for _, layer in self._layers():
                weight = _weight(layer)
                weight.copy_(weight.to(master_dtype(weight.dtype)) + layer.get_delta_weight(self.name))
        self._unwrap()
        self.merged = True

    def _layers(self) -> Iterator[tuple[str, Any]]:
        """The peft layers that hold this attachment (none before attaching and after detaching)."""
        for module in self.modules:
            layer = slot(self.model, module)
            if isinstance(layer, LoraLayer) and self.name in layer.lora_A:
                yield module, layer

    def _unwrap(self) -> None:
        for module, layer in list(self._layers()):
            # peft turns gradients on for the layer's other attachments; theirs are not ours to change.
            flags = [(parameter, parameter.requires_grad) for parameter in layer.parameters()]
            layer.delete_adapter(self.name)
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
            if not layer.lora_A:
                move_outputs(layer, layer.base_layer)
                put(self.model, module, layer.base_layer)
        self.modules = ()


def _weight(layer: nn.Module) -> nn.Parameter:
    """The base weight inside a peft layer."""
    weight = plain(layer).weight
    assert isinstance(weight, nn.Parameter)
    return weight


def _owns(module: nn.Module, weight: nn.Parameter) -> bool:
    return any(parameter is weight for parameter in module.parameters(recurse=False))


def _refuse_shared(model: nn.Module, additions: Sequence[Addition]) -> None:
    """Peft would wrap such a module at its first path and leave the others plain."""
    paths: dict[int, list[str]] = defaultdict(list)
    for path, module in named_slots(model):
        paths[id(plain(module))].append(path)
    for addition in additions:
        same = paths[id(plain(slot(model, addition.module)))]
        if len(same) > 1:
            raise PareError(f"lora cannot be added to {same[0]}: {same[1]} is the same module")


def _refuse_taken(module: str, layer: nn.Module, name: str) -> None:
    """Refuse a layer that has this name already, or that peft does not compute just now."""
    if isinstance(layer, LoraLayer) and name in layer.lora_A:
        raise PareError(f"{module} has a lora named {name!r} already; take another name")
    if isinstance(layer, LoraLayer) and (layer.merged or layer.disable_adapters):
        state = "merged into it" if layer.merged else "disabled"
        raise PareError(
            f"{module} holds peft adapters that are {state}; unmerge, enable or unload them first"
        )


def _inject(model: nn.Module, additions: Sequence[Addition], name: str) -> None:
    """Let peft wrap the modules, and undo what it changes beyond them."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    layers = [layer for _, layer in named_slots(model) if isinstance(layer, LoraLayer)]
    active = {id(layer): layer.active_adapter for layer in layers}
    try:
        # Layers are built from the global random state before the seeded values replace theirs.
        with torch.random.fork_rng(devices=[]):
            for group in _groups(model, additions):
                _inject_group(model, group, name)
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        _activate(model, active, name)


def _activate(model: nn.Module, active: Mapping[int, str | list[str]], name: str) -> None:
    """Let every peft layer use what it used before, and ours where it is: peft left ours alone active."""
    for _, layer in named_slots(model):
        if isinstance(layer, LoraLayer):
            before = active.get(id(layer), [])
            listed = [before] if isinstance(before, str) else list(before)
            layer._active_adapter = [*listed, name] if name in layer.lora_A else before


def _groups(model: nn.Module, additions: Sequence[Addition]) -> list[list[Addition]]:
    """Additions that one ``LoraConfig`` describes without patterns: all its fields equal."""
    groups: dict[tuple, list[Addition]] = defaultdict(list)
    for addition in additions:
        transposed = isinstance(plain(slot(model, addition.module)), Conv1D)
        groups[addition.size, _alpha(addition), _dropout(addition), transposed].append(addition)
    return list(groups.values())


def _inject_group(model: nn.Module, additions: Sequence[Addition], name: str) -> None:
    """Let peft wrap these modules and no others.

    peft meets the model inside another that has no configuration: of some families (experts) it would make
    other targets out of ours, and it would leave its own configuration on the model, where ours is the plan.
    """
    first = additions[0]
    holder = nn.Module()
    holder.add_module("model", model)
    config = LoraConfig(
        r=first.size,
        lora_alpha=_alpha(first),  # type: ignore[arg-type]  # any number will do
        target_modules="|".join(re.escape(f"model.{addition.module}") for addition in additions),
        lora_dropout=_dropout(first),
        fan_in_fan_out=isinstance(plain(slot(model, first.module)), Conv1D),
    )
    inject_adapter_in_model(config, holder, adapter_name=name)


def _alpha(addition: Addition) -> float:
    alpha = addition.settings.get("alpha")
    return 2 * addition.size if alpha is None else alpha


def _dropout(addition: Addition) -> float:
    return float(addition.settings.get("dropout", Lora.defaults["dropout"]))


def _initialise(model: nn.Module, additions: Sequence[Addition], name: str) -> None:
    """Seeded A, zero B, in fp32 at least; dropout as the module's own mode."""
    for addition in additions:
        layer = slot(model, addition.module)
        if not isinstance(layer, LoraLayer) or name not in layer.lora_A:
            raise PareError(f"peft has no LoRA layer for {addition.module}; leave it out of the plan")
        key = tensor_key("lora", addition.module, "lora_A.weight")
        seed = addition.settings.get("seed", Lora.defaults["seed"])
        first, second = (getattr(layer, factor)[name] for factor in _FACTORS)
        dtype = master_dtype(_weight(layer).dtype)
        bound = 1 / math.sqrt(first.weight.shape[1])
        values = torch.empty(first.weight.shape).uniform_(-bound, bound, generator=seeded(seed, key))
        with torch.no_grad():
            first.to(dtype).weight.copy_(values)
            second.to(dtype).weight.zero_()
        for parameter in (first.weight, second.weight):
            parameter.requires_grad_(True)
        layer.train(plain(layer).training)
