"""Read a user's table, CSV or Parquet, and turn it into numbers."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

# Names of the target column, in lower case, when the user gives none.
TARGET_NAMES = ("class", "target", "label")
# Texts that stand for a missing value.
MISSING = ("", "?", "NA", "N/A", "NaN", "nan", "null", "NULL")
# Kinds of values that a column of a Parquet file may hold, named as by pandas.api.types.infer_dtype.
_KINDS = ("string", "integer", "floating", "mixed-integer-float", "decimal", "boolean", "categorical", "empty")


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
    frame = read_strings(path)
    candidates = [column for column in frame.columns if column.lower() in TARGET_NAMES]
    if target is not None and target not in frame.columns:
        raise TableError(f"table {str(path)!r} has no column {target!r}: it has {', '.join(map(repr, frame.columns))}")
    if target is None and len(candidates) > 1:
        raise TableError(f"table {str(path)!r}: is the label in column {' or '.join(map(repr, candidates))}?")
    label = target or (candidates[0] if candidates else frame.columns[-1])
    for column in frame.columns.drop(label):
        frame[column] = as_feature(frame[column])
    frame[label] = frame[label].mask(frame[label] == "?")
    return frame.drop(columns=label), frame[label]


def read_strings(path: str | Path) -> pd.DataFrame:
    """Read a CSV file with a header, or a .parquet file, as strings, with '?' for missing values.

    Raises
    ------
    TableError
        If the file cannot be read, is empty or ragged, has one column, no header of distinct names, or values that are
        neither numbers nor words.
    """
    frame = _read_parquet(path) if str(path).lower().endswith(".parquet") else _read_csv(path)
    return frame.mask(frame.isin(MISSING), "?")


def _read_parquet(path: str | Path) -> pd.DataFrame:
    # Imported here to name the package that is missing; pandas would hide it.
    import pyarrow  # noqa: F401

    try:
        frame = pd.read_parquet(path, engine="pyarrow").reset_index(drop=True)
    except Exception as error:
        # pandas raises anything where a file's metadata are damaged.
        reason = (error.strerror if isinstance(error, OSError) else None) or repr(str(error))
        raise TableError(f"table {str(path)!r} cannot be read: {reason}") from error
    # White space around names and values is dropped, as in CSV files, so that a model takes both.
    frame.columns = pd.Index([str(name).strip() for name in frame.columns])
    if frame.empty:
        raise TableError(f"table {str(path)!r} has no {'rows' if frame.shape[1] else 'columns'}")
    if frame.shape[1] < 2:
        raise TableError(f"table {str(path)!r} has one column, {frame.columns[0]!r}")
    _check_names(path, list(frame.columns))
    for name, column in frame.items():
        kind = pd.api.types.infer_dtype(column, skipna=True)
        if kind not in _KINDS:
            raise TableError(f"table {str(path)!r}: column {name!r} holds {kind} values, neither numbers nor words")
    return frame.astype(object).where(frame.notna(), "?").map(lambda value: str(value).strip())


def _read_csv(path: str | Path) -> pd.DataFrame:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, [field.strip() for field in row]) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise TableError(f"table {str(path)!r} cannot be read: {reason}") from error
    if len(rows) < 2:
        raise TableError(f"table {str(path)!r} {'has a header and no rows' if rows else 'is empty'}")
    header = rows.pop(0)[1]
    if len(header) < 2:
        raise TableError(
            f"table {str(path)!r} has one column, {header[0]!r}; features and label need commas between them"
        )
    _check_names(path, header)
    for column in header:
        if pd.notna(pd.to_numeric(column, errors="coerce")):
            raise TableError(f"table {str(path)!r} has no header: its first row has the number {column!r}")
    for line, row in rows:
        if len(row) != len(header):
            raise TableError(f"table {str(path)!r}: line {line} has {len(row)} fields, the header has {len(header)}")
    return pd.DataFrame([row for _, row in rows], columns=pd.Index(header))


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
