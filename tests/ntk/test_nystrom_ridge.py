"""Kernel ridge with landmarks against exact kernel ridge, by NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fixntk as fx

KEY = jax.random.key(0)


def problem(count=160, dim=3, outputs=None, seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)
    x, new = rng.standard_normal((count, dim)), rng.standard_normal((23, dim))
    y = np.tanh(3 * x[:, 0]) + 0.1 * rng.standard_normal(count)
    if outputs:
        y = np.stack([np.roll(y, k) for k in range(outputs)], axis=1)
    return tuple(jnp.asarray(array, dtype) for array in (x, y, new))


def exact(kernel, x, y, new, reg):
    """Kernel ridge's outputs at the training rows and at new ones."""
    x, new = jnp.asarray(x, jnp.float64), jnp.asarray(new, jnp.float64)
    whole, between = np.asarray(kernel(x, x)), np.asarray(kernel(new, x))
    dual = np.linalg.solve(whole + reg * np.eye(len(whole)), np.asarray(y, float))
    return whole @ dual, between @ dual


def mlp(a, b):
    return fx.mlp_kernel(a, b, depth=2).ntk


@pytest.mark.parametrize("kernel", [fx.gated_relu_ntk, mlp], ids=["gated", "mlp"])
@pytest.mark.parametrize("outputs", [None, 2])
@pytest.mark.parametrize("reg", [1.0, 1e-3])
def test_full_rank_is_exact(kernel, outputs, reg):
    x, y, new = problem(outputs=outputs)
    found = fx.nystrom(kernel, x, key=KEY, tol=1e-13, max_rank=160)
    ridge = fx.nystrom_ridge(found, y, reg=reg)
    outputs_there, outputs_elsewhere = exact(kernel, x, y, new, reg)
    assert found.rank == 160
    np.testing.assert_allclose(ridge.outputs, outputs_there, atol=1e-9)
    np.testing.assert_allclose(ridge.predict(new), outputs_elsewhere, atol=1e-9)
    np.testing.assert_allclose(ridge.predict(x), ridge.outputs, atol=1e-9)


@pytest.mark.parametrize("tol", [0.5, 0.1, 0.01, 1e-3])
@pytest.mark.parametrize("reg", [10.0, 0.1, 1e-3])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_bounds_hold_and_shrink_to_nothing(tol, reg, seed):
    x, y, new = problem(outputs=2, seed=seed)
    ridge = fx.nystrom_ridge(fx.nystrom(fx.gated_relu_ntk, x, key=jax.random.key(seed), tol=tol), y, reg=reg)
    there, elsewhere = exact(fx.gated_relu_ntk, x, y, new, reg)
    assert ridge.training_bound.shape == (2,)
    assert np.all(np.linalg.norm(ridge.outputs - there, axis=0) <= ridge.training_bound)
    bound = ridge.error_bound(new)
    assert bound.shape == (23, 2)
    assert np.all(np.abs(ridge.predict(new) - elsewhere) <= bound)


def test_the_bound_is_met_by_a_kernel_for_which_nothing_is_lost():
    # One row that is orthogonal to the landmark: E has the single entry e, and every inequality is nearly an equality.
    x = jnp.diag(jnp.asarray([2.0, 1.0]))
    with pytest.warns(fx.ConvergenceWarning):
        found = fx.nystrom(lambda a, b: a @ b.T, x, key=jax.random.key(3), max_rank=1)
    (kept,) = found.indices
    left = 1 - int(kept)
    y = jnp.zeros(2).at[left].set(1.0)
    entry, reg = float(x[left, left] ** 2), 0.7
    ridge = fx.nystrom_ridge(found, y, reg=reg)
    there, _ = exact(lambda a, b: a @ b.T, x, y, x, reg)
    # The exact output is e/(e + λ), and the approximate one is zero; the bound is √(λe/(e + λ)) √e/λ.
    error = float(np.linalg.norm(ridge.outputs - there))
    np.testing.assert_allclose(error, entry / (entry + reg), rtol=1e-12)
    np.testing.assert_allclose(ridge.training_bound, entry / np.sqrt(reg * (entry + reg)), rtol=1e-12)
    assert error <= float(ridge.training_bound)


