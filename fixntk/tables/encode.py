"""Columns of a table as numbers: features to one matrix, a target to classes or a quantity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from fixntk.tables.dates import FORMATS, days_since_1970, find_format
from fixntk.tables.read import TableError, as_feature

# A numeric target with more distinct values than this is a quantity, not a class.
_MAX_CLASSES = 10
# Smallest number of rows of which texts that are all different are identifiers.
_LEAST_IDENTIFIERS = 10
# Largest number of a column, so that sums over rows stay finite.
_LARGEST_NUMBER = 1e300


class Columns(NamedTuple):
    """The feature columns of a table.

    Attributes
    ----------
    numbers
        Names of the numeric ones.
    categories
        Names of the others, each with its categories.
    dates
        Names of the numeric ones that hold dates, each with its format; their numbers are days.
    """

    numbers: list[str]
    categories: dict[str, list[str]]
    dates: dict[str, str]


def column_encoder(numeric: Any, numbers: Sequence[str], categories: Mapping[str, Sequence[Any]]) -> ColumnTransformer:
    """Encoder of a frame: numbers first, transformed by ``numeric``, then a column of 0 and 1 for each category.

    Parameters
    ----------
    numeric
        A scikit-learn transformer of the numeric columns.
    numbers, categories
        Names of the numeric columns; names of the others with their categories, in the order of the encoded columns.
    """
    # A category that is not known is none of those that are.
    known = [np.asarray(c, object) for c in categories.values()]
    one_hot = OneHotEncoder(categories=known, handle_unknown="ignore", sparse_output=False)
    columns = [("numeric", numeric, list(numbers)), ("categorical", one_hot, list(categories))]
    return ColumnTransformer(columns, verbose_feature_names_out=False)


def imputing_encoder(columns: Columns) -> ColumnTransformer:
    """Encoder that replaces missing numbers by the column's median."""
    imputer = SimpleImputer(strategy="median", keep_empty_features=True)
    return column_encoder(imputer, columns.numbers, columns.categories)


def fitted_encoder(columns: Columns, medians: Float[np.ndarray, " k"]) -> ColumnTransformer:
    """The encoder of :func:`imputing_encoder`, fitted to a table with these medians of its numbers."""
    # A table of one row has its medians in that row.
    numbers = dict(zip(columns.numbers, medians, strict=True))
    row = pd.DataFrame([numbers | {name: categories[0] for name, categories in columns.categories.items()}])
    return imputing_encoder(columns).fit(row)


def encode_features(features: pd.DataFrame) -> Float[np.ndarray, "n d"]:
    """(n, d) float64: numbers with mean 0 and deviation 1, categories one-hot encoded, and a bias column of ones."""
    numbers = features.select_dtypes("number")
    categories = {str(name): list(features[name].cat.categories) for name in features.columns.drop(numbers.columns)}
    # Scaled first, as the squares of very large or very small numbers would leave the range of floating point.
    frame = features.copy()
    frame[numbers.columns] = numbers / numbers.abs().max()
    encoded = column_encoder(StandardScaler(), list(numbers.columns), categories).fit_transform(frame)
    return np.column_stack([encoded, np.ones(len(features))])


def encode_target(target: pd.Series) -> Float[np.ndarray, "n ..."]:
    """Targets to fit: numbers standardised to (n,), two classes as ±1, more as (n, k) one-hot."""
    column = as_feature(target)
    if column.dtype == np.float64 and column.nunique() > 2:
        column = column / column.abs().max()
        return ((column - column.mean()) / column.std(ddof=0)).to_numpy()
    codes = column.astype("category").cat.codes.to_numpy()
    return 2.0 * codes - 1 if codes.max() < 2 else np.eye(codes.max() + 1)[codes]


def read_columns(path: Path, features: pd.DataFrame) -> tuple[pd.DataFrame, Columns, list[str]]:
    """Features with dates as days and '?' for a missing category, their columns, and what was done, in lines.

    Columns of text whose values are all different are identifiers, and left out.

    Raises
    ------
    TableError
        If a number is infinite, or no column is left.
    """
    frame, columns, lines = features.copy(), Columns([], {}, {}), []
    for name in map(str, features.columns):
        values = features[name]
        if values.dtype == np.float64:
            _check_finite(path, values)
            columns.numbers.append(name)
        elif date_format := find_format(values):
            frame[name] = days_since_1970(values, date_format)
            columns.numbers.append(name)
            columns.dates[name] = date_format
            lines.append(f"column {name!r} holds dates ({FORMATS[date_format]}), taken as days")
        elif values.notna().all() and len(values) >= _LEAST_IDENTIFIERS and values.is_unique:
            frame = frame.drop(columns=name)
            lines.append(f"column {name!r} left out: its {len(values)} texts are all different")
        else:
            frame[name] = values.astype(object).where(values.notna(), "?")
            columns.categories[name] = sorted(frame[name].unique())
    if frame.columns.empty:
        raise TableError(f"table {str(path)!r}: no column is left to learn from; {'; '.join(lines)}")
    return frame, columns, lines


