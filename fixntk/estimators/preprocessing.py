"""Rows of the estimators: selection, scaling of inputs and targets, codes of labels, padding to a few sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Num, Shaped
from scipy.special import expit, softmax

from fixntk._checks import refuse_masked, refuse_missing
from fixntk._numerics import allow_float64
from fixntk.convex.padding import padded_count

# Rows and columns are padded with zeros to a small set of sizes, so that tables of similar sizes share one compilation.

# Smallest padded number of rows.
_SMALLEST_ROWS = 32
# Up to this number of rows a fit compiles for longer than it computes.
_MOST_COMPILED_ROWS = 512
# The number of columns is padded to a multiple of this.
_COLUMN_MULTIPLE = 8
# Number of rows that are gathered at a time, so that gathering does not make a second copy of the table.
_BLOCK_ROWS = 1024
# Message of the error for tables without a row to fit to.
_NO_WEIGHT = "sample_weight must not be zero for all rows"

Chosen = tuple[Int[np.ndarray, " k"], Float[np.ndarray, " k"]]
"""Indices of the rows to fit to, and the weight of each."""


def padded_size(count: int) -> int:
    """Number of rows, rounded up to 2^k or 1.5 · 2^k; above 512 rows, whose fits take longer, to a nearer size."""
    if count > _MOST_COMPILED_ROWS:
        return padded_count(count)
    size = _SMALLEST_ROWS
    while size < count:
        size = size * 3 // 2 if (size & (size - 1)) == 0 else size * 4 // 3
    return size


def padded_width(columns: int) -> int:
    """Number of columns, rounded up to a multiple of eight."""
    return columns + -columns % _COLUMN_MULTIPLE


def pad_rows(array: Shaped[np.ndarray, "n ..."], size: int | None = None) -> Shaped[np.ndarray, "m ..."]:
    """Return an array with rows of zeros up to a size, that of :func:`padded_size` when None."""
    size = padded_size(len(array)) if size is None else size
    padded = np.zeros((size, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return padded


def as_checked(name: str, value: Any) -> Any:
    """Inputs or targets as they are, checked for what scikit-learn takes in silence or has no clear message for.

    Raises
    ------
    TypeError
        If they are dates or durations, which it would take as numbers.
    ValueError
        If some are missing or hidden by a mask; the message says how many.
    """
    refuse_masked(name, value)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        # Not an array: scikit-learn says what it takes.
        return value
    if array.dtype.kind == "m":
        raise TypeError(f"{name} must be numbers, got dtype {array.dtype}: divide by a unit of time")
    if array.dtype.kind == "M":
        raise TypeError(f"{name} must be numbers, got dtype {array.dtype}: subtract a date, divide by a unit of time")
    if array.ndim:
        refuse_missing(name, array)
    if array.ndim == 2 and array.dtype.kind == "f":
        _refuse_nan(name, array)
    return value


def _refuse_nan(name: str, array: np.ndarray) -> None:
    """Raise ValueError if a matrix has NaN, where scikit-learn would recommend estimators of its own."""
    missing = np.argwhere(np.isnan(array))
    if len(missing):
        row, column = missing[0]
        raise ValueError(
            f"{name} has {len(missing)} NaN, the first in row {row}, column {column}: leave such rows out, or fit and "
            "predict with data frames, whose missing numbers are filled in"
        )


class Scaling(NamedTuple):
    """The affine map of inputs to mean 0 and deviation 1, with an optional bias column, and zero columns as padding.

    Attributes
    ----------
    mean, scale
        (d,), in the unit of the inputs.
    bias
        Value of the bias column that follows; 0 for none.
    """

    mean: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]
    bias: float

    def __call__(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n w"]:
        """Scaled inputs."""
        return self.scale_and_pad(x)[: len(x)]

    def scale_and_pad(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "m w"]:
        """Scaled inputs with rows of zeros up to a padded size."""
        out = np.zeros((padded_size(len(x)), padded_width(len(self.mean) + (self.bias > 0))))
        self.write(x, out)
        return out

    def write(self, x: Float[np.ndarray, "n d"], out: Float[np.ndarray, "m w"]) -> None:
        """Write scaled inputs into the first rows and columns of ``out``, which may be the memory of x."""
        inner = out[: len(x), : len(self.mean)]
        np.subtract(x, self.mean, out=inner)
        inner /= self.scale
        if self.bias:
            out[: len(x), len(self.mean)] = self.bias


class TargetScaling(NamedTuple):
    """The affine map between targets and outputs of mean 0 and deviation 1.

    Attributes
    ----------
    mean, scale
        (c,), in the unit of the targets.
    squeeze
        Whether targets have shape (n,) instead of (n, 1).
    """

    mean: Float[np.ndarray, " c"]
    scale: Float[np.ndarray, " c"]
    squeeze: bool

    def restore(self, outputs: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n ..."]:
        """Targets from outputs, in the unit and the shape of the targets."""
        targets = outputs * self.scale + self.mean
        return targets[:, 0] if self.squeeze else targets

    def restore_deviations(self, deviations: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n ..."]:
        """Standard deviations of targets from standard deviations of outputs."""
        scaled = deviations * self.scale
        return scaled[:, 0] if self.squeeze else scaled


class Training(NamedTuple):
    """Scaled rows to fit to, followed by rows of zeros up to a size that many tables share.

    Attributes
    ----------
    padded_x, padded_targets, padded_weights
        (m, w), (m, c) and (m,).
    num_rows
        n, the rows that are not padding.
    """

    padded_x: Float[np.ndarray, "m w"]
    padded_targets: Float[np.ndarray, "m c"]
    padded_weights: Float[np.ndarray, " m"]
    num_rows: int

    @property
    def x(self) -> Float[np.ndarray, "n w"]:
        """Inputs without the padding, a view."""
        return self.padded_x[: self.num_rows]

    @property
    def targets(self) -> Float[np.ndarray, "n c"]:
        """Targets without the padding, a view."""
        return self.padded_targets[: self.num_rows]

    @property
    def weights(self) -> Float[np.ndarray, " n"]:
        """Weights without the padding, a view."""
        return self.padded_weights[: self.num_rows]

    def with_bias(self, column: int, value: float) -> Training:
        """The rows with this value in their bias column; this object itself if they have it already."""
        if np.all(self.x[:, column] == value):
            return self
        padded = self.padded_x.copy()
        padded[: self.num_rows, column] = value
        return self._replace(padded_x=padded)

    def select_weighted(self) -> Training:
        """The rows of positive weight; this object itself if every row has one."""
        has_weight = self.weights > 0
        return self if has_weight.all() else self.select(np.flatnonzero(has_weight))

    def select(self, rows: Int[np.ndarray, " k"]) -> Training:
        """The rows with these indices, padded anew."""
        x, targets, weights = (pad_rows(array[rows]) for array in (self.x, self.targets, self.weights))
        return Training(x, targets, weights, len(rows))


def all_rows(
    X: Float[np.ndarray, "n d"],
    y: Num[np.ndarray, "n ..."],  # noqa: ARG001  the signature of :func:`distinct_rows`
    weights: Float[np.ndarray, " n"],
) -> Chosen:
    """Every row, including rows of weight zero."""
    if not np.any(weights > 0):
        raise ValueError(_NO_WEIGHT)
    return np.arange(len(X)), weights


def distinct_rows(X: Float[np.ndarray, "n d"], y: Num[np.ndarray, "n ..."], weights: Float[np.ndarray, " n"]) -> Chosen:
    """Distinct rows of inputs and targets in lexicographic order, each with the weight of all its copies.

    Leaving one row out then leaves out all its copies. Rows of weight zero are dropped.

    Raises
    ------
    ValueError
        If all weights are zero.
    """
    order = np.flatnonzero(weights > 0)
    if not order.size:
        raise ValueError(_NO_WEIGHT)
    columns = [*X.T, *y.reshape(len(y), -1).T]
    # Stable sorts from the last column to the first sort by all of them, with memory for one column only.
    for column in reversed(columns):
        order = order[np.argsort(column[order], kind="stable")]
    is_first = np.zeros(len(order), bool)
    is_first[0] = True
    for column in columns:
        values = column[order]
        is_first[1:] |= values[1:] != values[:-1]
    group = np.cumsum(is_first) - 1
    return order[is_first], np.bincount(group, weights[order])


def scale_inputs(
    X: Float[np.ndarray, "n d"], chosen: Chosen, *, standardize: bool, bias: bool
) -> tuple[Scaling, Float[np.ndarray, "m w"]]:
    """Fit the scaling to the chosen rows, and return it with these rows, scaled and padded: their only copy."""
    rows, weights = chosen
    mean, scale = np.zeros(X.shape[1]), np.ones(X.shape[1])
    out = np.zeros((padded_size(len(rows)), padded_width(X.shape[1] + bool(bias))))
    inner = out[: len(rows), : X.shape[1]]
    if standardize:
        _copy_rows(X, rows, inner)
        mean, scale = _reduce_to_moments(inner, weights)
    scaling = Scaling(mean, scale, float(bool(bias)))
    _copy_rows(X, rows, inner)
    scaling.write(inner, out)
    return scaling, out


def scale_targets(y: Num[np.ndarray, "n ..."], chosen: Chosen) -> tuple[TargetScaling, Float[np.ndarray, "m c"]]:
    """Fit the scaling of targets to the chosen rows, and return it with their targets, scaled and padded."""
    rows, weights = chosen
    values = y.reshape(len(y), -1)
    out = np.zeros((padded_size(len(rows)), values.shape[1]))
    inner = out[: len(rows)]
    _copy_rows(values, rows, inner)
    mean, scale = _reduce_to_moments(inner, weights)
    _copy_rows(values, rows, inner)
    inner -= mean
    inner /= scale
    return TargetScaling(mean, scale, y.ndim == 1), out


def _copy_rows(source: Num[np.ndarray, "n d"], rows: Int[np.ndarray, " k"], out: Float[np.ndarray, "k d"]) -> None:
    for chosen, target in zip(cut_into_tiles(rows, _BLOCK_ROWS), cut_into_tiles(out, _BLOCK_ROWS), strict=True):
        target[:] = source[chosen]


def _reduce_to_moments(
    values: Float[np.ndarray, "n d"], weights: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
    """Mean and deviation of each column, the deviation 1 where a column is constant; overwrites the values."""
    total = weights.sum()
    # Squares of very large or very small numbers would leave the range of floating point.
    largest = np.maximum(np.maximum(values.max(axis=0), -values.min(axis=0)), np.finfo(float).tiny)
    values /= largest
    mean = weights @ values / total
    values -= mean
    values *= values
    deviation = np.sqrt(weights @ values / total)
    constant = deviation <= 10 * np.finfo(float).eps * np.maximum(np.abs(mean), 1)
    return mean * largest, np.where(constant, 1.0, deviation * largest)


def compute_in_tiles(
    outputs: Callable[[Array], np.ndarray], x: Float[np.ndarray, "n d"], scaling: Scaling, tile_rows: int
) -> Float[np.ndarray, "n c"]:
    """Outputs of all rows, a tile of them at a time, each scaled and padded like the rows of a fit."""
    with allow_float64():
        tiles = cut_into_tiles(x, tile_rows)
        return np.concatenate([outputs(jnp.asarray(scaling.scale_and_pad(tile)))[: len(tile)] for tile in tiles])


def cut_into_tiles(rows: Shaped[np.ndarray, "n ..."], tile_rows: int) -> list[Shaped[np.ndarray, "_ ..."]]:
    """Views of some rows at a time, of one tile at least."""
    return [rows[begin : begin + tile_rows] for begin in range(0, max(len(rows), 1), tile_rows)]


def as_signs(codes: Int[np.ndarray, " n"], num_classes: int) -> Float[np.ndarray, "n c"]:
    """(n, 1) of ±1 for two classes, (n, k) for more."""
    signs = np.where(codes[:, None] == np.arange(num_classes), 1.0, -1.0)
    return signs[:, 1:] if num_classes == 2 else signs


def as_codes(scores: Float[np.ndarray, "n ..."]) -> Int[np.ndarray, " n"]:
    """Classes as numbers from scores, (n,) or (n, classes)."""
    return (scores > 0).astype(int) if scores.ndim == 1 else np.argmax(scores, axis=1)


def as_scores(outputs: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n ..."]:
    """(n, c) outputs of a classifier as scores: (n,) for two classes, otherwise (n, classes)."""
    return outputs[:, 0] if outputs.shape[1] == 1 else outputs


def as_probabilities(logits: Float[np.ndarray, "n ..."]) -> Float[np.ndarray, "n k"]:
    """(n, classes) probabilities from logits, (n,) or (n, classes)."""
    if logits.ndim == 1:
        return np.column_stack([expit(-logits), expit(logits)])
    return softmax(logits, axis=1)
