"""Columns of numbers as people write them: thousands separators, decimal commas, currencies, per cent."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd


class NumberFormat(NamedTuple):
    """How the numbers of a column are written.

    Attributes
    ----------
    thousands, decimal
        The separators; no thousands separator if empty.
    unit
        A currency, which numbers may lack, or '%', which all have and which divides by 100; empty for none.
    """

    thousands: str = ""
    decimal: str = "."
    unit: str = ""


# What pandas takes for numbers, among them 1e3 and inf.
PLAIN = NumberFormat()
# Separators of thousands and of decimals in the order in which they are tried. Thousands may be without a separator.
_SEPARATORS = ((",", "."), (".", ","), ("'", "."), ("’", "."), (" ", ","), (" ", "."))
# Codes of currencies; signs of currencies have a category of their own in Unicode.
_CODES = frozenset(
    "AUD BRL CAD CHF CNY CZK DKK EUR GBP HKD INR JPY KRW MXN NOK NZD PLN RUB SEK SGD USD ZAR".split()  # noqa: SIM905
)
# Signs of a number, among them Unicode's minus.
_SIGN = "[+\\-\N{MINUS SIGN}]?"
# Everything in a number but its unit.
_NOT_UNIT = re.compile("[0-9.,'’\\s+\\-\N{MINUS SIGN}()]+")


def is_format(value: NumberFormat) -> bool:
    """Whether it is a format that :func:`find_number_format` can find."""
    separators = (value.thousands, value.decimal)
    return value == PLAIN or (separators in _SEPARATORS and (not value.unit or _is_unit(value.unit)))


def find_number_format(column: pd.Series, *, decimal_comma: bool = False) -> NumberFormat | None:
    """The first format that all values of a column of strings have, missing ones aside; None if there is none.

    Parameters
    ----------
    column
        Strings, NaN for missing values.
    decimal_comma
        Whether 1.234 and 1,234 are more probably a thousand and one, as they are where other columns have decimal
        commas.
    """
    present = column.dropna().drop_duplicates()
    for number_format in _formats(present, decimal_comma):
        # The first value rules out most formats without reading all of them.
        if not any(parse_numbers(part, number_format).isna().any() for part in (present[:1], present)):
            return number_format
    return None


def has_decimal_comma(column: pd.Series) -> bool:
    """Whether the numbers of a column can be read with a decimal comma only, such as 1,5 and 1.234,0."""
    number_format = find_number_format(column)
    return number_format is not None and number_format.decimal == ","


def parse_numbers(column: pd.Series, number_format: NumberFormat) -> pd.Series:
    """Numbers of a column of strings as float64, NaN for what is missing or not of the format."""
    if number_format == PLAIN:
        # Python's parser of numbers skips blanks in front, which are none of what this takes.
        return pd.to_numeric(column.astype(object), errors="coerce").astype("float64")
    texts = column.astype(object).str.replace(r"\s", " ", regex=True)
    parts = texts.str.extract(_pattern(number_format))
    for separator, replacement in ((number_format.thousands, ""), (number_format.decimal, ".")):
        parts["number"] = parts["number"].str.replace(separator, replacement, regex=False)
    numbers = pd.to_numeric(parts["number"], errors="coerce").astype("float64")
    # As in accounting, a number in parentheses is negative.
    is_negative = parts[["open", "before", "after"]].isin(["(", "-", "\N{MINUS SIGN}"]).any(axis=1)
    return numbers.where(~is_negative, -numbers) / (100 if number_format.unit == "%" else 1)


def describe(column: pd.Series, number_format: NumberFormat) -> str:
    """What the longest text of a column of numbers stands for, in words; empty for plain numbers."""
    if number_format == PLAIN:
        return ""
    example = max(column.dropna(), key=len)
    return f", {example!r} is {parse_numbers(pd.Series([example]), number_format).iloc[0]:.12g}"


def _is_unit(text: str) -> bool:
    return text == "%" or text in _CODES or (len(text) == 1 and unicodedata.category(text) == "Sc")


def _formats(values: pd.Series, decimal_comma: bool) -> Iterator[NumberFormat]:
    """Formats that the values may have, in the order in which they are tried."""
    if decimal_comma and values.str.contains("[.,]").any():
        formats = [PLAIN, *_formats_with_unit(values)]
        yield from sorted(formats, key=lambda number_format: number_format.decimal != ",")
    else:
        yield PLAIN
        yield from _formats_with_unit(values)


def _formats_with_unit(values: pd.Series) -> Iterator[NumberFormat]:
    """Formats with the unit that the values have; none if they have several, or text that is not a unit."""
    units: set[str] = set()
    for value in values:
        if unit := _NOT_UNIT.sub("", value):
            units.add(unit)
        if len(units) > 1 or not all(map(_is_unit, units)):
            return
    unit = next(iter(units), "")
    yield from (NumberFormat(thousands, decimal, unit) for thousands, decimal in _SEPARATORS)


def _pattern(number_format: NumberFormat) -> str:
    """A regular expression whose group 'number' has the digits and separators."""
    thousands, decimal, unit = map(re.escape, number_format)
    whole = f"(?:[1-9][0-9]{{0,2}}(?:{thousands}[0-9]{{3}})+|[0-9]+)"
    number = f"(?P<number>{whole}(?:{decimal}[0-9]*)?|{decimal}[0-9]+)"
    if number_format.unit in ("", "%"):
        front, behind = f"(?P<before>{_SIGN})(?P<after>)", f" ?{unit}" if unit else ""
    else:
        front, behind = f"(?:(?P<before>{_SIGN}) ?(?:{unit} ?)?|{unit} ?(?P<after>{_SIGN}))", f"(?: ?{unit})?"
    return rf"\A(?P<open>\()?{front}{number}{behind}(?(open)\)|)\Z"
