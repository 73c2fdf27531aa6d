"""A front as text of 80 columns: the candidates, what was left out, and the recommendation."""

import textwrap
from collections.abc import Mapping
from typing import Any

from paretune.plan_table import readable_bytes
from paretune.search.outcome import WIDTH

NAME = 17  # characters of a candidate's name


def front_table(front: Mapping[str, Any]) -> str:
    """The table of a ``front.json``.

    Args:
        front: Its content.
    """
    request = front["request"]
    metric = request["metric"][:8]
    heads = f"{'candidate':<{NAME}}{metric:>8}{'95 % interval':>14}{'n':>3}{'steps':>6}"
    lines = [f"  {heads}{'trained':>10}{'delta':>10}{'memory':>10}"]
    share = max((row["share"] for row in front["candidates"]), default=1.0)
    rows = sorted(front["candidates"], key=lambda row: -row["share"])
    for row in rows:
        mark = "*" if row["on_front"] else " "
        name = _fitting(row["name"])
        interval = "" if row["low"] is None else f"{row['low']:.3f}..{row['high']:.3f}"
        left = f"{name:<{NAME}}{row['score']:>8.4f}{interval:>14}{row['n']:>3}{row['share']:>6.0%}"
        memory = readable_bytes(row["peak_bytes"])
        right = f"{_count(row['trained']):>10}{readable_bytes(row['delta_bytes']):>10}{memory:>10}"
        lines.append(f"{mark} {left}{right}".rstrip())
    lines += _wrapped(
        f"* on the front: at {share:.0%} of the steps nothing has a better score and fewer trained weights"
    )
    for row in front["skipped"]:
        lines += _wrapped(f"skipped {row['method']} {row['budget']}: {row['reason']}")
    failed: dict[str, int] = {}
    for row in front["trials"]:
        if row["state"] == "failed":
            cause = f"{row['candidate']} at {row['lr']:g}: {row['failed']}"
            failed[cause] = failed.get(cause, 0) + 1
    for cause, times in failed.items():
        lines += _wrapped(f"failed {f'({times} times) ' if times > 1 else ''}{cause}")
    cost = front["cost"]
    spent = f"{cost['trials']} trials, worth {cost['equivalents']:.1f} whole trainings"
    lines.append(f"{spent}, {cost['seconds'] / 60:.1f} minutes")
    if front["recommendation"]:
        lines += ["", *textwrap.wrap(front["recommendation"]["text"], WIDTH, break_long_words=False)]
    return "\n".join(lines)


def _fitting(name: str) -> str:
    """A candidate's name in fewer characters than its column; a long one keeps its end, mostly the budget."""
    if len(name) < NAME:
        return name
    start, _, end = name.rpartition(" ")
    room = NAME - 4 - len(end)
    return f"{start[:room]}.. {end}" if room > 3 else f"{name[: NAME - 3]}.."


def _count(weights: int) -> str:
    """A number of weights in at most nine characters."""
    return f"{weights:,}" if weights < 10_000_000 else f"{weights / 1e6:,.1f}M"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False)
