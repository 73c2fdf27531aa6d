"""A method's settings as they are typed: ``--set name=value``, and flags of their own for some."""

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from paretune.errors import PareError
from paretune.options import METHOD_FLAGS

__all__ = ["method_settings"]


def method_settings(options: Namespace) -> dict[str, Any]:
    """The settings that were given, checked to be some of the method's.

    Raises:
        PareError: Unknown method, a setting or a flag that it has not, one given twice, or a value that is
            out of range.
    """
    from paretune.methods import METHODS, make_method

    settings = _pairs(options.set)
    for flag, metavar, _ in METHOD_FLAGS:
        name = flag.replace("-", "_")
        value = getattr(options, name)
        if value is None:
            continue
        if options.method in METHODS and name not in _names(METHODS[options.method]):
            having = ", ".join(m for m, kind in METHODS.items() if name in _names(kind))
            raise PareError(f"--{flag} is nothing that {options.method} knows; it is a setting of {having}")
        if name in settings:
            raise PareError(f"--{flag} {value} and --set {name}={settings[name]}: give it once")
        settings[name] = _share(flag, value) if metavar == "SHARE" else value
    make_method(options.method, settings)
    return settings


def _names(kind: Any) -> Sequence[str]:
    return [field.name for field in fields(kind)]


def _pairs(pairs: Sequence[str]) -> dict[str, Any]:
    """``name=value`` pairs; a value is read as JSON, or as text when it is none.

    Raises:
        PareError: No ``=`` in one of them.
    """
    settings: dict[str, Any] = {}
    words: Mapping[str, Any] = {"True": True, "False": False, "None": None}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise PareError(f"--set {pair}: write it as name=value, for instance samples=256")
        try:
            settings[name] = json.loads(value)
        except json.JSONDecodeError:
            settings[name] = words.get(value, value)
    return settings


def _share(flag: str, text: str) -> float:
    """A share such as 10% or 0.1.

    Raises:
        PareError: It is none.
    """
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise PareError(f"--{flag} {text}: give a share such as 10% or 0.1") from None
