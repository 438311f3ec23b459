"""Norms of groups: dual norms by Hölder's inequality, proximal operators by Moreau's decomposition and CVXPY."""

import cvxpy
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fixntk.convex.penalties import NORMS, Penalty, group_norms

EACH = pytest.mark.parametrize("name", NORMS)
# Frobenius and nuclear norms and their duals, of one matrix.
BY_NUMPY = {"frobenius": ("fro", "fro"), "nuclear": ("nuc", 2)}


@EACH
def test_norms_and_dual_norms_are_numpys(rng, name):
    groups = rng.standard_normal((6, 4, 3))
    for function, order in zip((NORMS[name].values, NORMS[name].duals), BY_NUMPY[name], strict=True):
        expected = [np.linalg.norm(group, order) for group in groups]
        np.testing.assert_allclose(function(jnp.asarray(groups)), expected, rtol=1e-12)


@EACH
def test_an_inner_product_is_at_most_norm_times_dual_norm_and_reaches_it(rng, name):
    groups, others = (jnp.asarray(rng.standard_normal((50, 4, 3))) for _ in "ab")
    values, duals = NORMS[name].values(groups), NORMS[name].duals(others)
    assert np.all(jnp.sum(groups * others, axis=(1, 2)) <= values * duals)
    # The polar factor, or the direction, of a group has dual norm one and aligns with it.
    left, _, right = jnp.linalg.svd(groups, full_matrices=False)
    aligned = left @ right if name == "nuclear" else groups / group_norms(groups)[:, None, None]
    np.testing.assert_allclose(NORMS[name].duals(aligned), 1, rtol=1e-12)
    np.testing.assert_allclose(jnp.sum(groups * aligned, axis=(1, 2)), values, rtol=1e-12)


@EACH
def test_what_the_proximal_operator_takes_away_is_the_projection_on_the_dual_ball(rng, name):
    norm, thresholds = NORMS[name], jnp.asarray(rng.uniform(0.1, 4, 50))
    groups = jnp.asarray(rng.standard_normal((50, 4, 3)))
    kept = norm.prox(groups, thresholds)
    taken = groups - kept
    # Moreau: V = prox_t(V) + t·Π(V/t), with ⟨prox, taken⟩ = t‖prox‖ and ‖taken‖_* ≤ t.
    assert np.all(norm.duals(taken) <= thresholds * (1 + 1e-12))
    np.testing.assert_allclose(jnp.sum(kept * taken, axis=(1, 2)), thresholds * norm.values(kept), atol=1e-12)
    is_zero = np.asarray(norm.values(kept)) == 0
    np.testing.assert_array_equal(is_zero, np.asarray(norm.duals(groups) <= thresholds))
    assert 0 < is_zero.sum() < 50


@EACH
def test_the_operator_of_a_penalty_with_a_ridge_is_cvxpys(rng, name):
    groups, thresholds = rng.standard_normal((3, 4, 2)), rng.uniform(0.5, 1.5, 3)
    ridge = 0.0 if name == "nuclear" else 0.8
    penalty = Penalty(NORMS[name], jnp.asarray(thresholds), jnp.asarray(ridge))
    found = penalty.prox(jnp.asarray(groups), jnp.asarray(0.6))
    norm = {"frobenius": lambda group: cvxpy.norm(group, "fro"), "nuclear": cvxpy.normNuc}[name]
    for group, threshold, one in zip(groups, thresholds, found, strict=True):
        variable = cvxpy.Variable(group.shape)
        cost = threshold * norm(variable) + 0.5 * ridge * cvxpy.sum_squares(variable)
        problem = cvxpy.Problem(cvxpy.Minimize(0.6 * cost + 0.5 * cvxpy.sum_squares(variable - group)))
        problem.solve(solver=cvxpy.CLARABEL)
        np.testing.assert_allclose(one, variable.value, atol=1e-4)
    norms = [np.linalg.norm(group, BY_NUMPY[name][0]) for group in groups]
    expected = thresholds @ norms + 0.5 * ridge * np.sum(groups**2)
    np.testing.assert_allclose(penalty.value(jnp.asarray(groups)), expected, rtol=1e-12)


def test_norms_have_derivative_zero_at_zero():
    slope = jax.grad(lambda groups: jnp.sum(group_norms(groups)))(jnp.zeros((2, 3, 1)).at[1, 0, 0].set(2.0))
    np.testing.assert_array_equal(slope, jnp.zeros((2, 3, 1)).at[1, 0, 0].set(1.0))
