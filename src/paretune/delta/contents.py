"""What a delta holds: new values at selected places of named tensors, and the tensors of added modules."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from paretune.delta.arrays import DTYPES, dtype_name, to_bytes
from paretune.delta.canonical import canonical_json, read_json
from paretune.errors import PareError
from paretune.plan import Addition, Base, Granularity, Selection


@dataclass(frozen=True, eq=False)
class Values:
    """New values of one tensor of the base model, at the places that were trained.

    Args:
        shape: Shape of the whole tensor.
        granularity: ``all``, ``rows``, ``columns``, ``blocks`` or ``entries``; see
            :class:`paretune.plan.Selection`.
        indices: int64, strictly increasing; None exactly when the granularity is ``all``.
        values: The new values (not differences) in C order of the places; any shape of the right number of
            elements. Kept as a copy on the CPU: of the tensor's shape under ``all``, else one-dimensional.

    Raises:
        PareError: Indices out of order or out of range, a wrong number of values, or values that are not
            float64, float32, bfloat16 or float16.
    """

    shape: tuple[int, ...]
    granularity: Granularity
    indices: np.ndarray | None
    values: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        selection = Selection("values", self.shape, self.granularity, self.indices)
        object.__setattr__(self, "indices", selection.indices)
        if self.values.dtype not in DTYPES:
            raise PareError(
                f"values of dtype {self.values.dtype} are not floating point; train float tensors"
            )
        if self.values.numel() != selection.count:
            raise PareError(f"{self.values.numel()} values for {selection.count} selected places")
        shape = self.shape if self.granularity == "all" else (selection.count,)
        object.__setattr__(self, "values", self.values.detach().cpu().clone().reshape(shape).contiguous())

    @property
    def count(self) -> int:
        """Number of weights."""
        return self.values.numel()

    @property
    def bound(self) -> int:
        """One above the largest index there can be; 0 where there are no indices."""
        return self.selection("").bound if self.indices is not None else 0

    def selection(self, tensor: str) -> Selection:
        """Where the values belong, in the tensor of this name."""
        return Selection(tensor, self.shape, self.granularity, self.indices)

    def positions(self) -> Tensor | None:
        """Flat C-order places of the values, int64 of shape (count,); None for a whole tensor."""
        if self.indices is None:
            return None
        flat = self.indices if self.granularity == "entries" else self.selection("").flat()
        return torch.from_numpy(flat if flat.flags.writeable else flat.copy())

    def to(self, dtype: torch.dtype) -> "Values":
        """The same with values rounded to a dtype."""
        return replace(self, values=self.values.to(dtype))


@dataclass(eq=False, repr=False)
class Contents:
    """The data of a delta; what can be done with it is in :class:`paretune.delta.Delta`.

    Args:
        base: The model it belongs to: id, digest of the weights, dtype.
        plan_digest: Digest of the plan it was trained under.
        head: Names of the tensors that are new to the task; each is in ``tensors``, whole.
        task: What the task was (JSON): kind, labels, fields; enough to load the base with the right head.
        tensors: New values by tensor name of the plain model.
        additions: The added modules.
        added: Their tensors by key ``strategy:module:tensor``.
        info: Anything else (JSON): method, seed, scores.

    Raises:
        PareError: A head tensor without whole values, tensors of modules that are not added, an added module
            without tensors, or a task or info that JSON cannot hold.
    """

    base: Base
    plan_digest: str
    head: tuple[str, ...] = ()
    task: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Values] = field(default_factory=dict)
    additions: tuple[Addition, ...] = ()
    added: dict[str, Tensor] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.head = tuple(self.head)
        self.additions = tuple(sorted(self.additions, key=lambda a: (a.strategy, a.module)))
        self.tensors = dict(sorted(self.tensors.items()))
        self.added = {key: value.detach().cpu().clone() for key, value in sorted(self.added.items())}
        # As they come back from a file: a tuple is a list, a key is a text.
        self.task = read_json(canonical_json(self.task, "task"), "task")
        self.info = read_json(canonical_json(self.info, "info"), "info")
        canonical_json([addition.settings for addition in self.additions], "settings of an addition")
        self._check_head()
        self._check_added()

    def _check_head(self) -> None:
        for name in self.head:
            if name not in self.tensors or self.tensors[name].granularity != "all":
                raise PareError(
                    f"head tensor {name!r} must come with all its values; the base has none for it"
                )

    def _check_added(self) -> None:
        modules = [(a.strategy, a.module) for a in self.additions]
        twice = next((pair for pair in modules if modules.count(pair) > 1), None)
        if twice:
            raise PareError(f"{twice[0]} is added to {twice[1]} twice; one a module")
        used = set()
        for key, value in self.added.items():
            strategy, _, rest = key.partition(":")
            module = rest.rpartition(":")[0]
            if (strategy, module) not in modules:
                raise PareError(f"added tensor {key!r} belongs to no added module of this delta")
            if value.dtype not in DTYPES:
                raise PareError(f"added tensor {key!r} is {value.dtype}, which is not floating point")
            used.add((strategy, module))
        for strategy, module in modules:
            if (strategy, module) not in used:
                raise PareError(f"{strategy} on {module} comes without tensors")

    @property
    def count(self) -> int:
        """Number of weights in the delta: selected, head and added."""
        return sum(v.count for v in self.tensors.values()) + sum(v.numel() for v in self.added.values())

    @property
    def digest(self) -> str:
        """sha256 of the content, whatever file it sits in."""
        state = hashlib.sha256(canonical_json(self.manifest(), "delta"))
        for _, indices, values in self.parts():
            state.update(b"" if indices is None else indices.astype("<i8").tobytes())
            state.update(to_bytes(values))
        return state.hexdigest()

    def manifest(self) -> dict[str, Any]:
        """Everything but numbers, as JSON: the manifest of the file.

        Tensors stand under their dtype, in the order in which their numbers are stored: ``[name, shape,
        granularity, number of indices or None]``, added ones ``[key, shape]``.
        """
        tensors: dict[str, list[Any]] = {}
        added: dict[str, list[Any]] = {}
        for name, values in self.tensors.items():
            indices = None if values.indices is None else len(values.indices)
            row = [name, list(values.shape), values.granularity, indices]
            tensors.setdefault(dtype_name(values.values.dtype), []).append(row)
        for key, value in self.added.items():
            added.setdefault(dtype_name(value.dtype), []).append([key, list(value.shape)])
        return {
            "base": vars(self.base),
            "plan": self.plan_digest,
            "head": list(self.head),
            "task": self.task,
            "tensors": tensors,
            "additions": [vars(addition) for addition in self.additions],
            "added": added,
            "info": self.info,
        }

    def parts(self) -> Iterator[tuple[str, np.ndarray | None, Tensor]]:
        """Name, indices and values of every tensor in the order of the file: by dtype, then by name."""
        for dtype in DTYPES:
            for name, values in self.tensors.items():
                if values.values.dtype == dtype:
                    yield name, values.indices, values.values
            for key, value in self.added.items():
                if value.dtype == dtype:
                    yield key, None, value

    def check_finite(self) -> None:
        """Refuse values that are not numbers.

        Raises:
            PareError: A value is NaN or infinite; the message names the tensor.
        """
        for name, _, values in self.parts():
            wrong = values.numel() - int(torch.isfinite(values).sum())
            if wrong:
                raise PareError(
                    f"{name}: {wrong} of {values.numel()} values are NaN or infinite; training diverged, or "
                    "their dtype is too small: lower the learning rate, or keep them in a wider dtype"
                )


AnyContents = TypeVar("AnyContents", bound=Contents)


def rounded(contents: AnyContents, dtype: torch.dtype) -> AnyContents:
    """The same delta with every value rounded to a dtype.

    Raises:
        PareError: Not a dtype a delta can hold.
    """
    if dtype not in DTYPES:
        raise PareError(f"a delta cannot hold {dtype}; take one of {', '.join(map(dtype_name, DTYPES))}")
    return replace(
        contents,
        tensors={name: values.to(dtype) for name, values in contents.tensors.items()},
        added={key: value.to(dtype) for key, value in contents.added.items()},
    )
