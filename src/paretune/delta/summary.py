"""What is in a delta and what it costs: as data, and as text of at most 80 columns."""

import math
import textwrap
from collections.abc import Iterator
from typing import Any

from paretune.delta import codec
from paretune.delta.arrays import dtype_name
from paretune.delta.contents import Contents
from paretune.delta.format import encode

_SHOWN = 12  # tensors listed one by one


def summarise(delta: Contents) -> dict[str, Any]:
    """What is in a delta, as JSON.

    Returns:
        ``base``, ``plan``, ``task``, ``info``; ``parts``: per part (selected, head, added by strategy) its
        ``tensors``, ``weights``, ``index_bytes`` and ``value_bytes``; ``tensors``: one entry for each;
        ``additions``; and ``total``: ``weights``, ``bytes`` of the file, ``bytes_per_weight``.

    Raises:
        PareError: The delta cannot be written (NaN or infinite values).
    """
    tensors = [_tensor(delta, name) for name in delta.tensors]
    added = [_added(delta, key) for key in delta.added]
    parts: dict[str, dict[str, int]] = {}
    for entry in (*tensors, *added):
        part = parts.setdefault(
            entry["part"], {"tensors": 0, "weights": 0, "index_bytes": 0, "value_bytes": 0}
        )
        part["tensors"] += 1
        for key in ("weights", "index_bytes", "value_bytes"):
            part[key] += entry[key]
    size = len(encode(delta))
    return {
        "base": dict(vars(delta.base)),
        "plan": delta.plan_digest,
        "task": delta.task,
        "info": delta.info,
        "parts": parts,
        "tensors": tensors + added,
        "additions": [dict(vars(addition)) for addition in delta.additions],
        "total": {
            "tensors": len(tensors) + len(added),
            "weights": delta.count,
            "bytes": size,
            "bytes_per_weight": size / delta.count if delta.count else None,
        },
    }


def render(delta: Contents) -> str:
    """What is in a delta, as text of at most 80 columns, without colour."""
    summary = summarise(delta)
    return "\n".join([*_about(delta), "", *_parts(summary), "", *_largest(summary["tensors"])])


def _tensor(delta: Contents, name: str) -> dict[str, Any]:
    values = delta.tensors[name]
    indices = values.indices
    return {
        "name": name,
        "part": "head" if name in delta.head else "selected",
        "shape": list(values.shape),
        "granularity": values.granularity,
        "dtype": dtype_name(values.values.dtype),
        "weights": values.count,
        "index_bytes": 0 if indices is None else len(codec.encode(indices, values.bound)),
        "value_bytes": values.count * values.values.element_size(),
    }


def _added(delta: Contents, key: str) -> dict[str, Any]:
    values = delta.added[key]
    return {
        "name": key,
        "part": f"added {key.partition(':')[0]}",
        "shape": list(values.shape),
        "granularity": "all",
        "dtype": dtype_name(values.dtype),
        "weights": values.numel(),
        "index_bytes": 0,
        "value_bytes": values.numel() * values.element_size(),
    }


def _about(delta: Contents) -> Iterator[str]:
    """Base, plan, task and info; of a long one its first three lines."""
    lines = {
        "base": f"{delta.base.dtype}, weights {delta.base.digest[:12]}",
        "plan": delta.plan_digest[:12],
        "task": _listed(delta.task),
        "info": _listed(delta.info),
    }
    yield _cut(f"delta for {_clean(delta.base.model)}", 80)
    for label, text in lines.items():
        wrapped = textwrap.wrap(_clean(text), 72, max_lines=3, placeholder=" ...")
        for start, line in zip([label, "", ""], wrapped, strict=False):
            yield f"  {start:<6}{line}"


def _parts(summary: dict[str, Any]) -> Iterator[str]:
    yield f"{'part':<20}{'tensors':>8}{'weights':>14}{'bytes':>14}{'bytes/weight':>14}"
    for name, part in summary["parts"].items():
        yield _line(name, part["tensors"], part["weights"], part["index_bytes"] + part["value_bytes"])
    stored = sum(part["index_bytes"] + part["value_bytes"] for part in summary["parts"].values())
    total = summary["total"]
    yield f"{'names, checksums':<20}{'':>8}{'':>14}{total['bytes'] - stored:>14,}"
    yield _line("whole file", total["tensors"], total["weights"], total["bytes"])


def _line(name: str, tensors: int, weights: int, size: int) -> str:
    each = f"{size / weights:.2f}" if weights else "-"
    return f"{_cut(_clean(name), 19):<20}{tensors:>8,}{weights:>14,}{size:>14,}{each:>14}"


def _largest(tensors: list[dict[str, Any]]) -> Iterator[str]:
    yield f"{'tensor':<44}{'what':>14}{'weights':>12}{'share':>10}"
    ordered = sorted(tensors, key=lambda entry: (-entry["weights"], entry["name"]))
    for entry in ordered[:_SHOWN]:
        size = math.prod(entry["shape"])
        share = f"{entry['weights'] / size:.2%}" if size else "-"
        what = f"{entry['granularity']} {_short(entry['dtype'])}"
        yield f"{_end(_clean(entry['name']), 43):<44}{what:>14}{entry['weights']:>12,}{share:>10}"
    if len(ordered) > _SHOWN:
        rest = sum(entry["weights"] for entry in ordered[_SHOWN:])
        yield f"{f'... and {len(ordered) - _SHOWN:,} more':<44}{'':>14}{rest:>12,}"


def _listed(document: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_plain(value)}" for key, value in document.items())


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return f"({_listed(value)})"
    if isinstance(value, list | tuple):
        return "/".join(_plain(item) for item in value)
    return str(value)


def _short(dtype: str) -> str:
    return dtype.replace("bfloat", "bf").replace("float", "fp")


def _clean(text: str) -> str:
    """One line without control characters: a file from elsewhere should not steer the terminal."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _end(text: str, width: int) -> str:
    """The end of a text that is too long: names of tensors differ there."""
    return text if len(text) <= width else "..." + text[3 - width :]
