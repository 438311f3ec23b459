"""The problems on which solvers of the convex program are compared, and the certificate that is computed for all."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Numbers of rows n, features d and gates P by name.
SIZES = {
    "S": (200, 10, 200),
    "M": (1000, 20, 1000),
    "L": (5000, 50, 1000),
    "T": (2000, 30, 2000),
    "20k": (20_000, 50, 1000),
    "100k": (100_000, 50, 1000),
}
# Number of neurons of the network that makes the targets.
NUM_NEURONS = 5


class Problem(NamedTuple):
    """Inputs (n, d), targets (n,), masks (n, P), λ, and the gates (P, d) of the masks."""

    x: np.ndarray
    y: np.ndarray
    masks: np.ndarray
    reg: float
    gates: np.ndarray


def make(kind: str, size: str, share: float) -> Problem:
    """Make a problem at a share of λ_max.

    ``planted``: the gates of the network that made the targets are among the gates of the program. ``teacher``: they
    are not, which is the usual and the harder case. Both add noise of 0.1 and standardise the targets.
    """
    num_rows, num_features, num_gates = SIZES[size]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((num_rows, num_features))
    if kind == "planted":
        gates = rng.standard_normal((num_features, num_gates)).T
        masks = x @ gates.T >= 0
        outputs = np.sum(masks[:, :NUM_NEURONS] * (x @ rng.standard_normal((num_features, NUM_NEURONS))), axis=1)
        y = outputs / outputs.std() + 0.1 * rng.standard_normal(num_rows)
    else:
        neurons = rng.standard_normal((NUM_NEURONS, num_features)), rng.standard_normal((NUM_NEURONS, num_features))
        y = np.sum((x @ neurons[0].T >= 0) * (x @ neurons[1].T), axis=1) + 0.1 * rng.standard_normal(num_rows)
        gates = rng.standard_normal((num_gates, num_features))
        masks = x @ gates.T >= 0
    y = (y - y.mean()) / y.std()
    return Problem(x, y, masks, share * largest_correlation(x, y, masks), gates)


def largest_correlation(x: np.ndarray, residual: np.ndarray, masks: np.ndarray) -> float:
    """max_p ‖Xᵀ D_p R‖, which is λ_max for R = Y."""
    return float(np.linalg.norm(masks.T.astype(float) @ (x * residual[:, None]), axis=1).max())


def relative_gap(problem: Problem, weights: np.ndarray) -> float:
    """Duality gap of (P, d) weights, relative to ½‖Y‖², computed from the weights alone."""
    x, y, masks, reg, _ = problem
    residual = y - np.sum((masks.astype(float) @ weights) * x, axis=1)
    primal = 0.5 * residual @ residual + reg * np.linalg.norm(weights, axis=1).sum()
    theta = residual * min(1.0, reg / largest_correlation(x, residual, masks))
    return float((primal - y @ theta + 0.5 * theta @ theta) / (0.5 * y @ y))
