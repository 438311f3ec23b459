"""The file of a fitted model of a table's column: arrays and JSON, of which nothing is run."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from fixntk._files import FileFormatError, Format, read_arrays, write_arrays
from fixntk.estimators.kernels import MAX_DEPTH
from fixntk.estimators.predictors import ClassificationPredictor, GatedOutputs, NTKOutputs, RegressionPredictor
from fixntk.estimators.preprocessing import Scaling, TargetScaling, padded_width
from fixntk.tables.columns import RARE, Columns
from fixntk.tables.dates import CYCLE_FEATURES, FORMATS, TIME_OF_DAY
from fixntk.tables.encode import fitted_encoder
from fixntk.tables.numbers import PLAIN, NumberFormat, is_format

_FORMAT = Format("fixntk model", version=5)


class ModelError(ValueError):
    """A model's file cannot be used; the message names the file and the reason."""


class Model(NamedTuple):
    """A fitted model of a table's column.

    Attributes
    ----------
    target
        The column's name.
    columns
        The feature columns.
    medians
        (k,) numbers that replace missing ones, one for each of the columns' numeric features.
    predictor
        The fitted function of encoded rows.
    """

    target: str
    columns: Columns
    medians: Float[np.ndarray, " k"]
    predictor: RegressionPredictor | ClassificationPredictor

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        """A column with the target's name, and for classes a column of each probability."""
        rows = fitted_encoder(self.columns, self.medians).transform(frame)
        predictions = {self.target: self.predictor.predict(rows)}
        if isinstance(self.predictor, ClassificationPredictor):
            names = [probability_name(name) for name in self.predictor.classes]
            predictions |= dict(zip(names, self.predictor.predict_proba(rows).T, strict=True))
        return pd.DataFrame(predictions)


def probability_name(label: str) -> str:
    """Name of the column of a class's probabilities."""
    return f"P({label})"


def save(model: Model, path: Path) -> None:
    """Write a model; an existing file is replaced only when the new one is complete."""
    predictor = model.predictor
    scaling, outputs = predictor.scaling, predictor.outputs
    fields: dict[str, Any] = {
        "target": model.target,
        **model.columns._asdict(),
        "method": "gated" if isinstance(outputs, GatedOutputs) else "ntk",
        "depth": None if isinstance(outputs, GatedOutputs) else outputs.depth,
        "bias": float(scaling.bias),
        "classes": None,
        "temperature": None,
    }
    arrays = {"medians": model.medians, "mean": scaling.mean, "scale": scaling.scale}
    if isinstance(predictor, ClassificationPredictor):
        fields |= {"classes": predictor.classes.tolist(), "temperature": float(predictor.temperature)}
    else:
        arrays |= {"target_mean": predictor.target_scaling.mean, "target_scale": predictor.target_scaling.scale}
    arrays |= {name: array for name, array in outputs._asdict().items() if name != "depth"}
    # Checked as when it is read, so that every file that is written can be read.
    _as_model(path, fields, arrays)
    write_arrays(path, _FORMAT, fields, arrays)


def load(path: Path) -> Model:
    """Read a model.

    Raises
    ------
    ModelError
        If the file cannot be read, is damaged, is not a model or has another version, or its fields or arrays are
        missing or of other types or shapes.
    """
    try:
        return _as_model(path, *read_arrays(path, _FORMAT))
    except OSError as error:
        raise ModelError(f"model {path}: cannot be read: {error.strerror}") from error
    except FileFormatError as error:
        raise ModelError(f"model {error}") from error


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_distinct_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value)) and len(set(value)) == len(value)


def _is_categories(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_distinct_texts(texts) and texts for texts in value.values())


def _is_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _is_dates(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _is_text(name) and name in (*FORMATS, TIME_OF_DAY) for name in value.values()
    )


def _is_cycles(value: Any) -> bool:
    return _is_categories(value) and all(set(names) <= set(CYCLE_FEATURES) for names in value.values())


def _is_formats(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_format, value.values()))


def _is_format(parts: Any) -> bool:
    is_texts = isinstance(parts, (list, tuple)) and len(parts) == len(PLAIN) and all(map(_is_text, parts))
    return is_texts and is_format(NumberFormat(*parts))


def _is_depth(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_DEPTH


def _is_scale(value: Any) -> bool:
    return isinstance(value, float) and 0 <= value < math.inf


def _is_positive(value: Any) -> bool:
    return isinstance(value, float) and 0 < value < math.inf


# What the fields of the file must be, in words, and how it is checked.
_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "target": ("text", _is_text),
    "numbers": ("a list of different texts", _is_distinct_texts),
    "categories": ("lists of different texts by name", _is_categories),
    "dates": ("formats of dates by name", _is_dates),
    "cycles": ("features of dates by name", _is_cycles),
    "formats": ("formats of numbers by name", _is_formats),
    "rare": ("lists of different texts by name", _is_categories),
    "modes": ("texts by name", _is_texts),
    "method": ("'gated' or 'ntk'", lambda value: value in ("gated", "ntk")),
    "depth": ("null or a number of layers", lambda value: value is None or _is_depth(value)),
    "bias": ("a number that is not negative", _is_scale),
    "classes": ("null or a list of different texts", lambda value: value is None or _is_distinct_texts(value)),
    "temperature": ("null or a positive number", lambda value: value is None or _is_positive(value)),
}


