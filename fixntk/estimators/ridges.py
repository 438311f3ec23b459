"""Ridge regressions with the kernel of a few gates, all ridges at once: what undoes the group lasso's shrinkage.

See docs/mathematics.md, M6 and M11.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fixntk.estimators.preprocessing import cut_into_tiles

# Ridges as shares of λ. At 1 the ridge regression is the group lasso itself; smaller ones undo its shrinkage.
RIDGE_SHARES = (1.0, 0.3, 0.1, 0.03)
# Number of rows whose features are made at a time.
_TILE_ROWS = 4096


class UsedGates(NamedTuple):
    """Gates of a solution that are in use, and their kernel weights η."""

    gates: Float[np.ndarray, "k w"]
    kernel_weights: Float[np.ndarray, " k"]


class RidgeFits(NamedTuple):
    """Ridge regressions with an intercept on the features of gates, one for each ridge.

    Attributes
    ----------
    gates, weights, intercepts
        (k, w), (R, k·w, c) and (R, c).
    """

    gates: Float[np.ndarray, "k w"]
    weights: Float[np.ndarray, "R f c"]
    intercepts: Float[np.ndarray, "R c"]

    def predict(self, x: Float[np.ndarray, "n w"]) -> Float[np.ndarray, "R n c"]:
        """Outputs of rows with each ridge."""
        tiles = [_features(rows, self.gates) @ self.weights for (rows,) in _tiles_of(x)]
        return np.concatenate(tiles, axis=1) + self.intercepts[:, None]


def fit_ridges(
    used: UsedGates,
    x: Float[np.ndarray, "n w"],
    targets: Float[np.ndarray, "n c"],
    weights: Float[np.ndarray, " n"],
    ridges: Float[np.ndarray, " R"],
) -> RidgeFits:
    """Ridge regressions with the kernel of used gates, as features √η_p D_p X: one eigendecomposition for all ridges.

    They are computed by NumPy, because JAX would compile anew for each number of gates, which differs between folds.
    """
    roots = np.repeat(np.sqrt(used.kernel_weights), x.shape[1])
    shares = weights / weights.sum()
    # An intercept without a penalty amounts to subtracting the weighted means of features and targets.
    mean = sum(share @ _features(rows, used.gates) for share, rows in _tiles_of(shares, x))
    mean, target_mean = mean * roots, shares @ targets
    rest = np.sqrt(weights)[:, None] * (targets - target_mean)

    def centre(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return np.sqrt(weights)[:, None] * (_features(x, used.gates) * roots - mean)

    # The smaller of the two Gram matrices: F (FᵀF + λI)⁻¹ = (FFᵀ + λI)⁻¹ F.
    if len(x) < len(roots):
        centred = centre(x, weights)
        coefficients = centred.T @ _solve_for_ridges(centred @ centred.T, rest, ridges)
    else:
        gram, correlations = np.zeros((len(roots), len(roots))), np.zeros((len(roots), targets.shape[1]))
        for rows, row_weights, row_rest in _tiles_of(x, weights, rest):
            centred = centre(rows, row_weights)
            gram += centred.T @ centred
            correlations += centred.T @ row_rest
        coefficients = _solve_for_ridges(gram, correlations, ridges)
    return RidgeFits(used.gates, roots[:, None] * coefficients, target_mean - mean @ coefficients)


def _solve_for_ridges(
    gram: Float[np.ndarray, "m m"], right: Float[np.ndarray, "m c"], ridges: Float[np.ndarray, " R"]
) -> Float[np.ndarray, "R m c"]:
    """(G + λI)⁻¹ B for each λ."""
    eigenvalues, vectors = np.linalg.eigh(gram)
    return vectors @ (vectors.T @ right / (np.maximum(eigenvalues, 0) + ridges[:, None])[:, :, None])


def _tiles_of(*arrays: Float[np.ndarray, "n ..."]) -> Iterator[tuple[np.ndarray, ...]]:
    """Some rows of each array at a time, so that the features of all rows are never made."""
    return zip(*(cut_into_tiles(each, _TILE_ROWS) for each in arrays), strict=True)


def _features(x: Float[np.ndarray, "n w"], gates: Float[np.ndarray, "k w"]) -> Float[np.ndarray, "n f"]:
    """The rows through each gate, 1{x·g ≥ 0} x, one gate after another."""
    return ((x @ gates.T >= 0)[:, :, None] * x[:, None, :]).reshape(len(x), -1)
