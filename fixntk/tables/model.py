"""Models of a table's column, which ``fixntk fit`` saves in a file and ``fixntk predict`` loads."""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline

from fixntk._files import replace_when_written
from fixntk.estimators import GatedReLUClassifier, GatedReLURegressor, NTKClassifier, NTKRegressor
from fixntk.tables.columns import check_kinds, match_columns, read_columns, read_target
from fixntk.tables.encode import imputing_encoder
from fixntk.tables.model_file import Model, load, probability_name, save
from fixntk.tables.names import TableError
from fixntk.tables.read import read_strings, read_table

METHODS = ("gated", "ntk")
# Candidates for reg in the cross-validation.
REGS = (0.1, 0.03, 0.01, 0.003, 0.001)
# Largest number of folds of the cross-validation that chooses reg.
_MAX_FOLDS = 4
# Number of rows of a quantity from which reg is chosen: R² needs two in each of two folds.
_LEAST_ROWS = 4
# Text that spreadsheets take for a formula, with apostrophes that mark it as text.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def fit(
    path: Path,
    target: str,
    out: Path,
    *,
    method: str = "gated",
    reg: float | None = None,
    seed: int = 0,
    kinds: Mapping[str, str] | None = None,
    drop_missing_target: bool = False,
) -> list[str]:
    """Fit a model of a table's column and write it to a file; return a report, in lines.

    The report says how each column was read. The target is a class if it is not a number, or has at most ten values and
    at least two rows for each; otherwise a quantity.

    Parameters
    ----------
    path, target
        The table, and the name of its column.
    out
        The model's file.
    method
        One of :data:`METHODS`.
    reg
        Regularisation; chosen by cross-validation when None.
    seed
        For the gates.
    kinds
        Kinds of columns, by name: number, date, category or drop; for the target, number or category.
    drop_missing_target
        Whether to leave out rows without a target, which are refused otherwise.

    Raises
    ------
    TableError
        If the table cannot be used, lacks the target, or the target has missing values or nothing to learn; if a column
        is not of the kind that is given.
    ValueError
        If the method is unknown, or ``reg`` out of range.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    table, kinds = read_table(path, target), kinds or {}
    check_kinds(table, kinds)
    if drop_missing_target:
        table = table.drop_missing_targets()
    y, is_class, description = read_target(table, kinds.get(target))
    frame, columns, taken = read_columns(table, kinds)
    if is_class and target in map(probability_name, set(y)):
        raise TableError(f"{table.name}: {target!r} would also be the name of a column of probabilities: rename it")
    lines = [f"{len(y)} rows, {table.features.shape[1]} columns; {target!r} is a {description}", *table.lines, *taken]
    estimator = _estimator(method, is_class, seed)
    model: Any = Pipeline([("columns", imputing_encoder(columns)), ("estimator", estimator)])
    if reg is None:
        search = _search_reg(table.name, target, model, y, is_class)
        with warnings.catch_warnings():
            # Not every fold can have rows of a class that has few.
            warnings.filterwarnings("ignore", "The least populated class", UserWarning)
            search.fit(frame, y)
        model, score = search.best_estimator_, "accuracy" if is_class else "R²"
        lines.append(
            f"reg {model['estimator'].reg:g} by {search.n_splits_}-fold cross-validation: {score}"
            f" {search.best_score_:.4f}"
        )
    else:
        model = model.set_params(estimator__reg=reg).fit(frame, y)
    medians = frame[columns.numbers].median().fillna(0.0).to_numpy()
    save(Model(target, columns, medians, model["estimator"].predictor()), out)
    return [*lines, f"wrote {out}"]


def predict(model_path: Path, table: Path, *, strict: bool = False) -> tuple[pd.DataFrame, list[str]]:
    """Predict for a table's rows: a column with the target's name, and for classes a column of each probability.

    Nothing in the model's file is run. Categories that the model has not seen count as none of those that it has; they
    are reported in lines, or refused if ``strict``.

    Raises
    ------
    ModelError
        If the file cannot be read, is damaged, is not a model, or has another version.
    TableError
        If the table cannot be read, lacks a column, has a word among numbers or, if ``strict``, a category that the
        model has not seen.
    """
    model = load(model_path)
    strings = read_strings(table, model.columns.names)
    frame, lines = match_columns(table, strings, model.columns, strict=strict)
    return model.predict(frame), [f"table {str(table)!r}: {line}" for line in lines]


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write a Parquet file if the name ends in .parquet, otherwise a CSV file, as :func:`write_csv` does."""
    if path.name.lower().endswith(".parquet"):
        import pyarrow  # noqa: F401  to name the package that is missing; pandas would hide it

        with replace_when_written(path) as part:
            frame.to_parquet(part, engine="pyarrow", index=False)
    else:
        with replace_when_written(path) as part, part.open("w", encoding="utf-8", newline="") as file:
            write_csv(frame, file)


def write_csv(frame: pd.DataFrame, file: Any) -> None:
    """Write a table as CSV to a text file, with an apostrophe before text that a spreadsheet would take for a formula.

    Such text begins with =, +, -, @ or white space, and is not a number. Apostrophes before such text are doubled, so
    that taking one away restores it.
    """
    is_number = {name: pd.api.types.is_numeric_dtype(column) for name, column in frame.items()}
    guarded = pd.DataFrame(
        {_guard(str(name)): column if is_number[name] else column.map(_guard) for name, column in frame.items()}
    )
    texts = [*guarded.columns, *(text for name in frame if not is_number[name] for text in frame[name])]
    # Python's writer does not always quote a carriage return, which readers take for the end of the line.
    quoted = csv.QUOTE_NONNUMERIC if any("\r" in text for text in texts) else csv.QUOTE_MINIMAL
    guarded.to_csv(file, index=False, quoting=quoted)  # type: ignore[call-overload]


def _guard(text: str) -> str:
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def _estimator(method: str, is_class: bool, seed: int) -> Any:
    if method == "gated":
        return GatedReLUClassifier(random_state=seed) if is_class else GatedReLURegressor(random_state=seed)
    return NTKClassifier() if is_class else NTKRegressor()


def _search_reg(name: str, target: str, model: Any, y: np.ndarray, is_class: bool) -> GridSearchCV:
    """The search for reg; its folds have as many of each class as there are.

    Raises
    ------
    TableError
        If fewer than two classes have two rows, as each fold needs two classes to train on; or there are fewer than
        four rows of a quantity, as R² needs two rows in each fold.
    """
    if is_class:
        sizes = pd.Series(y).value_counts()
        if (sizes >= 2).sum() < 2:
            reason = f"fewer than two classes of column {target!r} have two rows"
            raise TableError(f"{name}: {reason}, too few to choose reg: give it")
        num_folds = min(_MAX_FOLDS, int(sizes.iloc[0]))
    else:
        if len(y) < _LEAST_ROWS:
            raise TableError(f"{name}: it has {len(y)} rows, {_LEAST_ROWS} are needed to choose reg: give it")
        num_folds = min(_MAX_FOLDS, len(y) // 2)
    return GridSearchCV(model, {"estimator__reg": list(REGS)}, cv=num_folds)
