"""Columns of a table: which are numbers, dates or categories, and which are left out."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from fixntk.tables.dates import (
    FORMATS,
    choose_cycle_features,
    cycle_features,
    describe_cycles,
    describe_dates,
    find_format,
    look_like_dates,
    nearest_format,
    parse_dates,
)
from fixntk.tables.names import TableError, count
from fixntk.tables.numbers import PLAIN, NumberFormat, describe, find_number_format, parse_numbers
from fixntk.tables.read import TextTable

# Kinds of columns.
KINDS = ("number", "date", "category", "drop")
# A numeric target with more distinct values than this is a quantity, not a class.
_MAX_CLASSES = 10
# Smallest number of rows of which texts that are all different are identifiers, or a single one of a kind is rare.
_LEAST_IDENTIFIERS = 10
# Largest number of a column's categories; less frequent ones are rare.
_MAX_CATEGORIES = 100
# Largest number of a column, so that sums over rows stay finite.
_LARGEST_NUMBER = 1e300
# The category of all rare ones; no text of a table begins with a blank.
RARE = " rare"
# Whole numbers as programs write them where others of the column were missing.
_WHOLE = re.compile(r"\A([+-]?[0-9]+)\.0+\Z")


class Columns(NamedTuple):
    """The feature columns of a table.

    Attributes
    ----------
    numbers
        Names of the numeric ones.
    categories
        Names of the categorical ones, each with its categories; '?' is that of missing values, and :data:`RARE` of
        rare ones.
    dates
        Names of the numeric ones that hold dates or times of day, each with its format; their numbers are days or
        hours.
    cycles
        Names of the dates and times with features of the year, the week or the day, each with the names of these.
    formats
        Names of the numeric ones whose numbers have separators or a unit, each with its format.
    rare
        Names of the columns with rare categories, each with these.
    modes
        Names of the columns without missing values that have categories, each with the most frequent one.
    """

    numbers: list[str]
    categories: dict[str, list[str]]
    dates: dict[str, str]
    cycles: dict[str, list[str]]
    formats: dict[str, NumberFormat]
    rare: dict[str, list[str]]
    modes: dict[str, str]

    @property
    def names(self) -> list[str]:
        """Names of all columns of the table."""
        return [*self.numbers, *self.categories]

    @property
    def numeric(self) -> list[str]:
        """Names of all numeric features: those of the table, then those of cycles."""
        cycles = [cycle_name(feature, name) for name, features in self.cycles.items() for feature in features]
        return [*self.numbers, *cycles]


def cycle_name(feature: str, column: str) -> str:
    """Name of a feature of a column of dates; it begins with a blank, as the name of no column of a table does."""
    return f" {feature} of {column}"


def parse_kinds(text: str) -> dict[str, str]:
    """Kinds by name from entries such as ``age=number 'date of birth'=date``, which are quoted as in a shell.

    Raises
    ------
    ValueError
        If an entry has no '=', its kind is unknown, its name is given twice, or a quote has no end.
    """
    kinds: dict[str, str] = {}
    try:
        entries = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"--columns {text!r}: {str(error).lower()}; names are quoted as in a shell") from error
    for entry in entries:
        name, separator, kind = entry.rpartition("=")
        if not separator or not name:
            raise ValueError(f"--columns: {entry!r} must be a column's name, '=' and one of {', '.join(KINDS)}")
        if kind not in KINDS:
            raise ValueError(f"--columns: {entry!r}: a column is one of {', '.join(KINDS)}, not {kind!r}")
        if name in kinds:
            raise ValueError(f"--columns: column {name!r} is given twice")
        kinds[name] = kind
    return kinds


def check_kinds(table: TextTable, kinds: Collection[str]) -> None:
    """Raise TableError if the table lacks a column that has been given a kind."""
    names = [*table.features.columns, table.target.name]
    for name in kinds:
        if name not in names:
            raise TableError(f"{table.name} has no column {name!r}, given in --columns: {', '.join(map(repr, names))}")


def read_columns(table: TextTable, kinds: Mapping[str, str]) -> tuple[pd.DataFrame, Columns, list[str]]:
    """Features as float64 numbers, days for dates, and 'category'; their columns; and a report with a line for each.

    Dates and times of day have features of their cycles too, :func:`fixntk.tables.dates.choose_cycle_features`. Columns
    whose kind is not given are left out if they have one value, or texts that are all different.

    Raises
    ------
    TableError
        If a number is infinite, a column is not of the kind that is given, or no column is left.
    """
    frame, lines = {}, []
    columns = Columns([], {}, {}, {}, {}, {}, {})
    for name in map(str, table.features.columns):
        texts = table.features[name]
        texts = texts.mask(texts == "?")
        kind, reason = (kinds[name], "as --columns says") if name in kinds else _guess_kind(texts, table.decimal_comma)
        if kind == "drop":
            description = f"left out, {reason}"
        elif kind == "category":
            frame[name], description = _take_category(texts, columns)
        else:
            take = _take_number if kind == "number" else _take_date
            frame[name], description = take(table, texts, columns)
            _check_finite(table.path, frame[name])
            if missing := int(texts.isna().sum()):
                description += f"; {missing} missing, replaced by the median"
            frame |= _cycles_of(frame[name], columns)
        lines.append(f"column {name!r}: {description}")
    if not frame:
        raise TableError(f"{table.name}: no column is left to learn from; {'; '.join(lines)}")
    return pd.DataFrame(frame), columns, lines


def _guess_kind(texts: pd.Series, decimal_comma: bool) -> tuple[str, str]:
    """The kind of a column of texts, and why it is left out if that is it."""
    present = texts.dropna()
    if present.empty:
        return "drop", "all of its values are missing"
    number_format, date_format = find_number_format(texts, decimal_comma=decimal_comma), None
    if number_format is not None:
        values = parse_numbers(present, number_format)
    elif (date_format := find_format(texts)) is not None:
        values = parse_dates(present, date_format)
    else:
        values = as_categories(texts.fillna("?"))
    if values.nunique() == 1:
        # The median of the others replaces missing numbers.
        given = "" if len(present) == len(texts) else " that are not missing"
        return "drop", f"all of its values{given} are {present.iloc[0]!r}"
    if number_format is not None or date_format is not None:
        return "number" if date_format is None else "date", ""
    if len(present) >= _LEAST_IDENTIFIERS and present.is_unique:
        reason = f"its {len(present)} texts are all different"
        if look_like_dates(present):
            option = f"{shlex.quote(str(texts.name))}=date"
            reason += f", though they look like dates: --columns {option} takes them, or names one that is none"
        return "drop", reason
    return "category", ""


def _take_number(table: TextTable, texts: pd.Series, columns: Columns) -> tuple[pd.Series, str]:
    number_format = find_number_format(texts, decimal_comma=table.decimal_comma)
    if number_format is None:
        word = _first_that_fails(texts, lambda values: parse_numbers(values, PLAIN))
        raise TableError(f"{table.name}: column {texts.name!r} must be a number, but has {word!r}")
    columns.numbers.append(str(texts.name))
    if number_format != PLAIN:
        columns.formats[str(texts.name)] = number_format
    return parse_numbers(texts, number_format), f"number{describe(texts, number_format)}"


def _take_date(table: TextTable, texts: pd.Series, columns: Columns) -> tuple[pd.Series, str]:
    date_format = find_format(texts)
    if date_format is None:
        nearest = nearest_format(texts)
        word = _first_that_fails(texts, lambda values: parse_dates(values, nearest))
        raise TableError(f"{table.name}: column {texts.name!r} must be a date, but has {word!r}")
    columns.numbers.append(str(texts.name))
    columns.dates[str(texts.name)] = date_format
    numbers = parse_dates(texts, date_format)
    if cycles := choose_cycle_features(numbers, date_format):
        columns.cycles[str(texts.name)] = cycles
    return numbers, f"{describe_dates(texts, date_format)}{describe_cycles(cycles)}"


def _cycles_of(numbers: pd.Series, columns: Columns) -> dict[str, pd.Series]:
    """The features of a column's cycles by their names in the frame; none for numbers that are not dates."""
    name = str(numbers.name)
    if name not in columns.cycles:
        return {}
    features = cycle_features(numbers, columns.dates[name], columns.cycles[name])
    return {cycle_name(feature, name): values for feature, values in features.items()}


