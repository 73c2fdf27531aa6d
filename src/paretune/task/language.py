"""Texts, prompts with completions, and conversations to token ids with labels, for a decoder."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from paretune.errors import PareError
from paretune.progress import track
from paretune.task.collate import IGNORED
from paretune.task.fields import is_chat
from paretune.task.files import Rows
from paretune.task.tokenise import CHUNK, Encoded, chunks, texts

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def encode_language(
    tokenizer: PreTrainedTokenizerBase, rows: Rows, fields: Sequence[str], max_length: int, separator: str
) -> Encoded:
    """Tokenise for a decoder, in TRL's shapes.

    * One field of strings: plain text; every token is a target.
    * Two fields of strings: a prompt and its completion; the loss is on the completion.
    * Two fields of messages: the same, written by the chat template.
    * One field of messages: a conversation written by the chat template; the loss is on the assistant's
      tokens where the template marks them (``{% generation %}``), else on all.

    Prompt and completion are joined as they are, with `separator` between, and tokenised together; a token
    that reaches into the completion belongs to it. A string's end token is put last and is a target. Where a
    prompt and its completion are too long, the prompt loses its start (but for a start token) and then the
    completion its end; a text or conversation loses its end. A row without a target is left out.

    Args:
        tokenizer: The model's.
        rows: The rows.
        fields: One or two names.
        max_length: Most tokens of a row.
        separator: What goes between a prompt and its completion where they are strings.

    Raises:
        PareError: A row has no text or no messages, there is no chat template, or it refuses a row.
    """
    chat = is_chat(rows, fields[0])
    if chat and not tokenizer.chat_template:
        raise PareError(
            f"{rows.name}: field {fields[0]!r} holds messages, but the model's tokenizer has no chat "
            "template; take a model that has one, or give strings as prompt and completion"
        )
    if not chat:
        encoded = _continuations(tokenizer, rows, fields, max_length, separator)
    elif len(fields) == 2:
        encoded = _chat_continuations(tokenizer, rows, fields, max_length)
    else:
        encoded = _conversations(tokenizer, rows, fields[0], max_length)
    return encoded.finish()


def _continuations(
    tokenizer: PreTrainedTokenizerBase, rows: Rows, fields: Sequence[str], max_length: int, separator: str
) -> Encoded:
    """Plain text is the continuation of an empty prompt."""
    columns = [texts(rows, name) for name in fields]
    prompts = [text + separator for text in columns[0]] if len(columns) == 2 else [""] * len(rows)
    encoded = _empty("loss on the completion" if len(columns) == 2 else "loss on all tokens")
    bare = 0
    for start in chunks(len(rows)):
        chunk = slice(start, start + CHUNK)
        split = _tokenise(tokenizer, prompts[chunk], columns[-1][chunk], special=True)
        for index, (ids, boundary) in enumerate(split, start):
            ids, boundary = _ended(ids, boundary, tokenizer.eos_token_id)
            _add_cut(encoded, index, ids, boundary, max_length, tokenizer.bos_token_id)
            bare += _is_bare(prompts[index], columns[-1][index])
    if bare:
        encoded.notes.append(
            f"{rows.name}: {fields[0]} and {fields[1]} meet without white space in {bare} of {len(rows)} "
            "rows; put it into the data, or give separator="
        )
    return encoded


def _chat_continuations(
    tokenizer: PreTrainedTokenizerBase, rows: Rows, fields: Sequence[str], max_length: int
) -> Encoded:
    """The template writes the prompt, and the prompt with its completion; the rest is the completion."""
    prompts, completions = [], []
    for index in range(len(rows)):
        asked, answered = (_messages(rows, index, name) for name in fields)
        with _template_errors(rows, index):
            prompt = str(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
            whole = str(tokenizer.apply_chat_template([*asked, *answered], tokenize=False))
        shared = _shared(prompt, whole)
        prompts.append(whole[:shared])
        completions.append(whole[shared:])
    encoded = _empty("loss on the completion, written by the chat template")
    split = _tokenise(tokenizer, prompts, completions, special=False)
    for index, (ids, boundary) in enumerate(track(split, "tokenising", len(rows))):
        _add_cut(encoded, index, ids, boundary, max_length, tokenizer.bos_token_id)
    return encoded


def _conversations(tokenizer: PreTrainedTokenizerBase, rows: Rows, name: str, max_length: int) -> Encoded:
    """The template writes whole conversations and may mark what the assistant says."""
    marked = False
    encoded = _empty()
    for index in track(range(len(rows)), "tokenising"):
        conversation = _messages(rows, index, name)
        with _template_errors(rows, index):
            marked = GENERATION.search(tokenizer.get_chat_template()) is not None
            found: Any = tokenizer.apply_chat_template(
                conversation,
                return_dict=True,
                return_assistant_tokens_mask=marked,
                tokenizer_kwargs={"verbose": False},
            )
        ids = list(found["input_ids"])
        labels = ids
        if marked:
            masks = found["assistant_masks"]
            labels = [token if mask else IGNORED for token, mask in zip(ids, masks, strict=True)]
        _add(encoded, index, ids[:max_length], labels[:max_length], len(ids) > max_length)
    encoded.notes.append(
        "loss on the assistant's tokens"
        if marked
        else "loss on all tokens: the chat template does not mark the assistant's ({% generation %})"
    )
    return encoded


def _messages(rows: Rows, index: int, name: str) -> list[dict[str, Any]]:
    """The messages of one row.

    Raises:
        PareError: It is not a list of messages with a role and a content.
    """
    values = rows.columns[name][index] if name in rows.columns else None
    if not isinstance(values, list) or not values:
        raise PareError(
            f"{rows.place(index)}: no list of messages in field {name!r}; add it or take the row out"
        )
    for number, message in enumerate(values, 1):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise PareError(
                f"{rows.place(index)}: message {number} in field {name!r} needs a role and a content"
            )
    return values


@contextlib.contextmanager
def _template_errors(rows: Rows, index: int) -> Iterator[None]:
    """Say which row a chat template refuses, and why."""
    try:
        yield
    except (jinja2.TemplateError, ValueError, TypeError) as error:
        raise PareError(
            f"{rows.place(index)}: the tokenizer's chat template does not write this conversation: {error}"
        ) from error


def _tokenise(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], completions: Sequence[str], special: bool
) -> Iterator[tuple[list[int], int]]:
    """The ids of each joined row, and the index of the first that reaches into the completion.

    A tokenizer that cannot say where its tokens stand in the text tokenises the two apart.
    """
    options: dict[str, Any] = {"return_attention_mask": False, "verbose": False}
    if tokenizer.is_fast:
        wholes = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
        found = tokenizer(wholes, add_special_tokens=special, return_offsets_mapping=True, **options)
        for prompt, ids, spans in zip(prompts, found["input_ids"], found["offset_mapping"], strict=True):
            inside = (number for number, (_, end) in enumerate(spans) if end > len(prompt))
            yield ids, next(inside, len(ids))
        return
    for prompt, completion in zip(prompts, completions, strict=True):
        before = tokenizer(prompt, add_special_tokens=special, **options)["input_ids"]
        if before and before[-1] == tokenizer.eos_token_id:
            before = before[:-1]
        after = tokenizer(completion, add_special_tokens=False, **options)["input_ids"]
        yield [*before, *after], len(before)


def _ended(ids: list[int], boundary: int, end: int | None) -> tuple[list[int], int]:
    """The ids with the end token last, and the boundary at most there: it is always a target."""
    if end is None:
        return ids, boundary
    ids = ids if ids and ids[-1] == end else [*ids, end]
    return ids, min(boundary, len(ids) - 1)


def _add_cut(
    encoded: Encoded, index: int, ids: list[int], boundary: int, limit: int, start: int | None
) -> None:
    """Add a row cut to `limit`: the prompt at its start, then the completion at its end."""
    prompt, completion = ids[:boundary], ids[boundary:]
    room = min(len(prompt), max(limit - len(completion), 1))
    if room < len(prompt):
        begun = prompt[:1] if prompt[0] == start else []
        prompt = begun + prompt[len(prompt) - room + len(begun) :]
    completion = completion[: limit - room]
    labels = [IGNORED] * room + completion
    _add(encoded, index, prompt + completion, labels, len(ids) > limit)


def _add(encoded: Encoded, index: int, ids: list[int], labels: list[int], truncated: bool) -> None:
    """Add a row if it has a target; the first token is never predicted."""
    if any(label != IGNORED for label in labels[1:]):
        encoded.columns["input_ids"].append(ids)
        encoded.columns["labels"].append(labels)
        encoded.kept.append(index)
        encoded.truncated.append(truncated)


def _shared(first: str, second: str) -> int:
    """How many characters two strings begin with alike."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))


def _is_bare(prompt: str, completion: str) -> bool:
    """Whether two texts meet without white space."""
    return bool(prompt and completion) and not (prompt[-1].isspace() or completion[0].isspace())


def _empty(*notes: str) -> Encoded:
    return Encoded({"input_ids": [], "labels": []}, notes=list(notes))
