import datasets
import pytest
from datasets.exceptions import DatasetNotFoundError

from paretune.errors import PareError
from paretune.task.files import read_rows
from paretune.task.hub import has_split, is_hub_name, load_hub


@pytest.fixture
def hub(monkeypatch):
    """A Hub with two data sets."""
    rows = datasets.Dataset.from_dict({"text": ["a", "b"]})
    more = datasets.DatasetDict({"train": rows, "validation": rows.select([0])})
    known = {("glue", "mrpc"): more, ("org/name", None): datasets.DatasetDict({"train": rows})}
    known["org/name", "config"] = more

    def load(path, config=None):
        if (path, config) in known:
            return known[path, config]
        if path in ("glue", "org/name"):
            raise ValueError(f"Config name is missing. Please pick one among the configs of {path}")
        raise DatasetNotFoundError(f"Dataset '{path}' doesn't exist")

    monkeypatch.setattr(datasets, "load_dataset", load)


@pytest.mark.parametrize("name", ["imdb", "org/name", "org/name:config", "org/name:config:test", "glue/mrpc"])
def test_names(name):
    assert is_hub_name(name)


@pytest.mark.parametrize("name", ["train.jsonl", "data/train.txt", "./name", "/data/x", "a/b/c", "a b"])
def test_not_names(name):
    assert not is_hub_name(name)


def test_a_name_inside_a_folder_that_exists_is_a_file(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    assert not is_hub_name("data/train")
    assert is_hub_name("other/train")


def test_names_are_read(hub):
    assert load_hub("org/name")[1] == "org/name (split train)"
    assert len(load_hub("org/name:config")[0]) == 2
    assert len(load_hub("org/name:config:validation")[0]) == 1
    assert len(load_hub("glue/mrpc", "validation")[0]) == 1
    assert has_split("glue/mrpc", "validation")
    assert not has_split("org/name", "validation")
    assert read_rows("org/name").place(1) == "org/name (split train), row 2"


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("org/name::test", "no split 'test'; it has train"),
        ("org/name:other", "pick one among"),
        ("no/such", "neither a file here nor a data set"),
        ("nothing", "neither a file here nor a data set"),
    ],
)
def test_what_the_hub_does_not_have(hub, name, word):
    with pytest.raises(PareError, match=word):
        load_hub(name)


def test_a_hub_out_of_reach(monkeypatch):
    def load(path, config=None):
        raise ConnectionError(f"Couldn't reach '{path}' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(PareError, match="Hub cannot be reached"):
        read_rows("org/name")
