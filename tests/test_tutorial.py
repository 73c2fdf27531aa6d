"""The tutorial's commands and code run, in their order, on a small CSV."""

import csv
import re
import shlex
from pathlib import Path

import pytest

from paretune.cli import OK, main
from tests.tiny import tiny_model, tiny_rows

TUTORIAL = (Path(__file__).parents[1] / "docs/tutorial.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TUTORIAL, flags=re.DOTALL)


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder in which the tutorial's names exist."""
    tiny_model("bert", tmp_path / "MODEL")
    write_csv(tmp_path / "tickets.csv", tiny_rows("single", 60))
    write_csv(tmp_path / "tickets_new.csv", tiny_rows("single", 30, seed=1))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def follow(blocks):
    for language, code in blocks:
        if language == "python":
            exec(compile(code, "tutorial.md", "exec"), {})
            continue
        for line in code.splitlines():
            program, *words = shlex.split(line)
            assert program == "paretune"
            assert main(words) == OK, line


def is_front(block):
    return "paretune front" in block[1]


def test_choosing_tuning_and_using(here):
    follow(block for block in BLOCKS if not is_front(block))
    for left in ("plan/plan.json", "tuned/report.html", "merged/config.json"):
        assert (here / left).exists(), left


@pytest.mark.slow
def test_the_front(here):
    follow(block for block in BLOCKS if is_front(block))
    assert (here / "front/report.html").exists()
