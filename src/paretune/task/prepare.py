"""From raw rows and settings to everything a task holds."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from paretune.errors import PareError
from paretune.task.collate import Collator
from paretune.task.fields import Fields, check_field, find_fields
from paretune.task.files import Rows
from paretune.task.kinds import Kind, Shape, check_family, check_metric, find_kind
from paretune.task.labels import class_names, guess_kind, positive_class
from paretune.task.models import family, has_token_types, load_config, load_tokenizer, max_positions
from paretune.task.split import hold_out
from paretune.task.tokenise import Encoded


@dataclass(frozen=True)
class Settings:
    """What a task was asked to be; see `Task.from_files`.

    Raises:
        PareError: A value is out of its range.
    """

    model: str
    kind: str | None = None
    text: str | Sequence[str] | None = None
    label: str | None = None
    metric: str | None = None
    positive: str | None = None
    max_length: int = 128
    heldout: float = 0.1
    seed: int = 0
    separator: str = ""
    revision: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.heldout < 1:
            raise PareError(f"heldout={self.heldout}: give a share of the training rows from 0 to below 1")
        if self.max_length < 2:
            raise PareError(f"max_length={self.max_length}: give at least 2 tokens")
        if self.seed < 0:
            raise PareError(f"seed={self.seed}: give a whole number from 0 on")


def prepare(train: Rows, validation: Rows | None, settings: Settings) -> dict[str, Any]:
    """Everything a task holds, by the names of its attributes.

    Raises:
        PareError: A field, a row, a setting or the model cannot be used.
    """
    config = load_config(settings.model, settings.revision, settings.trust_remote_code)
    kind, fields = _kind_and_fields(train, validation, settings, family(config))
    metric = check_metric(kind, settings.metric)
    classes: tuple[str, ...] = ()
    if kind.name == "classification":
        assert fields.label is not None
        classes = class_names(train, fields.label)
    if settings.positive is not None and not classes:
        raise PareError(f"positive={settings.positive!r}: a {kind.name} task has no classes; leave it out")
    tokenizer = load_tokenizer(settings.model, settings.revision, settings.trust_remote_code)
    limit = max_positions(config)
    max_length = settings.max_length if limit is None else min(settings.max_length, limit)
    shape = Shape(fields, classes, max_length, settings.separator, has_token_types(config))
    checked = None if validation is None else _encode(kind, tokenizer, validation, shape, training=False)
    encoded = _encode(kind, tokenizer, train, shape, training=True)
    held = _held_out(encoded, train, settings, bool(classes))
    parts = {"train": (encoded, np.setdiff1d(np.arange(len(encoded.kept)), held)), "heldout": (encoded, held)}
    if checked is not None:
        parts["validation"] = (checked, np.arange(len(checked.kept)))
    splits = {name: _dataset(*part) for name, part in parts.items() if len(part[1])}
    left_out = {"train": len(train) - len(encoded.kept)}
    if checked is not None and validation is not None:
        left_out["validation"] = len(validation) - len(checked.kept)
    notes = list(dict.fromkeys(encoded.notes))
    if max_length < settings.max_length:
        notes.append(f"max_length {settings.max_length} cut to the model's {max_length} positions")
    return {
        "kind": kind.name,
        "model_id": settings.model,
        "tokenizer": tokenizer,
        "fields": fields,
        "labels": classes,
        "metric": metric,
        "positive": positive_class(classes, settings.positive) if classes else None,
        "max_length": max_length,
        "separator": settings.separator,
        "train": splits["train"],
        "heldout": splits.get("heldout"),
        "heldout_seed": settings.seed,
        "validation": splits.get("validation"),
        "truncated": {name: sum(part.truncated[i] for i in rows) for name, (part, rows) in parts.items()},
        "left_out": left_out,
        "notes": tuple(notes),
        "fingerprint": fingerprint(train, validation, shape, kind.name, settings),
        "collate": Collator(tokenizer.pad_token_id),
        "revision": settings.revision,
        "trust_remote_code": settings.trust_remote_code,
    }


def fingerprint(train: Rows, validation: Rows | None, shape: Shape, kind: str, settings: Settings) -> str:
    """The sha256 of what is learnt from: the rows' fields that are read, and the settings that shape them.

    The name and format of the files do not count, nor does the metric.
    """
    digest = hashlib.sha256()
    described = {
        "kind": kind,
        "text": shape.fields.text,
        "label": shape.fields.label,
        "labels": shape.classes,
        "max_length": shape.max_length,
        "separator": shape.separator,
        "heldout": settings.heldout,
        "seed": settings.seed,
    }
    digest.update(json.dumps(described, sort_keys=True).encode())
    for part, rows in (("train", train), ("validation", validation)):
        if rows is not None:
            digest.update(f"\n{part} {len(rows)}\n".encode())
            columns = [rows.columns[name] for name in shape.fields.all]
            for row in zip(*columns, strict=True):
                digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _kind_and_fields(
    train: Rows, validation: Rows | None, settings: Settings, model_family: Any
) -> tuple[Kind, Fields]:
    """What the task is, from what was asked, what the model is and which fields there are."""
    if settings.kind is not None:
        check_family(find_kind(settings.kind), model_family, settings.model)
    fields = find_fields(train, settings.kind, model_family, settings.text, settings.label)
    name = settings.kind
    if name is None and fields.label is not None:
        name = guess_kind(train, fields.label)
    elif name is None:
        name = "seq2seq" if model_family == "encoder-decoder" else "causal-lm"
    kind = find_kind(name)
    check_family(kind, model_family, settings.model)
    if kind.name == "seq2seq" and len(fields.text) != 2:
        raise PareError(f"text={fields.text[0]!r}: seq2seq needs two fields, the source and the target")
    if validation is not None:
        for field in fields.all:
            check_field(validation, field)
    return kind, fields


def _encode(kind: Kind, tokenizer: Any, rows: Rows, shape: Shape, training: bool) -> Encoded:
    """Tokenise; at least one row must be left."""
    encoded = kind.encode(tokenizer, rows, shape, training)
    if not encoded.kept:
        raise PareError(
            f"{rows.name}: no row has a target token within max_length={shape.max_length}; "
            "raise max_length, or look at the fields named with text="
        )
    return encoded


def _held_out(encoded: Encoded, rows: Rows, settings: Settings, classes: bool) -> np.ndarray:
    """The entries that are held out of training, stratified where there are classes."""
    if not settings.heldout:
        return np.array([], dtype=np.int64)
    labels = encoded.columns["labels"] if classes else None
    return hold_out(len(encoded.kept), settings.heldout, settings.seed, rows.name, labels)


def _dataset(encoded: Encoded, rows: np.ndarray) -> datasets.Dataset:
    """Some of the entries as a data set in memory; nothing is written anywhere."""
    order = ("input_ids", "attention_mask", "token_type_ids", "labels", "length")
    names = [name for name in order if name in encoded.columns]
    return datasets.Dataset.from_dict({name: [encoded.columns[name][i] for i in rows] for name in names})
