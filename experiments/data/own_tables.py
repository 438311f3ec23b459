"""Classification tables from users' files, read as `fixntk fit` reads them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from pydantic import field_validator

from experiments.shared.settings import Settings
from fixntk.tables.columns import check_kinds, parse_kinds, read_columns, read_target
from fixntk.tables.names import TableError, count
from fixntk.tables.read import ENDS, read_table

# Largest number of a file's columns of which a run says how it takes them; the report has all.
_MAX_COLUMNS_TOLD = 20


class OwnTableSettings(Settings):
    """Settings of experiments on users' files.

    Attributes
    ----------
    label
        The column of labels of the files; when None, the column called class, target or label, otherwise the last.
    columns
        How columns of the files are taken, such as ``age=number when=date id=drop``, as `fixntk fit` has it.
    drop_missing_target
        Whether to leave out the files' rows without a label, which are refused otherwise.
    """

    label: str | None = None
    columns: str = ""
    drop_missing_target: bool = False

    @field_validator("columns")
    @classmethod
    def _check_columns(cls, text: str) -> str:
        parse_kinds(text)
        return text

    @property
    def of_files(self) -> dict[str, Any]:
        """What says how a file is read, for :func:`experiments.data.tables.load_table`."""
        return {"label": self.label, "columns": self.columns, "drop_missing_target": self.drop_missing_target}


@dataclass(frozen=True)
class Table:
    """A classification table; the listed ones have no missing values.

    Attributes
    ----------
    name : the name in `TABLES`, or the path of the user's file
    features : n rows; numeric columns are float64, NaN where missing, categorical ones pandas 'category', with every
        category that the file declares or, where it declares none, holds
    labels : (n,) str
    source : where the rows come from, in one line; for a user's file also how its columns were taken
    """

    name: str
    features: pd.DataFrame
    labels: np.ndarray
    source: str


def is_path(name: str) -> bool:
    """Whether a name in a config is the path of a file, not that of a listed table."""
    return name.lower().endswith(ENDS)


def read_own_table(path: str, label: str | None, columns: str, drop_missing_target: bool) -> Table:
    """Read a user's file, as :func:`experiments.data.tables.load_table` describes it."""
    return _read(path, label, columns, drop_missing_target)[0]


def _read(path: str, label: str | None, columns: str, drop_missing_target: bool) -> tuple[Table, list[str]]:
    """A user's file, and how it was taken in lines: one of the label, one of each column."""
    table, kinds = read_table(path, label), parse_kinds(columns)
    check_kinds(table, kinds)
    if drop_missing_target:
        table = table.drop_missing_targets()
    name = str(table.target.name)
    if kinds.get(name, "category") != "category":
        raise TableError(f"{table.name}: column {name!r}, the label, is a category here, not {kinds[name]!r}")
    target = read_target(table, "category", remedy="drop_missing_target=true leaves these rows out")
    features, _, lines = read_columns(table, kinds)
    lines = [*table.lines, *lines]
    read = Table(path, features, target.values.astype(str), f"{path}: the label is column {name!r}; {'; '.join(lines)}")
    label_line = f"{path}: {count(len(features), 'row')}; the label is column {name!r}, a {target.description}"
    return check_labels(read), [label_line, *lines]


def check_files(config: Any) -> list[str]:
    """Refuse a config before its run, or say in lines how its files are taken.

    TableError if a file of ``tables`` is missing, or no table can be used. A file that cannot be used among others that
    can is left to its task.
    """
    errors, told = [], []
    for name in filter(is_path, config.tables):
        if not os.path.exists(name):
            raise TableError(f"table '{name}': there is no such file")
        try:
            _, lines = _read(name, **config.of_files)
        except TableError as error:
            errors.append(error)
            continue
        told += lines[: _MAX_COLUMNS_TOLD + 1]
        if num_more := max(len(lines) - _MAX_COLUMNS_TOLD - 1, 0):
            told.append(f"{count(num_more, 'more column')} of {name}: in the report")
    if errors and len(errors) == len(config.tables):
        raise errors[0]
    return told


def check_labels(table: Table) -> Table:
    """The table; TableError if a class has one row, which a split cannot have in both parts."""
    classes, sizes = np.unique(table.labels, return_counts=True)
    if sizes.min() < 2:
        # A number to predict, as in a regression table, looks like this.
        num_rows = len(table.labels)
        hint = f" (there are {len(classes)} classes in {num_rows} rows)" if 2 * len(classes) > num_rows else ""
        raise TableError(
            f"table '{table.name}': class '{classes[sizes.argmin()]}' has one row; a split needs two{hint}"
        )
    return table


def source_of(table: Table) -> dict[str, str]:
    """For the rows of results of a user's file: what its label is and how its columns were taken; else nothing."""
    return {"source": table.source} if is_path(table.name) else {}


def sources_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """What the rows of results say of users' files, as paragraphs of a report."""
    sources = dict.fromkeys(row["source"] for row in rows if "source" in row)
    return "".join(f"\n\n{source}." for source in sources)


def labels_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """Which columns of users' files are the labels, as sentences."""
    sources = dict.fromkeys(row["source"] for row in rows if "source" in row)
    return "".join(f" {source.partition(';')[0]}." for source in sources)