def match_columns(
    path: Path, strings: pd.DataFrame, columns: Columns, *, strict: bool = False
) -> tuple[pd.DataFrame, list[str]]:
    """Convert a table of strings, with '?' for missing values, to the columns of another table.

    Returns
    -------
    The features, and a line for each column with missing numbers, or with categories that are not known, which the
    encoder takes for none of those that are.

    Raises
    ------
    TableError
        If a column is missing, or has an infinite number, a word among numbers, or what is no date among dates; if
        ``strict``, also if a category is not known.
    """
    known = [*columns.numbers, *columns.categories]
    if missing := [name for name in known if name not in strings.columns]:
        raise TableError(f"table {str(path)!r} lacks the column(s) {', '.join(map(repr, missing))} of the model")
    frame, lines = pd.DataFrame(index=strings.index), []
    for name in columns.numbers:
        is_date = name in columns.dates
        column = _as_days(path, strings[name], columns.dates[name]) if is_date else _as_numbers(path, strings[name])
        _check_finite(path, column)
        if missing_values := int(column.isna().sum()):
            lines.append(f"column {name!r}: {missing_values} missing, replaced by the median of the model's table")
        frame[name] = column
    for name, categories in columns.categories.items():
        is_new = ~strings[name].isin(categories)
        if is_new.any():
            new = strings[name][is_new].iloc[0]
            value = "missing values" if new == "?" else repr(new)
            if strict:
                raise TableError(f"table {str(path)!r}: column {name!r} has {value}, which the model has not seen")
            lines.append(f"column {name!r}: {int(is_new.sum())} values that the model has not seen, such as {value}")
        frame[name] = strings[name].astype(object)
    return frame, lines


def _as_numbers(path: Path, strings: pd.Series) -> pd.Series:
    column = as_feature(strings)
    if column.dtype != np.float64:
        word = next(value for value in column.dropna().unique() if pd.isna(pd.to_numeric(value, errors="coerce")))
        raise TableError(f"table {str(path)!r}: column {strings.name!r} holds numbers in the model, here also {word!r}")
    return column


def _as_days(path: Path, strings: pd.Series, date_format: str) -> pd.Series:
    given = strings.mask(strings == "?")
    days = days_since_1970(given, date_format)
    if (is_wrong := days.isna() & given.notna()).any():
        expected = f"dates ({FORMATS[date_format]})"
        raise TableError(
            f"table {str(path)!r}: column {strings.name!r} holds {expected} in the model, here also"
            f" {given[is_wrong].iloc[0]!r}"
        )
    return days


def read_target(path: Path, labels: pd.Series) -> tuple[np.ndarray, bool]:
    """Read a target of strings: labels or float64 numbers, and whether it is a class.

    It is a class if it is no number or has at most ten values, otherwise a quantity.

    Raises
    ------
    TableError
        If a value is missing or infinite, or all are the same.
    """
    if labels.isna().any():
        missing = int(labels.isna().sum())
        raise TableError(f"table {str(path)!r}: {missing} missing in column {labels.name!r}, the target")
    if labels.nunique() < 2:
        raise TableError(f"table {str(path)!r}: column {labels.name!r}, the target, has one value only")
    column = as_feature(labels)
    if column.dtype != np.float64 or column.nunique() <= _MAX_CLASSES:
        return labels.to_numpy(object), True
    _check_finite(path, column)
    return column.to_numpy(), False


def _check_finite(path: Path, column: pd.Series) -> None:
    if not np.isfinite(column.dropna()).all():
        raise TableError(f"table {str(path)!r}: column {column.name!r} has infinite values")
    if (column.abs() > _LARGEST_NUMBER).any():
        raise TableError(f"table {str(path)!r}: column {column.name!r} has numbers beyond {_LARGEST_NUMBER:g}")
