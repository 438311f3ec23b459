"""Columns of data frames as numbers: categories one-hot, missing numbers imputed, dates refused."""

from __future__ import annotations

import decimal
import numbers
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy.typing import ArrayLike
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder

# Largest number of columns for one column's categories; the less frequent ones share a column.
_MAX_CATEGORIES = 100
# Kinds of NumPy's dtypes that are numbers.
_NUMBER_KINDS = "biuf"
# What frames call the dtypes of categories.
_CATEGORY_DTYPES = ("category", "Categorical", "Enum")
# What dates, times of day, durations and periods have, of Python or of pandas.
_METHODS_OF_TIMES = ("isoformat", "total_seconds", "to_timestamp")
# Missing values, besides NaN.
_MISSING_TYPES = ("NoneType", "NAType", "NaTType")


class FrameEncoder(NamedTuple):
    """The map from a frame's columns to numbers, fitted to a frame with categories or missing numbers.

    Attributes
    ----------
    is_category
        (d,) for each column of the frame, whether it is a category.
    imputer
        Of the numbers: the median, and a column of 0 and 1 for each column with missing numbers.
    one_hot
        Of the categories.
    owners
        (e,) the frame's column from which each encoded column is made.
    """

    is_category: tuple[bool, ...]
    imputer: SimpleImputer | None
    one_hot: OneHotEncoder | None
    owners: Int[np.ndarray, " e"]

    def __call__(self, frame: Any) -> Float[np.ndarray, "n e"]:
        """Encoded rows: numbers, which of them were missing, then categories. Unknown categories count as rare ones.

        Raises
        ------
        TypeError
            If it is no data frame, or a column of numbers has texts or dates.
        """
        if not is_frame(frame):
            raise TypeError(f"X must be a data frame with the columns of the fit, got {type(frame).__name__}")
        check_numbers(frame, self.is_category)
        return self.encode(*_read(frame, self.is_category))

    def encode(self, values: Float[np.ndarray, "n k"], texts: Shaped[np.ndarray, "n m"]) -> Float[np.ndarray, "n e"]:
        """Encoded rows from the numbers and the texts of a frame."""
        parts = []
        if self.imputer is not None:
            parts.append(self.imputer.transform(values))
        if self.one_hot is not None:
            parts.append(self.one_hot.transform(texts))
        return np.column_stack(parts)


def is_frame(value: Any) -> bool:
    """Whether it is a data frame of pandas or polars."""
    return hasattr(value, "iloc") or hasattr(value, "get_column")


def encode_frame(
    frame: Any, sample_weight: ArrayLike | None = None
) -> tuple[FrameEncoder, Float[np.ndarray, "n e"]] | None:
    """The encoder of a data frame with categories, texts or missing numbers, and its rows; None for other inputs.

    Categories are columns of that dtype and of texts. Rows of weight zero are ignored.

    Raises
    ------
    TypeError
        If a column holds dates, durations, or neither numbers nor texts.
    """
    if not is_frame(frame) or not len(frame):
        return None
    columns = _columns(frame)
    is_category = tuple(_is_category(name, column) for name, column in columns)
    if not any(is_category) and not any(_has_missing(column) for _, column in columns):
        return None
    values, texts = every_row = _read(frame, is_category)
    if sample_weight is not None and np.shape(sample_weight) == (len(frame),):
        has_weight = np.asarray(sample_weight) > 0
        values, texts = values[has_weight], texts[has_weight]
    of_numbers, of_categories = np.flatnonzero(~np.array(is_category)), np.flatnonzero(is_category)
    imputer, one_hot, owners = None, None, []
    if len(of_numbers):
        imputer = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True).fit(values)
        owners += [of_numbers, of_numbers[imputer.indicator_.features_]]
    if len(of_categories):
        # Rare categories share a column, and so do those that come later.
        one_hot = OneHotEncoder(
            handle_unknown="infrequent_if_exist",
            max_categories=_MAX_CATEGORIES,
            sparse_output=False,
            feature_name_combiner=_name_of_column,
        ).fit(texts)
        names = one_hot.get_feature_names_out([str(column) for column in of_categories])
        owners.append(np.array(names, int))
    encoder = FrameEncoder(is_category, imputer, one_hot, np.concatenate(owners))
    return encoder, encoder.encode(*every_row)