def _first_that_fails(texts: pd.Series, parse: Callable[[pd.Series], pd.Series]) -> str | None:
    """The first text that cannot be parsed; None if there is no text."""
    present = texts.dropna()
    return next(iter(present[parse(present).isna()]), None)


def _take_category(texts: pd.Series, columns: Columns) -> tuple[pd.Series, str]:
    name = str(texts.name)
    counts = as_categories(texts).value_counts()
    # In the order of their names where they are equally frequent, so that the order of the rows does not matter.
    ordered = sorted(counts.index, key=lambda category: (-counts[category], category))
    least = 2 if len(texts) >= _LEAST_IDENTIFIERS else 1
    kept = [category for category in ordered[:_MAX_CATEGORIES] if counts[category] >= least]
    rare = sorted(set(ordered) - set(kept))
    description = f"category of {count(len(ordered), 'value')}"
    if rare:
        columns.rare[name] = rare
        description += f", the {len(rare)} rare ones merged into one" if len(rare) > 1 else ", one of them rare"
    if missing := int(texts.isna().sum()):
        description += f"; {missing} missing, replaced by a category of its own"
    else:
        columns.modes[name] = kept[0] if kept else RARE
    columns.categories[name] = sorted([*kept, *(["?"] if missing else []), *([RARE] if rare else [])])
    values = _pool(as_categories(texts).fillna("?"), columns.rare.get(name, ()))
    return pd.Series(pd.Categorical(values, columns.categories[name]), texts.index, name=name), description


