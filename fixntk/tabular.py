"""Read a user's CSV table and turn it into numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

TARGET_NAMES = ("class", "target", "label")
_MISSING = ["?", "<null>", "", "NA", "NaN", "nan", "null"]


def read_csv(path: str | Path) -> tuple[pd.DataFrame, pd.Series]:
    """Read a CSV file with a header: its features, and its target.

    The target is the column called class, target or label, otherwise the last one. Numeric columns come as float64,
    others as pandas categoricals.

    Raises
    ------
    ValueError
        If the file is absent, is not a CSV table with a feature and a target, or a value is missing, infinite, or the
        same in all rows of a column; the message names the file and the column.
    """
    try:
        frame = pd.read_csv(path, na_values=_MISSING, skipinitialspace=True)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise ValueError(f"{path}: cannot be read as CSV: {error}") from None
    if frame.empty or frame.shape[1] < 2:
        raise ValueError(
            f"{path}: {frame.shape[0]} rows and {frame.shape[1]} columns; a feature and a target are needed"
        )
    name = next((column for column in frame if str(column).lower() in TARGET_NAMES), frame.columns[-1])
    missing = frame.isna().sum()
    if missing.any():
        raise ValueError(
            f"{path}: {int(missing.sum())} missing value(s), the first in column {missing[missing > 0].index[0]!r}; "
            "fill them in or drop those rows"
        )
    target = frame[name]
    features = pd.DataFrame({str(column): as_column(frame[column]) for column in frame.columns.drop(name)})
    infinite = ~np.isfinite(features.select_dtypes("number")).all()
    if infinite.any():
        raise ValueError(f"{path}: infinite value in column {infinite[infinite].index[0]!r}")
    constant = features.nunique() < 2
    if constant.any():
        raise ValueError(f"{path}: column {constant[constant].index[0]!r} is constant; drop it")
    return features, target


def as_column(values: pd.Series, *, nominal: bool = False) -> pd.Series:
    """A column as float64 where all its values are numbers, as a categorical otherwise or if it is nominal."""
    numbers = pd.to_numeric(values, errors="coerce")
    if nominal or bool((numbers.isna() & values.notna()).any()):
        return values.where(values.isna(), values.astype(str)).astype("category")
    return numbers.astype(np.float64)


def standardised(features: pd.DataFrame) -> np.ndarray:
    """(n, d) float64: numbers with mean 0 and deviation 1, categories one-hot encoded, and a bias column of ones."""
    encoded = pd.get_dummies(features, drop_first=False, dtype=np.float64)
    numeric = list(features.select_dtypes("number"))
    encoded[numeric] = (encoded[numeric] - encoded[numeric].mean()) / encoded[numeric].std(ddof=0)
    return np.column_stack([encoded.to_numpy(np.float64), np.ones(len(encoded))])


def targets(target: pd.Series) -> np.ndarray:
    """Targets to fit: numbers standardised to (n,), two classes as ±1, more as (n, k) one-hot."""
    column = as_column(target)
    if column.dtype == np.float64 and column.nunique() > 2:
        return ((column - column.mean()) / column.std(ddof=0)).to_numpy()
    codes = column.astype("category").cat.codes.to_numpy()
    return 2.0 * codes - 1 if codes.max() < 2 else np.eye(codes.max() + 1)[codes]
