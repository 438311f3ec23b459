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

from fixntk.tables.read import TableError, as_feature

# A numeric target with more distinct values than this is a quantity, not a class.
_MAX_CLASSES = 10
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
    """

    numbers: list[str]
    categories: dict[str, list[str]]


def column_encoder(numeric: Any, numbers: Sequence[str], categories: Mapping[str, Sequence[Any]]) -> ColumnTransformer:
    """Encoder of a frame: numbers first, transformed by ``numeric``, then a column of 0 and 1 for each category.

    Parameters
    ----------
    numeric
        A scikit-learn transformer of the numeric columns.
    numbers, categories
        Names of the numeric columns; names of the others with their categories, in the order of the encoded columns.
    """
    one_hot = OneHotEncoder(categories=[np.asarray(c, object) for c in categories.values()], sparse_output=False)
    columns = [("numeric", numeric, list(numbers)), ("categorical", one_hot, list(categories))]
    return ColumnTransformer(columns, verbose_feature_names_out=False)


def imputing_encoder(columns: Columns) -> ColumnTransformer:
    """Encoder that replaces missing numbers by the column's median."""
    return column_encoder(SimpleImputer(strategy="median", keep_empty_features=True), *columns)


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


def read_columns(path: Path, features: pd.DataFrame) -> tuple[pd.DataFrame, Columns]:
    """Features with '?' for a missing category, and their columns.

    Raises
    ------
    TableError
        If a number is infinite.
    """
    numbers = [str(name) for name in features.select_dtypes("number").columns]
    frame = features.copy()
    for name in features.columns:
        if name in numbers:
            _check_finite(path, features[name])
        else:
            frame[name] = frame[name].astype(object).where(frame[name].notna(), "?")
    categories = {str(name): sorted(frame[name].unique()) for name in frame.columns if name not in numbers}
    return frame, Columns(numbers, categories)


def match_columns(path: Path, strings: pd.DataFrame, columns: Columns) -> pd.DataFrame:
    """Convert a table of strings, with '?' for missing values, to the columns of another table.

    Raises
    ------
    TableError
        If a column is missing, or has an infinite number, a word among numbers, or a category that is not known.
    """
    known = [*columns.numbers, *columns.categories]
    if missing := [name for name in known if name not in strings.columns]:
        raise TableError(f"table {str(path)!r} lacks the column(s) {', '.join(map(repr, missing))} of the model")
    frame = pd.DataFrame(index=strings.index)
    for name in columns.numbers:
        column = as_feature(strings[name])
        if column.dtype != np.float64:
            word = next(value for value in column.dropna().unique() if pd.isna(pd.to_numeric(value, errors="coerce")))
            raise TableError(f"table {str(path)!r}: column {name!r} holds numbers in the model, here also {word!r}")
        _check_finite(path, column)
        frame[name] = column
    for name, categories in columns.categories.items():
        if unknown := sorted(set(strings[name]) - set(categories)):
            value = "missing values" if unknown[0] == "?" else repr(unknown[0])
            raise TableError(f"table {str(path)!r}: column {name!r} has {value}, which the model has not seen")
        frame[name] = strings[name].astype(object)
    return frame


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
