"""JSON with one spelling: what is equal has the same bytes."""

import json
from typing import Any

from paretune.errors import PareError


def canonical_json(document: Any, name: str) -> bytes:
    """Sorted keys, no spaces, ASCII only.

    Args:
        document: What to write.
        name: What it is, for the message.

    Raises:
        PareError: It holds something that JSON has no way to write (an object, NaN, infinity).
    """
    try:
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as problem:
        raise PareError(
            f"{name} cannot be kept as JSON: {problem}; give plain numbers and texts"
        ) from problem
    return text.encode()


def read_json(text: bytes, name: str) -> Any:
    """Read strict JSON.

    Raises:
        PareError: It is not JSON, or holds NaN or infinity.
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as problem:
        raise PareError(f"{name} is not JSON ({problem})") from problem


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
