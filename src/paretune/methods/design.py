"""A design of fine-tuning as data: groups of blocks, who is tuned, how much, and with what.

Design spaces are those of arXiv 2301.01821.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml

from paretune.errors import PareError, near
from paretune.files import write_atomic
from paretune.methods.layout import allocation_shares, group_blocks, group_weights
from paretune.strategies import STRATEGIES

# The order people write the published designs in.
ORDER = ("adapter", "prefix", "bias", "lora")


@dataclass(frozen=True)
class Design:
    """Which blocks are tuned, with which strategies, and how a budget is divided among them.

    Args:
        strategies: For each group of consecutive blocks (encoder blocks, then decoder blocks), its
            strategies. There are as many groups as entries.
        grouping: How many blocks each group has: ``increasing``, ``uniform``, ``decreasing``, ``spindle``
            or ``bottleneck``.
        allocation: How the budget falls onto the tuned blocks: ``increasing``, ``uniform``, ``decreasing``.
        tuned: Numbers of the groups that are tuned, from 1; None stands for all.
        ratio: With an increasing or decreasing allocation, how many times the smallest share the largest is.
        settings: Further settings by strategy: those of :mod:`paretune.strategies`, and for lora ``targets``
            (``auto``, ``all``, ``attention``, ``mlp`` or ``peft``) and ``scale`` (``alpha / rank``).

    Raises:
        PareError: A name that is not known, a group without strategies, a group number that is not there.
    """

    strategies: tuple[tuple[str, ...], ...]
    grouping: str = "spindle"
    allocation: str = "uniform"
    tuned: tuple[int, ...] | None = None
    ratio: float = 3.0
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        strategies = tuple(
            _strategies(group, names) for group, names in enumerate(_listed("strategies", self.strategies), 1)
        )
        if not strategies:
            raise PareError("a design has one group at least; give strategies such as [[adapter, lora]]")
        object.__setattr__(self, "strategies", strategies)
        object.__setattr__(self, "tuned", self._checked_tuned())
        if not _is_number(self.ratio) or not 1 <= self.ratio <= 1e6:
            raise PareError(f"ratio {self.ratio!r} is not a number from 1 to 1000000; 3 is the default")
        group_weights(self.grouping, self.groups)
        allocation_shares(self.allocation, 1)
        _check_settings(self.settings)

    def _checked_tuned(self) -> tuple[int, ...]:
        everything = range(1, self.groups + 1)
        tuned = list(everything) if self.tuned is None else _listed("tuned", self.tuned)
        for number in tuned:
            if isinstance(number, bool) or not isinstance(number, int) or number not in everything:
                raise PareError(
                    f"tuned group {number!r} is not there; groups are numbered from 1 to {self.groups}"
                )
        if not tuned:
            raise PareError("a design that tunes no group trains nothing; name one in tuned")
        return tuple(sorted(set(tuned)))

    @property
    def groups(self) -> int:
        """Number of groups."""
        return len(self.strategies)

    def tuned_blocks(self, blocks: int) -> dict[int, int]:
        """Block number -> group number (from 1), for the tuned blocks of a model with so many blocks."""
        layout = group_blocks(self.grouping, self.groups, blocks)
        return {block: group for group in self.tuned or () for block in layout[group - 1]}

    def shares(self, blocks: Sequence[int]) -> dict[int, Fraction]:
        """The share of the budget of each of these blocks, which are the tuned ones in order."""
        ratio = Fraction(str(self.ratio))
        return dict(zip(blocks, allocation_shares(self.allocation, len(blocks), ratio), strict=True))

    def document(self) -> dict[str, Any]:
        """The design as JSON or YAML."""
        document: dict[str, Any] = {
            "grouping": self.grouping,
            "allocation": self.allocation,
            "tuned": list(self.tuned or ()),
            "strategies": [list(names) for names in self.strategies],
        }
        if self.allocation != "uniform":
            document["ratio"] = self.ratio
        if self.settings:
            document["settings"] = {name: dict(values) for name, values in self.settings.items()}
        return document

    @classmethod
    def from_document(cls, document: Any, source: str = "the design") -> "Design":
        """The design of a document.

        Args:
            document: What :meth:`document` gives; ``strategies`` must be there.
            source: Where it comes from, for messages.

        Raises:
            PareError: It is no design; the message names ``source`` and the field.
        """
        if not isinstance(document, Mapping):
            raise PareError(f"{source}: no design; it needs the fields {', '.join(FIELDS)}")
        for name in document:
            if name not in FIELDS:
                raise PareError(f"{source}: no field {name!r}{near(str(name), FIELDS)}")
        if "strategies" not in document:
            raise PareError(f"{source}: no strategies; give a list for each group, such as [[adapter, lora]]")
        try:
            return cls(**document)
        except PareError as problem:
            raise PareError(f"{source}: {problem}") from None

    def save(self, path: str | Path) -> None:
        """Write the design as YAML.

        Raises:
            OSError: The file cannot be written.
        """
        write_atomic(path, yaml.safe_dump(self.document(), sort_keys=False, default_flow_style=None))

    @classmethod
    def load(cls, path: str | Path) -> "Design":
        """Read a design that :meth:`save` or a person wrote.

        Raises:
            PareError: There is no such file, it is no YAML, or no design.
        """
        try:
            document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as problem:
            raise PareError(f"{path}: cannot be read as a design ({problem})") from problem
        except yaml.YAMLError as problem:
            raise PareError(f"{path}: is no YAML: {' '.join(str(problem).split())}") from problem
        return cls.from_document(document, str(path))


FIELDS = ("grouping", "allocation", "tuned", "strategies", "ratio", "settings")


def in_order(names: Sequence[str]) -> tuple[str, ...]:
    """Strategies in the published order; others after those."""
    return tuple(sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name)))


def _strategies(group: int, names: Any) -> tuple[str, ...]:
    """The strategies of one group, checked and in order."""
    listed = _listed(f"strategies of group {group}", names)
    for name in listed:
        if name not in STRATEGIES:
            hint = near(str(name), STRATEGIES)
            raise PareError(f"group {group}: no strategy {name!r}{hint}; there are {', '.join(ORDER)}")
    if not listed:
        raise PareError(f"group {group} has no strategy; leave its number out of tuned to leave it frozen")
    return in_order(tuple(set(listed)))


def _check_settings(settings: Any) -> None:
    if not isinstance(settings, dict) or not all(isinstance(values, dict) for values in settings.values()):
        raise PareError(
            f"settings are given by strategy, such as {{lora: {{targets: all}}}}, not {settings!r}"
        )
    for name in settings:
        if name not in STRATEGIES:
            raise PareError(f"settings: no strategy {name!r}{near(str(name), STRATEGIES)}")


def _listed(what: str, value: Any) -> list[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise PareError(f"{what} must be a list, not {value!r}")
    return list(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
