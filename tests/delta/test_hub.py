"""Deltas to and from a folder and, with the Hub's two calls recorded, to a repository."""

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi

from paretune.delta import Delta
from paretune.errors import PareError
from paretune.plan import Base
from paretune.search.tune import tune
from paretune.task import Task
from paretune.tuning import Recipe
from tests.tiny import tiny_model, tiny_rows, write_jsonl


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train = write_jsonl(folder / "train.jsonl", tiny_rows("pair", 60))
    validation = write_jsonl(folder / "validation.jsonl", tiny_rows("pair", 30, seed=1))
    task = Task.from_files(train, validation, model=tiny_model("bert", folder / "bert"))
    recipe = Recipe(lr=1.0, steps=4, batch_size=8, checkpoints=0)
    result = tune(task, "random", "3%", folder / "run", recipe=recipe, lr=1e-2)
    return task, result, Delta.load(folder / "run/delta.safetensors")


def front_matter(folder):
    _, matter, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(matter), text


def test_a_saved_folder_loads_and_scores_as_reported(run, tmp_path):
    task, result, delta = run
    delta.save_pretrained(tmp_path / "mine")
    loaded = Delta.from_pretrained(tmp_path / "mine")
    assert loaded.digest == delta.digest
    assert task.score(loaded.load_model()) == result["scores"]


def test_the_card_says_what_it_is_and_how_to_load_it(run, tmp_path):
    _, result, delta = run
    delta = replace(delta, base=replace(delta.base, model="someone/bert-tiny"))
    delta.save_pretrained(tmp_path / "mine")
    data, text = front_matter(tmp_path / "mine")
    assert data["base_model"] == "someone/bert-tiny" and data["base_model_relation"] == "adapter"
    assert data["library_name"] == "paretune" and "random" in data["tags"]
    assert data["pipeline_tag"] == "text-classification"
    assert "| budget | 3% |" in text and "| method | random |" in text
    assert f"| {result['metric']} on validation | {result['score']:.4f} |" in text
    assert f"{result['trained']:,}, and {result['head']:,} of the head" in text
    code = re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)[1]
    assert 'from_pretrained("mine")' in code
    ast.parse(code)


def test_the_cards_code_runs(run, tmp_path, monkeypatch):
    _, _, delta = run
    monkeypatch.chdir(tmp_path)
    delta.save_pretrained("mine")
    _, text = front_matter(tmp_path / "mine")
    namespace = {}
    exec(re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)[1], namespace)
    assert namespace["model"].config.num_labels == 2


def test_a_local_base_is_not_given_out_as_one_of_the_hub(run, tmp_path):
    run[2].save_pretrained(tmp_path / "mine")  # its base is a folder
    data, _ = front_matter(tmp_path / "mine")
    assert "base_model" not in data


def test_hostile_names_stay_texts(run, tmp_path):
    bad = "x|<script>\n## [a](javascript:b) `c`\n---\nbase_model: evil/evil"
    delta = replace(run[2], base=Base(bad, run[2].base.digest, "float32"), info={"method": bad})
    delta.save_pretrained(tmp_path / "mine")
    data, text = front_matter(tmp_path / "mine")
    assert "base_model" not in data
    assert "\n## [a]" not in text and not re.search(r"(?<!\\)<script", text)
    assert Delta.from_pretrained(tmp_path / "mine").digest == delta.digest


def test_push_uploads_the_folder(run, tmp_path, monkeypatch):
    """The Hub is out of reach in tests: what would be sent is looked at, and read back."""
    calls = {}

    def create_repo(self, repo_id, **settings):
        calls["repo"] = (repo_id, settings)

    def upload_folder(self, *, folder_path, **settings):
        calls["upload"] = settings
        for path in Path(folder_path).iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        return "https://example.org/commit"

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    assert run[2].push_to_hub("me/mine", private=True) == "https://example.org/commit"
    assert calls["repo"] == ("me/mine", {"private": True, "exist_ok": True})
    assert calls["upload"]["repo_id"] == "me/mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "delta.safetensors"]
    assert Delta.from_pretrained(tmp_path).digest == run[2].digest
    assert 'from_pretrained("me/mine")' in (tmp_path / "README.md").read_text()


def test_nothing_there_is_said(run, tmp_path, monkeypatch):
    with pytest.raises(PareError, match=r"holds no delta\.safetensors"):
        Delta.from_pretrained(tmp_path)
    with pytest.raises(PareError, match="no such folder, and no Hub id"):
        Delta.from_pretrained(tmp_path / "not" / "there")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PareError, match=r"me/mine: no such folder, and no delta\.safetensors from the Hub"):
        Delta.from_pretrained("me/mine", cache_dir=tmp_path)
    with pytest.raises(PareError, match="me/mine: could not be uploaded"):
        run[2].push_to_hub("me/mine", token="none")


def test_a_damaged_download_is_refused(run, tmp_path):
    run[2].save_pretrained(tmp_path)
    content = bytearray((tmp_path / "delta.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "delta.safetensors").write_bytes(bytes(content))
    with pytest.raises(PareError):
        Delta.from_pretrained(tmp_path)