def _name_of_column(column: str, _: Any) -> str:
    """The name of an encoded column. A named function, as estimators are pickled."""
    return column


def check_numbers(frame: Any, is_category: Sequence[bool] | None = None) -> None:
    """Check that a frame's columns are numbers, but for those that ``is_category`` marks.

    Raises
    ------
    TypeError
        If one is not.
    """
    columns = _columns(frame)
    for (name, column), may_be_text in zip(columns, is_category or [False] * len(columns), strict=True):
        if not may_be_text and _is_category(name, column):
            raise TypeError(f"X: column {name!r} held numbers in the fit, and holds texts or categories here")


def _columns(frame: Any) -> list[tuple[str, Any]]:
    """Names and columns in order; names may occur twice."""
    if hasattr(frame, "iloc"):
        return [(str(name), frame.iloc[:, place]) for place, name in enumerate(frame.columns)]
    return [(name, frame.get_column(name)) for name in frame.columns]


def _is_category(name: str, column: Any) -> bool:
    """Whether a column is a category, and not of numbers.

    Raises
    ------
    TypeError
        If it is neither.
    """
    if str(column.dtype).startswith(_CATEGORY_DTYPES):
        return True
    values = np.asarray(column)
    if values.dtype.kind in _NUMBER_KINDS:
        return False
    kinds = Counter(type(entry) for entry in values.tolist() if not _is_missing(entry))
    if values.dtype.kind in "mM" or any(hasattr(kind, method) for kind in kinds for method in _METHODS_OF_TIMES):
        raise TypeError(
            f"X: column {name!r} holds dates or durations ({column.dtype}): convert it to numbers, such as days since"
            " a date, and to parts such as the month where they matter"
        )
    is_text = [issubclass(kind, str) for kind in kinds]
    if kinds and all(is_text):
        return True
    others = [kind for kind in kinds if not issubclass(kind, numbers.Real | decimal.Decimal | np.bool_)]
    if others:
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise TypeError(f"X: column {name!r} must hold numbers or texts alone, got entries of type {found}")
    return False


def _read(frame: Any, is_category: tuple[bool, ...]) -> tuple[Float[np.ndarray, "n k"], Shaped[np.ndarray, "n m"]]:
    """Numbers, NaN where they are missing, and texts of categories, None where they are missing."""
    columns = [np.asarray(column) for _, column in _columns(frame)]
    values = np.empty((len(frame), is_category.count(False)))
    texts = np.empty((len(frame), is_category.count(True)), object)
    place, text_place = 0, 0
    for column, of_texts in zip(columns, is_category, strict=True):
        if of_texts:
            texts[:, text_place] = [None if _is_missing(entry) else _as_text(entry) for entry in column.tolist()]
            text_place += 1
        else:
            values[:, place] = _as_floats(column)
            place += 1
    return values, texts


def _as_floats(column: Shaped[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    if column.dtype.kind in _NUMBER_KINDS:
        return column.astype(float)
    return np.array([np.nan if _is_missing(entry) else float(entry) for entry in column.tolist()])


def _has_missing(column: Any) -> bool:
    values = np.asarray(column)
    if values.dtype.kind in _NUMBER_KINDS:
        return bool(np.isnan(values).any())
    return any(map(_is_missing, values.tolist()))


def _is_missing(entry: Any) -> bool:
    return type(entry).__name__ in _MISSING_TYPES or (isinstance(entry, float) and entry != entry)


def _as_text(entry: Any) -> str:
    """The name of a category; 1.0 is 1, as frames change whole numbers where one is missing."""
    return str(int(entry)) if isinstance(entry, float) and entry.is_integer() else str(entry)
