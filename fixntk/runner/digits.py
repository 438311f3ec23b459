"""Numbers as text, with sensible digits."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence


def format_numbers(values: Sequence[float | int]) -> list[str]:
    """Format a column's numbers with about four significant digits, aligned where their sizes allow it.

    Integers are shown without decimals. Otherwise all numbers get the number of decimals that the largest one needs. If
    the smallest number would then have fewer than two digits, each number is formatted on its own.
    """
    finite = [value for value in values if math.isfinite(value)]
    largest = max((abs(value) for value in finite), default=0.0)
    if all(float(value).is_integer() for value in finite) and largest < 1e15:
        return [_use_minus_sign(f"{value:.0f}") for value in values]
    decimals = max(0, 3 - math.floor(math.log10(largest)))
    smallest = min(abs(value) for value in finite if value)
    if largest < 1e6 and decimals <= 6 and smallest >= 9.5 * 10.0**-decimals:
        return [_use_minus_sign(f"{value:.{decimals}f}") for value in values]
    return [_use_minus_sign(_format_alone(value)) for value in values]


def format_number(value: float | int) -> str:
    """Format a number that stands alone with up to four significant digits."""
    return _use_minus_sign(_format_alone(value, digits=4))


def _format_alone(value: float | int, digits: int = 3) -> str:
    text = f"{value:.0f}" if 10 ** (digits - 1) <= abs(value) < 1e6 else f"{value:.{digits}g}"
    return re.sub(r"e([+-])0*", r"e\1", text).replace("e+", "e")


def _use_minus_sign(text: str) -> str:
    """Replace the hyphen by a minus sign and inf by ∞; a number that rounds to zero gets no sign."""
    if re.fullmatch(r"-0(\.0*)?", text):
        return text[1:]
    return text.replace("-", "−").replace("inf", "∞")
