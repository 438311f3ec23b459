"""The intercept: it minimises the loss of given outputs; regressions, SciPy, finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import PROGRAMS, program_of
from scipy.optimize import minimize
from scipy.special import logsumexp

from fixntk.convex import intercept
from fixntk.convex.program import datafit_of, targets_of

LOSSES_BY_NUMPY = {
    "logistic": lambda outputs, targets: np.logaddexp(0, -(outputs * targets)[:, 0]),
    "softmax": lambda outputs, targets: logsumexp(outputs, axis=1) - np.sum(outputs * targets, axis=1),
    "squared_hinge": lambda outputs, targets: 0.5 * np.maximum(1 - (outputs * targets)[:, 0], 0) ** 2,
    "huber(1.0)": lambda outputs, targets: np.where(
        np.abs(outputs - targets) <= 1, 0.5 * (outputs - targets) ** 2, np.abs(outputs - targets) - 0.5
    ).sum(axis=1),
}
CASES = ["logistic_all", "softmax_all", "hinge_all", "huber_all"]


@pytest.mark.parametrize("case", ["intercept", "logistic_all", "softmax_all", "hinge_all", "huber_all"])
def test_intercept_is_the_best(rng, case):
    program = program_of(PROGRAMS[case])
    fitted = 3 * jnp.asarray(rng.standard_normal(targets_of(program).shape))
    fit = datafit_of(program).fit(fitted)
    residual_sums = jnp.sum(fit.residual, axis=0)
    np.testing.assert_allclose(residual_sums, 0, atol=1e-13 * float(jnp.sum(jnp.abs(fit.residual))))
    weights = 1.0 if program.sample_weight is None else program.sample_weight
    for step in 1e-3 * rng.standard_normal((20, fit.intercept.size)):
        moved = program.loss.values(fitted + fit.intercept + step, targets_of(program))
        assert float(jnp.sum(weights * moved)) >= float(fit.loss) - 1e-12


def test_the_intercept_of_the_squared_loss_is_a_weighted_regression_on_the_column(rng):
    column, weights = rng.uniform(0.5, 2, 30), rng.uniform(0, 2, 30)
    fitted, targets = rng.standard_normal((30, 2)), rng.standard_normal((30, 2))
    roots = np.sqrt(weights)[:, None]
    for sample_weight, root in ((None, 1.0), (jnp.asarray(weights), roots)):
        expected = np.linalg.lstsq(root * column[:, None], root * (targets - fitted))[0][0]
        found = intercept.least_squares(*(jnp.asarray(a) for a in (column, fitted, targets)), sample_weight)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("size", [0.1, 20.0])
@pytest.mark.parametrize("case", CASES)
def test_scipy_finds_no_better_intercept_and_the_weighted_residuals_sum_to_zero(rng, case, size):
    program = program_of(PROGRAMS[case])
    targets, weights = np.asarray(targets_of(program)), np.asarray(program.sample_weight)
    fitted = size * (1 + rng.standard_normal(targets.shape))
    found = intercept.minimise_by_newton(program.loss, jnp.asarray(fitted), targets_of(program), program.sample_weight)
    values = LOSSES_BY_NUMPY[program.loss.name]

    def total(shift):
        return weights @ values(fitted + shift, targets)

    best = minimize(total, np.zeros(targets.shape[1]), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13})
    assert total(np.asarray(found)) <= best.fun * (1 + 1e-12)
    residuals = weights[:, None] * np.asarray(program.loss.residuals(fitted + found, targets_of(program)))
    np.testing.assert_allclose(residuals.sum(axis=0), 0, atol=1e-12 * np.abs(residuals).sum())


@pytest.mark.parametrize("case", ["logistic_all", "softmax_all"])
def test_derivatives_of_the_intercept_are_finite_differences(rng, case):
    program = program_of(PROGRAMS[case])
    fitted, direction = (jnp.asarray(rng.standard_normal(targets_of(program).shape)) for _ in "ab")

    def found(step):
        return intercept.minimise_by_newton(
            program.loss, fitted + step * direction, targets_of(program), program.sample_weight
        )

    expected = (found(1e-4) - found(-1e-4)) / 2e-4
    assert np.max(np.abs(expected)) > 1e-2
    for derivative in (jax.jacfwd, jax.jacrev):
        np.testing.assert_allclose(derivative(found)(0.0), expected, atol=1e-7)
