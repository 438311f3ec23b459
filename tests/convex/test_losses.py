"""Losses: derivatives, conjugates, the inequality of Fenchel and Young, labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import random_problem
from scipy.optimize import minimize

import fixntk as fx
from fixntk.convex.losses import LOSSES

NAMES = pytest.mark.parametrize("name", LOSSES)


def rows_of(name, rng, num_rows=40, dtype=jnp.float64):
    """Outputs of all sizes and targets that fit the loss."""
    outputs = rng.standard_normal((num_rows, 3 if name == "softmax" else 1)) * np.geomspace(1e-3, 30, num_rows)[:, None]
    if name == "softmax":
        targets = np.eye(3)[rng.integers(0, 3, num_rows)]
    elif name in ("logistic", "squared_hinge"):
        targets = rng.choice([-1.0, 1.0], (num_rows, 1))
    else:
        targets = rng.standard_normal((num_rows, 1))
    return jnp.asarray(outputs, dtype), jnp.asarray(targets, dtype)


@NAMES
def test_residuals_are_negative_gradients(rng, name):
    outputs, targets = rows_of(name, rng)
    slope = jax.grad(lambda outputs: jnp.sum(LOSSES[name].values(outputs, targets)))(outputs)
    np.testing.assert_allclose(LOSSES[name].residuals(outputs, targets), -slope, atol=1e-12)


@NAMES
def test_conjugates_are_suprema(rng, name):
    loss = LOSSES[name]
    outputs, targets = rows_of(name, rng, num_rows=6)
    theta = 0.6 * loss.residuals(outputs, targets)
    for i in range(6):

        def objective(row, i=i):
            return float(loss.values(jnp.asarray(row[None]), targets[i : i + 1])[0] + row @ theta[i])

        best = minimize(objective, np.zeros(outputs.shape[1]), method="Nelder-Mead", options={"fatol": 1e-12})
        np.testing.assert_allclose(loss.conjugates(theta, targets)[i], -best.fun, atol=1e-8)


@NAMES
def test_conjugates_are_infinite_outside_their_domain(rng, name):
    targets = rows_of(name, rng)[1]
    theta = -3.0 * targets if name != "huber" else 1.5 * jnp.sign(targets)
    values = np.asarray(LOSSES[name].conjugates(theta, targets))
    assert np.all(np.isinf(values)) == (name != "squared")


@NAMES
def test_divergences_are_the_inequality_of_fenchel_and_young(rng, name):
    loss = LOSSES[name]
    outputs, targets = rows_of(name, rng)
    residuals = loss.residuals(outputs, targets)
    for scale in (0.0, 0.5, 0.99, 1.0):
        expected = (
            loss.values(outputs, targets)
            + loss.conjugates(scale * residuals, targets)
            + scale * jnp.sum(residuals * outputs, axis=1)
        )
        divergences = loss.divergences(outputs, targets, scale)
        assert np.all(np.asarray(divergences) >= 0)
        np.testing.assert_allclose(divergences, expected, atol=1e-12 * float(jnp.max(jnp.abs(outputs)) + 1))
    # Where the sum has lost all digits: the divergence goes with (1 − s)², where the loss has a second derivative.
    near, nearer = (loss.divergences(outputs, targets, 1 - step) for step in (1e-6, 1e-7))
    inside = np.all(np.abs(outputs) < 5, axis=1) & (near > 0)
    if name == "huber":
        inside &= np.abs(targets - outputs)[:, 0] < 1
    np.testing.assert_allclose(near[inside], 100 * nearer[inside], rtol=1e-4)


@NAMES
def test_losses_in_float32_at_extreme_outputs(name):
    loss = LOSSES[name]
    outputs = jnp.asarray([[-300.0], [-20.0], [0.0], [20.0], [300.0]], jnp.float32)
    targets = jnp.ones_like(outputs)
    if name == "softmax":
        outputs, targets = jnp.concatenate([outputs, 0 * outputs], axis=1), jnp.asarray([[1.0, 0.0]] * 5, jnp.float32)
    for scale in (0.0, 0.9, 1.0):
        divergences = np.asarray(loss.divergences(outputs, targets, jnp.float32(scale)))
        double = loss.divergences(*(jnp.asarray(array, jnp.float64) for array in (outputs, targets)), scale)
        np.testing.assert_allclose(divergences, double, rtol=2e-5, atol=1e-6)
    assert np.all(np.isfinite(loss.residuals(outputs, targets)))
    assert np.all(np.isfinite(loss.curvatures(outputs, targets)))


@NAMES
def test_steepest_bounds_the_second_derivatives(rng, name):
    loss = LOSSES[name]
    outputs, targets = rows_of(name, rng)

    def residual(row, target):
        return loss.residuals(row[None], target[None])[0]

    hessians = -jax.vmap(jax.jacfwd(residual))(outputs, targets)
    largest = np.linalg.eigvalsh(hessians)[:, -1]
    assert np.all(largest <= loss.steepest * (1 + 1e-12))
    assert np.all(loss.curvatures(outputs, targets) <= loss.steepest * (1 + 1e-12))
    assert np.all(loss.curvatures(outputs, targets) >= largest - 1e-12)


def test_labels_may_be_numbers_or_bools():
    program = random_problem(4, loss="logistic")
    for y in (np.asarray(program.y) > 0, (np.asarray(program.y) > 0).astype(int), np.asarray(program.y, np.float32)):
        other = fx.ConvexProgram(program.x, y, program.masks, program.reg, "logistic")
        np.testing.assert_array_equal(other.y, program.y)
        assert other.x.dtype == jnp.float64
    assert fx.ConvexProgram(
        np.ones((2, 1), np.float32), np.array([0, 1]), np.ones((2, 1), bool), 1.0, "logistic"
    ).y.dtype == (jnp.float32)


@pytest.mark.wrong_types
@pytest.mark.parametrize("loss", ["logistic", "softmax", "squared_hinge"])
def test_labels_that_are_text_are_named(loss):
    with pytest.raises(TypeError, match="y must hold numbers for this loss, got labels 'no', 'yes': encode"):
        fx.ConvexProgram(x=np.ones((3, 2)), y=["yes", "no", "yes"], masks=np.ones((3, 5), bool), reg=1.0, loss=loss)
