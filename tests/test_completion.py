"""Completion in real shells: what a press of the tab key is answered."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from paretune.completion import METHOD_NAMES, WORDS
from paretune.methods import METHODS
from paretune.search.engines import ENGINES
from paretune.selection import Granularity
from paretune.strategies.registry import STRATEGIES

BIN = Path(sys.executable).parent
# What bash does at a tab: the words and the place of the cursor, then the function that is registered.
BASH = """
eval "$(register-python-argcomplete paretune)"
COMP_LINE="$LINE" COMP_POINT=${#LINE} COMP_TYPE=9 COMP_WORDS=($LINE) COMP_CWORD=$COUNT
$(complete -p paretune | sed 's/.*-F \\([^ ]*\\).*/\\1/') paretune
printf '%s\\n' "${COMPREPLY[@]}"
"""
# zsh's completion needs a terminal; what it asks the program is what is checked.
ZSH = """
compdef() { : }
eval "$(register-python-argcomplete --shell zsh paretune)"
_describe() { print -l -- "${completions[@]}" }
service=paretune words=(${=LINE}) BUFFER="$LINE" CURSOR=${#LINE} CURRENT=$((COUNT + 1))
_python_argcomplete paretune
"""


def answers(shell: str, script: str, line: str) -> list[str]:
    """What a shell offers at the end of a line."""
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"no {shell} on this machine")
    flags = {"bash": ["--norc", "--noprofile"], "zsh": ["-f"]}[shell]
    count = len(line.split()) - (not line.endswith(" "))
    environment = os.environ | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "LINE": line,
        "COUNT": str(count),
    }
    run = subprocess.run(
        [program, *flags, "-c", script], env=environment, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    return [word.split(":")[0].strip() for word in run.stdout.splitlines()]


CASES = [
    ("paretune tu", ["tune"]),
    ("paretune tune --meth", ["--method"]),
    ("paretune tune --me", ["--metric", "--method"]),
    ("paretune choose --method f", ["full", "fish"]),
    ("paretune tune --method au", ["auto"]),
    ("paretune front --methods head lor", ["lora"]),
    ("paretune delta insp", ["inspect"]),
    ("paretune delta merge --overlap me", ["mean"]),
]


@pytest.mark.parametrize(("line", "offered"), CASES)
def test_bash(line, offered):
    assert sorted(answers("bash", BASH, line)) == sorted(offered)


@pytest.mark.parametrize(("line", "offered"), CASES[:4])
def test_zsh(line, offered):
    assert sorted(answers("zsh", ZSH, line)) == sorted(offered)


def test_the_words_are_those_that_there_are():
    assert set(METHOD_NAMES) == set(METHODS)
    assert set(WORDS["--strategies"]) == set(STRATEGIES)
    assert WORDS["--engine"] == ENGINES
    assert {*WORDS["--granularity"], "all"} == set(get_args(Granularity))
