"""Solutions: predictions by a loop, and what counts as active."""

import jax.numpy as jnp
import numpy as np
import pytest
from problems import random_problem

import fixntk as fx
from fixntk.convex.program import targets_of
from fixntk.convex.solution import is_active


@pytest.mark.parametrize("num_outputs", [None, 2])
@pytest.mark.parametrize("intercept", [False, True])
def test_predictions_on_new_inputs_are_a_loop_over_gates(rng, num_outputs, intercept):
    x, gates, new = (rng.standard_normal(shape) for shape in ((30, 4), (20, 4), (7, 4)))
    y = rng.standard_normal(30 if num_outputs is None else (30, num_outputs)) + 5
    program = fx.ConvexProgram(x, y, fx.activation_masks(x, gates), 1.0, intercept=intercept)
    solution = fx.solve(program, tol=1e-4)
    expected = np.zeros((7, num_outputs or 1))
    for row, output in zip(new, expected, strict=True):
        for gate, weights in zip(gates, np.asarray(solution.weights), strict=True):
            if row @ gate >= 0:
                output += row @ weights
    if intercept:
        expected += np.asarray(solution.intercept)
        assert np.all(np.abs(solution.intercept) > 1)
    found = solution.predict(new, gates)
    np.testing.assert_allclose(found, expected[:, 0] if num_outputs is None else expected, rtol=1e-10, atol=1e-12)


def test_groups_above_a_ten_thousandth_of_the_largest_count_as_active():
    norms = np.array([2.0, 0.0, 2.1e-4, 1.9e-4, 0.5])
    weights = jnp.asarray(norms)[:, None, None] * jnp.array([0.6, 0.8])[:, None]
    np.testing.assert_array_equal(is_active(weights), norms > 2e-4)
    assert not np.any(is_active(jnp.zeros((3, 2, 1))))


def test_the_outputs_of_the_training_rows_have_the_loss_that_the_objective_holds():
    program = random_problem(1, ridge=0.3)
    solution = fx.solve(program, tol=1e-8)
    fitted = sum(
        np.asarray(program.masks, float)[:, [p]] * np.asarray(program.x) @ np.asarray(solution.weights[p])
        for p in range(20)
    )
    norms = np.linalg.norm(solution.weights, axis=(1, 2))
    penalty = float(program.reg) * norms.sum() + 0.15 * np.sum(norms**2)
    expected = 0.5 * np.sum((fitted - np.asarray(targets_of(program))) ** 2) + penalty
    np.testing.assert_allclose(solution.primal, expected, rtol=1e-12)
    np.testing.assert_array_equal(solution.active, norms > 1e-4 * norms.max())
