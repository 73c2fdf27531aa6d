"""Write-through weights: train some entries of a frozen tensor as one small fp32 parameter.

The frozen tensor ``W`` stays where it is, under its name, and holds the current values. Its selected
entries are trained as a parameter ``v`` of their own. Whenever ``W`` takes part in an operation, autograd
sees an alias of it (no copy) whose gradient is gathered at the selected entries and handed to ``v`` (linear
layers and look-ups do without that dense gradient, see :mod:`paretune.tuning.operations`); before that,
``v`` is written into ``W`` when it has changed. So optimiser state and kept gradients have the size of
the selection, and no weight decay, clipping or momentum can reach an unselected weight.

The interception is a subclass of ``nn.Parameter`` with ``__torch_function__``: no module is wrapped, no name
changes, and it holds wherever the weight is read: by its own module, by a parent, in a tied layer, or
in the recomputation of gradient checkpointing.
"""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._pytree import tree_map_only

from paretune.errors import PareError
from paretune.plan import Selection
from paretune.tuning.operations import OPERATIONS
from paretune.tuning.pattern import Pattern

_VIEWS = ("T", "mT", "H", "mH", "real")  # attributes that compute with the weight; all others describe it


class Slot:
    """One selected tensor: the frozen weight, what is trained of it, and the values to go back to.

    Args:
        weight: The frozen parameter, of any floating dtype.
        selection: Which part of it is trained.

    Attributes:
        values: The trained parameter: fp32, shape (count,); for a whole tensor the tensor's own shape.
        original: The base values, in the weight's dtype and the shape of ``values``.
    """

    def __init__(self, weight: nn.Parameter, selection: Selection) -> None:
        if type(weight) is not nn.Parameter:
            raise PareError(
                f"{selection.tensor}: a {type(weight).__name__} cannot be trained in part; detach it first"
            )
        if not weight.is_contiguous():
            raise PareError(f"{selection.tensor}: not contiguous in memory; call .contiguous() on it first")
        self.selection = selection
        self.weight = weight
        self.index = None if selection.granularity == "all" else _index(selection.flat(), weight)
        self.original = self._read().clone()
        self.values = nn.Parameter(
            self.original.float() if weight.dtype.itemsize < 4 else self.original.clone()
        )
        self._pattern: Pattern | None = None
        self._written = self._state()
        _watch_optimizers()
        weight.requires_grad_(False)
        weight.__class__ = TunedWeight
        weight.slot = self  # type: ignore[attr-defined]

    def release(self) -> None:
        """Put the base values back, bit for bit, and let the weight be an ordinary parameter again."""
        self.weight.__class__ = nn.Parameter
        del self.weight.slot  # type: ignore[attr-defined]
        with torch.no_grad():
            self._write(self.weight, self.original)

    def set_aside(self) -> None:
        """Let the weight be an ordinary parameter with its current values, until :meth:`take_up`."""
        self.synchronise()
        self.weight.__class__ = nn.Parameter
        del self.weight.slot  # type: ignore[attr-defined]

    def take_up(self) -> None:
        """Go on after :meth:`set_aside`; the weight must be bit-equal to what it was."""
        self.weight.__class__ = TunedWeight
        self.weight.slot = self  # type: ignore[attr-defined]
        self._written = self._state()

    def current(self) -> Tensor:
        """The trained values as the model uses them: in the weight's dtype, shape of ``values``."""
        self.synchronise()
        return self.values.detach().to(self.weight.dtype)

    def synchronise(self) -> None:
        """Make weight and values agree: new values go into the weight, a loaded weight into the values."""
        state = self._state()
        if state == self._written:
            return
        values, weight, steps = state
        with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
            if weight != self._written[1]:
                self._take_over()
            elif values != self._written[0]:
                self._write(self.weight, self.values)
            elif steps != self._written[2]:
                # An optimiser that updates behind autograd's back: write there too, or a backward
                # still under way would be told that its weight had changed.
                self._write(self.weight.data, self.values)
        self._written = self._state()

    @property
    def learns(self) -> bool:
        """Whether an operation now would have to hand the values a gradient."""
        return torch.is_grad_enabled() and self.values.requires_grad

    @property
    def pattern(self) -> Pattern | None:
        """Where the selected entries of a matrix lie; None for a whole tensor, or one that is no matrix."""
        if self.index is None or self.weight.dim() != 2:
            return None
        if self._pattern is None or self._pattern.flat.device != self.weight.device:
            rows, columns = self.weight.shape
            self._pattern = Pattern(self.index_here(), (rows, columns))
        return self._pattern

    def alias(self) -> Tensor:
        """The weight for one operation: current values, and a way back for the gradient."""
        self.synchronise()
        with torch._C.DisableTorchFunctionSubclass():
            if self.learns:
                return _Alias.apply(self.weight.detach(), self.values, self)
            return self.weight.detach()

    def gather(self, gradient: Tensor) -> Tensor:
        """The dense gradient of the weight at the selected entries, as a gradient of ``values``."""
        if gradient.is_sparse:
            gradient = gradient.to_dense()
        if self.index is not None:
            gradient = gradient.reshape(-1)[self.index_here()]
        return gradient.to(self.values.dtype)

    def _state(self) -> tuple[int, int, int]:
        return self.values._version, _version(self.weight), _steps

    def index_here(self) -> Tensor:
        """The flat indices, on the device of the weight."""
        assert self.index is not None
        if self.index.device != self.weight.device:
            self.index = self.index.to(self.weight.device)
        return self.index

    def _read(self) -> Tensor:
        weight = self.weight.detach()
        return weight if self.index is None else weight.reshape(-1)[self.index_here()]

    def _write(self, weight: Tensor, values: Tensor) -> None:
        values = values.detach().to(device=weight.device, dtype=weight.dtype)
        if self.index is None:
            weight.copy_(values)
        else:
            weight.view(-1).index_put_((self.index_here(),), values)

    def _take_over(self) -> None:
        """The weight was changed from outside (``load_state_dict``): the differing values follow it."""
        now = self._read()
        same = now == self.values.to(now.dtype)
        self.values.copy_(torch.where(same, self.values, now.to(self.values.dtype)))


