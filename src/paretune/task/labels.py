"""Labels: whether they are classes or numbers, their names and order, and which class counts as positive."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from paretune.errors import PareError, near
from paretune.task.files import Rows, is_missing

MANY = 20  # more whole numbers than this are a scale, not classes
NEGATIONS = ("not", "non", "un", "no", "in", "im", "ir", "il", "dis")


def guess_kind(rows: Rows, field: str) -> str:
    """Whether a label column is for classification or regression.

    Regression if every value is a number and one is not whole, or more than `MANY` different ones occur;
    else classification.

    Raises:
        PareError: A label is missing, or the column looks like free text.
    """
    values = present(rows, field)
    numbers = [_number(value) for value in values]
    if all(number is not None for number in numbers):
        whole = all(number == math.floor(number) for number in numbers if number is not None)
        return "classification" if whole and len(set(numbers)) <= MANY else "regression"
    different = len({class_name(value) for value in values})
    if different > max(MANY, len(values) // 2):
        raise PareError(
            f"{rows.name}: the label field {field!r} has {different} different values in {len(values)} rows, "
            "which does not look like classes; name another with label=, or insist with kind='classification'"
        )
    return "classification"


def present(rows: Rows, field: str) -> list[Any]:
    """The values of a label field.

    Raises:
        PareError: A row has none, or holds a list or an object; the message names the line.
    """
    values = rows.columns[field] if field in rows.columns else [None] * len(rows)
    for index, value in enumerate(values):
        if is_missing(value):
            raise PareError(f"{rows.place(index)}: no label in field {field!r}; add it or take the row out")
        if isinstance(value, list | dict):
            raise PareError(
                f"{rows.place(index)}: field {field!r} holds a {type(value).__name__}; give one label a row"
            )
    return values


def class_name(value: Any) -> str:
    """A label as the string that names its class: 3 and 3.0 are "3", true is "true"."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def class_names(rows: Rows, field: str) -> tuple[str, ...]:
    """The classes of the training rows, sorted (by value where all are whole numbers).

    Raises:
        PareError: There is only one, or a row has none.
    """
    counts = Counter(class_name(value) for value in present(rows, field))
    if len(counts) == 1:
        (only,) = counts
        raise PareError(
            f"{rows.name}: the label field {field!r} says {only!r} in every row; "
            "there is nothing to tell apart: give rows of at least two classes"
        )
    return tuple(sorted(counts, key=_class_order(counts)))


def class_indices(rows: Rows, field: str, classes: Sequence[str]) -> list[int]:
    """The number of each row's class.

    Raises:
        PareError: A row has no label, or one that the training rows do not have.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    indices = []
    for index, value in enumerate(present(rows, field)):
        name = class_name(value)
        if name not in numbers:
            listed = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
            raise PareError(
                f"{rows.place(index)}: label {name!r} is not among the labels of the training rows "
                f"({listed}){near(name, classes)}; correct it, or add such rows to train"
            )
        indices.append(numbers[name])
    return indices


def targets(rows: Rows, field: str, vary: bool) -> list[float]:
    """The numbers of a regression.

    Args:
        rows: The rows.
        field: The label field.
        vary: Whether one value in every row is an error (it is for training rows).

    Raises:
        PareError: A row has no label or one that is not a finite number, or all are the same.
    """
    values = []
    for index, value in enumerate(present(rows, field)):
        number = _number(value)
        if number is None:
            raise PareError(
                f"{rows.place(index)}: {value!r} in field {field!r} is not a finite number; "
                "correct it, or ask for kind='classification'"
            )
        values.append(number)
    if vary and len(set(values)) == 1:
        raise PareError(
            f"{rows.name}: the label field {field!r} says {values[0]} in every row; there is nothing to learn"
        )
    return values


def positive_class(classes: Sequence[str], asked: str | None) -> str | None:
    """The class whose F1 is reported; None means the mean over all classes (macro F1).

    Of two classes, the one that the other negates ("equivalent" against "not_equivalent", "acceptable"
    against "unacceptable"); else the last in the order of the classes ("1", "yes", "true", "positive").

    Raises:
        PareError: The asked one is not a class.
    """
    if asked is not None:
        if asked not in classes:
            raise PareError(
                f"positive={asked!r} is not a label; "
                f"the labels are {', '.join(classes)}{near(asked, classes)}"
            )
        return asked
    if len(classes) != 2:
        return None
    first, second = classes
    return first if _negates(second, first) else second


def _negates(name: str, other: str) -> bool:
    """Whether `name` is `other` behind a negation."""
    plain, base = (_letters(text) for text in (name, other))
    return any(plain == negation + base for negation in NEGATIONS)


def _letters(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum())


def _number(value: Any) -> float | None:
    """The finite number a value is or spells, or None."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _class_order(names: Iterable[str]) -> Callable[[str], Any]:
    """Sort key: by value where every name is a whole number, else alphabetical."""
    whole = all(re.fullmatch(r"-?\d+", name) for name in names)
    return (lambda name: (int(name), name)) if whole else str
