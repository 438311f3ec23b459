import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import cvxpy_optimum, random_problem

import fixntk as fx
from fixntk.convex.program import masked_outputs, targets_of

EARLY = pytest.mark.filterwarnings("ignore::fixntk.ConvergenceWarning")


@EARLY
@pytest.mark.parametrize("num_features", [2, 3])
def test_iteration_zero_is_kernel_ridge_regression_with_the_ntk(rng, num_features):
    x, y = rng.standard_normal((15, num_features)), rng.standard_normal(15)
    arrangements = fx.enumerate_arrangements(x)
    weights, _ = fx.arrangement_weights(x, arrangements)
    start = fx.solve(fx.ConvexProgram(x, y, arrangements.masks, 0.3), method="irls", init=weights, max_iter=0)
    ntk = np.asarray(fx.gated_relu_ntk(x))
    expected = ntk @ np.linalg.solve(ntk + 0.3 * np.eye(15), y)
    np.testing.assert_allclose(start.predict(x, arrangements.gates), expected, atol=1e-10)
    np.testing.assert_array_equal(start.kernel_weights, weights)


@EARLY
@settings(max_examples=50)
@given(
    seed=st.integers(0, 10**6),
    num_outputs=st.sampled_from([None, 2]),
    share=st.floats(1e-3, 1.0),
    log_epsilon=st.floats(-20, 0),
)
def test_the_smoothed_objective_never_rises(seed, num_outputs, share, log_epsilon):
    program = random_problem(seed, num_rows=20, num_gates=12, num_outputs=num_outputs, share=share)
    solution = fx.solve(program, method="irls", epsilon=10**log_epsilon, max_iter=40, tol=1e-12)
    objective = np.asarray(solution.history.objective)
    assert np.all(np.diff(objective) <= 1e-10 * objective[:-1])


@EARLY
def test_the_smoothed_objective_never_rises_from_any_start(rng):
    program = random_problem(0)
    for scale in (1e-4, 1.0, 1e4):
        solution = fx.solve(program, method="irls", init=scale * rng.random(20), epsilon=1e-6, max_iter=40, tol=1e-12)
        objective = np.asarray(solution.history.objective)
        assert np.all(np.diff(objective) <= 1e-10 * objective[:-1])
        expected = 0.5 * jnp.sum(
            (targets_of(program) - masked_outputs(program, solution.weights)) ** 2
        ) + program.reg * jnp.sum(jnp.sqrt(jnp.sum(solution.weights**2, axis=(1, 2)) + 1e-6))
        np.testing.assert_allclose(objective[-1], expected, rtol=1e-10)


@EARLY
@pytest.mark.parametrize("num_outputs", [None, 3])
def test_the_limit_is_the_optimum_of_cvxpy(num_outputs):
    program = random_problem(1, num_outputs=num_outputs)
    solution = fx.solve(program, method="irls", max_iter=3000, tol=1e-8)
    optimum, _ = cvxpy_optimum(program)
    np.testing.assert_allclose(solution.primal, optimum, rtol=1e-5)


@EARLY
def test_weights_are_the_ridge_solution_of_the_kernel_weights():
    program = random_problem(2, num_outputs=2)
    solution = fx.solve(program, method="irls", max_iter=7)
    kernel = np.asarray(fx.masked_gram(solution.kernel_weights, program.masks, program.x))
    dual_weights = np.linalg.solve(kernel + float(program.reg) * np.eye(30), program.y)
    np.testing.assert_allclose(masked_outputs(program, solution.weights), kernel @ dual_weights, atol=1e-10)


@EARLY
def test_a_grid_of_problems_is_one_vmapped_call():
    program = random_problem(3)
    regs = program.reg * jnp.asarray([1.0, 0.3, 0.1])
    seeds = jnp.stack([program.y, program.y[::-1]])

    def fit(y, reg):
        return fx.solve(fx.ConvexProgram(program.x, y, program.masks, reg), method="irls", max_iter=20)

    grid = jax.jit(jax.vmap(jax.vmap(fit, (None, 0)), (0, None)))(seeds, regs)
    assert grid.weights.shape == (2, 3, 20, 4, 1)
    assert grid.history.primal.shape == (2, 3, 21)
    single = fit(seeds[1], regs[2])
    np.testing.assert_allclose(grid.weights[1, 2], single.weights, atol=1e-9)
    np.testing.assert_allclose(grid.gap[1, 2], single.gap, rtol=1e-6)


@EARLY
def test_folds_by_zeroed_rows_are_the_programs_without_those_rows():
    program = random_problem(4)
    keep = np.arange(30) % 3 != 0
    zeroed = fx.ConvexProgram(program.x * keep[:, None], program.y * keep, program.masks, program.reg)
    without = fx.ConvexProgram(program.x[keep], program.y[keep], program.masks[keep], program.reg)
    first, second = (fx.solve(p, method="irls", max_iter=15) for p in (zeroed, without))
    np.testing.assert_allclose(first.weights, second.weights, atol=1e-10)
    np.testing.assert_allclose(first.relative_gap, second.relative_gap, rtol=1e-6)


def test_a_start_that_cannot_be_factorised_is_a_clear_error(monkeypatch):
    monkeypatch.setattr(jnp.linalg, "cholesky", lambda matrix: jnp.full_like(matrix, jnp.nan))
    jax.clear_caches()
    try:
        with pytest.raises(ValueError, match=r"not positive definite in float64 even with jitter: raise reg"):
            fx.solve(random_problem(5), method="irls")
    finally:
        monkeypatch.undo()
        jax.clear_caches()


@EARLY
def test_float32_on_nearly_singular_data_stays_finite():
    program = random_problem(6, share=1e-5)
    narrow = fx.ConvexProgram(
        np.repeat(np.asarray(program.x, np.float32), 2, axis=1),
        np.asarray(program.y, np.float32),
        program.masks,
        program.reg,
    )
    solution = fx.solve(narrow, method="irls", max_iter=50)
    assert np.all(np.isfinite(solution.weights))
    assert np.isfinite(solution.relative_gap)


@EARLY
@pytest.mark.parametrize("reg", [1e-7, 1e-11])
def test_the_gap_it_stops_by_is_that_of_its_weights_where_the_system_is_ill_conditioned(rng, reg):
    x, y, masks = rng.standard_normal((20, 3)), rng.standard_normal(20), rng.random((20, 5)) < 0.5
    solution = fx.solve(fx.ConvexProgram(x, y, masks, reg), method="irls")
    np.testing.assert_allclose(solution.history.gap[-1], solution.gap, rtol=1e-6)
    assert bool(solution.converged) or int(solution.iterations) == 300
