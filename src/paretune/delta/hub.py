"""Deltas on the Hub: a repository with the delta and a model card, and back."""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from paretune.delta.contents import Contents
from paretune.delta.format import encode
from paretune.errors import PareError
from paretune.files import write_atomic

FILE = "delta.safetensors"
PIPELINES = {
    "classification": "text-classification",
    "regression": "text-classification",
    "causal-lm": "text-generation",
    "seq2seq": "text2text-generation",
}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")  # a folder's path is no id


def save_folder(delta: Contents, folder: str | Path, repo_id: str | None = None) -> None:
    """Write ``delta.safetensors`` and ``README.md``, the model card.

    Args:
        delta: What to write.
        folder: Where to; made if absent.
        repo_id: What the card's example loads; None takes the folder's name.

    Raises:
        PareError: A value is NaN or infinite.
        OSError: The folder cannot be written.
    """
    folder = Path(folder)
    write_atomic(folder / FILE, encode(delta))
    write_atomic(folder / "README.md", str(card(delta, repo_id or folder.name)))


def push(
    delta: Contents,
    repo_id: str,
    private: bool | None,
    token: str | None,
    revision: str | None,
    message: str,
) -> str:
    """Upload the folder of :func:`save_folder`; the repository is made if it is absent.

    Returns:
        The address of the commit.

    Raises:
        PareError: The Hub cannot be reached or refuses, or the id is none.
    """
    api = HfApi(token=token)
    try:
        with tempfile.TemporaryDirectory(prefix="paretune-") as folder:
            save_folder(delta, folder, repo_id)
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=folder, revision=revision, commit_message=message
            )
            return str(commit)
    except (HfHubHTTPError, HFValidationError, ConnectionError) as problem:
        raise PareError(f"{repo_id}: could not be uploaded ({_first_line(problem)})") from problem


def find(name: str | Path, revision: str | None, token: str | None, cache_dir: str | Path | None) -> Path:
    """The delta's file: in a folder, or from a repository of the Hub.

    Raises:
        PareError: No delta there, or the Hub cannot be reached.
    """
    folder = Path(name)
    if folder.is_dir():
        if not (folder / FILE).exists():
            raise PareError(f"{folder}: holds no {FILE}; give a folder that save_pretrained wrote")
        return folder / FILE
    if not _HUB_ID.fullmatch(str(name)):
        raise PareError(f"{name}: no such folder, and no Hub id")
    try:
        return Path(hf_hub_download(str(name), FILE, revision=revision, token=token, cache_dir=cache_dir))
    except (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        ConnectionError,
    ) as problem:
        raise PareError(
            f"{name}: no such folder, and no {FILE} from the Hub ({_first_line(problem)})"
        ) from problem


def card(delta: Contents, repo_id: str) -> ModelCard:
    """The model card: base, method, budget, scores, what is in the file, how to load it."""
    info, task = delta.info, delta.task
    method = str(info.get("method", "by hand"))
    scores = info.get("scores")
    scores = scores if isinstance(scores, Mapping) else {}
    kind = str(task.get("kind", ""))
    head = sum(delta.tensors[name].count for name in delta.head)
    is_hub_id = bool(_HUB_ID.fullmatch(delta.base.model)) and "/" in delta.base.model
    data = ModelCardData(
        base_model=delta.base.model if is_hub_id else None,
        base_model_relation="adapter" if is_hub_id else None,
        library_name="paretune",
        pipeline_tag=PIPELINES.get(kind),
        tags=["paretune", "parameter-efficient", _tag(method)],
    )
    rows = {
        "base model": f"{delta.base.model} ({delta.base.dtype}), weights {delta.base.digest[:12]}",
        "task": kind,
        "method": method,
        "budget": info.get("budget"),
        "trained weights": f"{delta.count - head:,}, and {head:,} of the head",
        "learning rate": info.get("lr"),
        "seed": info.get("seed"),
        **{f"{name} on validation": _figure(value) for name, value in scores.items()},
        "plan": delta.plan_digest[:12],
    }
    lines = [
        f"# A paretune delta for {_cell(delta.base.model)}",
        "",
        "The trained weights alone, to be applied to the untouched base model. Loading checks every byte of",
        "the file, and that the base's weights are those it was trained on.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items() if value not in (None, "")),
        "",
        "## How to load it",
        "",
        "```python",
        "import paretune as pt",
        "",
        f"delta = pt.Delta.from_pretrained({_literal(repo_id)})",
        "model = delta.load_model()  # the base with the delta applied; or delta.apply(base) on your own",
        "```",
        "",
        "What is in it: `print(delta)`. As an ordinary checkpoint:",
        "`delta.load_model(merge=True).save_pretrained(folder)`.",
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n")


def _cell(value: Any) -> str:
    """A text in a cell of Markdown: one line, no markup of its own."""
    text = "".join(sign if sign.isprintable() else " " for sign in str(value))
    return re.sub(r"([\\`*_\[\]<>|#!&~])", r"\\\1", text)


def _literal(text: str) -> str:
    return '"' + re.sub(r"[^\w./-]", "", text) + '"'


def _tag(method: str) -> str:
    return re.sub(r"[^\w.-]", "-", method)


def _figure(value: Any) -> Any:
    return f"{value:.4f}" if isinstance(value, float) else value


def _first_line(problem: Exception) -> str:
    return str(problem).strip().partition("\n")[0] or type(problem).__name__
