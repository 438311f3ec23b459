"""An average of fits of several kinds, in shares that their held-out outputs choose: stacking.

An average of gated networks is one: its gates are those of all of them.

References
----------
Wolpert, "Stacked generalization", Neural Networks 1992; Breiman, "Stacked regressions", Machine Learning 1996.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.linalg import solve_triangular
from scipy.optimize import nnls

from fixntk.estimators.fitting import GatedFit, certify_fit, program_of_rows
from fixntk.estimators.folds import Folds
from fixntk.estimators.preprocessing import Training

# Ridge on the shares, relative to the least mean square of a kind: rows are few, and the kinds' errors much alike.
_RIDGE_SHARE = 0.02
# Smaller shares are not worth a fit.
_LEAST_SHARE = 0.05
# Gates come in multiples of this number, so that averages of similar sizes compile once.
_GATE_MULTIPLE = 256


class Average(NamedTuple):
    """An average of kinds.

    Attributes
    ----------
    shares
        Of each kind that is part of it, positive; they sum to 1.
    outputs
        (n, c) held-out outputs of the average, those of each fold with shares that were chosen on the other folds.
    """

    shares: Mapping[str, float]
    outputs: Float[np.ndarray, "n c"]


def average_kinds(
    outputs: Mapping[str, Float[np.ndarray, "n c"]],
    targets: Float[np.ndarray, "n c"],
    weights: Float[np.ndarray, " n"],
    folds: Folds,
) -> Average:
    """The average of held-out outputs of several kinds that is nearest to the targets, in weighted mean squares."""
    stacked = np.where(weights[:, None] > 0, np.stack(list(outputs.values())), 0)
    errors = stacked - targets
    averaged = np.zeros_like(targets)
    for _, held_out in folds:
        others = weights.copy()
        others[held_out] = 0
        averaged[held_out] = np.tensordot(choose_shares(errors, others), stacked[:, held_out], axes=1)
    shares = choose_shares(errors, weights)
    parts = {kind: float(share) for kind, share in zip(outputs, shares, strict=True) if share > 0}
    return Average(parts, averaged)


def choose_shares(errors: Float[np.ndarray, "K n c"], weights: Float[np.ndarray, " n"]) -> Float[np.ndarray, " K"]:
    """Shares s ≥ 0 that sum to 1 and minimise the weighted mean square of Σ_k s_k e_k, plus a ridge on s.

    Those below a least share are left out.
    """
    num_kinds = len(errors)
    rooted = (errors * np.sqrt(weights / weights.sum())[:, None]).reshape(num_kinds, -1)
    moments = rooted @ rooted.T
    squares = np.diag(moments)
    if not squares.max() > 0:
        return np.full(num_kinds, 1 / num_kinds)
    ridge = _RIDGE_SHARE * num_kinds * max(squares.min(), np.finfo(float).eps * squares.max())
    # The direction of the minimum over the simplex is that of min ½ uᵀMu − 1ᵀu over u ≥ 0, as both ask for equal
    # entries of Mu where u > 0 and none that is smaller elsewhere.
    factor = np.linalg.cholesky(moments + ridge * np.eye(num_kinds))
    shares = nnls(factor.T, solve_triangular(factor, np.ones(num_kinds), lower=True))[0]
    shares /= shares.sum()
    shares[shares < min(_LEAST_SHARE, shares.max())] = 0
    return shares / shares.sum()


def average_fits(fits: Sequence[tuple[float, GatedFit]], training: Training) -> GatedFit:
    """The average of fits as one network, with its gap in the program of all gates at the mean λ.

    Ridge regression with kernel weights η_p at λ equals that with η_p/λ at 1, so that the η_p/λ are averaged.
    """
    reg = sum(share * fit.reg for share, fit in fits)
    merged: dict[bytes, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    for share, fit in fits:
        weights = share * np.asarray(fit.solution.weights)
        kernel_weights = share * reg / fit.reg * np.asarray(fit.solution.kernel_weights)
        # Kinds with the same gates, as the NTK of random gates and its reweighting, have them once.
        earlier = merged.get(fit.gates.tobytes())
        if earlier is not None:
            weights, kernel_weights = weights + earlier[0], kernel_weights + earlier[1]
        merged[fit.gates.tobytes()] = weights, kernel_weights, fit.gates
    weights, kernel_weights, gates = (np.concatenate(arrays) for arrays in zip(*merged.values(), strict=True))
    # Copies of a gate that are not in use change neither the outputs nor the gap.
    more = -len(gates) % _GATE_MULTIPLE
    weights = np.pad(weights, ((0, more), (0, 0), (0, 0)))
    kernel_weights, gates = np.pad(kernel_weights, (0, more)), np.concatenate([gates, np.repeat(gates[-1:], more, 0)])
    padded = training.padded_x, training.padded_targets, training.padded_weights
    return certify_fit(program_of_rows(*padded, jnp.asarray(gates)), weights, kernel_weights, gates, reg)