def as_categories(texts: pd.Series) -> pd.Series:
    """The texts, with 1 for 1.0, as programs write whole numbers in either way."""
    return texts.astype(object).str.replace(_WHOLE, r"\1", regex=True)


def _pool(values: pd.Series, rare: Collection[str]) -> pd.Series:
    return values.mask(values.isin(rare), RARE)


def match_columns(
    path: Path, strings: pd.DataFrame, columns: Columns, *, strict: bool = False
) -> tuple[pd.DataFrame, list[str]]:
    """Convert a table of strings, with '?' for missing values, to the columns of another table.

    Returns
    -------
    The features, and a line for each column with missing values where the other table has none, or with categories that
    it lacks, which count as rare ones, or match no category if it has no rare ones.

    Raises
    ------
    TableError
        If a column is missing, or has an infinite number, a word among numbers, or a value that is not a date among
        dates; if ``strict``, also if a category is not known.
    """
    if missing := [name for name in columns.names if name not in strings.columns]:
        raise TableError(f"table {str(path)!r} lacks the column(s) {', '.join(map(repr, missing))} of the model")
    frame, lines = {}, []
    for name in columns.numbers:
        texts = strings[name].mask(strings[name] == "?")
        frame[name], changes = _match_numbers(path, texts, columns)
        frame |= _cycles_of(frame[name], columns)
        lines += changes
    for name in columns.categories:
        texts = as_categories(strings[name].mask(strings[name] == "?"))
        frame[name], changes = _match_categories(path, texts, columns, strict=strict)
        lines += changes
    return pd.DataFrame(frame, index=strings.index), lines


def _match_numbers(path: Path, texts: pd.Series, columns: Columns) -> tuple[pd.Series, list[str]]:
    name, lines = str(texts.name), []
    if name in columns.dates:
        date_format = columns.dates[name]
        expected = f"dates ({FORMATS.get(date_format, date_format)})"
        numbers = parse_dates(texts, date_format)
    else:
        expected = "numbers"
        number_format = columns.formats.get(name, PLAIN)
        numbers = parse_numbers(texts, number_format)
        # Another program may have written the new rows.
        other = find_number_format(texts) if (numbers.isna() & texts.notna()).any() else None
        if other is not None and _have_one_unit(number_format, other):
            numbers = parse_numbers(texts, other)
            lines.append(f"column {name!r}: written differently from the model's table{describe(texts, other)}")
    if (is_wrong := numbers.isna() & texts.notna()).any():
        raise TableError(
            f"table {str(path)!r}: column {name!r} holds {expected} in the model, here also {texts[is_wrong].iloc[0]!r}"
        )
    _check_finite(path, numbers)
    if missing := int(numbers.isna().sum()):
        lines.append(f"column {name!r}: {missing} missing, replaced by the median of the model's table")
    return numbers, lines


