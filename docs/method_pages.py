"""A page for every method, made from the registry when the site is built (a hook of mkdocs)."""

import re
import textwrap
from dataclasses import MISSING, fields
from inspect import getdoc
from typing import Any

from mkdocs.structure.files import File, Files

from paretune.methods import METHODS, Method

_ROLE = re.compile(r":\w+:`~?(?:[\w.]*\.)?(\w+)`")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages, and an index of them."""
    for name, method in METHODS.items():
        files.append(File.generated(config, f"methods/{name}.md", content=page(name, method)))
    files.append(File.generated(config, "methods/index.md", content=index()))
    return files


def index() -> str:
    """Markdown: every method in a line."""
    lines = [
        "# Methods",
        "",
        "`paretune methods` prints the same.",
        "",
        "| method | what it trains |",
        "|---|---|",
    ]
    lines += [f"| [{name}]({name}.md) | {method.summary} |" for name, method in METHODS.items()]
    return "\n".join(lines) + "\n"


def _moved(method: type[Method]) -> str:
    """How the learning rates move with the budget, where they do."""
    return f" at 0.5 %, times (0.5 % / share)^{method.rate_power:g} elsewhere" if method.rate_power else ""


def page(name: str, method: type[Method]) -> str:
    """Markdown: what a method does, how to call it, its settings."""
    text = getdoc(method) or ""
    story = re.split(r"\n(?:Args|Raises|Attributes):\n", text)[0]
    budget = " --budget 0.5%" if method.sized else ""
    rates = ", ".join(f"{rate:g}" for rate in method.learning_rates)
    lines = [
        f"# {name}",
        "",
        f"*{method.summary}*",
        "",
        _plain(story),
        "",
        "```",
        f"paretune tune --model M --train T --validation V --method {name}{budget} --out RUN",
        "```",
        "",
        f"`--lr sweep` tries {rates}{_moved(method)}."
        + ("" if method.sized else " Its size is its own: it takes no budget."),
    ]
    settings = list(fields(method))
    if settings:
        said = _settings(method)
        lines += ["", "| setting | default | what it does |", "|---|---|---|"]
        for each in settings:
            default = "" if each.default is MISSING else f"`{each.default}`"
            lines.append(f"| `{each.name}` | {default} | {said.get(each.name, '')} |")
        lines += ["", "Give them as `--set name=value`."]
    lines += ["", "Where it is from, and what is our reading: [papers and commands](../papers.md)."]
    return "\n".join(lines) + "\n"


def _settings(method: type) -> dict[str, str]:
    """What the docstrings of a class and of those it builds on say of each setting."""
    said: dict[str, str] = {}
    for kind in reversed(method.__mro__):
        block = re.search(r"\nArgs:\n(.*?)(?:\n\S|\Z)", getdoc(kind) or "", flags=re.DOTALL)
        entries = (
            re.findall(r"^(\w+): (.*?)(?=^\w+: |\Z)", textwrap.dedent(block[1]), re.M | re.S) if block else []
        )
        said |= {name: _plain(" ".join(what.split())).replace("|", "\\|") for name, what in entries}
    return said


def _plain(text: str) -> str:
    """A docstring's markup as Markdown."""
    return _ROLE.sub(r"`\1`", text).replace("``", "`")
