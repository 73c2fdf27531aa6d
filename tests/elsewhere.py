"""A device that is not there: tensors that say they are on a GPU, and behave so, on any machine.

Their numbers lie in ordinary memory. What a GPU refuses is refused: an operation over tensors of both
devices, NumPy's view of them, a generator of the CPU. So code that forgets to move something fails here, and
not first on somebody's GPU. Kernels, speed and memory are not what this tests.
"""

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, autocast, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only

# The one kind beside the CPU that every build of PyTorch knows; "meta" tensors proper have no numbers.
DEVICE = torch.device("meta")
# Between devices: copies; and what a GPU takes from the CPU, as indices.
CROSSING = {"aten::copy_", "aten::_to_copy", "aten::index.Tensor", "aten::index_put_", "aten::index_put"}
FROM_DATA = ("tensor", "as_tensor", "asarray", "scalar_tensor")
AUTOCAST = ("autocast", "is_autocast_enabled")


class Elsewhere(Tensor):
    """A tensor on the device that is not there, around one in ordinary memory."""

    inner: Tensor
    is_meta = False  # it has numbers

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Elsewhere":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride() if inner.layout == torch.strided else None,
            storage_offset=inner.storage_offset() if inner.layout == torch.strided else 0,
            dtype=inner.dtype,
            layout=inner.layout,
            device=DEVICE,
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def new_tensor(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.inner.new_tensor(*args, **kwargs).to(DEVICE)

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.inner!r})"


class DeviceElsewhere(TorchDispatchMode):
    """Within it ``torch.ones(3, device=DEVICE)`` is a tensor of the sort, and :func:`move` moves a model."""

    def __enter__(self) -> Any:
        self._held = ExitStack()
        self._held.enter_context(
            torch.autograd.set_multithreading_enabled(False)
        )  # other threads have no mode
        for name in FROM_DATA:
            self._held.enter_context(patch.object(torch, name, _with_numbers(getattr(torch, name))))
        for name in AUTOCAST:
            self._held.enter_context(patch.object(torch, name, _without_autocast(getattr(torch, name))))
        return super().__enter__()

    def __exit__(self, *problem: Any) -> None:
        super().__exit__(*problem)
        self._held.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def move(model: nn.Module) -> nn.Module:
    """What ``model.to(DEVICE)`` would do: shared weights stay shared."""
    moved: dict[nn.Parameter, nn.Parameter] = {}  # which also keeps the old ones, and so their identity
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter not in moved:
                moved[parameter] = nn.Parameter(parameter.detach().to(DEVICE), parameter.requires_grad)
            setattr(module, name, moved[parameter])
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(DEVICE))
    return model


def _with_numbers(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function that makes tensors of data, without losing them where the device is this one."""

    def made(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        here = make(*args, **kwargs, device=None if device is None else "cpu")
        return here if device is None else here.to(device)

    return made


def _without_autocast(call: Callable[..., Any]) -> Callable[..., Any]:
    """Autocast, which PyTorch does not know for this device."""

    def called(device: Any = None, *args: Any, **kwargs: Any) -> Any:
        if device == DEVICE.type:
            return nullcontext() if call is autocast else False
        return call(*([] if device is None else [device]), *args, **kwargs)

    return called


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func.name()
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
    there = [each for each in tensors if isinstance(each, Elsewhere)]
    here = [each for each in tensors if not isinstance(each, Elsewhere) and each.dim()]
    if any(each.device.type == DEVICE.type for each in tensors if not isinstance(each, Elsewhere)):
        raise RuntimeError(f"{name}: a tensor of {DEVICE} has no numbers; it was made outside of the mode")
    if there and here and name not in CROSSING:
        raise RuntimeError(f"{name}: expected all tensors on the same device, found {DEVICE} and cpu")
    asked = kwargs.get("device")
    goes = bool(there) if asked is None else torch.device(asked).type == DEVICE.type
    if name == "aten::copy_":
        goes = isinstance(args[0], Elsewhere)
    generator = kwargs.get("generator")
    if goes and generator is not None and generator.device.type != DEVICE.type:
        raise RuntimeError(f"{name}: expected a generator of {DEVICE}, found one of the CPU")
    if asked is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    inner_args, inner_kwargs = tree_map_only(Elsewhere, lambda each: each.inner, (args, kwargs))
    found = func(*inner_args, **inner_kwargs)
    if not goes:
        return found
    made = tree_map(lambda each: Elsewhere(each) if isinstance(each, Tensor) else each, found)
    return return_and_correct_aliasing(func, args, kwargs, made) if there else made