def _have_one_unit(one: NumberFormat, other: NumberFormat) -> bool:
    """Whether numbers of the formats can be compared: both per cent or none, and not of two currencies."""
    units = {one.unit, other.unit}
    return len(units) == 1 or ("%" not in units and "" in units)


def _match_categories(path: Path, texts: pd.Series, columns: Columns, *, strict: bool) -> tuple[pd.Series, list[str]]:
    name, lines = str(texts.name), []
    missing = int(texts.isna().sum())
    if missing and (mode := columns.modes.get(name)) is not None:
        shown = "the rare ones" if mode == RARE else repr(mode)
        lines.append(f"column {name!r}: {missing} missing, where the model's table has none, replaced by {shown}")
        texts = texts.fillna(mode)
    values = _pool(texts.fillna("?"), columns.rare.get(name, ()))
    is_new = ~values.isin(columns.categories[name])
    if is_new.any():
        first = values[is_new].iloc[0]
        if strict:
            raise TableError(f"table {str(path)!r}: column {name!r} has {first!r}, which the model has not seen")
        lines.append(
            f"column {name!r}: {count(int(is_new.sum()), 'value')} that the model has not seen, such as {first!r}"
        )
        if name in columns.rare:
            values = values.mask(is_new, RARE)
    return values.astype(object), lines


class Target(NamedTuple):
    """The targets of a table: (n,) texts of classes or float64 numbers, and a description of them for the report."""

    values: np.ndarray
    is_class: bool
    description: str


def read_target(table: TextTable, kind: str | None = None, *, remedy: str = "leave these rows out") -> Target:
    """Classes or quantities of a table's rows.

    Without a kind they are classes if they are not numbers, or have at most ten values and at least two rows for each;
    otherwise a quantity. ``remedy`` is what an error about missing values advises.

    Raises
    ------
    TableError
        If a value is missing or infinite, all are the same, or all are different texts; if they are more than ten
        dates or times and no kind is given; if the kind is neither
        'category' nor 'number', or not that of the values.
    """
    texts = table.target
    what = f"column {texts.name!r}, the target"
    if kind not in (None, "number", "category"):
        raise TableError(f"{table.name}: {what}, can be a number or a category, not {kind!r}")
    if texts.isna().all():
        raise TableError(f"{table.name}: {what}, has no value")
    if missing := int(texts.isna().sum()):
        raise TableError(f"{table.name}: {missing} missing in {what}; {remedy}")
    labels = as_categories(texts)
    if labels.nunique() < 2:
        raise TableError(f"{table.name}: {what}, has one value only, {labels.iloc[0]!r}")
    number_format = find_number_format(texts, decimal_comma=table.decimal_comma)
    if kind == "number" and number_format is None:
        word = _first_that_fails(texts, lambda values: parse_numbers(values, PLAIN))
        raise TableError(f"{table.name}: {what}, must be a number, but has {word!r}")
    is_category = kind == "category" or number_format is None
    if is_category and len(labels) >= _LEAST_IDENTIFIERS and labels.is_unique:
        raise TableError(f"{table.name}: {what}, has {len(labels)} texts that are all different: no class to learn")
    if kind is None and is_category and labels.nunique() > _MAX_CLASSES and find_format(texts) is not None:
        advice = "predict a number, such as days since a date, or say that they are classes by the kind 'category'"
        raise TableError(f"{table.name}: {what}, has dates or times, {labels.nunique()} different ones: {advice}")
    numbers = parse_numbers(texts, number_format or PLAIN)
    num_values = numbers.nunique()
    has_few_values = num_values <= _MAX_CLASSES and 2 * num_values <= len(numbers)
    if number_format is None or is_category or (kind is None and has_few_values):
        return Target(labels.to_numpy(object), True, f"class with {labels.nunique()} values")
    _check_finite(table.path, numbers)
    return Target(numbers.to_numpy(), False, f"quantity{describe(texts, number_format)}")


def _check_finite(path: str | Path, column: pd.Series) -> None:
    if not np.isfinite(column.dropna()).all():
        raise TableError(f"table {str(path)!r}: column {column.name!r} has infinite values")
    if (column.abs() > _LARGEST_NUMBER).any():
        raise TableError(f"table {str(path)!r}: column {column.name!r} has numbers beyond {_LARGEST_NUMBER:g}")
