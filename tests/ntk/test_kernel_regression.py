"""Kernel ridge regression and the largest learning rate: linear systems, neural-tangents, gradient descent."""

import numpy as np
import pytest
from flow_problems import RELATIVE, as_matrix, problem

from fixntk.ntk import gradient_flow, kernel_ridge, max_learning_rate
from fixntk.ntk.neural_tangents_compat import import_neural_tangents


def test_infinite_time_with_a_ridge_is_the_ridge_solution(dtype):
    p, reg = problem(dtype=dtype), 0.3
    expected = np.linalg.solve(as_matrix(p.train) + reg * np.eye(6), np.asarray(p.y, np.float64))
    tolerance = RELATIVE[str(dtype)]
    np.testing.assert_allclose(kernel_ridge(p.train, p.y, reg=reg), p.train @ expected, atol=tolerance)
    np.testing.assert_allclose(
        kernel_ridge(p.train, p.y, p.test_train, reg=reg), p.test_train @ expected, atol=tolerance
    )
    flow = gradient_flow(p.train, p.y, diag_reg=reg, diag_reg_absolute_scale=True)
    for t in (None, np.inf, 1e300):
        np.testing.assert_allclose(flow.coefficients(t), expected, atol=tolerance)


@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_gradient_descent_converges_below_the_largest_learning_rate_and_not_above(momentum):
    p = problem(outputs=(), n=3)
    largest = float(max_learning_rate(p.train, momentum=momentum))

    def distance(rate):
        f, before = np.zeros(3), np.zeros(3)
        for _ in range(4000):
            f, before = f - rate * p.train @ (f - p.y) + momentum * (f - before), f
        return np.linalg.norm(f - p.y)

    with np.errstate(all="ignore"):
        assert distance(0.99 * largest) < 1e-6
        assert distance(1.01 * largest) > 1e3


def test_largest_learning_rate_is_that_of_neural_tangents_over_the_number_of_targets(monkeypatch):
    nt, p, shared = import_neural_tangents(), problem(full=True), problem()
    # Its branch for the CPU calls a SciPy function as it was before SciPy 1.14.
    monkeypatch.setattr("neural_tangents._src.predict._is_on_cpu", lambda _: False)
    assert max_learning_rate(p.train) * p.y.size == pytest.approx(float(nt.predict.max_learning_rate(p.train)))
    theirs = nt.predict.max_learning_rate(shared.train, y_train_size=shared.y.size)
    assert max_learning_rate(shared.train) * shared.y.size == pytest.approx(float(theirs))
    with_ridge = max_learning_rate(p.train, diag_reg=0.5, diag_reg_absolute_scale=True)
    assert with_ridge == pytest.approx(2 / (2 / float(max_learning_rate(p.train)) + 0.5))
    assert max_learning_rate(np.zeros((2, 2))) == np.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kernel_ridge(np.eye(3), np.ones(3), reg=-1.0), "reg must be at least 0, got -1.0"),
        (lambda: max_learning_rate(np.eye(3) + np.eye(3, k=1)), "kernel_train must be symmetric"),
        (lambda: max_learning_rate(np.eye(3), momentum=1.0), "momentum must be below 1"),
    ],
)
def test_bad_regs_kernels_and_momenta_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
