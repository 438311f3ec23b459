"""Folds of a cross-validation, and losses of held-out rows."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int
from sklearn.model_selection import KFold, StratifiedKFold

from fixntk._checks import as_int
from fixntk.estimators.preprocessing import Training, padded_size

# Folds are padded to the size of all rows, padded, where that is at most this number of rows.
_MAX_SHARED_ROWS = 512

Folds = Sequence[tuple[Int[np.ndarray, "_"], Int[np.ndarray, "_"]]]
"""Pairs of indices of training and held-out rows."""


class Splits(NamedTuple):
    """Folds as arrays.

    Attributes
    ----------
    train
        (folds, t) indices of the training rows, padded to one size.
    weights
        (folds, t) weights of these rows, zero for the padding.
    held_out
        (folds, m) whether a row is held out.
    """

    train: Int[Array, "*folds t"]
    weights: Float[Array, "*folds t"]
    held_out: Bool[Array, "*folds m"]


def shuffled_folds(num_rows: int, num_folds: int, *, seed: int, num_copies: int = 0) -> Folds:
    """Folds in random order of distinct rows; with their copies there were ``num_copies`` rows.

    If there are fewer distinct rows than folds, but enough rows with their copies, all rows are one fold, which is both
    trained on and held out: a row that is held out would leave copies of itself in training anyway.

    Raises
    ------
    TypeError
        If ``num_folds`` is not an integer.
    ValueError
        If there are fewer rows than folds.
    """
    num_folds = as_int("num_folds", num_folds)
    if num_rows < num_folds <= num_copies:
        return _one_fold(num_rows)
    return list(KFold(num_folds, shuffle=True, random_state=seed).split(np.zeros(num_rows)))


def stratified_folds(labels: np.ndarray, num_folds: int, *, seed: int, num_copies: int = 0) -> Folds:
    """Stratified folds in random order, at most one for each row of the largest class.

    A class of fewer rows than folds is absent from some held-out parts. Where no class has two distinct rows, but there
    are copies enough, they are one fold as in :func:`shuffled_folds`.

    Raises
    ------
    TypeError
        If ``num_folds`` is not an integer.
    """
    num_folds = as_int("num_folds", num_folds)
    largest = int(np.unique(labels, return_counts=True)[1].max())
    if largest < 2 and num_folds <= num_copies:
        return _one_fold(len(labels))
    splitter = StratifiedKFold(min(num_folds, largest), shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        return list(splitter.split(np.zeros(len(labels)), labels))


def _one_fold(num_rows: int) -> Folds:
    return [(np.arange(num_rows), np.arange(num_rows))]


def squared_errors(outputs: Float[np.ndarray, "n c"], targets: Float[np.ndarray, "n c"]) -> Float[np.ndarray, " n"]:
    """Squared error of each row, the mean over its outputs."""
    return np.mean((outputs - targets) ** 2, axis=1)


def num_padded_rows(training: Training, folds: Folds) -> int:
    """Number of rows to which those of a fold are padded; for small tables that of all rows, which compiles once."""
    of_all = len(training.padded_x)
    return of_all if of_all <= _MAX_SHARED_ROWS else padded_size(max(len(kept) for kept, _ in folds))


def as_splits(folds: Folds, training: Training, num_padded: int) -> Splits:
    """Folds as arrays, their training rows padded to ``num_padded``."""
    sizes = np.array([len(train) for train, _ in folds])
    train = np.zeros((len(folds), num_padded), int)
    held_out = np.zeros((len(folds), len(training.padded_x)), bool)
    for k, (kept, others) in enumerate(folds):
        train[k, : len(kept)], held_out[k, others] = kept, True
    weights = np.where(np.arange(train.shape[1]) < sizes[:, None], training.padded_weights[train], 0)
    return Splits(jnp.asarray(train), jnp.asarray(weights), jnp.asarray(held_out))
