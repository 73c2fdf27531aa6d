"""Does a delta fit a model? Everything is looked at before anything is touched."""

import difflib

import torch
from torch import Tensor, nn

from paretune.delta.arrays import dtype_name
from paretune.delta.contents import Contents
from paretune.delta.weights import Parameters
from paretune.errors import PareError


def check_tensors(delta: Contents, model: nn.Module, parameters: Parameters) -> None:
    """Names, shapes and dtypes.

    Raises:
        PareError: A plan is attached to the model, a tensor is not there or has another shape, two names are
            one tied tensor, the base is in another dtype, or values would be rounded.
    """
    if getattr(model, "paretune", None) is not None:
        raise PareError(
            "a plan is attached to this model: call paretune.detach(model) before applying a delta"
        )
    seen: dict[str, str] = {}
    for name, values in delta.tensors.items():
        if name not in parameters.first_names:
            raise PareError(_missing(delta, name, model, parameters))
        first = parameters.first_names[name]
        if first in seen:
            raise PareError(f"{seen[first]} and {name} are one tied tensor in this model; keep one of them")
        seen[first] = name
        shape = tuple(parameters.by_name[first].shape)
        if shape != values.shape:
            raise PareError(
                f"{name} has shape {values.shape} in the delta and {shape} in this {type(model).__name__}; "
                f"load {delta.base.model} for the delta's task, as delta.load_model() does"
            )
    _check_dtype(delta, parameters)
    for first, name in seen.items():
        check_exact(name, delta.tensors[name].values, parameters.by_name[first].dtype)


def check_base(delta: Contents, model: nn.Module, digest: str) -> None:
    """The base's weights.

    Args:
        delta: The delta.
        model: The model, for its name.
        digest: The digest of its base weights.

    Raises:
        PareError: They are not those the delta was trained on.
    """
    if digest != delta.base.digest:
        raise PareError(
            f"the delta was made for {delta.base.model} (weights {delta.base.digest[:12]}); this model, "
            f"{_name_of(model)}, has other weights ({digest[:12]}): load the base untouched, as "
            "delta.load_model() does"
        )


def check_exact(name: str, values: Tensor, dtype: torch.dtype) -> None:
    """Refuse values that the model's dtype cannot hold as they are: what was scored is what is applied."""
    if torch.promote_types(values.dtype, dtype) == dtype:
        return
    changed = int((values.to(dtype).to(values.dtype) != values).sum())
    if changed:
        raise PareError(
            f"{changed} of {values.numel()} values of {name} are no {dtype_name(dtype)} numbers: round them "
            f"with delta.to(torch.{dtype_name(dtype)}) and score it again"
        )


def _check_dtype(delta: Contents, parameters: Parameters) -> None:
    head = {parameters.first_names.get(name, name) for name in delta.head}
    found = sorted({dtype_name(p.dtype) for name, p in parameters.by_name.items() if name not in head})
    if found and delta.base.dtype not in found:
        raise PareError(
            f"the delta was made for {delta.base.model} in {delta.base.dtype}, this model is in {found[0]}: "
            f"load it with dtype=torch.{delta.base.dtype}, apply the delta, then convert the model"
        )


def _missing(delta: Contents, name: str, model: nn.Module, parameters: Parameters) -> str:
    kind = type(model).__name__
    if name in delta.head:
        return (
            f"this {kind} has no {name!r}, which is part of the delta's head: load {delta.base.model} for "
            "the delta's task, as delta.load_model() does"
        )
    near = difflib.get_close_matches(name, parameters.first_names, n=2)
    hint = f" (it has {' and '.join(near)})" if near else ""
    return f"this {kind} has no {name!r}{hint}; the delta was made for {delta.base.model}: load that model"


def _name_of(model: nn.Module) -> str:
    return getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__
