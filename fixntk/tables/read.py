"""Read a user's table, CSV or Parquet, and turn it into numbers."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

# Names of the target column, in lower case, when the user gives none.
TARGET_NAMES = ("class", "target", "label")
# Texts that stand for a missing value, in lower case: those that pandas takes, and a dash, a dot and a question mark.
MISSING = frozenset({"", "?", "-", ".", "na", "n/a", "nan", "-nan", "null", "none", "<na>", "#na", "#n/a", "#n/a n/a"})
# The same in the target, where a word such as "none" is a class.
_MISSING_TARGETS = frozenset({"", "?", "na", "n/a", "nan", "null"})
# Whole numbers between these are names of columns if they are no numbers of the column: years.
_YEARS = range(1000, 3000)
# Kinds of values that a column of a Parquet file may hold, named as by pandas.api.types.infer_dtype.
_KINDS = frozenset(
    {"string", "integer", "floating", "mixed-integer-float", "decimal", "boolean", "categorical", "empty"}
)
# White space, and the NUL that NumPy's texts lose at their end.
_BLANKS = "\0" + "".join(character for character in map(chr, range(0x3001)) if character.isspace())
_DATE_KINDS = frozenset({"date", "datetime", "datetime64"})


class TableError(ValueError):
    """The table cannot be used; the message names the table and the reason."""


def read_table(path: str | Path, target: str | None = None) -> tuple[pd.DataFrame, pd.Series]:
    """Read a CSV file with a header, or a Parquet file: its features, and its target as strings.

    The target is the column of that name; without one the column called class, target or label, otherwise the last. A
    feature is categorical if any of its values is not a number.

    Returns
    -------
    features, target
        Numeric columns are float64, categorical ones pandas 'category'; missing values are NaN in both.

    Raises
    ------
    TableError
        If the file cannot be read, is empty or ragged, or the header is missing or ambiguous, or lacks the target.
    """
    frame = _read(path, 2)
    candidates = [column for column in frame.columns if column.lower() in TARGET_NAMES]
    if target is not None and target not in frame.columns:
        raise TableError(f"table {str(path)!r} has no column {target!r}: it has {', '.join(map(repr, frame.columns))}")
    if target is None and len(candidates) > 1:
        raise TableError(f"table {str(path)!r}: is the label in column {' or '.join(map(repr, candidates))}?")
    label = target or (candidates[0] if candidates else frame.columns[-1])
    features = _mark_missing(frame.drop(columns=label), MISSING)
    for column in features.columns:
        features[column] = as_feature(features[column])
    labels = _mark_missing(frame[[label]], _MISSING_TARGETS)[label]
    return features, labels.mask(labels == "?")


def read_strings(path: str | Path, *, least_columns: int = 2) -> pd.DataFrame:
    """Read a CSV file with a header, or a .parquet file, as strings, with '?' for missing values.

    Parameters
    ----------
    path
        A name that ends in .parquet is that of a Parquet file.
    least_columns
        Smallest number of columns, features and label.

    Raises
    ------
    TableError
        If the file cannot be read, is empty or ragged, has too few columns, no header of distinct names, or values that
        are neither numbers nor words.
    """
    return _mark_missing(_read(path, least_columns), MISSING)


def _read(path: str | Path, least_columns: int) -> pd.DataFrame:
    """Read a table as strings."""
    is_parquet = str(path).lower().endswith(".parquet")
    frame = _read_parquet(path) if is_parquet else _read_csv(path)
    if frame.shape[1] < least_columns:
        hint = "" if is_parquet else "; features and label need commas between them"
        raise TableError(f"table {str(path)!r} has one column, {frame.columns[0]!r}{hint}")
    return frame


def _mark_missing(frame: pd.DataFrame, words: frozenset[str]) -> pd.DataFrame:
    """The table with '?' for each word that stands for a missing value, whatever its case."""
    return frame.mask(frame.map(lambda text: text.lower() in words), "?")


def _read_parquet(path: str | Path) -> pd.DataFrame:
    # Imported here to name the package that is missing; pandas would hide it.
    import pyarrow  # noqa: F401

    try:
        frame = pd.read_parquet(path, engine="pyarrow").reset_index(drop=True)
    except Exception as error:
        # pandas raises anything where a file's metadata are damaged.
        reason = (error.strerror if isinstance(error, OSError) else None) or repr(str(error))
        raise TableError(f"table {str(path)!r} cannot be read: {reason}") from error
    # Blanks around names and values are dropped, as in CSV files, so that a model takes both.
    frame.columns = pd.Index([str(name).strip(_BLANKS) for name in frame.columns])
    if frame.empty:
        raise TableError(f"table {str(path)!r} has no {'rows' if frame.shape[1] else 'columns'}")
    _check_names(path, list(frame.columns))
    for name, column in frame.items():
        kind = pd.api.types.infer_dtype(column, skipna=True)
        if kind not in _KINDS | _DATE_KINDS:
            raise TableError(f"table {str(path)!r}: column {name!r} holds {kind} values, neither numbers nor words")
    return frame.astype(object).where(frame.notna(), "?").map(lambda value: str(value).strip(_BLANKS))


def _read_csv(path: str | Path) -> pd.DataFrame:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, [field.strip(_BLANKS) for field in row]) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise TableError(f"table {str(path)!r} cannot be read: {reason}") from error
    if len(rows) < 2:
        raise TableError(f"table {str(path)!r} {'has a header and no rows' if rows else 'is empty'}")
    header = rows.pop(0)[1]
    _check_names(path, header)
    for line, row in rows:
        if len(row) != len(header):
            raise TableError(f"table {str(path)!r}: line {line} has {len(row)} fields, the header has {len(header)}")
    frame = pd.DataFrame([row for _, row in rows], columns=pd.Index(header))
    for name in header:
        if pd.notna(pd.to_numeric(name, errors="coerce")) and not _is_year(name, frame[name]):
            raise TableError(f"table {str(path)!r} has no header: its first row has the number {name!r}")
    return frame


def _is_year(name: str, column: pd.Series) -> bool:
    """Whether a number is the name of a column: a year that is not among the numbers below it."""
    if not (name.isascii() and name.isdigit() and int(name) in _YEARS):
        return False
    numbers = pd.to_numeric(column, errors="coerce")
    return not numbers.min() <= int(name) <= numbers.max()


def _check_names(path: str | Path, names: Sequence[str]) -> None:
    for position, name in enumerate(names):
        if not name:
            raise TableError(f"table {str(path)!r}: column {position + 1} has no name")
        if name in names[:position]:
            raise TableError(f"table {str(path)!r} has two columns {name!r}")


def as_feature(column: pd.Series, nominal: bool = False, categories: list[str] | None = None) -> pd.Series:
    """A column of strings, '?' for missing values, as float64, or as 'category' if nominal or not all numbers."""
    column = column.mask(column == "?")
    numbers = pd.to_numeric(column, errors="coerce")
    if nominal or categories or numbers.isna().sum() > column.isna().sum():
        return pd.Series(pd.Categorical(column, categories or sorted(column.dropna().unique())), column.index)
    return numbers.astype("float64")


def check_complete(path: str | Path, features: pd.DataFrame, target: pd.Series) -> None:
    """Raise TableError if a value is missing or infinite, or a feature or the target is the same in all rows."""
    for name, column in [*features.items(), (target.name, target)]:
        if column.isna().any():
            raise TableError(f"table {str(path)!r}: {int(column.isna().sum())} missing in column {name!r}")
        if column.dtype == np.float64 and not np.isfinite(column).all():
            raise TableError(f"table {str(path)!r}: column {name!r} has infinite values")
        if column.nunique() == 1:
            raise TableError(f"table {str(path)!r}: column {name!r} is constant; leave it out")
