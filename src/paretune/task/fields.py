"""Which fields of a data set hold the text, and which the label."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from paretune.errors import PareError, near
from paretune.task.files import Rows

Family = Literal["encoder", "decoder", "encoder-decoder"]

LABELS = ("label", "labels", "score", "target", "class", "category", "rating", "stars", "similarity_score")
PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("query", "passage"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("claim", "evidence"),
)
SINGLES = ("text", "sentence", "review", "content", "comment", "tweet", "question", "document", "body")
PROMPTS = (
    ("prompt", "completion"),
    ("source", "target"),
    ("document", "summary"),
    ("article", "highlights"),
    ("dialogue", "summary"),
    ("instruction", "response"),
    ("instruction", "output"),
    ("input", "output"),
    ("question", "answer"),
)
CHAT = "messages"


@dataclass(frozen=True)
class Fields:
    """The fields a task reads.

    Attributes:
        text: One or two names. Two are a pair of texts under a label, else the prompt and its completion.
        label: The label's name; None for language modelling.
    """

    text: tuple[str, ...]
    label: str | None

    @property
    def all(self) -> tuple[str, ...]:
        """Every field that is read, text first."""
        return self.text if self.label is None else (*self.text, self.label)


def find_fields(
    rows: Rows, kind: str | None, family: Family, text: str | Sequence[str] | None, label: str | None
) -> Fields:
    """Find the text and label fields; those that are named are checked, not guessed.

    Without a kind, ``messages`` or ``prompt`` and ``completion`` mean language modelling, a label field
    means classification or regression, and a lone text means language modelling on a decoder.

    Args:
        rows: The training rows.
        kind: What the task was asked to be, or None.
        family: What the model is.
        text: The text field or fields, or None to find them (see `PAIRS`, `SINGLES`, `PROMPTS`).
        label: The label field, or None to find it (see `LABELS`).

    Raises:
        PareError: A named field does not exist, or none can be found.
    """
    named = (text,) if isinstance(text, str) else tuple(text or ())
    for name in named if label is None else (*named, label):
        check_field(rows, name)
    if len(named) > 2 or len(set(named)) < len(named):
        raise PareError(f"text fields {', '.join(named)}: name one field or two different ones")
    labelled = kind in ("classification", "regression")
    if kind is None:
        labelled = label is not None or (_label(rows, named) is not None and not _is_language(rows, named))
    if not labelled:
        if label is not None:
            raise PareError(f"label field {label!r}: a {kind} task has no label; name its fields with text=")
        return Fields(named or _language(rows, family), None)
    label = label or _label(rows, named)
    if label is None:
        raise PareError(
            f"{rows.name}: no field looks like a label; the fields are {_listed(rows)}: name it with label="
        )
    return Fields(named or _texts(rows, label), label)


def check_field(rows: Rows, name: str) -> None:
    """Refuse a name that no row has.

    Raises:
        PareError: With the fields that exist and the nearest of them.
    """
    if name not in rows.columns:
        raise PareError(
            f"{rows.name}: no field {name!r}; the fields are {_listed(rows)}{near(name, rows.columns)}"
        )


def is_chat(rows: Rows, field: str) -> bool:
    """Whether a field holds lists of messages rather than strings."""
    return any(isinstance(value, list) for value in rows.columns[field][:10])


def _listed(rows: Rows) -> str:
    return ", ".join(rows.columns)


def _label(rows: Rows, taken: Sequence[str]) -> str | None:
    """The first of the usual label fields that is not taken as text."""
    return next((name for name in LABELS if name in rows.columns and name not in taken), None)


def _is_language(rows: Rows, named: Sequence[str]) -> bool:
    """Whether the rows have one of TRL's shapes for language modelling with nothing named otherwise."""
    if named:
        return named in ((CHAT,), PROMPTS[0])
    found = rows.columns.keys()
    return CHAT in found or set(PROMPTS[0]) <= found or {"source", "target"} <= found


def _texts(rows: Rows, label: str) -> tuple[str, ...]:
    """The one or two texts under a label: by their usual names, or the only text there is."""
    others = [name for name in rows.columns if name != label]
    for pair in PAIRS:
        if set(pair) <= set(others):
            return pair
    for single in SINGLES:
        if single in others:
            return (single,)
    written = [name for name in others if _is_written(rows.columns[name])]
    if len(written) == 1:
        return (written[0],)
    raise PareError(
        f"{rows.name}: no field looks like the text; the fields are {_listed(rows)}: "
        "name one or two with text="
    )


def _is_written(values: Sequence[Any]) -> bool:
    """Whether a column holds text: strings with a space somewhere among the first rows."""
    head = [value for value in values[:50] if value is not None]
    return all(isinstance(value, str) for value in head) and any(" " in value.strip() for value in head)


def _language(rows: Rows, family: Family) -> tuple[str, ...]:
    """The fields to learn to write: messages, a prompt and its completion, or plain text."""
    if CHAT in rows.columns and family != "encoder-decoder":
        return (CHAT,)
    for pair in PROMPTS:
        if set(pair) <= rows.columns.keys():
            return pair
    if family == "encoder":
        raise PareError(
            f"{rows.name}: no field looks like a label; the fields are {_listed(rows)}: name it with label="
        )
    if family == "encoder-decoder":
        raise PareError(
            f"{rows.name}: an encoder-decoder needs a source and a target; the fields are {_listed(rows)}: "
            "name the two with text="
        )
    for single in SINGLES:
        if single in rows.columns:
            return (single,)
    written = [name for name in rows.columns if _is_written(rows.columns[name])]
    if len(written) == 1:
        return (written[0],)
    raise PareError(
        f"{rows.name}: no field looks like the text; the fields are {_listed(rows)}: name it with text="
    )
