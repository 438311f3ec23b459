"""The two fits: linear systems, refits without a row, λ_max by NumPy, padding that changes nothing."""

import jax.numpy as jnp
import numpy as np
import pytest
from padded_rows import pad_training

import fixntk as fx
from fixntk.estimators.fitting import (
    LearntKernel,
    check_reg,
    check_regs,
    gated_problem,
    kernel_matrix,
    leave_one_out,
)
from fixntk.estimators.gate_options import GateOptions
from fixntk.estimators.ntk_fits import fit_ntk
from fixntk.estimators.one_reg import fit_gated
from fixntk.estimators.preprocessing import Training


def drawn(rng, num_rows=36, targets=None):
    x, weights = rng.standard_normal((num_rows, 8)), rng.uniform(0.2, 2, num_rows)
    targets = rng.standard_normal((num_rows, 2)) if targets is None else targets
    return pad_training(x, targets, weights)


def test_ridge_coefficients_solve_the_weighted_system(rng):
    training = drawn(rng)
    fit = fit_ntk(training, [0.3])
    kernel = np.asarray(fx.gated_relu_ntk(training.x))
    mean_diagonal = np.average(np.diag(kernel), weights=training.weights)
    np.testing.assert_allclose(fit.reg, 0.3 * mean_diagonal, rtol=1e-12)
    system = kernel + fit.reg * np.diag(1 / training.weights)
    np.testing.assert_allclose(system @ fit.dual_coef, training.targets, atol=1e-10)


def test_left_out_outputs_are_those_of_refits_and_rows_of_weight_zero_have_none(rng):
    training = drawn(rng)
    training.padded_weights[5] = 0
    fit = fit_ntk(training, [0.01, 0.3, 10.0])
    kernel = np.asarray(fx.gated_relu_ntk(training.x))
    mean_diagonal = np.average(np.diag(kernel), weights=training.weights)
    counted = np.flatnonzero(training.weights)
    for share, error in zip([0.01, 0.3, 10.0], fit.errors, strict=True):
        outputs = np.full((36, 2), np.nan)
        for i in counted:
            rest = counted[counted != i]
            system = kernel[np.ix_(rest, rest)] + share * mean_diagonal * np.diag(1 / training.weights[rest])
            outputs[i] = kernel[i, rest] @ np.linalg.solve(system, training.targets[rest])
        errors = np.mean((outputs - training.targets)[counted] ** 2, axis=1)
        np.testing.assert_allclose(error, np.average(errors, weights=training.weights[counted]), rtol=1e-9)
        if share == fit.share:
            np.testing.assert_allclose(fit.left_out_outputs, outputs, atol=1e-9)
    assert fit.share == [0.01, 0.3, 10.0][int(np.argmin(fit.errors))]


@pytest.mark.parametrize("loss", ["squared", "logistic", "softmax"])
def test_the_problem_has_the_largest_reg_of_its_rows_whatever_the_padding(rng, loss):
    signs = {
        "squared": lambda: rng.standard_normal((36, 2)),
        "logistic": lambda: rng.choice([-1.0, 1.0], (36, 1)),
        "softmax": lambda: 2 * np.eye(3)[np.arange(36) % 3] - 1,
    }[loss]()
    training = drawn(rng, targets=signs)
    problem = gated_problem(training, GateOptions("random", 16, 8, 3), loss)
    masks = np.asarray(fx.activation_masks(training.x, problem.gates))
    # Residuals of zero outputs.
    residuals = {"squared": signs, "logistic": signs / 2, "softmax": (signs + 1) / 2 - 1 / 3}[loss]
    weighted = training.weights[:, None] * residuals
    largest = max(np.linalg.norm(training.x.T @ (mask[:, None] * weighted)) for mask in masks.T)
    np.testing.assert_allclose(problem.max_reg, largest, rtol=1e-10)
    more = Training(*(np.concatenate([part, 0 * part]) for part in training[:3]), 36)
    assert problem.gates.shape == (16, 8)
    np.testing.assert_array_equal(gated_problem(more, GateOptions("random", 16, 8, 3), loss).gates, problem.gates)
    np.testing.assert_allclose(gated_problem(more, GateOptions("random", 16, 8, 3), loss).max_reg, largest, rtol=1e-10)


def test_a_fit_is_on_the_host_and_its_network_has_the_outputs_of_its_solution(rng):
    training = drawn(rng, targets=rng.standard_normal((36, 1)))
    fit = fit_gated(training, GateOptions("random", 8, 8, 0), reg=0.1, loss="squared", tol=1e-6, max_iter=None)
    assert isinstance(fit.solution.weights, np.ndarray)
    outputs = fit.solution.predict(jnp.asarray(training.x), jnp.asarray(fit.gates))
    np.testing.assert_allclose(fit.network(training.x), outputs[:, 0], atol=1e-10)


def test_a_learnt_kernel_is_the_sum_over_gates(rng):
    weights, gates = rng.uniform(0, 1, 5), rng.standard_normal((5, 8))
    rows, others = rng.standard_normal((6, 8)), rng.standard_normal((4, 8))
    expected = np.zeros((6, 4))
    for weight, gate in zip(weights, gates, strict=True):
        expected += weight * np.outer(rows @ gate >= 0, others @ gate >= 0) * (rows @ others.T)
    np.testing.assert_allclose(LearntKernel(weights, gates)(rows, others), expected, atol=1e-12)


def test_outputs_left_out_with_an_intercept_are_those_of_refits(rng):
    training = drawn(rng, num_rows=12)
    kernel = LearntKernel(rng.uniform(0, 1, 16), rng.standard_normal((16, 8)))
    matrix = kernel_matrix(kernel, training)
    assert matrix.shape == (12, 12)
    found = leave_one_out(kernel, training, 0.5)
    for i in range(12):
        rest = np.delete(np.arange(12), i)
        system = np.ones((12, 12))
        system[-1, -1] = 0
        system[:-1, :-1] = matrix[np.ix_(rest, rest)] + 0.5 * np.diag(1 / training.weights[rest])
        solved = np.linalg.solve(system, np.vstack([training.targets[rest], np.zeros((1, 2))]))
        np.testing.assert_allclose(found[i], matrix[i, rest] @ solved[:-1] + solved[-1], atol=1e-9)


@pytest.mark.parametrize("reg", [0, 1.0, -0.1, np.nan, "0.1", None])
def test_shares_outside_of_the_interval_are_named(reg):
    with pytest.raises(ValueError, match="reg must be a number between 0 and 1, got"):
        check_reg(reg, 1.0)


def test_shares_are_floats_and_there_has_to_be_one():
    assert check_regs([1, np.float32(0.5)], 2.0) == [1.0, 0.5]
    with pytest.raises(ValueError, match="regs must hold at least one number"):
        check_regs((), 1.0)
