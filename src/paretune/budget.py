"""How much may be trained: "0.5%", "120k" or "2MiB", resolved to a whole number of weights."""

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral, Real
from typing import Literal

from paretune.errors import PareError

Unit = Literal["share", "count", "bytes"]
HeadRule = Literal["outside", "inside"]

_EXAMPLES = "'0.5%' of the model, '120k', '1.5M' or 120000 weights, '500KB' or '2MiB' of delta"
_NUMBER = r"[+-]?(?=\.?\d)(?:\d{1,3}(?:,\d{3})+|\d+(?:_\d+)*)?(?:\.\d*)?(?:e[+-]?\d{1,2})?"
_BUDGET = re.compile(rf"(?P<number>{_NUMBER})\s*(?P<unit>[a-z%]*)", re.IGNORECASE | re.ASCII)
_LONGEST = 40  # characters: longer text is no number of weights
_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_BYTES = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True)
class Budget:
    """How much may be trained, as it was asked for.

    Attributes:
        text: The budget as written.
        unit: "share" of the pretrained weights, "count" of weights or "bytes" of delta.
        value: The share (0 to 1), the number of weights or the number of bytes.

    Raises:
        PareError: The value is not above zero, or a share is above one.
    """

    text: str
    unit: Unit
    value: Fraction

    def __post_init__(self) -> None:
        if self.value <= 0:
            raise PareError(f"budget {self.text!r} must be above zero, for example {_EXAMPLES}")
        if self.unit == "share" and self.value > 1:
            raise PareError(f"budget {self.text!r} is more than the whole model: '100%' is the largest share")

    @classmethod
    def parse(cls, asked: "Budget | str | int") -> "Budget":
        """Read a budget.

        A share ends in `%`. A count may end in `k`, `M` or `G` (thousand, million, billion). A size of delta
        ends in `KB`, `MB`, `GB` (powers of 1000) or `KiB`, `MiB`, `GiB` (powers of 1024). Upper and lower
        case are the same, and `120_000`, `120,000` and `1.2e5` are numbers too.

        Args:
            asked: The budget as written, or a whole number of weights; a `Budget` is given back.

        Raises:
            PareError: It cannot be read, is not above zero or is more than the whole model.
        """
        if isinstance(asked, Budget):
            return asked
        if isinstance(asked, Integral) and not isinstance(asked, bool):
            return cls(str(int(asked)), "count", Fraction(int(asked)))
        if isinstance(asked, Real) and not isinstance(asked, bool):
            raise _not_whole(float(asked))
        if not isinstance(asked, str):
            raise PareError(f"cannot read a budget from {asked!r}; write {_EXAMPLES}")
        text = asked.strip()
        match = _BUDGET.fullmatch(text) if len(text) <= _LONGEST else None
        number, unit = (match["number"], match["unit"].lower()) if match else ("", "")
        if unit == "b":
            raise PareError(
                f"budget {text!r} may mean billions or bytes; write '{number}G' for billions of weights or "
                "a size of delta in KB, MB or GB"
            )
        if not match or unit not in {"%", *_COUNTS, *_BYTES}:
            raise PareError(f"cannot read budget {text!r}; write {_EXAMPLES}")
        value = Fraction(number.replace(",", "").replace("_", ""))
        if unit == "%":
            return cls(text, "share", value / 100)
        if unit in _BYTES:
            return cls(text, "bytes", value * _BYTES[unit])
        return cls(text, "count", value * _COUNTS[unit])

    def resolve(
        self,
        weights: int,
        head_weights: int = 0,
        head_rule: HeadRule = "outside",
        bytes_per_weight: float | Fraction = 4.0,
    ) -> int:
        """The whole number of pretrained weights that may be trained, rounded down.

        Args:
            weights: How many pretrained weights the model has; a share is a share of these under both rules.
            head_weights: How many weights of the head there are.
            head_rule: "outside": the head is trained on top of the budget. "inside": it is paid from it.
            bytes_per_weight: What one trained weight takes in the delta; used by a budget in bytes.

        Returns:
            A number from 1 to `weights`.

        Raises:
            PareError: The budget is below one weight or above the model, the head takes all of it, the rule
                is unknown, or `bytes_per_weight` is not above zero.
        """
        if head_rule not in ("outside", "inside"):
            raise PareError(
                f"unknown head rule {head_rule!r}: write 'outside' (the head is extra) or 'inside'"
            )
        paid = math.floor(self._exact(weights, bytes_per_weight))
        head = head_weights if head_rule == "inside" else 0
        if paid < 1:
            raise PareError(self._too_small(weights))
        if paid <= head:
            raise PareError(
                f"budget {self.text!r} is {paid:,} weights and the head alone takes {head:,} under the head "
                f"rule 'inside': ask for at least {head + 1:,}, or use the head rule 'outside'"
            )
        if paid - head > weights:
            size = f"{weights:,} pretrained weights" + (f" and {head:,} of the head" if head else "")
            raise PareError(
                f"budget {self.text!r} is {paid:,} weights but the model has {size}: "
                f"ask for {weights + head:,} at most"
            )
        return paid - head

    def _exact(self, weights: int, bytes_per_weight: float | Fraction) -> Fraction:
        """The number of weights before rounding."""
        if self.unit == "share":
            return self.value * weights
        if self.unit == "count":
            return self.value
        if not math.isfinite(bytes_per_weight) or bytes_per_weight <= 0:
            raise PareError(f"bytes_per_weight must be a number above zero, not {bytes_per_weight}")
        # The decimal that was written, 3.3 say, rather than the binary number nearest to it.
        return self.value / Fraction(str(bytes_per_weight))

    def _too_small(self, weights: int) -> str:
        """What to say about a budget below one weight."""
        message = f"budget {self.text!r} is less than one weight of the model's {weights:,}"
        if self.unit == "count" and self.value < 1:
            return f"{message}; write '{self.text}%' or '{float(self.value * 100):g}%' if a share is meant"
        return f"{message}; ask for more, for example {_EXAMPLES}"

    def __str__(self) -> str:
        """The budget as written."""
        return self.text


def _not_whole(number: float) -> PareError:
    """What to say about a budget given as a float."""
    if 0 < number < 1:
        return PareError(
            f"budget {number!r} is no whole number of weights; write '{number * 100:g}%' if a share of the "
            f"model is meant, or {_EXAMPLES}"
        )
    if math.isfinite(number) and number >= 1:
        return PareError(f"budget {number!r} is a float; write {int(number)} for so many weights")
    return PareError(f"budget {number!r} must be above zero and finite; write {_EXAMPLES}")
