"""Models of a table's column, which ``fixntk fit`` saves in a file and ``fixntk predict`` loads."""

from __future__ import annotations

import hashlib
import io
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline

from fixntk._files import replace_when_written
from fixntk.estimators import GatedReLUClassifier, GatedReLURegressor, NTKClassifier, NTKRegressor
from fixntk.tables.encode import Columns, imputing_encoder, match_columns, read_columns, read_target
from fixntk.tables.read import TableError, read_strings, read_table

METHODS = ("gated", "ntk")
# Candidates for reg in the cross-validation.
REGS = (0.1, 0.03, 0.01, 0.003, 0.001)
# Largest number of folds of the cross-validation that chooses reg.
_MAX_FOLDS = 4
# Name of the format in the first line of a model's file.
_FORMAT = "fixntk model"
# Version of the format. It is increased whenever pickles of earlier versions can no longer be loaded.
_VERSION = 2


class ModelError(ValueError):
    """A model's file cannot be used; the message names the file and the reason."""


def fit(
    path: Path, target: str, out: Path, *, method: str = "gated", reg: float | None = None, seed: int = 0
) -> list[str]:
    """Fit a model of a table's column and write it to a file; return a report, in lines.

    Missing numbers are replaced by the column's median, missing categories are a category of their own. The target
    is a class if it is no number or has at most ten values, otherwise a quantity.

    Raises
    ------
    TableError
        If the table cannot be used, lacks the target, or the target has missing values or a single one.
    ValueError
        If the method is unknown, or ``reg`` out of range.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    features, labels = read_table(path, target)
    y, is_class = read_target(path, labels)
    frame, columns = read_columns(path, features)
    kind = "class" if is_class else "quantity"
    lines = [f"{len(y)} rows, {features.shape[1]} columns; {target!r} is a {kind}", *_missing_lines(features, columns)]
    estimator = _estimator(method, is_class, seed)
    model: Any = Pipeline([("columns", imputing_encoder(columns)), ("estimator", estimator)])
    if reg is None:
        folds = _num_folds(y, is_class)
        if folds < 2:
            raise TableError(
                f"table '{path}': a class of column '{target}' has one row, too few to choose reg: give it"
            )
        search = GridSearchCV(model, {"estimator__reg": list(REGS)}, cv=folds)
        model = search.fit(frame, y).best_estimator_
        score = "accuracy" if is_class else "R²"
        lines.append(
            f"reg {model['estimator'].reg:g} by {folds}-fold cross-validation: {score} {search.best_score_:.4f}"
        )
    else:
        model = model.set_params(estimator__reg=reg).fit(frame, y)
    _write(out, {"target": target, "kind": type(estimator).__name__, **columns._asdict()}, model)
    return [*lines, f"wrote {out}"]


def predict(model_path: Path, table: Path) -> pd.DataFrame:
    """Predict for a table's rows: a column with the target's name, and for classes a column of each probability.

    Loads a pickle, which can run any code: use files that you trust.

    Raises
    ------
    ModelError
        If the file is damaged, no model, or of another version.
    TableError
        If the table cannot be read, lacks a column, or has a category or a word that the model does not know.
    """
    header, model = _read(model_path)
    frame = match_columns(table, read_strings(table), Columns(header["numbers"], header["categories"]))
    predictions = pd.DataFrame({header["target"]: model.predict(frame)})
    if hasattr(model, "predict_proba"):
        for name, column in zip(model.classes_, model.predict_proba(frame).T, strict=True):
            predictions[f"P({name})"] = column
    return predictions


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write a Parquet file if the name ends in .parquet, otherwise a CSV file."""
    if path.name.lower().endswith(".parquet"):
        import pyarrow  # noqa: F401  to name the package that is missing; pandas would hide it

        frame.to_parquet(path, engine="pyarrow", index=False)
    else:
        frame.to_csv(path, index=False)


def _missing_lines(features: pd.DataFrame, columns: Columns) -> list[str]:
    """A line for each column with missing values."""
    lines = []
    for name in features.columns:
        if missing := int(features[name].isna().sum()):
            by = "the median" if name in columns.numbers else "a category of its own"
            lines.append(f"{missing} missing in column {name!r}, replaced by {by}")
    return lines


def _estimator(method: str, is_class: bool, seed: int) -> Any:
    if method == "gated":
        return GatedReLUClassifier(random_state=seed) if is_class else GatedReLURegressor(random_state=seed)
    return NTKClassifier() if is_class else NTKRegressor()


def _num_folds(y: np.ndarray, is_class: bool) -> int:
    """Number of folds, at most the number of rows of the smallest class."""
    smallest = int(pd.Series(y).value_counts().min()) if is_class else len(y)
    return min(_MAX_FOLDS, smallest)


def _write(out: Path, about: dict[str, Any], model: Any) -> None:
    """Write a line of JSON that says what the file is, then the model, pickled by joblib."""
    stream = io.BytesIO()
    joblib.dump(model, stream)
    payload = stream.getvalue()
    header = {"format": _FORMAT, "version": _VERSION, "fixntk": version("fixntk"), **about}
    header["sha256"] = hashlib.sha256(payload).hexdigest()
    with replace_when_written(out) as part:
        part.write_bytes(json.dumps(header).encode() + b"\n" + payload)


def _read(path: Path) -> tuple[dict[str, Any], Any]:
    try:
        line, _, payload = path.read_bytes().partition(b"\n")
    except OSError as error:
        raise ModelError(f"model {path}: cannot be read: {error.strerror}") from error
    try:
        header = json.loads(line)
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise ModelError(f"model {path}: is not the file of a fixntk model")
    if header["version"] > _VERSION:
        raise ModelError(f"model {path}: was written by fixntk {header['fixntk']}, newer than this {version('fixntk')}")
    if header["version"] < _VERSION:
        raise ModelError(
            f"model {path}: has version {header['version']} of the format, this fixntk reads {_VERSION}: fit it again"
        )
    if hashlib.sha256(payload).hexdigest() != header["sha256"]:
        raise ModelError(f"model {path}: is damaged")
    return header, joblib.load(io.BytesIO(payload))