def test_dual_weights_solve_the_system_of_the_approximation():
    x, y, _ = problem()
    found = fx.nystrom(fx.gated_relu_ntk, x, key=KEY, tol=0.05)
    ridge = fx.nystrom_ridge(found, y, reg=0.2)
    matrix = np.asarray(found.factor @ found.factor.T) + 0.2 * np.eye(160)
    np.testing.assert_allclose(ridge.dual_weights, np.linalg.solve(matrix, y), atol=1e-9)
    np.testing.assert_allclose(ridge.sensitivity, np.sqrt(found.residual) @ np.abs(ridge.dual_weights), rtol=1e-9)
    np.testing.assert_allclose(found.factor @ ridge.feature_coefficients, ridge.outputs, atol=1e-12)


@pytest.mark.parametrize("tol", [0.3, 0.03])
@pytest.mark.parametrize("outputs", [None, 2])
def test_the_residual_of_the_exact_system_bounds_more_closely(tol, outputs):
    x, y, new = problem(outputs=outputs)
    found = fx.nystrom(fx.gated_relu_ntk, x, key=KEY, tol=tol, batch_size=60)
    ridge = fx.nystrom_ridge(found, y, reg=0.5)
    residual = ridge.training_residual(x)
    whole = np.asarray(fx.gated_relu_ntk(x)) + 0.5 * np.eye(160)
    np.testing.assert_allclose(residual, whole @ np.asarray(ridge.dual_weights) - np.asarray(y), atol=1e-10)
    there, elsewhere = exact(fx.gated_relu_ntk, x, y, new, 0.5)
    norms = np.linalg.norm(residual, axis=0)
    assert np.all(np.linalg.norm(ridge.outputs - there, axis=0) <= norms)
    assert np.all(norms <= ridge.training_bound * np.sqrt((found.trace_bound + 0.5) / 0.5))
    between = np.asarray(fx.gated_relu_ntk(new, x))
    bound = np.sqrt(np.diag(fx.gated_relu_ntk(new)) / 0.5).reshape(-1, *(1,) * norms.ndim) * norms
    assert np.all(np.abs(between @ np.asarray(ridge.dual_weights) - elsewhere) <= bound)
    with pytest.raises(ValueError, match="x must be the 160 training rows, got 23"):
        ridge.training_residual(new)


def test_in_single_precision_the_bounds_hold_as_well():
    x, y, new = problem(dtype="float32")
    ridge = fx.nystrom_ridge(fx.nystrom(fx.gated_relu_ntk, x, key=KEY, tol=1e-2), y, reg=1.0)
    there, elsewhere = exact(fx.gated_relu_ntk, x, y, new, 1.0)
    assert ridge.predict(new).dtype == jnp.float32
    assert np.linalg.norm(ridge.outputs - there) <= ridge.training_bound
    assert np.all(np.abs(ridge.predict(new) - elsewhere) <= ridge.error_bound(new))


def test_the_zero_kernel_predicts_zero():
    x, y, new = problem(count=12)
    ridge = fx.nystrom_ridge(fx.nystrom(lambda a, b: jnp.zeros((len(a), len(b))), x, key=KEY), y, reg=1.0)
    np.testing.assert_array_equal(ridge.predict(new), np.zeros(23))
    np.testing.assert_array_equal(ridge.error_bound(new), np.zeros(23))


def test_bad_input_is_named():
    x, y, _ = problem(count=40)
    found = fx.nystrom(fx.gated_relu_ntk, x, key=KEY, tol=0.1)
    with pytest.raises(ValueError, match="y must have a row for each of the 40 rows"):
        fx.nystrom_ridge(found, y[:5], reg=1.0)
    with pytest.raises(ValueError, match="reg must be positive"):
        fx.nystrom_ridge(found, y, reg=0.0)
    with pytest.raises(ValueError, match="finite"):
        fx.nystrom_ridge(found, y.at[0].set(jnp.nan), reg=1.0)
