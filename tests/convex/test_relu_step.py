"""A Newton step of the ReLU network's program: dense systems, definitions, and CVXPY's optimum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import block_diag
from test_relu import cvxpy_optimum, relu_problem

from fixntk.convex import relu_step
from fixntk.convex.program import thresholds_of
from fixntk.networks.cones import make_cones

OPTIONS = {"intercept": True, "penalty_weights": np.linspace(0.5, 2, 6)}


@pytest.fixture(params=[{}, OPTIONS], ids=["plain", "options"])
def problem(request):
    """A small program, its gates and their cones."""
    program, gates = relu_problem(1, 12, 3, 6, share=0.1, **request.param)
    return program, gates, make_cones(program.x, jnp.asarray(gates), program.masks)


def outputs_matrix(program):
    """(n, 2 P d): outputs of the pair (v, u), with the intercept at its best."""
    x, masks = np.asarray(program.x), np.asarray(program.masks)
    features = np.hstack([mask[:, None] * x for mask in masks.T])
    matrix = np.hstack([features, -features])
    return matrix - matrix.mean(axis=0) if program.column is not None else matrix


def test_the_start_is_inside_of_the_cones_where_barrier_and_penalty_balance(problem):
    program, _, cones = problem
    found = relu_step.start(program, cones)
    assert np.all(np.asarray(cones.apply(found.pair)) > 0)
    lengths = np.linalg.norm(found.pair, axis=2)
    # Half of what the barrier's terms cost, for every group.
    costs = np.broadcast_to(np.asarray(thresholds_of(program)), 6) * lengths
    np.testing.assert_allclose(costs, 0.5 * cones.num_terms / found.weight, rtol=1e-12)


def test_a_direction_solves_the_dense_newton_system(rng, problem):
    program, _, _ = problem
    roots = rng.standard_normal((12, 3, 3))
    blocks = roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(3)
    gradient = rng.standard_normal((2, 6, 3))
    direction = jax.jit(relu_step._direction)(program, jnp.asarray(blocks.reshape(2, 6, 3, 3)), jnp.asarray(gradient))
    outputs = outputs_matrix(program)
    expected = -np.linalg.solve(block_diag(*blocks) + outputs.T @ outputs, gradient.ravel())
    np.testing.assert_allclose(np.ravel(direction), expected, atol=1e-9)


def test_a_certificate_is_primal_less_dual_by_their_definitions(rng, problem):
    program, _, cones = problem
    pair = jnp.asarray(rng.uniform(0.1, 1, (2, 6, 1)) * cones.directions)
    prices = jnp.asarray(rng.uniform(0, 0.3, (2, 12, 6)))
    found = relu_step.certify(program, cones, pair, prices)
    targets, thresholds = np.asarray(program.y), np.broadcast_to(np.asarray(thresholds_of(program)), 6)
    centre = (lambda values: values - values.mean(axis=0)) if program.column is not None else (lambda values: values)
    residual = centre(targets - outputs_matrix(program) @ np.ravel(pair))
    primal = 0.5 * np.sum(residual**2) + np.sum(thresholds * np.linalg.norm(pair, axis=2))
    np.testing.assert_allclose(found.primal, primal, rtol=1e-12)
    # A dual point is feasible where ‖±Xᵀ D_p Θ + Gᵀμ‖ ≤ λτ_p for multipliers μ ≥ 0.
    correlations = (outputs_matrix(program).T @ residual).reshape(2, 6, 3)
    rows, signs = np.asarray(cones.rows), np.asarray(cones.signs)
    pulled = np.einsum("np,snp,nd->spd", signs, np.asarray(prices), rows)
    scale = 1 / max(1.0, np.max(np.linalg.norm(correlations + pulled, axis=2) / thresholds))
    theta = scale * residual
    dual = np.sum(targets * theta) - 0.5 * np.sum(theta**2)
    np.testing.assert_allclose(found.gap, primal - dual, rtol=1e-9)
    assert (found.intercept[0] != 0) == (program.column is not None)


def test_steps_keep_to_the_cones_and_their_certificates_close_in_on_the_optimum(problem):
    program, gates, cones = problem
    optimum = cvxpy_optimum(program, gates)
    state = relu_step.start(program, cones)
    best = relu_step.certify(program, cones, 0 * state.pair, jnp.zeros((2, 12, 6)))
    np.testing.assert_allclose(best.primal, program.primal_at_zero(), rtol=1e-12)
    tol = 1e-7 * float(program.primal_at_zero())
    gaps = []
    for _ in range(60):
        weight = float(state.weight)
        state, best = relu_step.step(program, cones, state, best, tol)
        assert np.all(np.asarray(cones.apply(state.pair)) > 0)
        assert float(state.weight) >= weight
        assert best.primal - best.gap <= optimum * (1 + 1e-6)
        assert best.primal >= optimum * (1 - 1e-6)
        gaps.append(float(best.gap))
        if gaps[-1] <= tol:
            break
    assert gaps[-1] <= tol
    assert gaps == sorted(gaps, reverse=True)
    # Groups that are zero at the optimum are exactly zero.
    assert 0 < np.sum(np.linalg.norm(best.pair, axis=2) == 0) < 12


def test_the_sparsest_pair_within_the_tolerance_is_taken(problem):
    program, _, cones = problem
    pair = jnp.stack([cones.directions * jnp.array([[1.0], [1e-9], [1.0], [1e-9], [1.0], [1.0]])] * 2)
    prices, weight = jnp.zeros((2, 12, 6)), jnp.asarray(1e6)
    whole = relu_step.certify(program, cones, pair, prices)
    sparse = relu_step._without_small_groups(program, cones, pair, prices, weight, 1.001 * whole.gap)
    np.testing.assert_array_equal(np.linalg.norm(sparse.pair, axis=2) > 0, [[1, 0, 1, 0, 1, 1]] * 2)
    # Nothing that suffices: the one with the smallest gap.
    assert relu_step._without_small_groups(program, cones, pair, prices, weight, 0.0).gap <= whole.gap
