"""The quadratic model of the softmax: its derivatives, intercepts, and programs with repeated rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import cvxpy_optimum

import fixntk as fx
from fixntk.convex.losses import LOSSES
from fixntk.convex.padding import with_padded_rows
from fixntk.convex.program import datafit_of, group_shape_of, masked_outputs
from fixntk.convex.solvers import prox_newton
from fixntk.convex.solvers.softmax_model import softmax_model


def _repeated_rows(seed, *, num_rows=12, weighted=False, **options):
    """Rows of which some are equal, with classes at random, so that some are told apart and some contradict."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num_rows // 2, 3))[rng.integers(0, num_rows // 2, num_rows)]
    y = np.r_[np.arange(3), rng.integers(0, 3, num_rows - 3)]
    masks = x @ rng.standard_normal((3, 6)) >= 0
    weights = {"sample_weight": rng.exponential(size=num_rows)} if weighted else {}
    return fx.ConvexProgram(x, y, masks, 1.0, loss="softmax", **weights, **options)


@pytest.mark.parametrize("weighted", [False, True])
def test_it_has_the_losss_gradient_and_hessian(rng, weighted):
    program = _repeated_rows(0, weighted=weighted)
    weights = jnp.asarray(rng.standard_normal((6, 3, 3)))
    outputs = masked_outputs(program, weights)
    residuals = program.loss.residuals(outputs, program.y)
    model = softmax_model(program, outputs, residuals, jax.nn.softmax(outputs, axis=1))

    def loss_of(program):
        shape = group_shape_of(program)
        return lambda flat: datafit_of(program).fit(masked_outputs(program, flat.reshape(shape))).loss

    flat = weights.reshape(-1)
    np.testing.assert_allclose(jax.grad(loss_of(model))(flat), jax.grad(loss_of(program))(flat), atol=1e-12)
    np.testing.assert_allclose(jax.hessian(loss_of(model))(flat), jax.hessian(loss_of(program))(flat), atol=1e-12)
    # Elsewhere the two differ.
    assert np.abs(jax.grad(loss_of(model))(2 * flat) - jax.grad(loss_of(program))(2 * flat)).max() > 1e-2


def test_intercepts_of_the_model_are_those_of_the_classes(rng):
    program = _repeated_rows(1, weighted=True, intercept=True)
    outputs, shares = jnp.asarray(rng.standard_normal((2, 12, 3)))
    model = softmax_model(program, outputs, program.loss.residuals(outputs, program.y), jax.nn.softmax(shares, axis=1))
    basis = np.asarray(model.column)
    np.testing.assert_allclose(basis.T @ basis, np.eye(2), atol=1e-12)
    # The same intercept for each class adds nothing; others add what the basis spans.
    q = np.asarray(jax.nn.softmax(shares, axis=1))
    factors = np.sqrt(np.asarray(program.sample_weight)[:, None] * q)[:, :, None] * (np.eye(3) - q[:, None, :])
    np.testing.assert_allclose(factors.sum(axis=2), 0, atol=1e-12)
    added = (factors @ rng.standard_normal(3)).reshape(-1)
    np.testing.assert_allclose(basis @ (basis.T @ added), added, atol=1e-12)
    fit = datafit_of(model).fit(jnp.zeros((36, 1)))
    np.testing.assert_allclose(basis.T @ np.asarray(fit.residual), 0, atol=1e-12)
    np.testing.assert_allclose(datafit_of(model).remove_intercept(jnp.asarray(added)), 0, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"weighted": True, "intercept": True}, {"ridge": 0.3}], ids=str)
def test_it_converges_on_repeated_rows_for_every_reg(options):
    for seed in range(3):
        program = _repeated_rows(seed, **options)
        for share in (1.1, 0.5, 0.1, 1e-2, 1e-4, 1e-6):
            solution = fx.solve(program.with_reg(share * program.max_reg()), tol=1e-5)
            assert (solution.method, bool(solution.converged)) == ("newton", True), (seed, share, solution.message)


@pytest.mark.parametrize("options", [{}, {"weighted": True, "intercept": True}], ids=str)
def test_few_steps_reach_the_optimum(options):
    program = _repeated_rows(3, **options)
    program = program.with_reg(0.05 * program.max_reg())
    solution = fx.solve(program, tol=1e-9)
    np.testing.assert_allclose(solution.primal, cvxpy_optimum(program)[0], rtol=1e-7)
    # With the bound of large programs in place of the Hessian it takes three times as many.
    assert int(solution.iterations) <= 9
    objective = np.asarray(solution.history.objective)
    assert np.all(np.diff(objective) <= 1e-12 * objective[:-1])


def test_of_many_rows_and_classes_the_hessian_is_bounded_and_auto_takes_first_order_steps(monkeypatch):
    program = _repeated_rows(4)
    program = program.with_reg(0.05 * program.max_reg())
    exact = fx.solve(program, tol=1e-8)
    assert prox_newton.has_own_hessian(program)
    monkeypatch.setattr(prox_newton, "_MAX_SOFTMAX_SIZE", 16 * 9 - 1)
    assert not prox_newton.has_own_hessian(program)
    assert prox_newton.has_own_hessian(fx.ConvexProgram(program.x, program.x[:, 0], program.masks, 1.0))
    assert fx.solve(program, tol=1e-5).method == "fista"
    # Another gate, so that nothing that is compiled already is used.
    padded = fx.ConvexProgram(
        program.x, program.y, np.pad(program.masks, ((0, 0), (0, 1))), program.reg, loss=LOSSES["softmax"]
    )
    bounded = fx.solve(padded, method="newton", tol=1e-8)
    np.testing.assert_allclose(bounded.primal, exact.primal, rtol=1e-7)
    assert int(bounded.iterations) > 2 * int(exact.iterations)


def test_the_answer_is_the_same_before_and_after_rows_are_padded():
    # 441 rows are padded to 448, and 444 are the most with three classes.
    for num_rows, is_own in ((432, True), (441, False)):
        program = _repeated_rows(5, num_rows=num_rows)
        assert prox_newton.has_own_hessian(program) == prox_newton.has_own_hessian(with_padded_rows(program)) == is_own
