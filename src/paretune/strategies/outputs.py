"""What attachments add to a module's output: vectors first, then adapters, whatever came first.

The added modules are a child of the module whose output they change, and one forward hook finds them there.
So they move, copy and replicate with it. Where peft wraps that module, the child moves to the wrapper: the
output that is changed is always the whole output, low-rank updates included.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from paretune.errors import PareError
from paretune.strategies.base import master_dtype, tensor_key
from paretune.strategies.paths import ADDED, plain, slot

_CHILD = f"{ADDED}output"


class Outputs(nn.Module):
    """Everything added to one module's output, by kind and attachment name."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.ModuleDict()
        self.adapter = nn.ModuleDict()
        self.hook: torch.utils.hooks.RemovableHandle | None = None

    def forward(self, output: torch.Tensor) -> torch.Tensor:
        """Add the vectors, then run through the adapters in the order in which they were attached."""
        for added in (*self.bias.values(), *self.adapter.values()):
            output = added(output)
        return output


@dataclass(frozen=True)
class Place:
    """Where one added module sits.

    Args:
        module: The path that the addition names.
        label: What stands before its tensors' names in their keys ("" for nothing).
        path: Path of the module whose output it changes.
    """

    module: str
    label: str
    path: str


@dataclass
class AttachedOutputs:
    """The modules that one attachment adds to outputs.

    Args:
        model: The model that carries them.
        name: The attachment's name.
        kind: The strategy.
        places: Where they sit.
        unmergeable: Why they cannot be folded into base weights.
    """

    model: nn.Module
    name: str
    kind: Literal["bias", "adapter"]
    places: tuple[Place, ...]
    unmergeable: str

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """Trained tensors by key, sorted."""
        found = {
            tensor_key(self.kind, place.module, f"{place.label}{tensor}"): parameter
            for place, added in self._added()
            for tensor, parameter in added.named_parameters()
        }
        return dict(sorted(found.items()))

    def detach(self) -> None:
        """Take the added modules away; the last one takes the hook with it."""
        for place, _ in list(self._added()):
            host = slot(self.model, place.path)
            outputs = host._modules[_CHILD]
            assert isinstance(outputs, Outputs)
            del getattr(outputs, self.kind)[self.name]
            if not outputs.bias and not outputs.adapter:
                _unhook(host)
        self.places = ()

    def merge(self) -> None:
        """Always refused: see ``unmergeable``."""
        raise PareError(self.unmergeable)

    def _added(self) -> Iterator[tuple[Place, nn.Module]]:
        for place in self.places:
            outputs = slot(self.model, place.path)._modules.get(_CHILD)
            if outputs is not None and self.name in getattr(outputs, self.kind):
                yield place, getattr(outputs, self.kind)[self.name]


def has_output(model: nn.Module, path: str, kind: str, name: str) -> bool:
    """Whether an attachment of this name adds to a module's output already."""
    outputs = slot(model, path)._modules.get(_CHILD)
    return outputs is not None and name in getattr(outputs, kind)


def add_output(model: nn.Module, path: str, kind: str, name: str, added: nn.Module) -> None:
    """Let ``added`` change the output of the module at a path, on its device and in fp32 at least."""
    host = slot(model, path)
    weight = next(plain(host).parameters(recurse=False))
    added.to(device=weight.device, dtype=master_dtype(weight.dtype)).train(host.training)
    if _CHILD not in host._modules:
        _hook(host, Outputs().train(host.training))
    getattr(host._modules[_CHILD], kind)[name] = added


def move_outputs(source: nn.Module, target: nn.Module) -> None:
    """Let what is added to one module's output be added to another's: the peft layer's, or back."""
    outputs = source._modules.get(_CHILD)
    if isinstance(outputs, Outputs):
        _unhook(source)
        _hook(target, outputs)


def _hook(host: nn.Module, outputs: Outputs) -> None:
    host.add_module(_CHILD, outputs)
    outputs.hook = host.register_forward_hook(_change_output)


def _unhook(host: nn.Module) -> None:
    outputs = host._modules.pop(_CHILD)
    assert isinstance(outputs, Outputs) and outputs.hook is not None
    outputs.hook.remove()


def _change_output(module: nn.Module, _: tuple, output: torch.Tensor) -> torch.Tensor:
    outputs = module._modules[_CHILD]
    assert outputs is not None
    return outputs(output)