class TunedWeight(nn.Parameter):
    """A frozen parameter of which a part is trained; made by :class:`Slot`, never by hand."""

    slot: Slot

    @classmethod
    @torch.compiler.disable  # whether values changed is no part of a graph: torch.compile compiles in between
    def __torch_function__(
        cls, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute with an alias whose gradient reaches the values; describe and modify the weight itself."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if _is_about_itself(func, name):
            for weight in args:
                if isinstance(weight, cls):
                    weight.slot.synchronise()
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        place, operation = OPERATIONS.get(func, (len(args), None))
        weight = args[place] if place < len(args) else None
        if operation and isinstance(weight, cls) and weight.slot.learns:
            weight.slot.synchronise()
            others = [weight.slot if n == place else _aliased(each) for n, each in enumerate(args)]
            with torch._C.DisableTorchFunctionSubclass():
                result = operation(*others, **{name: _aliased(each) for name, each in kwargs.items()})
            if result is not None:
                return result
        with torch._C.DisableTorchFunctionSubclass():
            return func(*_aliased(args), **_aliased(kwargs))

    def __deepcopy__(self, memo: dict[int, Any]) -> "TunedWeight":
        """A copy bound to the copy of its slot."""
        if id(self) in memo:
            return memo[id(self)]
        with torch._C.DisableTorchFunctionSubclass():
            twin = nn.Parameter(self.detach().clone(), requires_grad=False)
        memo[id(self)] = twin
        slot = copy.copy(self.slot)
        memo[id(self.slot)] = slot
        slot.weight = twin
        slot.values = copy.deepcopy(self.slot.values, memo)
        slot._written = slot._state()
        twin.__class__ = TunedWeight
        twin.slot = slot  # type: ignore[attr-defined]
        return twin  # type: ignore[return-value]


# Methods that say something about a tensor and never need its trained values.
_DESCRIPTIONS = frozenset(
    {"size", "dim", "ndimension", "stride", "numel", "nelement", "element_size", "storage_offset"}
    | {"get_device", "data_ptr", "untyped_storage", "_typed_storage", "has_names", "register_hook"}
    | {"register_post_accumulate_grad_hook", "__len__", "__hash__", "__repr__", "__format__", "__dir__"}
)


def _is_about_itself(func: Callable, name: str) -> bool:
    """Whether an operation describes or modifies the weight, rather than computes with it."""
    if name in ("__get__", "__set__", "__delete__"):
        attribute = getattr(getattr(func, "__self__", None), "__name__", "")
        return name != "__get__" or attribute not in _VIEWS
    if name in _DESCRIPTIONS or name.startswith(("is_", "_is_")):
        return True
    return name.endswith("_") and not name.endswith("__")


def _aliased(arguments: Any) -> Any:
    """Arguments of an operation, with aliases in place of tuned weights."""
    return tree_map_only(TunedWeight, lambda weight: weight.slot.alias(), arguments)


class _Alias(torch.autograd.Function):
    """Forward: the weight, not copied. Backward: its gradient at the selected entries."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, values: Tensor, slot: Slot) -> Tensor:
        ctx.slot = slot
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        return None, ctx.slot.gather(gradient), None


def _index(flat: np.ndarray, weight: Tensor) -> Tensor:
    """Flat indices on the weight's device, in the smallest type that indexing takes."""
    small = weight.numel() <= np.iinfo(np.int32).max
    return torch.from_numpy(flat.astype(np.int32 if small else np.int64)).to(weight.device)


def _version(weight: Tensor) -> int:
    with torch._C.DisableTorchFunctionSubclass():
        return weight._version


_steps = 0  # optimiser steps taken in this process, by any optimiser
_watching = False


def _watch_optimizers() -> None:
    """Count optimiser steps: some optimisers change values without autograd's version counter noticing."""
    global _watching
    if not _watching:
        register_optimizer_step_post_hook(_count_step)
        _watching = True


def _count_step(*_: Any) -> None:
    global _steps
    _steps += 1
