"""Read a user's table, CSV or Parquet, and turn it into numbers."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from fixntk._tiling import free_on_host
from fixntk.tables.csv_files import read_csv
from fixntk.tables.names import BLANKS, TableError, check_names, count
from fixntk.tables.numbers import has_decimal_comma

# Names of the target column, in lower case, when the user gives none.
TARGET_NAMES = ("class", "target", "label")
# Texts that stand for a missing value, in lower case: those that pandas takes, and a dash, a dot and a question mark.
MISSING = frozenset(
    {"", "?", "-", ".", "na", "n/a", "nan", "-nan", "null", "none", "<na>", "#na", "#n/a", "#n/a n/a",
     "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan"}
)  # fmt: skip
# Texts that stand for a missing value of the target, where a word such as "none" is a class.
_MISSING_TARGETS = frozenset({"", "?", "na", "n/a", "nan", "null"})
# Kinds of values that a column of a Parquet file may hold, named as by pandas.api.types.infer_dtype.
_KINDS = frozenset(
    {"string", "integer", "floating", "mixed-integer-float", "decimal", "boolean", "categorical", "empty"}
)
# Kinds of dates and times of day, named in the same way.
_DATE_KINDS = frozenset({"date", "datetime", "datetime64", "time"})
# Bytes of memory for each value of a Parquet file, which becomes a string.
_MEMORY_PER_VALUE = 150
# Ends of the names of files that hold tables.
ENDS = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz", ".parquet")
# Names of an index, as pandas and R write and read it, in the first column.
_INDEX = re.compile(r"|Unnamed: 0(\.\d+)*")


class TextTable(NamedTuple):
    """A table as texts.

    Attributes
    ----------
    path
        Its file.
    features
        Texts without blanks around them, '?' for missing values.
    target
        Texts, NaN for missing values.
    decimal_comma
        Whether a column has numbers with decimal commas.
    lines
        What was left out, and an encoding that was assumed, in lines.
    """

    path: str | Path
    features: pd.DataFrame
    target: pd.Series
    decimal_comma: bool
    lines: list[str]

    @property
    def name(self) -> str:
        """The table's name in messages."""
        return f"table {str(self.path)!r}"

    def drop_missing_targets(self) -> TextTable:
        """The table without the rows that have no target."""
        is_missing = self.target.isna()
        if not is_missing.any():
            return self
        features = self.features[~is_missing].reset_index(drop=True)
        target = self.target[~is_missing].reset_index(drop=True)
        line = f"{count(int(is_missing.sum()), 'row')} without a target left out"
        return self._replace(features=features, target=target, lines=[*self.lines, line])


def read_table(path: str | Path, target: str | None = None) -> TextTable:
    """Read a CSV file with a header, possibly compressed by gzip, or a Parquet file: its features and its target.

    The target is the column of that name; without one the column called class, target or label, otherwise the last.

    Raises
    ------
    TableError
        If the file cannot be read, is empty or ragged, or the header is missing or ambiguous, or lacks the target.
    """
    frame, lines = _read(path, () if target is None else (target,), 2)
    candidates = [column for column in frame.columns if column.lower() in TARGET_NAMES]
    if target is not None and target not in frame.columns:
        raise TableError(f"table {str(path)!r} has no column {target!r}: it has {', '.join(map(repr, frame.columns))}")
    if target is None and len(candidates) > 1:
        raise TableError(f"table {str(path)!r}: is the label in column {' or '.join(map(repr, candidates))}?")
    label = target or (candidates[0] if candidates else frame.columns[-1])
    features = _mark_missing(frame.drop(columns=label), MISSING)
    labels = _mark_missing(frame[[label]], _MISSING_TARGETS)[label]
    texts = features.mask(features == "?")
    decimal_comma = any(has_decimal_comma(column) for _, column in [*texts.items(), *frame[[label]].items()])
    return TextTable(path, features, labels.mask(labels == "?"), decimal_comma, lines)


