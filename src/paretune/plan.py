"""The plan: which existing weights are trained and which modules are added, before anything trains.

On disk a plan is a folder: ``plan.json``, ``plan.safetensors`` with the indices when rows, columns, blocks or
entries are selected, and ``start.safetensors`` when training begins with other values than the pretrained.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from paretune.budget import HeadRule
from paretune.errors import PareError
from paretune.files import write_atomic
from paretune.selection import Granularity, Selection

__all__ = ["Addition", "Base", "Granularity", "Plan", "Selection"]

SCHEMA = 1
START = "start.safetensors"
OTHER = "other-"  # folders of the plans that came along


@dataclass(frozen=True)
class Addition:
    """One added module.

    Args:
        strategy: ``lora``, ``adapter``, ``prefix`` or ``bias``.
        module: Path of the module that carries it, in the plain model.
        size: Rank, width, length; what the strategy calls its size.
        count: Exact number of weights it adds.
        settings: The strategy's further settings.
    """

    strategy: str
    module: str
    size: int
    count: int
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Base:
    """The untouched model that a plan or a delta belongs to: its id, digest of its weights, and dtype."""

    model: str
    digest: str
    dtype: str


@dataclass(frozen=True)
class Plan:
    """What is trained: weights of the base model, and modules added to it.

    Args:
        base: The model the plan was made for.
        selections: Existing weights that the budget pays for.
        additions: Modules that the budget pays for.
        head: Tensors new to the task; always trained, each whole.
        head_rule: ``outside`` the budget (default) or ``inside``.
        asked: The budget as typed, or None.
        budget: The budget as a whole number of weights, or None for a method that has its own size.
        method: Name of the method that made the plan.
        settings: The method's settings.
        seed: Its seed.
        data: Fingerprint of the data it looked at.
        weights: Number of weights of the base model without the head, for shares.
        places: Tensor name or module path -> [block number or None, kind], for the map of blocks x kinds.
        notes: What the method has to say about the choice (JSON).
        versions: Versions of the packages that made it.
        others: Plans of other sizes that came with this one, such as the rungs of IRD's ladder.
        start: Values that training begins with instead of the pretrained ones: by tensor (its selected
            weights in C order, one-dimensional) or added tensor (``strategy:module:part``), float32.

    Raises:
        PareError: A tensor selected twice, more weights than the budget, or nothing to train at all.
    """

    base: Base
    selections: tuple[Selection, ...]
    additions: tuple[Addition, ...] = ()
    head: tuple[Selection, ...] = ()
    head_rule: HeadRule = "outside"
    asked: str | None = None
    budget: int | None = None
    method: str = "by hand"
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    data: str = ""
    weights: int = 0
    places: dict[str, list[Any]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    others: tuple["Plan", ...] = ()
    start: dict[str, np.ndarray] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        names = [selection.tensor for selection in (*self.selections, *self.head)]
        twice = (
            sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
        )
        if twice:
            raise PareError(f"the plan selects {twice[0]} twice; one selection a tensor")
        if self.count + self.head_count == 0:
            raise PareError("the plan trains nothing: no weight selected, no module added, no head")
        if self.budget is not None and self.count > self.budget:
            raise PareError(f"the plan trains {self.count:,} weights, above its budget of {self.budget:,}")

    @property
    def count(self) -> int:
        """Trained weights that the budget pays for; the head only under the rule ``inside``."""
        paid = sum(s.count for s in self.selections) + sum(a.count for a in self.additions)
        return paid + (self.head_count if self.head_rule == "inside" else 0)

    @property
    def head_count(self) -> int:
        """Number of weights of the head."""
        return sum(selection.count for selection in self.head)

    @property
    def trained(self) -> int:
        """All weights that will be trained, the head included."""
        return self.count + (self.head_count if self.head_rule == "outside" else 0)

    @cached_property
    def digest(self) -> str:
        """sha256 over the plan's content: two plans that train the same things in the same way share it."""
        state = hashlib.sha256(_canonical(self.document()))
        for selection in self.selections:
            if selection.indices is not None:
                state.update(selection.tensor.encode() + selection.indices.astype("<i8").tobytes())
        for name, values in sorted(self.start.items()):
            state.update(name.encode() + values.astype("<f4").tobytes())
        return state.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write the plan into a folder; ``plan.json`` comes last, so a half-written plan is never found.

        Another plan that was there goes first: a kill at any moment leaves no plan or a whole one.

        Raises:
            OSError: The folder cannot be written.
        """
        folder = Path(folder)
        path, document = folder / "plan.json", self.document()
        arrays = {s.tensor: s.indices for s in self.selections if s.indices is not None}
        content = save_arrays(arrays) if arrays else b""
        begun = save_arrays(self.start) if self.start else b""
        document |= {"start_sha256": hashlib.sha256(begun).hexdigest()} if begun else {}
        document |= {"indices_sha256": hashlib.sha256(content).hexdigest(), "others": len(self.others)}
        text = json.dumps(document, indent=1, sort_keys=True) + "\n"
        if path.exists() and (self.others or path.read_bytes() != text.encode()):
            path.unlink()
        for number, other in enumerate(self.others):
            other.save(folder / f"{OTHER}{number}")
        if arrays:
            write_atomic(folder / "plan.safetensors", content)
        if begun:
            write_atomic(folder / START, begun)
        write_atomic(path, text)

    @classmethod
    def load(cls, folder: str | Path) -> "Plan":
        """Read a plan that ``save`` wrote.

        Raises:
            PareError: No plan there, a newer schema, a damaged file, indices out of range.
        """
        folder = Path(folder)
        document = _read_document(folder)
        arrays = _read_indices(folder, document)
        others = tuple(cls.load(folder / f"{OTHER}{n}") for n in range(document.get("others", 0)))
        try:
            plan = _from_document(document, arrays)
            return replace(plan, others=others, start=_read_start(folder, document))
        except (KeyError, TypeError, AttributeError) as problem:
            raise PareError(
                f"{folder / 'plan.json'}: not a whole plan ({problem!r}); make it again"
            ) from problem

    def document(self) -> dict[str, Any]:
        """The plan as JSON, without the indices."""
        document = {name: getattr(self, name) for name in _PLAIN_FIELDS}
        document["schema"] = SCHEMA
        document["base"] = asdict(self.base)
        document["additions"] = [asdict(addition) for addition in self.additions]
        for part in ("selections", "head"):
            document[part] = [
                {"tensor": s.tensor, "shape": list(s.shape), "granularity": s.granularity, "count": s.count}
                for s in getattr(self, part)
            ]
        document["realised"] = {"count": self.count, "head": self.head_count}
        return document

    def __str__(self) -> str:
        from paretune.plan_table import plan_table  # the picture needs the data, not the other way round

        return plan_table(self)


_PLAIN_FIELDS = (
    "head_rule",
    "asked",
    "budget",
    "method",
    "settings",
    "seed",
    "data",
    "weights",
    "places",
    "notes",
    "versions",
)


def _canonical(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _read_document(folder: Path) -> dict[str, Any]:
    path = folder / "plan.json"
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        raise PareError(f"{path}: no plan there; make one with `paretune choose --out {folder}`") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise PareError(f"{path}: damaged ({problem}); make the plan again") from problem
    schema = document.get("schema") if isinstance(document, dict) else None
    if not isinstance(schema, int) or schema < 1:
        raise PareError(f"{path}: not a plan (no schema version)")
    if schema > SCHEMA:
        raise PareError(
            f"{path}: plan schema {schema} is newer than this paretune reads ({SCHEMA}); upgrade it"
        )
    return document


def _read_indices(folder: Path, document: Mapping[str, Any]) -> dict[str, np.ndarray]:
    wanted = [s["tensor"] for s in document.get("selections", []) if s.get("granularity") != "all"]
    if not wanted:
        return {}
    path = folder / "plan.safetensors"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise PareError(f"{path}: the plan's indices are missing; make the plan again") from None
    if hashlib.sha256(content).hexdigest() != document.get("indices_sha256"):
        raise PareError(
            f"{path}: does not belong to {folder / 'plan.json'} or is damaged; make the plan again"
        )
    arrays = dict(safetensors.deserialize(content))
    return {name: np.frombuffer(arrays[name]["data"], dtype="<i8").astype(np.int64) for name in wanted}


def _read_start(folder: Path, document: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The values that training begins with, where the plan has some."""
    if "start_sha256" not in document:
        return {}
    path = folder / START
    content = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(content).hexdigest() != document["start_sha256"]:
        raise PareError(f"{path}: missing, damaged or of another plan; make the plan again")
    return load_arrays(content)


def _from_document(document: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Plan:
    def selections(part: Sequence[Mapping[str, Any]]) -> tuple[Selection, ...]:
        return tuple(
            Selection(s["tensor"], tuple(s["shape"]), s["granularity"], arrays.get(s["tensor"])) for s in part
        )

    return Plan(
        base=Base(**document["base"]),
        selections=selections(document["selections"]),
        head=selections(document["head"]),
        additions=tuple(Addition(**addition) for addition in document["additions"]),
        **{name: document[name] for name in _PLAIN_FIELDS},
    )
