"""Linear regression, cross-validated: the program of one gate, active on every row.

No random gate comes near such a gate among many columns, so that a linear function would be put together from kinks.

See docs/mathematics.md, M11.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from fixntk.estimators.candidates import Candidates
from fixntk.estimators.fitting import GatedFit, GatedProblem, certify_fit, program_of_rows
from fixntk.estimators.folds import Folds
from fixntk.estimators.gate_options import GateOptions
from fixntk.estimators.preprocessing import Training
from fixntk.estimators.ridges import UsedGates, fit_ridges

# Least λ, as a share of λ_max, where the targets have nothing linear.
_LEAST_SHARE = 1e-12


def gate_of_every_row(training: Training, gates: GateOptions) -> Float[np.ndarray, " w"] | None:
    """A gate that is active on every possible row, along the bias column; None where there is no such column."""
    x = training.x[:, : gates.num_columns]
    columns = np.flatnonzero(np.all(x == x[:1], axis=0) & (x[0] != 0))
    if not columns.size:
        return None
    gate = np.zeros(training.x.shape[1])
    gate[columns[0]] = np.sign(x[0, columns[0]])
    return gate


def linear_candidates(
    training: Training,
    gate: Float[np.ndarray, " w"],
    problem: GatedProblem,
    folds: Folds,
    shares: Float[np.ndarray, " R"],
) -> Candidates:
    """Ridge regressions on the columns, at ridges that are ``shares`` of the mean eigenvalue of their Gram matrix.

    The weights W of the ridge μ are the program's solution at λ = μ ‖W‖.
    """
    used = UsedGates(gate[None], np.ones(1))
    ridges = shares * _mean_eigenvalue(training)
    outputs = np.zeros((len(shares), 1, *training.targets.shape))
    for kept, held_out in folds:
        fits = fit_ridges(used, training.x[kept], training.targets[kept], training.weights[kept], ridges)
        outputs[:, 0, held_out] = fits.predict(training.x[held_out])

    def fit(place: int, _: int) -> GatedFit:
        rows = training.x, training.targets, training.weights
        weights = fit_ridges(used, *rows, ridges[place : place + 1]).weights[0]
        norm = float(np.linalg.norm(weights))
        reg = max(ridges[place] * norm, _LEAST_SHARE * problem.max_reg)
        padded = training.padded_x, training.padded_targets, training.padded_weights
        program = program_of_rows(*padded, jnp.asarray(used.gates))
        # The kernel weight η = ‖W‖ is the optimal one already.
        return certify_fit(program, weights.reshape(1, -1, weights.shape[1]), np.array([norm]), used.gates, reg)

    return Candidates(outputs, fit)


def _mean_eigenvalue(training: Training) -> float:
    """Of the Gram matrix of centred columns, the constant ones aside; 1 where all are constant."""
    mean = np.average(training.x, axis=0, weights=training.weights)
    squares = training.weights @ (training.x - mean) ** 2
    is_column = np.ptp(training.x, axis=0) > 0
    return float(squares[is_column].mean()) if is_column.any() else 1.0