def read_strings(
    path: str | Path, wanted: Collection[str] = (), *, least_columns: int = 1
) -> tuple[pd.DataFrame, list[str]]:
    """Read a table as :func:`read_table` does, as strings with '?' for missing values; and lines about its reading.

    Parameters
    ----------
    path
        A name that ends in .parquet is that of a Parquet file.
    wanted
        Names of columns, by which the character between the columns is recognised.
    least_columns
        Smallest number of columns.

    Raises
    ------
    TableError
        If the file cannot be read, is empty or ragged, has too few columns, no header of distinct names, or values that
        are neither numbers nor words.
    """
    frame, lines = _read(path, wanted, least_columns)
    return _mark_missing(frame, MISSING), lines


def _read(path: str | Path, wanted: Collection[str], least_columns: int) -> tuple[pd.DataFrame, list[str]]:
    """Read a table as strings, without an index, and say which column that is, and which encoding was assumed."""
    is_parquet = str(path).lower().endswith(".parquet")
    frame, lines = (_read_parquet(path), []) if is_parquet else read_csv(path, wanted, least_columns)
    first = frame.columns[0]
    if _INDEX.fullmatch(first) and frame.shape[1] > 1 and first not in wanted and frame.iloc[:, 0].is_unique:
        frame = frame.iloc[:, 1:]
        lines.append(f"column 1, {first or 'without a name'}: left out, an index of the rows")
    if not frame.columns[0]:
        raise TableError(f"table {str(path)!r}: column 1 has no name")
    if frame.shape[1] < least_columns:
        hint = "" if is_parquet else "; features and label need commas, tabs, semicolons or | between them"
        raise TableError(f"table {str(path)!r} has one column, {frame.columns[0]!r}{hint}")
    return frame, lines


def _mark_missing(frame: pd.DataFrame, words: frozenset[str]) -> pd.DataFrame:
    """The table with '?' for each word that stands for a missing value, whatever its case."""
    return frame.mask(frame.map(lambda text: text.lower() in words), "?")


def _read_parquet(path: str | Path) -> pd.DataFrame:
    # Imported here to name the package that is missing; pandas would hide it.
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.read_metadata(path)
        needed, free = metadata.num_rows * metadata.num_columns * _MEMORY_PER_VALUE, free_on_host()
        if needed > free.num_bytes:
            raise TableError(
                f"table {str(path)!r}: its {metadata.num_rows} rows of {metadata.num_columns} columns need more memory"
                f" than {free.limit} leaves: take fewer rows"
            )
        frame = pd.read_parquet(path, engine="pyarrow").reset_index(drop=True)
    except TableError:
        raise
    except Exception as error:
        # pandas raises anything where a file's metadata are damaged.
        reason = (error.strerror if isinstance(error, OSError) else None) or repr(str(error))
        raise TableError(f"table {str(path)!r} cannot be read: {reason}") from error
    # Blanks around names and values are dropped, as in CSV files, so that a model takes both.
    frame.columns = pd.Index([str(name).strip(BLANKS) for name in frame.columns])
    if frame.empty:
        raise TableError(f"table {str(path)!r} has no {'rows' if frame.shape[1] else 'columns'}")
    check_names(path, list(frame.columns))
    for name, column in frame.items():
        kind = pd.api.types.infer_dtype(column, skipna=True)
        if kind not in _KINDS | _DATE_KINDS:
            raise TableError(f"table {str(path)!r}: column {name!r} holds {kind} values, neither numbers nor words")
    return frame.astype(object).where(frame.notna(), "?").map(lambda value: str(value).strip(BLANKS))


def as_feature(column: pd.Series, nominal: bool = False, categories: list[str] | None = None) -> pd.Series:
    """A column of strings, '?' for missing values, as float64, or as 'category' if nominal or not all numbers."""
    column = column.mask(column == "?")
    numbers = pd.to_numeric(column, errors="coerce")
    if nominal or categories or numbers.isna().sum() > column.isna().sum():
        return pd.Series(pd.Categorical(column, categories or sorted(column.dropna().unique())), column.index)
    return numbers.astype("float64")
