"""Every command and code block of the README runs, with tiny MODEL, train.jsonl and validation.jsonl."""

import re
import shlex
from pathlib import Path

import pytest

from paretune.cli import OK, main
from tests.tiny import tiny_model, tiny_rows, write_jsonl

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder in which the README's names exist."""
    tiny_model("bert", tmp_path / "MODEL")
    write_jsonl(tmp_path / "train.jsonl", tiny_rows("pair", 60))
    write_jsonl(tmp_path / "validation.jsonl", tiny_rows("pair", 30, seed=1))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands():
    text = "\n".join(code for language, code in BLOCKS if language == "bash").replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in text.splitlines() if line.strip()]


def test_every_block_is_of_a_kind_that_is_run():
    assert {language for language, _ in BLOCKS} == {"bash", "python"}
    assert {words[0] for words in commands()} == {"make", "paretune"}


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for words in commands():
        if words[0] == "make":
            assert re.search(rf"^{words[1]}[ :]", makefile, flags=re.MULTILINE), words
    assert re.search(r"^bench:", makefile, flags=re.MULTILINE)


def test_shell_commands_run(here):
    for words in commands():
        if words[0] == "paretune":  # half a percent of the tiny model holds no LoRA
            assert main(["5%" if word == "0.5%" else word for word in words[1:]]) == OK, words


def test_python_blocks_run(here):
    blocks = [code for language, code in BLOCKS if language == "python"]
    assert blocks
    for code in blocks:
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    assert (here / "delta.safetensors").exists()


def test_links_and_pictures_exist():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert any(link.endswith(".svg") for link in links)
    for link in links:
        assert (ROOT / link).exists(), link
