"""The weights of a model that deltas are applied to: base values kept aside, and the base's digest.

Everything here speaks of the plain model: names stay valid while added modules wrap parts of it, and a tied
tensor has one name, the first.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from paretune.anatomy import base_digest
from paretune.strategies.paths import plain_view

Places = Mapping[str, Tensor | None]  # tensor name -> flat places, int64 sorted; None is the whole tensor


@dataclass
class Parameters:
    """The parameters of a plain model.

    Args:
        by_name: Parameter by its first name.
        first_names: First name by every name there is.
    """

    by_name: dict[str, nn.Parameter]
    first_names: dict[str, str]

    @classmethod
    def of(cls, model: nn.Module) -> "Parameters":
        """Those of a model, plain or with added modules on it."""
        with plain_view(model):
            named = list(model.named_parameters(remove_duplicate=False))
        firsts: dict[int, str] = {}
        for name, parameter in named:
            firsts.setdefault(id(parameter), name)
        first_names = {name: firsts[id(parameter)] for name, parameter in named}
        return cls({name: p for name, p in named if first_names[name] == name}, first_names)


@dataclass
class Kept:
    """Base values at the places that applied deltas touch.

    Args:
        values: Per tensor the places (None: whole) and the base values there.
    """

    values: dict[str, tuple[Tensor | None, Tensor]] = field(default_factory=dict)

    def with_places(self, parameters: Parameters, places: Places) -> "Kept":
        """Also keep what the model holds now at further places; places kept already stay as they are."""
        more = {name: self._extended(name, parameters.by_name[name], places[name]) for name in places}
        return Kept(self.values | more)

    def only(self, places: list[Places]) -> "Kept":
        """Keep no more than these places: others may change without us from now on."""
        values: dict[str, tuple[Tensor | None, Tensor]] = {}
        for name, (known, base) in self.values.items():
            wanted = [each[name] for each in places if name in each]
            if any(place is None for place in wanted):
                values[name] = (None, base)
            elif wanted:
                union = torch.unique(torch.cat([place for place in wanted if place is not None]))
                where = union if known is None else torch.searchsorted(known, union)
                values[name] = (union, base.reshape(-1)[where.to(base.device)])
        return Kept(values)

    def restore(self, parameters: Parameters, names: Iterable[str]) -> None:
        """Write the base values of these tensors back, bit for bit."""
        for name in names:
            write(parameters.by_name[name], *self.values[name])

    def _extended(
        self, name: str, parameter: nn.Parameter, more: Tensor | None
    ) -> tuple[Tensor | None, Tensor]:
        if name not in self.values:
            return more, read(parameter, more)
        known, base = self.values[name]
        if known is None:
            return known, base
        if more is None:
            whole = read(parameter, None)
            write(whole, known, base)
            return None, whole
        new = more[~torch.isin(more, known, assume_unique=True)]
        union, order = torch.sort(torch.cat([known, new]))
        return union, torch.cat([base.to(parameter.device), read(parameter, new)])[order.to(parameter.device)]


@dataclass
class DigestCache:
    """The base's digest, taken anew only when a weight was changed by somebody else.

    A change through torch (an optimiser, ``copy_``, ``load_state_dict``, ``model.to``) is seen; one through
    ``.data`` or numpy is not.
    """

    digests: dict[tuple[str, ...], str] = field(default_factory=dict)
    stamps: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def fresh(self, parameters: Parameters) -> bool:
        """Whether no weight has changed since the last :meth:`stamp`."""
        return bool(self.stamps) and self.stamps == _stamps(parameters)

    def stamp(self, parameters: Parameters) -> None:
        """The weights as they are now are base values and applied deltas, nothing else."""
        self.stamps = _stamps(parameters)

    def get(self, model: nn.Module, parameters: Parameters, kept: Kept, head: tuple[str, ...]) -> str:
        """The digest of the base model, with applied deltas out of the way.

        Args:
            model: The model, with the deltas that ``kept`` belongs to on it.
            parameters: Its parameters.
            kept: Base values.
            head: Names to leave out.
        """
        if not self.fresh(parameters):
            self.digests.clear()
        if head not in self.digests:
            with _at_base(parameters, kept), plain_view(model):
                self.digests[head] = base_digest(model, head)
            self.stamp(parameters)
        return self.digests[head]


def read(parameter: Tensor, places: Tensor | None) -> Tensor:
    """A copy of the values at flat places; of the whole tensor for None."""
    if places is None:
        return parameter.detach().clone()
    places = places.to(parameter.device)
    if parameter.is_contiguous():
        return parameter.detach().view(-1).index_select(0, places)  # twice as fast as take
    return parameter.detach().take(places)


@torch.no_grad()
def write(parameter: Tensor, places: Tensor | None, values: Tensor) -> None:
    """Set the values at flat places, or the whole tensor."""
    if places is None:
        parameter.copy_(values.reshape(parameter.shape))
    elif parameter.is_contiguous():
        parameter.view(-1).index_copy_(0, places.to(parameter.device), values.to(parameter))
    else:
        parameter.put_(places.to(parameter.device), values.to(parameter))


@contextlib.contextmanager
def _at_base(parameters: Parameters, kept: Kept) -> Iterator[None]:
    """Within the context the weights hold their base values."""
    now = {name: (known, read(parameters.by_name[name], known)) for name, (known, _) in kept.values.items()}
    try:
        kept.restore(parameters, now)
        yield
    finally:
        Kept(now).restore(parameters, now)


def _stamps(parameters: Parameters) -> dict[str, tuple[int, ...]]:
    """What changes when a parameter is written to, moved or replaced; nothing for inference tensors."""
    if any(parameter.is_inference() for parameter in parameters.by_name.values()):
        return {}
    return {name: (id(p), p.data_ptr(), p._version) for name, p in parameters.by_name.items()}
