"""What the samples are that a method kept: classes, lengths, losses, the texts themselves."""

from typing import Any

import numpy as np

from paretune.task import Task

TEXTS = 32  # at most, of those kept
CHARACTERS = 200  # of a text


def describe_samples(task: Task, drawn: np.ndarray, losses: np.ndarray, kept: np.ndarray) -> dict[str, Any]:
    """A report (JSON) and its table on the kept samples beside all that were drawn.

    Args:
        task: The task they are from.
        drawn: Indices into ``task.train``.
        losses: Of each drawn sample.
        kept: Positions among the drawn.
    """
    columns = {"all drawn": np.arange(len(drawn)), "kept": kept}
    rows: list[list[Any]] = [["samples", *(len(part) for part in columns.values())]]
    lengths = np.asarray(task.train["length"])
    rows.append(["mean tokens", *(float(lengths[drawn[part]].mean()) for part in columns.values())])
    rows.append(["mean loss", *(float(losses[part].mean()) for part in columns.values())])
    if task.kind == "classification":
        labels = np.asarray(task.train["labels"])
        for number, label in enumerate(task.labels):
            shares = [float((labels[drawn[part]] == number).mean()) for part in columns.values()]
            rows.append([f"share of {label}", *shares])
    table = {"title": "the samples", "columns": ["", *columns], "rows": rows}
    return {"table": table, "kept": _kept(task, drawn[kept], losses[kept])}


def _kept(task: Task, indices: np.ndarray, losses: np.ndarray) -> list[dict[str, Any]]:
    """The kept samples, those of largest loss first."""
    order = np.argsort(-losses, kind="stable")[:TEXTS]
    found = []
    for place in order:
        row = task.train[int(indices[place])]
        text = task.tokenizer.decode(row["input_ids"], skip_special_tokens=True)[:CHARACTERS]
        entry: dict[str, Any] = {"index": int(indices[place]), "loss": float(losses[place]), "text": text}
        if task.kind == "classification":
            entry["label"] = task.labels[int(row["labels"])]
        found.append(entry)
    return found
