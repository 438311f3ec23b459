"""The linear system of a Newton step: every way to its solution against the dense matrix of its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import random_problem

import fixntk as fx
from fixntk.convex.penalties import group_norms
from fixntk.convex.program import correlations_of, datafit_of, group_shape_of, masked_outputs, targets_of
from fixntk.convex.solvers import newton_step, newton_system

SOLVERS = [entry[0] for entry in newton_system.SOLVERS]
# Of a direction, where it is not that of a factorisation in double precision.
_ACCURACY = {newton_system._by_single_rows: 2e-3, newton_system._by_products: 2e-3}


@pytest.mark.parametrize("num_outputs", [1, 2])
@pytest.mark.parametrize("solver", [entry[0] for entry in newton_system.SOLVERS])
@pytest.mark.parametrize("options", [{}, {"intercept": True, "ridge": 0.7}])
def test_each_direction_solves_the_derivative_of_the_gradient(monkeypatch, rng, solver, num_outputs, options):
    monkeypatch.setattr(newton_system, "SOLVERS", ((solver, lambda *_: 0.0, lambda *_: 0.0),))
    monkeypatch.setattr(newton_system, "_MAX_SIMPLE_ROWS", 10)
    program = random_problem(2, 25, 4, 40, num_outputs)
    program = fx.ConvexProgram(program.x, program.y, program.masks, 1.0, **options)
    theta, multiplier = (jnp.asarray(rng.standard_normal(s)) for s in ((25, num_outputs), group_shape_of(program)))
    theta = datafit_of(program).remove_intercept(theta)
    # Half of the groups are active at this λ.
    sigma = jnp.asarray(0.3)
    reg = jnp.median(group_norms(multiplier + sigma * correlations_of(program, theta))) / sigma
    program = program.with_reg(reg)

    def gradient(theta):
        shrunk = newton_step.shrink(program, multiplier + sigma * correlations_of(program, theta), sigma)
        return datafit_of(program).remove_intercept(
            theta - targets_of(program) + masked_outputs(program, shrunk.weights)
        )

    shifted = multiplier + sigma * correlations_of(program, theta)
    prox, slope = newton_step.shrink(program, shifted, sigma), gradient(theta)
    assert int(jnp.sum(prox.kept > 0)) == 20
    direction = newton_step.find_direction(program, sigma, prox, slope, size=32)
    _, change = jax.jvp(gradient, (theta,), (direction,))
    tolerance = _ACCURACY.get(solver, 1e-10)
    assert float(jnp.linalg.norm(change + slope)) <= tolerance * float(jnp.linalg.norm(slope))


@pytest.mark.parametrize("solver", [entry[0] for entry in newton_system.SOLVERS])
def test_each_direction_keeps_the_dtype(monkeypatch, solver):
    monkeypatch.setattr(newton_system, "SOLVERS", ((solver, lambda *_: 0.0, lambda *_: 0.0),))
    wide = random_problem(2, 25, 4, 20, share=0.5)
    narrow = fx.ConvexProgram(wide.x.astype("float32"), wide.y.astype("float32"), wide.masks, wide.reg)
    solution = fx.solve(narrow, tol=1e-3)
    assert solution.weights.dtype == jnp.float32
    assert bool(solution.converged)


def active_groups(rng, program, size):
    """Drawn derivatives, of which the last two places are padding."""
    _, num_features, num_outputs = group_shape_of(program)
    kept, along = rng.uniform(0.1, 0.8, size), rng.uniform(0.8, 1.0, size)
    masks = np.asarray(program.masks[:, :size], float)
    kept[-2:], along[-2:], masks[:, -2:] = 0, 0, 0
    units = rng.standard_normal((size, num_features, num_outputs))
    units /= np.linalg.norm(units, axis=(1, 2), keepdims=True)
    rays = np.einsum("np,nd,pdc->npc", masks, np.asarray(program.x), units)
    return newton_system.Active(*map(jnp.asarray, (masks, kept, along, units, rays)))


def dense_matrix(program, sigma, active):
    """I/σ + Σ_p A_p (c_p I + (a_p − c_p) u_p u_pᵀ) A_pᵀ of n·c rows, with A_p = D_p X for each output."""
    num_rows, num_outputs = targets_of(program).shape
    matrix = np.eye(num_rows * num_outputs) / sigma
    projection = np.eye(num_rows)
    if program.column is not None:
        projection -= 1 / num_rows
    for mask, kept, along, unit in zip(
        np.asarray(active.masks).T, active.kept, active.along, np.asarray(active.units), strict=True
    ):
        outputs = np.kron(projection @ (mask[:, None] * np.asarray(program.x)), np.eye(num_outputs))
        middle = kept * np.eye(unit.size) + (along - kept) * np.outer(unit.ravel(), unit.ravel())
        matrix += outputs @ middle @ outputs.T
    return matrix


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.__name__)
@pytest.mark.parametrize("options", [{}, {"intercept": True}], ids=["plain", "intercept"])
def test_each_way_is_the_solution_of_the_dense_system(monkeypatch, rng, solver, options):
    # Several blocks, with edges that do not divide the rows.
    monkeypatch.setattr(newton_system, "_MAX_SIMPLE_ROWS", 10)
    program = random_problem(2, 25, 4, 12, 2, **options)
    sigma, active = jnp.asarray(0.4), active_groups(rng, program, 10)
    right = datafit_of(program).remove_intercept(jnp.asarray(rng.standard_normal((25, 2))))
    found = np.asarray(jax.jit(lambda r: solver(program, sigma, active)(r))(right))
    matrix = dense_matrix(program, 0.4, active)
    expected = np.linalg.solve(matrix, np.asarray(right).ravel()).reshape(25, 2)
    tolerance = _ACCURACY.get(solver, 1e-11)
    residual = matrix @ found.ravel() - np.asarray(right).ravel()
    assert np.linalg.norm(residual) <= tolerance * np.linalg.norm(right)
    np.testing.assert_allclose(found, expected, atol=10 * tolerance * np.abs(expected).max())


def test_the_derivative_keeps_one_share_along_a_group_and_another_across(rng):
    units = rng.standard_normal((3, 4, 2))
    units /= np.linalg.norm(units, axis=(1, 2), keepdims=True)
    across = rng.standard_normal((3, 4, 2))
    across -= np.sum(across * units, axis=(1, 2), keepdims=True) * units
    kept, along = jnp.array([0.2, 0.0, 0.7]), jnp.array([1.0, 0.0, 0.9])
    changed = newton_system.derivative(kept, along, jnp.asarray(units), jnp.asarray(3 * units + across))
    expected = 3 * np.asarray(along)[:, None, None] * units + np.asarray(kept)[:, None, None] * across
    np.testing.assert_allclose(changed, expected, atol=1e-14)


def test_the_way_with_the_fewest_operations_is_taken_within_memory():
    ways = set()
    for num_rows, num_features, size in ((30, 4, 16), (3000, 2, 4), (3000, 50, 900), (9000, 80, 900)):
        x = jnp.zeros((num_rows, num_features))
        program = fx.ConvexProgram(x, jnp.zeros(num_rows), jnp.ones((num_rows, 4), bool), 1.0)
        counts = {solver: count(program, size) for solver, count, _ in newton_system.SOLVERS}
        chosen = newton_system.cheapest_solver(program, size)
        assert counts[chosen] == min(counts.values()) == newton_system.flops(program, size)
        ways.add(chosen)
        assert newton_system.bytes_needed(program, size) >= 8 * num_rows * size
    assert len(ways) >= 3


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_largest_sigma_leaves_a_matrix_that_can_be_factorised(rng, dtype):
    # Rank 3: all other eigenvalues are those of I/σ.
    x = rng.standard_normal((60, 3)) * 100
    program = fx.ConvexProgram(x.astype(dtype), x[:, 0].astype(dtype), np.ones((60, 5), bool), 1.0)
    kept = jnp.ones(5, dtype)
    sigma = newton_system.largest_sigma(program, kept)
    matrix = 5 * program.x @ program.x.T
    assert np.all(np.isfinite(jnp.linalg.cholesky(matrix + jnp.eye(60, dtype=dtype) / sigma)))
    # Not far from where it cannot.
    assert not np.all(np.isfinite(jnp.linalg.cholesky(matrix + jnp.eye(60, dtype=dtype) / (1e5 * sigma))))
