"""Anderson acceleration of the reweighting: CVXPY, float32, and the steps that it builds on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import cvxpy_optimum, random_problem

import fixntk as fx
from fixntk.convex.solvers import anderson, irls

EARLY = pytest.mark.filterwarnings("ignore::fixntk.ConvergenceWarning")


@EARLY
@pytest.mark.parametrize("num_outputs", [None, 2])
def test_anderson_reaches_the_optimum_far_sooner_and_never_rises(num_outputs):
    program = random_problem(3, num_rows=60, num_gates=60, num_outputs=num_outputs)
    plain = fx.solve(program, method="irls", tol=1e-6, max_iter=200)
    extrapolated = fx.solve(program, method="anderson", tol=1e-6, max_iter=100)
    assert bool(extrapolated.converged)
    assert float(plain.relative_gap) > 5 * float(extrapolated.relative_gap)
    objective = np.asarray(extrapolated.history.objective)
    assert np.all(np.diff(objective) <= 1e-10 * objective[:-1])
    np.testing.assert_allclose(extrapolated.primal, cvxpy_optimum(program)[0], rtol=2e-6)


@EARLY
def test_anderson_in_float32_and_under_jit():
    program = random_problem(3)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if leaf.dtype == jnp.float64 else leaf, program)
    solution = fx.solve(narrow, method="anderson", tol=1e-5)
    assert bool(solution.converged)
    assert solution.weights.dtype == jnp.float32
    traced = jax.jit(lambda program: fx.solve(program, method="anderson", tol=1e-6))(program)
    assert bool(traced.converged)


def test_each_step_is_at_least_as_good_as_the_reweighting_step_from_the_same_point():
    program = random_problem(3)
    state = anderson.init(program, jnp.full(20, 1 / 20), irls.default_epsilon(program, 1e-8))
    step, plain_step = jax.jit(anderson.step), jax.jit(irls.step)
    num_better = 0
    for _ in range(12):
        following = step(program, state)
        plain = plain_step(program, state.inner._replace(epsilon=following.inner.epsilon))
        assert float(following.objective) <= float(plain.objective) * (1 + 1e-12)
        num_better += float(following.objective) < float(plain.objective) * (1 - 1e-12)
        assert float(following.inner.epsilon) <= float(state.inner.epsilon)
        state = following
    assert num_better >= 6
    assert float(state.inner.epsilon) >= float(state.least_epsilon)
