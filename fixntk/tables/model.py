"""Models of a table's column, which ``fixntk fit`` saves in a file and ``fixntk predict`` loads."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from fixntk._files import replace_when_written, require_safetensors
from fixntk.tables.choice import METHODS, choosing_estimator, describe_choice, estimator_of
from fixntk.tables.columns import check_kinds, match_columns, read_columns, read_target
from fixntk.tables.encode import imputing_encoder
from fixntk.tables.model_file import Model, load, probability_name, save
from fixntk.tables.names import TableError, count
from fixntk.tables.read import read_strings, read_table

# Text that spreadsheets take for a formula, with apostrophes that mark it as text.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
# Text of a number, whose sign begins no formula.
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
    progress: bool = False,
) -> Iterator[str]:
    """Fit a model of a table's column and write it to a file.

    Lines of a report come as the work goes on: before the fit, how each column was read, then what was chosen. The
    target is a class if it is not a number, or has at most ten values and at least two rows for each; otherwise a
    quantity.

    Parameters
    ----------
    path, target
        The table, and the name of its column.
    out
        The model's file.
    method
        ``"gated"`` or ``"ntk"``.
    reg
        Regularisation; chosen by cross-validation when None, and with it the gates of a small table.
    seed
        For the gates.
    kinds
        Kinds of columns, by name: number, date, category or drop; for the target, number or category.
    drop_missing_target
        Whether to leave out rows without a target, which are refused otherwise.
    progress
        Whether to show bars.

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
    require_safetensors()
    table, kinds = read_table(path, target), kinds or {}
    check_kinds(table, kinds)
    if drop_missing_target:
        table = table.drop_missing_targets()
    remedy = "--drop-missing-target leaves these rows out"
    y, is_class, description = read_target(table, kinds.get(target), remedy=remedy)
    frame, columns, taken = read_columns(table, kinds)
    if is_class and target in map(probability_name, set(y)):
        raise TableError(f"{table.name}: {target!r} would also be the name of a column of probabilities: rename it")
    if reg is None:
        estimator = choosing_estimator(method, is_class, y, (table.name, target), seed=seed, progress=progress)
    else:
        estimator = estimator_of(method, is_class, reg=reg, seed=seed)
    yield f"{count(len(y), 'row')}, {count(table.features.shape[1], 'column')}; {target!r} is a {description}"
    yield from [*table.lines, *taken]
    estimator.fit(imputing_encoder(columns).fit_transform(frame), y)
    if reg is None:
        yield describe_choice(estimator, is_class)
    medians = frame[columns.numeric].median().fillna(0.0).to_numpy()
    save(Model(target, columns, medians, estimator.predictor()), out)
    yield f"wrote {out}"


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
    strings, told = read_strings(table, model.columns.names)
    frame, lines = match_columns(table, strings, model.columns, strict=strict)
    return model.predict(frame), [f"table {str(table)!r}: {line}" for line in [*told, *lines]]


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
