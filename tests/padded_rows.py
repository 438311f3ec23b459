"""Rows as estimators hand them to their fits, from plain arrays."""

import numpy as np

from fixntk.estimators.preprocessing import Training, pad_rows


def pad_training(x, targets, weights=None):
    """Rows of (n, w) scaled inputs and (n,) or (n, c) targets, of weight one where no weights are given."""
    weights = np.ones(len(x)) if weights is None else weights
    return Training(pad_rows(x), pad_rows(targets.reshape(len(targets), -1)), pad_rows(weights), len(x))


def with_bias_and_padding(x, width=8):
    """Inputs with a column of ones and columns of zeros up to a width."""
    return np.pad(np.column_stack([x, np.ones(len(x))]), ((0, 0), (0, width - x.shape[1] - 1)))
