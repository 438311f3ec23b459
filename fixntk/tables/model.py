"""What ``fixntk fit`` and ``fixntk predict`` do: a model of a table in one file, and its predictions for others."""

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
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder

from fixntk.estimators import GatedReLUClassifier, GatedReLURegressor, NTKClassifier, NTKRegressor
from fixntk.tables.read import TableError, as_feature, read_strings, read_table

METHODS = ("gated", "ntk")
# Regularisation to choose from by cross-validation.
REGS = (0.1, 0.03, 0.01, 0.003, 0.001)
_FORMAT, _VERSION = "fixntk model", 1
# A target of numbers with more values than this is a quantity, not a class.
_MOST_CLASSES = 10


class ModelError(ValueError):
    """A model's file cannot be used; the message names the file and the reason."""


def fit(
    path: Path, target: str, out: Path, *, method: str = "gated", reg: float | None = None, seed: int = 0
) -> list[str]:
    """Fit a model of a table's column and write it to a file; what was done, in lines.

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
    y, is_class = _as_target(path, labels)
    lines = [f"{len(y)} rows, {features.shape[1]} columns; {target!r} is a {'class' if is_class else 'quantity'}"]
    numbers = [str(name) for name in features.select_dtypes("number").columns]
    categories = [str(name) for name in features.columns if name not in numbers]
    for name in features.columns:
        if missing := int(features[name].isna().sum()):
            by = "the median" if name in numbers else "a category of its own"
            lines.append(f"{missing} missing in column {name!r}, replaced by {by}")
        if name in numbers and not np.isfinite(features[name].dropna()).all():
            raise TableError(f"table '{path}': column '{name}' has infinite values")
    estimator: Any = {
        ("gated", True): GatedReLUClassifier(random_state=seed),
        ("gated", False): GatedReLURegressor(random_state=seed),
        ("ntk", True): NTKClassifier(),
        ("ntk", False): NTKRegressor(),
    }[method, is_class]
    frame = _as_frame(features, categories)
    known = {name: sorted(frame[name].unique()) for name in categories}
    model: Any = _pipeline(numbers, known, estimator)
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
    header = {
        "format": _FORMAT,
        "version": _VERSION,
        "fixntk": version("fixntk"),
        "target": target,
        "kind": type(estimator).__name__,
        "numbers": numbers,
        "categories": known,
    }
    _write(out, header, model)
    return [*lines, f"wrote {out}"]


def predict(model_path: Path, table: Path) -> pd.DataFrame:
    """Predictions for a table's rows: a column named as the target, and for classes one of each one's probability.

    Runs what the model's file holds, as any pickle: use files that you trust.

    Raises
    ------
    ModelError
        If the file is damaged, no model, or of a newer version.
    TableError
        If the table cannot be read, lacks a column, or has a category or a word that the model does not know.
    """
    header, model = _read(model_path)
    strings = read_strings(table)
    known = [*header["numbers"], *header["categories"]]
    if missing := [name for name in known if name not in strings.columns]:
        raise TableError(f"table '{table}' lacks the column(s) {', '.join(map(repr, missing))} of the model")
    frame = pd.DataFrame(index=strings.index)
    for name in header["numbers"]:
        column = as_feature(strings[name])
        if column.dtype != np.float64:
            word = next(value for value in column.dropna().unique() if pd.isna(pd.to_numeric(value, errors="coerce")))
            raise TableError(f"table '{table}': column '{name}' holds numbers in the model, here also {word!r}")
        if not np.isfinite(column.dropna()).all():
            raise TableError(f"table '{table}': column '{name}' has infinite values")
        frame[name] = column
    for name, categories in header["categories"].items():
        if unknown := sorted(set(strings[name]) - set(categories)):
            what = "missing values" if unknown[0] == "?" else repr(unknown[0])
            raise TableError(f"table '{table}': column '{name}' has {what}, which the model has not seen")
        frame[name] = strings[name].astype(object)
    predictions = pd.DataFrame({header["target"]: model.predict(frame)})
    if hasattr(model, "predict_proba"):
        for name, column in zip(model.classes_, model.predict_proba(frame).T, strict=True):
            predictions[f"P({name})"] = column
    return predictions


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write a CSV file, or a Parquet file where the name ends so."""
    if path.name.lower().endswith(".parquet"):
        import pyarrow  # noqa: F401  to name the package that is missing; pandas would hide it

        frame.to_parquet(path, engine="pyarrow", index=False)
    else:
        frame.to_csv(path, index=False)


def _as_target(path: Path, labels: pd.Series) -> tuple[np.ndarray, bool]:
    if labels.isna().any():
        raise TableError(f"table '{path}': {int(labels.isna().sum())} missing in column '{labels.name}', the target")
    if labels.nunique() < 2:
        raise TableError(f"table '{path}': column '{labels.name}', the target, has one value only")
    column = as_feature(labels)
    if column.dtype != np.float64 or column.nunique() <= _MOST_CLASSES:
        return labels.to_numpy(object), True
    if not np.isfinite(column).all():
        raise TableError(f"table '{path}': column '{labels.name}' has infinite values")
    return column.to_numpy(), False


def _as_frame(features: pd.DataFrame, categories: list[str]) -> pd.DataFrame:
    """Categories as strings, with '?' for a missing one."""
    frame = features.copy()
    for name in categories:
        frame[name] = frame[name].astype(object).where(frame[name].notna(), "?")
    return frame


def _pipeline(numbers: list[str], categories: dict[str, list[str]], estimator: Any) -> Pipeline:
    encoder = make_column_transformer(
        (SimpleImputer(strategy="median", keep_empty_features=True), numbers),
        (OneHotEncoder(categories=list(categories.values()), sparse_output=False), list(categories)),
    )
    return Pipeline([("columns", encoder), ("estimator", estimator)])


def _num_folds(y: np.ndarray, is_class: bool) -> int:
    smallest = int(pd.Series(y).value_counts().min()) if is_class else len(y)
    return min(4, smallest)


def _write(out: Path, header: dict[str, Any], model: Any) -> None:
    """A line of JSON that says what the file is, then the model, pickled by joblib."""
    stream = io.BytesIO()
    joblib.dump(model, stream)
    payload = stream.getvalue()
    header = {**header, "sha256": hashlib.sha256(payload).hexdigest()}
    partial = out.with_name(out.name + ".part")
    partial.write_bytes(json.dumps(header).encode() + b"\n" + payload)
    partial.replace(out)


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
    if hashlib.sha256(payload).hexdigest() != header["sha256"]:
        raise ModelError(f"model {path}: is damaged")
    return header, joblib.load(io.BytesIO(payload))
