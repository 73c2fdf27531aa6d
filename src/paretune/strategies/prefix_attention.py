"""Attention over trained keys and values too, through transformers' attention interface.

An attention module that carries a prefix reads its implementation's name from a view of its config, which
says ``paretune_prefix``; the function registered under that name prepends the prefix and calls what the
plain config names (eager or sdpa). The model's own config stays as it is, so masks are made as always.
The prefix comes after rotary positions and after the cache, so it has no position and is never cached.
"""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad
from transformers import AttentionInterface

from paretune.errors import PareError
from paretune.strategies.paths import ADDED

CHILD = f"{ADDED}prefix"
IMPLEMENTATION = f"{ADDED}prefix"
SUPPORTED = ("eager", "sdpa")
_REGISTRY = "ALL_ATTENTION_FUNCTIONS"


class Prefix(nn.Module):
    """Trained keys and values of one attention module.

    Args:
        length: Number of keys.
        width: Key heads times head width.
        std: Standard deviation of the initial values (normal, mean 0).
        generators: Sources of the initial keys and of the initial values.
    """

    def __init__(
        self, length: int, width: int, std: float, generators: tuple[torch.Generator, torch.Generator]
    ) -> None:
        super().__init__()
        first, second = generators
        self.key = nn.Parameter(torch.empty(length, width).normal_(0, std, generator=first))
        self.value = nn.Parameter(torch.empty(length, width).normal_(0, std, generator=second))


class Prefixes(nn.ModuleDict):
    """The prefixes of one attention module by attachment name."""

    def prepend(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of shape (batch, heads, length, width) with the prefixes in front."""
        prefixes = [prefix for prefix in self.values() if isinstance(prefix, Prefix)]
        return (
            torch.cat([*(_like(prefix.key, key) for prefix in prefixes), key], dim=2),
            torch.cat([*(_like(prefix.value, value) for prefix in prefixes), value], dim=2),
        )


class PrefixedConfig:
    """A live view of a config that names another attention implementation.

    Args:
        plain: The config to show; what is set on the view is set there.
    """

    _attn_implementation = IMPLEMENTATION

    def __init__(self, plain: Any) -> None:
        object.__setattr__(self, "plain", plain)

    def __getattr__(self, name: str) -> Any:
        if name == "plain" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.plain, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.plain, name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> "PrefixedConfig":
        return PrefixedConfig(copy.deepcopy(self.plain, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return PrefixedConfig, (self.plain,)


def uses_interface(module: nn.Module) -> bool:
    """Whether a module's own forward asks transformers' attention interface what to call."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and _REGISTRY in code.co_names


def carry(module: nn.Module, name: str, prefix: Prefix) -> None:
    """Let an attention module attend to a prefix."""
    if CHILD not in module._modules:
        module.add_module(CHILD, Prefixes().train(module.training))
        module.config = PrefixedConfig(module.config)  # type: ignore[assignment]
    carried(module)[name] = prefix.train(module.training)


def drop(module: nn.Module, name: str) -> None:
    """Take a prefix away; with the last one the module is plain again."""
    prefixes = carried(module)
    del prefixes[name]
    if not prefixes:
        del module._modules[CHILD]
        module.config = plain_config(module)


def plain_config(module: nn.Module) -> Any:
    """The model's own config, as an attention module had it before it carried a prefix."""
    config: Any = module.config
    return config.plain if isinstance(config, PrefixedConfig) else config


def carried(module: nn.Module) -> Prefixes:
    """The prefixes that a module carries; an empty dict when it carries none."""
    prefixes = module._modules.get(CHILD)
    return prefixes if isinstance(prefixes, Prefixes) else Prefixes()


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention with the module's prefixes in front of its keys and values.

    Args:
        module: An attention module that carries prefixes.
        query: Shape (batch, query heads, queries, width).
        key: Shape (batch, key heads, keys, width); not yet repeated for grouped heads.
        value: As ``key``.
        attention_mask: Broadcastable to (batch, query heads, queries, keys): boolean (True: attend) or
            added to the scores. None: attend to all, or causally when the module does so.
        **kwargs: What the plain function takes; ``position_bias`` is widened as the mask is.

    Returns:
        What the plain function returns: the output of shape (batch, queries, query heads, width), and the
        attention weights over prefixes and keys, or None.

    Raises:
        PareError: The model's attention implementation is neither eager nor sdpa.
    """
    plain_name = plain_config(module)._attn_implementation
    function = _plain_function(module, plain_name)
    queries, keys = query.shape[2], key.shape[2]
    key, value = carried(module).prepend(key, value)
    length = key.shape[2] - keys
    if attention_mask is not None:
        attention_mask = pad(attention_mask, (length, 0), value=attention_mask.dtype == torch.bool)
    elif plain_name == "sdpa" and queries > 1 and _is_causal(module, kwargs):
        # Without a mask sdpa would align "causal" with the first key, which is a prefix now.
        attention_mask = query.new_ones(queries, keys, dtype=torch.bool).tril()
        attention_mask = pad(attention_mask, (length, 0), value=True)[None, None]
    if kwargs.get("position_bias") is not None:
        kwargs["position_bias"] = pad(kwargs["position_bias"], (length, 0))
    return function(module, query, key, value, attention_mask, **kwargs)


def _like(prefix: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """A prefix (length, heads * width) in the shape, device and dtype of keys or values."""
    batch, heads, _, width = states.shape
    shaped = prefix.to(states).view(-1, heads, width).transpose(0, 1)
    return shaped.expand(batch, -1, -1, -1)


def _is_causal(module: nn.Module, kwargs: dict[str, Any]) -> bool:
    """As sdpa decides it: the call's word first, then the module's."""
    said = kwargs.get("is_causal")
    return bool(getattr(module, "is_causal", True) if said is None else said)


def _plain_function(module: nn.Module, name: str) -> Callable:
    """What the module would have called: looked up where its own forward looks it up."""
    if name not in SUPPORTED:
        known = " or ".join(f"model.set_attn_implementation({each!r})" for each in SUPPORTED)
        raise PareError(f"a prefix cannot be attended to by {name!r} attention; call {known}")
    names = inspect.unwrap(type(module).forward).__globals__
    return names[_REGISTRY].get_interface(name, names.get("eager_attention_forward"))


AttentionInterface.register(IMPLEMENTATION, attend)
