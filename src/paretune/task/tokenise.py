"""Texts to token ids, cut to a length, with what was cut and what was left out counted."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from paretune.errors import PareError
from paretune.progress import track
from paretune.task.files import Rows

CHUNK = 1000  # rows tokenised at once


@dataclass
class Encoded:
    """Tokenised rows.

    Attributes:
        columns: `input_ids`, `attention_mask`, perhaps `token_type_ids` and `labels`, and `length`; one entry
            a row that was kept.
        kept: Which of the raw rows each entry comes from.
        truncated: Whether each entry lost tokens.
        notes: What somebody should know about it.
    """

    columns: dict[str, list[Any]]
    kept: list[int] = field(default_factory=list)
    truncated: list[bool] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def finish(self) -> "Encoded":
        """Add what follows from the ids: the mask and the length."""
        ids = self.columns["input_ids"]
        self.columns["attention_mask"] = [[1] * len(row) for row in ids]
        self.columns["length"] = [len(row) for row in ids]
        return self


def texts(rows: Rows, name: str) -> list[str]:
    """The strings of a field.

    Raises:
        PareError: A row has none, or something else; the message names the line.
    """
    values = rows.columns.get(name, [None] * len(rows))
    for index, value in enumerate(values):
        if value is None:
            raise PareError(f"{rows.place(index)}: no text in field {name!r}; add it or take the row out")
        if not isinstance(value, str):
            raise PareError(
                f"{rows.place(index)}: field {name!r} holds a {type(value).__name__} where text was "
                "expected; name the right field with text="
            )
    return values


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, rows: Rows, fields: Sequence[str], max_length: int, types: bool = True
) -> Encoded:
    """Tokenise one text or a pair, as the tokenizer's own template wraps them.

    What is too long is cut from the end of the longer text. Where the template puts nothing between the texts
    of a pair (GPT-2's does not), a line break goes there.

    Args:
        tokenizer: The model's.
        rows: The rows.
        fields: One or two text fields.
        max_length: Most tokens of a row, special ones included.
        types: Whether to keep `token_type_ids` where the tokenizer makes them.

    Raises:
        PareError: A row has no text or its text has no token, or `max_length` leaves no room for text.
    """
    columns = [texts(rows, name) for name in fields]
    pair = len(columns) == 2
    special = tokenizer.num_special_tokens_to_add(pair=pair)
    if max_length < special + len(columns):
        raise PareError(
            f"max_length={max_length} leaves no room for text beside {special} special tokens; "
            f"give at least {special + len(columns)}"
        )
    if pair and special == tokenizer.num_special_tokens_to_add(pair=False):
        columns[1] = ["\n" + text for text in columns[1]]
    wanted = ["input_ids"]
    if types and "token_type_ids" in tokenizer.model_input_names:
        wanted.append("token_type_ids")
    encoded = Encoded({name: [] for name in wanted}, list(range(len(rows))))
    for start in chunks(len(rows)):
        chunk = [column[start : start + CHUNK] for column in columns]
        found, lost = _cut(tokenizer, chunk, max_length)
        for name, values in encoded.columns.items():
            values.extend(found[name])
        encoded.truncated.extend(lost)
    for index, ids in enumerate(encoded.columns["input_ids"]):
        if not ids:
            raise PareError(
                f"{rows.place(index)}: the text has no token; write something or take the row out"
            )
    return encoded.finish()


def encode_targets(
    tokenizer: PreTrainedTokenizerBase, rows: Rows, name: str, max_length: int
) -> tuple[list[list[int]], list[bool]]:
    """Tokenise what an encoder-decoder shall write, as the tokenizer wraps a target.

    Returns:
        The ids of each row, and whether it was cut.

    Raises:
        PareError: A row has no text, or its text has no token.
    """
    written = texts(rows, name)
    ids: list[list[int]] = []
    cut: list[bool] = []
    for start in chunks(len(rows)):
        chunk = written[start : start + CHUNK]
        found, lost = _cut(
            lambda texts, **options: tokenizer(text_target=texts, **options), [chunk], max_length
        )
        ids.extend(found["input_ids"])
        cut.extend(lost)
    for index, row in enumerate(ids):
        if not row:
            raise PareError(
                f"{rows.place(index)}: the target has no token; write something or take the row out"
            )
    return ids, cut


def _cut(
    tokenise: Callable[..., Mapping[str, Any]], columns: Sequence[list[str]], max_length: int
) -> tuple[dict[str, list[Any]], list[bool]]:
    """Tokenise rows, and those that turn out too long once more with truncation; and say which those are."""
    options: dict[str, Any] = {"return_attention_mask": False, "verbose": False}
    found = dict(tokenise(*columns, **options))
    long = [index for index, ids in enumerate(found["input_ids"]) if len(ids) > max_length]
    if long:
        again = [[column[index] for index in long] for column in columns]
        shorter = tokenise(*again, truncation=True, max_length=max_length, **options)
        for name, values in found.items():
            for index, value in zip(long, shorter[name], strict=True):
                values[index] = value
    lost = set(long)
    return found, [index in lost for index in range(len(columns[0]))]


def chunks(count: int) -> Iterator[int]:
    """Where each chunk of rows starts, behind a progress bar."""
    return track(range(0, count, CHUNK), "tokenising")
