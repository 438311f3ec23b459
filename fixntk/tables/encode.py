"""Encoders of a table's columns: features to one matrix, a target to signs, one-hot rows or a quantity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from fixntk.tables.columns import Columns
from fixntk.tables.read import as_feature


def column_encoder(numeric: Any, numbers: Sequence[str], categories: Mapping[str, Sequence[Any]]) -> ColumnTransformer:
    """Encoder of a frame: numbers first, transformed by ``numeric``, then a column of 0 and 1 for each category.

    Parameters
    ----------
    numeric
        A scikit-learn transformer of the numeric columns.
    numbers, categories
        Names of the numeric columns; names of the others with their categories, in the order of the encoded columns.
    """
    # Unknown categories are encoded as zeros.
    known = [np.asarray(c, object) for c in categories.values()]
    one_hot = OneHotEncoder(categories=known, handle_unknown="ignore", sparse_output=False)
    columns = [("numeric", numeric, list(numbers)), ("categorical", one_hot, list(categories))]
    return ColumnTransformer(columns, verbose_feature_names_out=False)


def imputing_encoder(columns: Columns) -> ColumnTransformer:
    """Encoder that replaces missing numbers by the column's median."""
    imputer = SimpleImputer(strategy="median", keep_empty_features=True)
    return column_encoder(imputer, columns.numeric, columns.categories)


def fitted_encoder(columns: Columns, medians: Float[np.ndarray, " k"]) -> ColumnTransformer:
    """The encoder of :func:`imputing_encoder`, fitted to a table with these medians of its numbers."""
    # A table of one row has its medians in that row.
    numbers = dict(zip(columns.numeric, medians, strict=True))
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
