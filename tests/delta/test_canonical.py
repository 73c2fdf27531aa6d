import numpy as np
import pytest

from paretune.delta.canonical import canonical_json, read_json
from paretune.errors import PareError


def test_equal_documents_have_equal_bytes():
    assert canonical_json({"b": [1, 2.5], "a": "ü"}, "x") == b'{"a":"\\u00fc","b":[1,2.5]}'
    assert canonical_json({"a": 1, "b": 2}, "x") == canonical_json({"b": 2, "a": 1}, "x")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, np.float32(1), b"x"])
def test_what_json_cannot_hold_is_refused_by_name(value):
    with pytest.raises(PareError, match="info cannot be kept"):
        canonical_json({"score": value}, "info")


@pytest.mark.parametrize("text", [b"", b"{", b"NaN", b"[Infinity]", b"\xff", b"[" * 100_000, b"1" * 5000])
def test_what_is_not_json_is_refused(text):
    with pytest.raises(PareError, match="header is not JSON"):
        read_json(text, "the header")
