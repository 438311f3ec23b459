"""The interior-point method for kernel weights: its objective, slope, Newton system and certificate by NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fixntk.convex import kernel_interior_point as method
from fixntk.convex.kernel_interior_point import KernelProblem, follow_path

NUM_KERNELS = 5
NUM_ROWS = 9


def make_problem(kernels, targets, reg, penalty_weights):
    return KernelProblem(*(jnp.asarray(part, float) for part in (kernels, targets, reg, penalty_weights)))


@pytest.fixture
def problem(rng):
    factors = rng.standard_normal((NUM_KERNELS, NUM_ROWS, 3))
    kernels = np.einsum("kir,kjr->kij", factors, factors)
    return make_problem(kernels, rng.standard_normal((NUM_ROWS, 2)), 0.8, rng.uniform(0.5, 2, NUM_KERNELS))


def objective(problem, shares):
    """J(u) = λ tr YᵀC(u)⁻¹Y / ‖Y‖² + Σ u, with η = ‖Y‖² u / (λτ²)."""
    kernels, targets, reg, tau = map(np.asarray, problem)
    square = np.sum(targets**2)
    matrix = reg * np.eye(len(targets))
    for share, kernel, weight in zip(shares, kernels, tau, strict=True):
        matrix = matrix + share * square / (reg * weight**2) * kernel
    return reg * np.sum(targets * np.linalg.solve(matrix, targets)) / square + np.sum(shares)


def slope(problem, shares, step=1e-5):
    """By central differences of the fourth order."""
    found = []
    for k in range(len(shares)):
        unit = np.eye(len(shares))[k] * step
        near, far = (objective(problem, shares + m * unit) - objective(problem, shares - m * unit) for m in (1, 2))
        found.append((8 * near - far) / (12 * step))
    return np.array(found)


def certified_gap(problem, shares):
    """Primal less dual objective of given kernel weights, from their definitions, in units of ½‖Y‖²."""
    kernels, targets, reg, tau = map(np.asarray, problem)
    square = np.sum(targets**2)
    eta = np.asarray(shares) * square / (reg * tau**2)
    dual_weights = np.linalg.solve(np.tensordot(eta, kernels, 1) + reg * np.eye(len(targets)), targets)
    lengths = np.sqrt([np.sum(dual_weights * (kernel @ dual_weights)) for kernel in kernels])
    functions = eta[:, None, None] * (kernels @ dual_weights)
    # λ τ ‖f_k‖ in the space of its kernel.
    penalty = reg * np.sum(tau * eta * lengths)
    primal = 0.5 * np.sum((targets - functions.sum(axis=0)) ** 2) + penalty
    theta = reg * dual_weights / max(1.0, np.max(lengths / tau))
    dual = np.sum(targets * theta) - 0.5 * np.sum(theta**2)
    whole = 0.5 * square
    # The objective of the weights themselves is that of the functions and more.
    return objective(problem, shares) - primal / whole, (primal - dual) / whole


def test_a_point_has_the_objective_its_slope_and_the_gap_of_its_definitions(rng, problem):
    for shares in (rng.uniform(0.01, 0.3, NUM_KERNELS), rng.uniform(0.01, 0.3, NUM_KERNELS) * [1, 0, 1, 0, 1]):
        point = jax.jit(method._evaluate)(problem, jnp.asarray(shares))
        np.testing.assert_allclose(point.objective, objective(problem, shares), rtol=1e-12)
        np.testing.assert_allclose(1 - point.constraints, slope(problem, shares), atol=1e-8)
        excess, gap = certified_gap(problem, shares)
        assert excess >= 0
        np.testing.assert_allclose(point.relative_gap, excess + gap, rtol=1e-9)


def test_a_step_solves_the_newton_system_of_the_central_path(rng, problem):
    shares, prices = rng.uniform(0.05, 0.3, NUM_KERNELS), rng.uniform(0.1, 1, NUM_KERNELS)
    mu = 0.02
    point = jax.jit(method._evaluate)(problem, jnp.asarray(shares))
    zero = jnp.asarray(0)
    state = method.PathState(point, jnp.asarray(prices), jnp.asarray(mu), point, zero, zero)
    step, price_step, descent = jax.jit(method._direction)(problem, state)
    change, price_change = np.asarray(step) * shares, np.asarray(price_step) / shares
    hessian_times_change = (slope(problem, shares + 1e-4 * change) - slope(problem, shares - 1e-4 * change)) / 2e-4
    # ∇J + H δu = z + δz, and u z + z δu + u δz = μ.
    np.testing.assert_allclose(slope(problem, shares) + hessian_times_change, prices + price_change, atol=1e-5)
    np.testing.assert_allclose(shares * prices + prices * change + shares * price_change, mu, atol=1e-9)
    barrier_slope = slope(problem, shares) - mu / shares
    np.testing.assert_allclose(descent, barrier_slope @ change, rtol=1e-6)
    assert descent < 0


@pytest.mark.parametrize("size", [0.05, 3.0, 40.0])
def test_one_multiple_of_the_identity_has_its_closed_form(rng, size):
    targets = rng.standard_normal((NUM_ROWS, 1))
    reg = 0.8
    tau = 1.3
    # J = 1/(au + 1) + u is least at au + 1 = √a.
    a = size * np.sum(targets**2) / (reg * tau) ** 2
    expected = max(np.sqrt(a) - 1, 0) / a
    problem = make_problem(size * np.eye(NUM_ROWS)[None], targets, reg, [tau])
    best, state = follow_path(problem, 1e-10, 100)
    np.testing.assert_allclose(best.shares, [expected], atol=1e-5)
    assert (best.shares[0] == 0) == (expected == 0)
    assert best.relative_gap <= 1e-10
    assert int(state.iterations) < 40


def test_the_path_ends_where_the_conditions_of_optimality_hold(problem):
    seen = []
    best, _ = follow_path(problem, 1e-9, 100, seen.append)
    multipliers = slope(problem, np.asarray(best.shares))
    assert np.all(np.asarray(best.shares) >= 0)
    assert np.sum(np.asarray(best.shares) > 0) > 0
    assert np.all(multipliers >= -1e-4)
    np.testing.assert_allclose(multipliers * best.shares, 0, atol=1e-5)
    # Watched at every state, whose points are inside and whose certificate never rises.
    assert [int(state.iterations) for state in seen] == list(range(len(seen)))
    gaps = [float(state.best.relative_gap) for state in seen]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] <= 1e-9 < gaps[-2]
    assert all(np.all(np.asarray(state.point.shares) > 0) for state in seen)
    traced = jax.jit(lambda reg: follow_path(problem._replace(reg=reg), 1e-9, 100)[0].shares)(problem.reg)
    np.testing.assert_allclose(traced, best.shares, atol=1e-7)


def test_no_more_steps_are_made_than_are_allowed_nor_idle_ones(problem):
    seen = []
    _, state = follow_path(problem, 1e-12, 3, seen.append)
    assert int(state.iterations) == 3
    assert len(seen) == 4
    _, state = follow_path(problem, 0.0, 500)
    assert bool(method.is_idle(state))
    assert int(state.iterations) < 100


def test_kernels_that_hardly_count_are_zero_within_the_tolerance(problem):
    best, state = follow_path(problem, 1e-9, 100)
    shares = np.asarray(best.shares)
    blurred = jnp.asarray(np.where(shares > 1e-3, shares, 1e-12))
    point = jax.jit(method._evaluate)(problem, blurred)
    for tol, expected in ((1e-6, np.where(shares > 1e-3, shares, 0.0)), (np.inf, np.zeros(NUM_KERNELS))):
        np.testing.assert_allclose(method._without_small_kernels(problem, point, tol).shares, expected, atol=1e-15)
    assert int(state.idle_steps) == 0
