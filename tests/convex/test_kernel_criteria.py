"""Leave-one-out errors and the alignment risk: refitting without each row, the formula, finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import fixntk as fx

CRITERIA = [fx.leave_one_out_error, fx.kernel_alignment_risk]


@pytest.fixture
def problem(rng):
    features = rng.standard_normal((3, 15, 4))
    return features @ features.mT, rng.standard_normal((15, 2)), np.array([0.5, 2.0, 0.1]), 0.7


def test_leave_one_out_is_the_error_of_refitting_without_each_row(problem):
    kernels, y, weights, reg = problem
    kernel, errors = np.tensordot(weights, kernels, 1), []
    for i in range(15):
        rest = np.delete(np.arange(15), i)
        fitted = kernel[i, rest] @ np.linalg.solve(kernel[np.ix_(rest, rest)] + reg * np.eye(14), y[rest])
        errors.append((y[i] - fitted) ** 2)
    np.testing.assert_allclose(fx.leave_one_out_error(kernels, y, weights, reg), np.mean(errors), rtol=1e-10)


def test_alignment_risk_is_the_formula_of_its_source(problem):
    kernels, y, weights, reg = problem
    inverse = np.linalg.inv(np.tensordot(weights, kernels, 1) / 15 + reg / 15 * np.eye(15))
    each = [column @ inverse @ inverse @ column / 15 / (np.trace(inverse) / 15) ** 2 for column in y.T]
    found = fx.kernel_alignment_risk(kernels, y, weights, reg)
    np.testing.assert_allclose(found, np.mean(each), rtol=1e-10)
    one = fx.kernel_alignment_risk(kernels, y[:, 1], weights, reg)
    np.testing.assert_allclose(one, each[1], rtol=1e-10)


def test_alignment_risk_is_generalised_cross_validation(problem):
    kernels, y, weights, reg = problem
    kernel = np.tensordot(weights, kernels, 1)
    left = np.eye(15) - kernel @ np.linalg.inv(kernel + reg * np.eye(15))
    expected = np.mean((left @ y) ** 2) / (np.trace(left) / 15) ** 2
    np.testing.assert_allclose(fx.kernel_alignment_risk(kernels, y, weights, reg), expected, rtol=1e-10)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_derivatives_in_all_arguments_are_those_of_finite_differences(problem, criterion):
    check_grads(jax.jit(criterion), problem, order=1, modes=["rev"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_only_the_ratio_of_weights_and_reg_counts(problem, criterion):
    kernels, y, weights, reg = problem
    found = [criterion(kernels, y, scale * weights, scale * reg) for scale in (1.0, 30.0)]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-11)


def test_they_estimate_the_error_on_fresh_rows(rng):
    x, x_new = rng.standard_normal((200, 3)), rng.standard_normal((2000, 3))
    y, y_new = (np.sin(2 * rows[:, 0]) + 0.3 * rng.standard_normal(len(rows)) for rows in (x, x_new))
    kernel, between = (np.exp(-0.5 * np.sum((rows[:, None] - x) ** 2, axis=-1)) for rows in (x, x_new))
    for reg in (0.1, 1.0, 10.0):
        test = np.mean((between @ np.linalg.solve(kernel + reg * np.eye(200), y) - y_new) ** 2)
        for criterion in CRITERIA:
            np.testing.assert_allclose(criterion(kernel[None], y, np.ones(1), reg), test, rtol=0.3)


def test_wrong_arguments_are_refused(problem):
    kernels, y, weights, reg = problem
    with pytest.raises(ValueError, match="kernels must be \\(m, n, n\\) for y of n rows"):
        fx.leave_one_out_error(kernels, y[:-1], weights, reg)
    with pytest.raises(ValueError, match="kernel_weights must have shape \\(3,\\)"):
        fx.leave_one_out_error(kernels, y, weights[:2], reg)
    with pytest.raises(ValueError, match="kernel_weights must not be negative"):
        fx.kernel_alignment_risk(kernels, y, -weights, reg)
    with pytest.raises(ValueError, match="reg must be positive, got 0"):
        fx.kernel_alignment_risk(jnp.asarray(kernels), y, weights, 0.0)
