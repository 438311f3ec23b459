"""Classification tables from users' files, read as `fixntk fit` reads them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from fixntk.tables.columns import read_columns, read_target
from fixntk.tables.names import TableError
from fixntk.tables.read import ENDS, read_table


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


def read_own_table(path: str, label: str | None) -> Table:
    """Read a user's file, as :func:`experiments.data.tables.load_table` describes it."""
    table = read_table(path, label)
    target = read_target(table, "category")
    features, _, lines = read_columns(table, {})
    source = f"{path}: the label is column {str(table.target.name)!r}; {'; '.join([*table.lines, *lines])}"
    return check_labels(Table(path, features, target.values.astype(str), source))


def check_files(config: Any) -> None:
    """Refuse a config before its run: TableError if a file of ``tables`` is missing, or no table can be used.

    A file that cannot be used among others that can is left to its task.
    """
    errors = []
    for name in filter(is_path, config.tables):
        if not os.path.exists(name):
            raise TableError(f"table '{name}': there is no such file")
        try:
            read_own_table(name, config.label)
        except TableError as error:
            errors.append(error)
    if errors and len(errors) == len(config.tables):
        raise errors[0]


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
