"""FISTA against CVXPY, and its step by NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import PROGRAMS, cvxpy_optimum, program_of, random_problem

import fixntk as fx
from fixntk.convex.program import correlations_of, datafit_of, group_shape_of, masked_outputs, targets_of, thresholds_of
from fixntk.convex.solvers import fista


@pytest.mark.parametrize("num_outputs", [None, 1, 3])
@pytest.mark.parametrize("share", [0.5, 0.1, 0.01])
def test_fista_reaches_the_optimum_of_cvxpy(num_outputs, share):
    program = random_problem(0, num_outputs=num_outputs, share=share)
    solution = fx.solve(program, method="fista", tol=1e-9)
    optimum, _ = cvxpy_optimum(program)
    np.testing.assert_allclose(solution.primal, optimum, rtol=1e-6)
    assert bool(solution.converged)
    assert float(solution.dual) <= optimum * (1 + 1e-7)


@pytest.mark.parametrize("shape", [(10, 30, 5), (200, 2, 3), (30, 4, 1), (12, 1, 2)])
def test_fista_on_unusual_shapes(shape):
    num_rows, num_features, num_gates = shape
    program = random_problem(1, num_rows, num_features, num_gates)
    solution = fx.solve(program, method="fista", tol=1e-8)
    assert bool(solution.converged)
    np.testing.assert_allclose(solution.primal, cvxpy_optimum(program)[0], rtol=1e-6)


def test_fista_refuses_a_step_that_its_curvature_bound_does_not_cover():
    program = random_problem(10)
    start = fista.init(program, jnp.zeros(group_shape_of(program)))
    bound = jnp.linalg.norm(fx.masked_gram(jnp.ones(20), program.masks, program.x), 2)
    refused = fista.step(program, start._replace(lipschitz=bound / 100))
    np.testing.assert_array_equal(refused.weights, start.weights)
    assert float(bound) / 100 < float(refused.lipschitz) <= 1.1 * float(bound) * (1 + 1e-12)
    taken = fista.step(program, start._replace(lipschitz=bound))
    assert float(taken.primal) < float(start.primal)


def test_fista_vmaps_over_programs_that_need_different_numbers_of_steps():
    program = random_problem(10)
    regs = program.reg * jnp.asarray([5.0, 0.1])
    stacked = jax.vmap(lambda r: fx.solve(fx.ConvexProgram(program.x, program.y, program.masks, r), method="fista"))(
        regs
    )
    assert np.all(stacked.converged)
    assert int(stacked.iterations[0]) < int(stacked.iterations[1])


@pytest.mark.parametrize("case", ["squared", "penalty_weights", "ridge", "nuclear", "logistic"])
def test_a_step_is_a_proximal_gradient_step_by_numpy(rng, case):
    program = program_of(PROGRAMS[case], share=0.5)
    weights = 0.01 * rng.standard_normal(group_shape_of(program))
    # With a bound that covers every step.
    bound = program.loss.steepest * jnp.linalg.norm(fx.masked_gram(jnp.ones(20), program.masks, program.x), 2)
    state = fista.init(program, jnp.asarray(weights))._replace(lipschitz=bound)
    masks, x = np.asarray(program.masks, float), np.asarray(program.x)
    fitted = sum(masks[:, [p]] * x @ weights[p] for p in range(20))
    residual = np.asarray(targets_of(program)) - fitted
    if case == "logistic":
        residual = np.asarray(targets_of(program)) / (1 + np.exp(np.asarray(targets_of(program)) * fitted))
    step = 1 / float(state.lipschitz)
    ridge = 0.0 if program.ridge is None else float(program.ridge)
    thresholds = np.broadcast_to(np.asarray(thresholds_of(program)), 20)
    expected = []
    for p in range(20):
        moved = weights[p] + step * x.T @ (masks[:, [p]] * residual)
        left, sizes, right = np.linalg.svd(moved, full_matrices=False)
        kept = np.maximum(sizes - step * thresholds[p], 0)
        if case != "nuclear":
            kept = sizes * max(1 - step * thresholds[p] / np.linalg.norm(sizes), 0)
        expected.append(left * kept @ right / (1 + step * ridge))
    assert 0 < np.sum(np.any(expected, axis=(1, 2))) < 20
    np.testing.assert_allclose(fista.step(program, state).weights, expected, atol=1e-12)


def test_the_curvature_bound_starts_at_the_curvature_along_the_first_gradient(rng):
    program = program_of({**PROGRAMS["logistic"], "sample_weight": True})
    weights = 0.01 * rng.standard_normal(group_shape_of(program))
    masks, x = np.asarray(program.masks, float), np.asarray(program.x)
    gradient = np.asarray(correlations_of(program, datafit_of(program).fit(masked_outputs(program, weights)).residual))
    change = sum(masks[:, [p]] * x @ gradient[p] for p in range(20))
    # The logistic loss has second derivatives of at most a quarter.
    expected = 0.25 * np.sum(np.asarray(program.sample_weight)[:, None] * change**2) / np.sum(gradient**2)
    np.testing.assert_allclose(fista.init(program, jnp.asarray(weights)).lipschitz, expected, rtol=1e-12)
