"""Deltas on a model in memory: several at a time, applied and reverted in any order, bit for bit."""

from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import nn

from paretune.delta.contents import Contents
from paretune.delta.fits import check_base, check_exact, check_tensors
from paretune.delta.weights import DigestCache, Kept, Parameters, Places, write
from paretune.errors import PareError
from paretune.strategies import Attached, attach_additions

_STATE = "_paretune_applied"  # the model's attribute that says what is applied to it, while something is
_caches: WeakKeyDictionary[nn.Module, DigestCache] = WeakKeyDictionary()


@dataclass(eq=False)
class Applied:
    """A delta that is on a model; also a context manager that reverts it at the end.

    Attributes:
        model: The model.
        delta: The delta.
        merge: Whether added modules were folded into the weights.
        name: Name under which its modules are attached.
        positions: Flat places of each tensor's values; None for a whole tensor.
        places: What it writes to, by first name: these, and weights that modules are merged into.
        attached: Its added modules, while they are on the model.
    """

    model: nn.Module
    delta: Contents
    merge: bool
    name: str
    positions: Places
    places: Places
    attached: Attached | None = None

    def revert(self) -> None:
        """Take the delta off: the model is, bit for bit, what it is without it.

        The other deltas stay and keep their order. Reverting twice does nothing the second time.
        """
        state = _state(self.model)
        if self in state.active:
            state.remove(self, Parameters.of(self.model))

    def __enter__(self) -> "Applied":
        return self

    def __exit__(self, *_: object) -> None:
        self.revert()


@dataclass(eq=False)
class _State:
    """What is on one model, in the order of application; where two overlap, the later one holds."""

    model: nn.Module
    active: list[Applied] = field(default_factory=list)
    kept: Kept = field(default_factory=Kept)

    @property
    def cache(self) -> DigestCache:
        """What is known about the base's digest."""
        return _caches.setdefault(self.model, DigestCache())

    def check(self, delta: Contents, parameters: Parameters) -> None:
        """Refuse a delta that is for another model."""
        check_tensors(delta, self.model, parameters)
        check_base(delta, self.model, self.cache.get(self.model, parameters, self.kept, delta.head))

    def add(self, applied: Applied, parameters: Parameters) -> None:
        """Put a checked delta on the model; after an error the model is as it was."""
        applied.attached = _attach(applied)
        try:
            self.kept = self.kept.with_places(parameters, applied.places)
        except BaseException:
            _detach(applied)
            raise
        self.active.append(applied)
        try:
            _write(applied, parameters)
        except BaseException:
            self.remove(applied, parameters)
            raise
        self.model.__dict__[_STATE] = self
        self.cache.stamp(parameters)

    def remove(self, applied: Applied, parameters: Parameters) -> None:
        """Take a delta off the model."""
        fresh = self.cache.fresh(parameters)
        _detach(applied)
        self.active.remove(applied)
        # Folding a module in reads the weight it writes, so such deltas are put on again from the base.
        again = any(other.merge for other in [applied, *self.active])
        names = set(self.kept.values if again else applied.places)
        self.kept.restore(parameters, names)
        for other in self.active:
            _write(other, parameters, names)
        self.kept = self.kept.only([other.places for other in self.active])
        if not self.active:
            self.model.__dict__.pop(_STATE, None)
        if fresh:
            self.cache.stamp(parameters)


def apply(delta: Contents, model: nn.Module, merge: bool = False) -> Applied:
    """Put a delta on a model.

    Args:
        delta: What to apply.
        model: The untouched base, or the base with other deltas that were applied by this function; changed
            in place.
        merge: Fold added modules into the base weights instead of attaching them.

    Returns:
        The applied delta, which can be reverted.

    Raises:
        PareError: The delta is for another model, dtype or task, or a module cannot be merged. The model is
            bit-equal to what it was.
    """
    state = _state(model)
    parameters = Parameters.of(model)
    state.check(delta, parameters)
    positions = {name: values.positions() for name, values in delta.tensors.items()}
    merge = merge and bool(delta.additions)
    places = _places(delta, merge, positions, parameters)
    applied = Applied(model, delta, merge, _free_name(state), positions, places)
    state.add(applied, parameters)
    return applied


def check(delta: Contents, model: nn.Module) -> None:
    """Refuse a delta that cannot be applied to a model; the model is not touched.

    Raises:
        PareError: As :func:`apply`.
    """
    state = _state(model)
    state.check(delta, Parameters.of(model))
    trial = Applied(model, delta, False, _free_name(state), {}, {})
    trial.attached = _attach(trial)
    _detach(trial)


def fold(delta: Contents, model: nn.Module) -> None:
    """Put a delta on a model for good: nothing is kept to go back to, added modules become weights.

    Raises:
        PareError: As :func:`apply`, or other deltas are applied to the model.
    """
    if _state(model).active:
        raise PareError("other deltas are applied to this model; revert them before folding one in for good")
    apply(delta, model, merge=True)
    del model.__dict__[_STATE], _caches[model]


def applied_to(model: nn.Module) -> tuple[Applied, ...]:
    """The deltas that are on a model, in the order in which they were applied."""
    return tuple(_state(model).active)


def _state(model: nn.Module) -> _State:
    return model.__dict__.get(_STATE) or _State(model)


def _free_name(state: _State) -> str:
    """A name for added modules that no applied delta uses."""
    taken = {applied.name for applied in state.active}
    return next(name for n in range(len(taken) + 1) if (name := f"delta{n}") not in taken)


def _places(delta: Contents, merge: bool, positions: Places, parameters: Parameters) -> Places:
    """What a delta writes to, by first name: its values, and the weights that modules are merged into."""
    first = parameters.first_names
    places = {first[name]: where for name, where in positions.items()}
    if merge:
        merged = (f"{addition.module}.weight" for addition in delta.additions)
        places.update({first[name]: None for name in merged if name in first})
    return places


def _attach(applied: Applied) -> Attached | None:
    """Attach the added modules with their values, or nothing where there are none."""
    delta = applied.delta
    if not delta.additions:
        return None
    attached = attach_additions(applied.model, delta.additions, name=applied.name)
    try:
        if applied.merge and attached.unmergeable:
            raise PareError(attached.unmergeable)
        _fill(attached, delta)
    except BaseException:
        attached.detach()
        raise
    return attached


@torch.no_grad()
def _fill(attached: Attached, delta: Contents) -> None:
    """Give added modules the delta's values."""
    tensors = attached.tensors
    different = sorted(set(tensors) ^ set(delta.added))
    if different:
        raise PareError(f"added tensor {different[0]!r} is in the delta or in the model, not in both")
    for key, values in delta.added.items():
        if values.shape != tensors[key].shape:
            raise PareError(
                f"{key} has shape {list(values.shape)} in the delta, {list(tensors[key].shape)} in the model"
            )
        check_exact(key, values, tensors[key].dtype)
        tensors[key].copy_(values)


def _detach(applied: Applied) -> None:
    if applied.attached is not None:
        applied.attached.detach()
        applied.attached = None


def _write(applied: Applied, parameters: Parameters, names: set[str] | None = None) -> None:
    """Write a delta's values into the model's weights, of all tensors or of these, and merge if it merges."""
    for name, values in applied.delta.tensors.items():
        first = parameters.first_names[name]
        if names is None or first in names:
            write(parameters.by_name[first], applied.positions[name], values.values)
    if applied.merge:
        attached = applied.attached or _attach(applied)
        assert attached is not None
        applied.attached = None
        try:
            attached.merge()
        except BaseException:
            attached.detach()
            raise