def _as_model(path: Path, fields: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Model:
    """The model of a file's content, of which each part is checked."""
    for name, (expected, is_valid) in _FIELDS.items():
        if name not in fields:
            raise ModelError(f"model {path}: lacks the field {name}")
        if not is_valid(fields[name]):
            raise ModelError(f"model {path}: the field {name} must be {expected}, got {reprlib.repr(fields[name])}")
    columns, classes = _columns(path, fields), fields["classes"]
    num_numbers = len(columns.numeric)
    num_columns = num_numbers + sum(map(len, columns.categories.values()))
    if (classes is None) != (fields["temperature"] is None) or (classes is not None and len(classes) < 2):
        raise ModelError(f"model {path}: must have two classes or more and a temperature, or neither")
    if (fields["depth"] is None) != (fields["method"] == "gated"):
        raise ModelError(f"model {path}: must have a depth for the method 'ntk', and none for 'gated'")
    num_outputs = 1 if classes is None or len(classes) == 2 else len(classes)
    _check_arrays(path, arrays, _shapes(fields, arrays, num_numbers, num_columns, num_outputs))
    scaling = Scaling(arrays["mean"], arrays["scale"], fields["bias"])
    outputs: GatedOutputs | NTKOutputs
    if fields["method"] == "gated":
        outputs = GatedOutputs(arrays["weights"], arrays["gates"], arrays["intercept"])
    else:
        outputs = NTKOutputs(arrays["rows"], arrays["dual_coef"], fields["depth"])
    if classes is None:
        targets = TargetScaling(arrays["target_mean"], arrays["target_scale"], squeeze=True)
        predictor: Any = RegressionPredictor(scaling, outputs, targets)
    else:
        labels = np.array(classes, dtype=object)
        predictor = ClassificationPredictor(scaling, outputs, labels, float(fields["temperature"]))
    return Model(fields["target"], columns, arrays["medians"], predictor)


def _columns(path: Path, fields: Mapping[str, Any]) -> Columns:
    columns = Columns(**{name: fields[name] for name in Columns._fields})
    columns = columns._replace(formats={name: NumberFormat(*parts) for name, parts in columns.formats.items()})
    numbers, categories = set(columns.numbers), columns.categories
    if not numbers | categories.keys() or numbers & categories.keys():
        raise ModelError(f"model {path}: must have columns of different names")
    if not columns.dates.keys() | columns.formats.keys() <= numbers or columns.dates.keys() & columns.formats.keys():
        raise ModelError(f"model {path}: must have dates, and formats of others, among its numbers")
    if not columns.cycles.keys() <= columns.dates.keys():
        raise ModelError(f"model {path}: must have columns with features of dates among its dates")
    if any(RARE not in categories.get(name, ()) for name in columns.rare):
        raise ModelError(f"model {path}: must have rare categories among its categories")
    if any(mode not in categories.get(name, ()) for name, mode in columns.modes.items()):
        raise ModelError(f"model {path}: must have the most frequent categories among its categories")
    return columns


def _shapes(
    fields: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    num_numbers: int,
    num_columns: int,
    num_outputs: int,
) -> dict[str, tuple[int, ...]]:
    """The shape that each array must have. The number of gates or training rows is the arrays' own."""
    width = padded_width(num_columns + (fields["bias"] > 0))

    shapes: dict[str, tuple[int, ...]] = {"medians": (num_numbers,), "mean": (num_columns,), "scale": (num_columns,)}
    if fields["method"] == "gated":
        gates = _num_rows(arrays, "gates")
        shapes |= {"weights": (gates, width, num_outputs), "gates": (gates, width), "intercept": (num_outputs,)}
    else:
        rows = _num_rows(arrays, "rows")
        shapes |= {"rows": (rows, width), "dual_coef": (rows, num_outputs)}
    if fields["classes"] is None:
        shapes |= {"target_mean": (1,), "target_scale": (1,)}
    return shapes


def _num_rows(arrays: Mapping[str, np.ndarray], name: str) -> int:
    """Number of an array's rows, at least one, which is also that of an array that is missing or has no rows."""
    return max(1, *arrays[name].shape[:1]) if name in arrays and arrays[name].ndim else 1


def _check_arrays(path: Path, arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    if arrays.keys() != shapes.keys():
        raise ModelError(f"model {path}: must have the arrays {', '.join(shapes)}, got {reprlib.repr(sorted(arrays))}")
    for name, shape in shapes.items():
        array = arrays[name]
        if array.dtype != np.float64 or array.shape != shape:
            found = f"{array.dtype} {array.shape}"
            raise ModelError(f"model {path}: the array {name} must be float64 {shape}, got {found}")
        if not np.isfinite(array).all() or (name.endswith("scale") and not (array > 0).all()):
            raise ModelError(f"model {path}: the array {name} holds numbers that are out of range")
