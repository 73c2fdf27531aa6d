"""Several deltas of one base as one delta."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import Any, Literal, get_args

import numpy as np
import torch

from paretune.delta.arrays import dtype_name
from paretune.delta.canonical import canonical_json
from paretune.delta.contents import AnyContents, Contents, Values
from paretune.errors import PareError
from paretune.plan import Granularity

Overlap = Literal["error", "head", "mean", "last"]


def merge(deltas: Sequence[AnyContents], overlap: Overlap = "error") -> AnyContents:
    """The union of deltas that were trained on one base.

    Where only one delta has a value, or all that have one agree, that value is taken: exact, whatever the
    order. Dtypes are promoted to the widest.

    Args:
        deltas: At least one; a single one comes back as it is.
        overlap: What holds where deltas disagree: ``error`` refuses, ``mean`` takes their mean (computed in
            float64, whatever the order), ``last`` the value of the last one. ``head`` takes the mean in the
            head and refuses elsewhere: for workers with disjoint masks, who all train the head; what each
            changed of the rest is added up.

    Returns:
        The merged delta. Its task is what the tasks agree on, its info names the sources.

    Raises:
        PareError: No delta, different bases or shapes, values that disagree under ``error``, or a module
            added by two deltas.
    """
    if overlap not in get_args(Overlap):
        raise PareError(f"overlap {overlap!r} is none of {', '.join(get_args(Overlap))}")
    if not deltas:
        raise PareError("nothing to merge: give at least one delta")
    if len(deltas) == 1:
        return deltas[0]
    _check_bases(deltas)
    _check_additions(deltas)
    # Only under "last" does the order mean anything; otherwise no trace of it is left.
    ordered = list(deltas) if overlap == "last" else sorted(deltas, key=lambda delta: delta.digest)
    names = {name for delta in ordered for name in delta.tensors}
    head = {name for delta in ordered for name in delta.head}
    sources = [_source(delta) for delta in ordered]
    return replace(
        ordered[0],
        plan_digest=hashlib.sha256(canonical_json(sources, "sources")).hexdigest(),
        head=tuple(sorted(head)),
        task=reduce(_agreed, [delta.task for delta in ordered]),
        tensors={
            name: _union(
                name, [d.tensors[name] for d in ordered if name in d.tensors], _rule(overlap, name in head)
            )
            for name in names
        },
        additions=tuple(addition for delta in ordered for addition in delta.additions),
        added={key: values for delta in ordered for key, values in delta.added.items()},
        info={"method": "merge", "overlap": overlap, "sources": sources},
    )


def _rule(overlap: Overlap, in_head: bool) -> Overlap:
    """What holds for one tensor."""
    if overlap != "head":
        return overlap
    return "mean" if in_head else "error"


def _check_bases(deltas: Sequence[Contents]) -> None:
    first = deltas[0].base
    for delta in deltas[1:]:
        if (delta.base.digest, delta.base.dtype) != (first.digest, first.dtype):
            raise PareError(
                f"these deltas have different bases: {first.model} in {first.dtype} (weights "
                f"{first.digest[:12]}) and {delta.base.model} in {delta.base.dtype} "
                f"({delta.base.digest[:12]}); only deltas of one base can be merged"
            )


def _check_additions(deltas: Sequence[Contents]) -> None:
    seen = set()
    for delta in deltas:
        for addition in delta.additions:
            place = (addition.strategy, addition.module)
            if place in seen:
                raise PareError(
                    f"two of the deltas add a {addition.strategy} to {addition.module}; modules cannot be "
                    "merged: apply the deltas one after the other instead"
                )
            seen.add(place)


def _source(delta: Contents) -> dict[str, Any]:
    kept: dict[str, Any] = {key: delta.info[key] for key in ("method", "seed") if key in delta.info}
    return {"digest": delta.digest, "plan": delta.plan_digest, **kept}


def _agreed(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What two task descriptions have in common."""
    return {key: value for key, value in one.items() if key in other and other[key] == value}


def _union(name: str, parts: Sequence[Values], overlap: Overlap) -> Values:
    """The values of one tensor from all deltas that have some."""
    if len({part.shape for part in parts}) > 1:
        raise PareError(f"{name} has shapes {parts[0].shape} and {parts[1].shape} in deltas of one base")
    if len(parts) == 1:
        return parts[0]
    granularity: Granularity = parts[0].granularity
    if any(part.granularity != granularity for part in parts):
        granularity = "all" if any(part.granularity == "all" for part in parts) else "entries"
    places, values = _resolve(name, parts, overlap)
    dtype = reduce(torch.promote_types, (part.values.dtype for part in parts))
    indices = places if granularity == "entries" else _indices(parts, granularity)
    return Values(parts[0].shape, granularity, indices, torch.from_numpy(values).to(dtype))


def _resolve(name: str, parts: Sequence[Values], overlap: Overlap) -> tuple[np.ndarray, np.ndarray]:
    """Flat places, sorted, and one float64 value for each (every dtype fits into float64)."""
    places = np.concatenate([part.selection(name).flat() for part in parts])
    values = np.concatenate([part.values.reshape(-1).double().numpy() for part in parts])
    turn = np.repeat(np.arange(len(parts)), [part.count for part in parts])
    # Values of one place stand together: by value, so that a sum does not depend on the order of deltas.
    order = np.lexsort((turn if overlap == "last" else values, places))
    places, values = places[order], values[order]
    if not len(places):
        return places, values
    starts = np.flatnonzero(np.diff(places, prepend=-1))
    ends = np.append(starts[1:], len(places))
    if overlap == "last":
        return places[starts], values[ends - 1]
    differ = values[starts] != values[ends - 1]
    if overlap == "error" and differ.any():
        dtypes = " and ".join(sorted({dtype_name(part.values.dtype) for part in parts}))
        raise PareError(
            f"{name}: the deltas disagree on {int(differ.sum()):,} of {len(starts):,} values ({dtypes}); "
            "say what holds: overlap='mean' or overlap='last'; 'head' is the mean in the head alone"
        )
    means = np.add.reduceat(values, starts) / (ends - starts)
    return places[starts], np.where(differ, means, values[starts])


def _indices(parts: Sequence[Values], granularity: Granularity) -> np.ndarray | None:
    if granularity == "all":
        return None
    return np.unique(np.concatenate([part.indices for part in parts if part.indices is not None]))
