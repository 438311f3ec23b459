"""Cones of activation patterns and their barrier: loops over rows, finite differences, least squares and CVXPY."""

import cvxpy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from fixntk.networks import cones as module
from fixntk.networks.cones import (
    armijo_length,
    barrier_values,
    cone_barrier,
    longest_step,
    make_cones,
    next_multipliers,
    next_weight,
    with_ndim,
)

WEIGHT = 7.0


@pytest.fixture(scope="module")
def drawn():
    """Rows, one of them zero and one very long, gates, and their cones."""
    rng = np.random.default_rng(0)
    x, gates = rng.standard_normal((9, 3)), rng.standard_normal((4, 3))
    x[2], x[5] = 0, 1e6 * x[5]
    return x, gates, make_cones(jnp.asarray(x), jnp.asarray(gates), jnp.asarray(x @ gates.T >= 0))


@pytest.fixture
def inside(rng, drawn):
    """(2, 4, 3) vectors inside of the cones."""
    cones = drawn[2]
    return (
        jnp.asarray(rng.uniform(0.5, 2, (2, 4, 1))) * cones.directions
        + 0.2 * jnp.asarray(rng.standard_normal((2, 4, 3))) * jnp.min(cones.margins, axis=0)[:, None]
    )


def value_by_loops(cones, vector, gate, threshold, weight):
    """min over r of τr − log(r² − ‖u‖²)/t, less Σ log(s x·u)/t over the rows that are not zero."""
    length = np.linalg.norm(vector)

    def smoothed(excess):
        radius = length + np.exp(excess)
        return threshold * radius - np.log(radius**2 - length**2) / weight

    total = minimize_scalar(smoothed, bracket=(-3, 3), options={"xtol": 1e-14}).fun
    for row, sign in zip(np.asarray(cones.rows), np.asarray(cones.signs)[:, gate], strict=True):
        if np.any(row):
            total -= np.log(sign * row @ vector) / weight
    return total


def test_rows_keep_their_directions_and_have_spectral_norm_one(drawn):
    x, gates, cones = drawn
    assert np.isclose(np.linalg.norm(cones.rows, 2), 1)
    lengths = np.linalg.norm(cones.rows, axis=1)
    assert len(set(np.round(lengths[lengths > 0], 12))) == 1
    np.testing.assert_allclose(np.asarray(cones.rows) * np.linalg.norm(x, axis=1)[:, None], x * lengths[:, None])
    np.testing.assert_array_equal(cones.signs, np.where(x @ gates.T >= 0, 1, -1))
    np.testing.assert_array_equal(cones.zero_rows[:, 0], [0, 0, 1, 0, 0, 0, 0, 0, 0])


def test_products_with_the_cones_are_loops_over_gates_and_adjoint(rng, drawn):
    cones = drawn[2]
    vectors, values = rng.standard_normal((2, 4, 3)), rng.standard_normal((2, 9, 4))
    applied, pulled = cones.apply(jnp.asarray(vectors)), cones.adjoint(jnp.asarray(values))
    for k in range(4):
        matrix = np.asarray(cones.signs)[:, k, None] * np.asarray(cones.rows)
        for side in range(2):
            np.testing.assert_allclose(applied[side, :, k], matrix @ vectors[side, k], atol=1e-14)
            np.testing.assert_allclose(pulled[side, k], matrix.T @ values[side, :, k], atol=1e-14)
    np.testing.assert_allclose(cones.apply(jnp.asarray(vectors[0])), applied[0], atol=1e-15)


def test_directions_are_unit_vectors_about_as_far_inside_as_any(drawn):
    _, _, cones = drawn
    np.testing.assert_allclose(np.linalg.norm(cones.directions, axis=1), 1, rtol=1e-12)
    counted = [k for k in range(9) if k != 2]
    np.testing.assert_allclose(
        cones.margins[np.array(counted)], cones.apply(cones.directions)[np.array(counted)], rtol=1e-10
    )
    assert np.all(np.isinf(cones.margins[2]))
    for k in range(4):
        vector, margin = cvxpy.Variable(3), cvxpy.Variable()
        matrix = np.asarray(cones.signs)[counted, k, None] * np.asarray(cones.rows)[counted]
        widest = cvxpy.Problem(cvxpy.Maximize(margin), [matrix @ vector >= margin, cvxpy.norm(vector) <= 1])
        best = widest.solve(solver=cvxpy.CLARABEL)
        assert 0.9 * best <= np.min(cones.margins[:, k]) <= best * (1 + 1e-6)


def test_a_shift_is_the_smallest_that_reaches_the_cone(rng, drawn):
    cones = drawn[2]
    vectors = jnp.asarray(rng.standard_normal((2, 4, 3)))
    shift = cones.shift(vectors)
    assert np.all(np.asarray(shift) >= 0)
    for factor, reaches in ((1 + 1e-9, True), (1 - 1e-3, False)):
        moved = cones.apply(vectors + factor * shift[..., None] * cones.directions)
        outside = np.min(np.asarray(moved), axis=1) < -1e-12
        assert not np.any(outside) if reaches else np.array_equal(outside, np.asarray(shift) > 0)
    np.testing.assert_array_equal(cones.shift(cones.directions), 0.0)


def test_gates_on_a_boundary_are_moved_inside_and_those_without_an_inside_are_named(rng):
    x = jnp.asarray(rng.standard_normal((6, 3)))
    on_boundary = jnp.cross(x[0], x[1])[None]
    cones = make_cones(x, on_boundary, jnp.asarray([[True, False, *(np.asarray(x[2:] @ on_boundary[0]) >= 0)]]).T)
    assert np.min(cones.margins) > 0
    gates = jnp.asarray([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    opposite = jnp.asarray([[1.0, 1.0], [-1.0, -1.0], [2.0, 1.0]])
    with pytest.raises(ValueError, match=r"as gate 1 has \(2 of 3 gates\): move the gate slightly"):
        make_cones(opposite, gates, jnp.asarray([[True, True, True], [False, True, True], [True, True, True]]))


@pytest.mark.parametrize("thresholds", [0.6, np.array([0.6, 1.0, 0.2, 3.0])], ids=["one", "each"])
def test_the_barrier_has_its_value_by_definition_and_its_derivatives_by_differences(rng, drawn, inside, thresholds):
    cones = drawn[2]
    tau = jnp.asarray(thresholds)

    @jax.jit
    def values(vectors):
        return barrier_values(cones, vectors, tau, jnp.asarray(WEIGHT))

    found = jax.jit(lambda v: cone_barrier(cones, v, tau, jnp.asarray(WEIGHT)))(inside)
    each = np.broadcast_to(thresholds, 4)
    expected = [[value_by_loops(cones, np.asarray(v)[k], k, each[k], WEIGHT) for k in range(4)] for v in inside]
    np.testing.assert_allclose(found.value, expected, rtol=1e-9)
    np.testing.assert_allclose(values(inside), found.value, rtol=1e-13)
    direction, step = jnp.asarray(rng.standard_normal((2, 4, 3))), 1e-7
    slopes = (values(inside + step * direction) - values(inside - step * direction)) / (2 * step)
    np.testing.assert_allclose(jnp.sum(found.gradient * direction, axis=2), slopes, rtol=1e-5, atol=1e-6)
    gradients = [cone_barrier(cones, inside + s * direction, tau, jnp.asarray(WEIGHT)).gradient for s in (step, -step)]
    curvature = jnp.einsum("spde,spe->spd", found.hessian, direction)
    np.testing.assert_allclose(curvature, (gradients[0] - gradients[1]) / (2 * step), rtol=1e-4, atol=1e-4)
    # A vector outside of its cone has the value ∞, and no other one.
    np.testing.assert_array_equal(np.isinf(values(inside.at[1, 2].multiply(-1))), [[0, 0, 0, 0], [0, 0, 1, 0]])


def test_multipliers_follow_a_step_to_first_order(rng, drawn, inside):
    cones, weight = drawn[2], jnp.asarray(WEIGHT)
    barrier = cone_barrier(cones, inside, 0.6, weight)
    values = np.asarray(cones.apply(inside))
    expected = np.where(np.asarray(cones.zero_rows), 0.0, 1 / np.where(values != 0, WEIGHT * values, 1))
    np.testing.assert_allclose(barrier.multipliers, expected, rtol=1e-12)
    direction = (
        1e-4 * jnp.min(jnp.where(cones.zero_rows, jnp.inf, values)) * jnp.asarray(rng.standard_normal((2, 4, 3)))
    )
    moved = cone_barrier(cones, inside + direction, 0.6, weight).multipliers
    found = next_multipliers(cones, barrier, direction, weight)
    change = np.max(np.abs(moved - barrier.multipliers))
    assert np.max(np.abs(found - moved)) < 1e-2 * change
    # None becomes negative, however long the step.
    assert np.all(np.asarray(next_multipliers(cones, barrier, 1e9 * direction, weight)) >= 0)


def test_the_longest_step_stays_inside_by_a_share_of_the_way(rng, drawn, inside):
    cones = drawn[2]
    directions = jnp.asarray(rng.standard_normal((2, 4, 3))).at[0, 0].set(inside[0, 0])
    found = longest_step(cones, inside, directions)
    for side, k in np.ndindex(2, 4):
        matrix = np.asarray(cones.signs)[:, k, None] * np.asarray(cones.rows)
        values, changes = matrix @ np.asarray(inside)[side, k], matrix @ np.asarray(directions)[side, k]
        ways = [-value / change for value, change in zip(values, changes, strict=True) if change < 0]
        np.testing.assert_allclose(found[side, k], min([1.0, *(module._BOUNDARY_SHARE * way for way in ways)]))
    assert found[0, 0] == 1


def test_lengths_are_halved_entry_by_entry_until_armijos_rule_holds():
    # ½ a s² − s: the rule with the share 0.1 holds for s ≤ 1.8 / a.
    curvature = jnp.array([0.5, 1.7, 10.0, 1000.0])
    found = armijo_length(lambda s: 0.5 * curvature * s**2 - s, jnp.zeros(4), -jnp.ones(4), jnp.ones(4))
    expected = [next(2.0**-k for k in range(30) if 2.0**-k <= 1.8 / a) for a in (0.5, 1.7, 10.0, 1000.0)]
    np.testing.assert_array_equal(found, expected)


def test_the_weight_grows_where_the_newton_decrement_is_small():
    weights, slopes = jnp.array([1.0, 4.0, 4.0]), jnp.array([-0.25, -0.25, -0.06])
    np.testing.assert_array_equal(next_weight(weights, slopes), [20.0, 4.0, 80.0])


def test_leading_axes_are_added_and_numbers_stay():
    assert with_ndim(jnp.ones((2, 3)), 4).shape == (1, 1, 2, 3)
    assert with_ndim(jnp.ones(()), 2).shape == ()
    assert with_ndim(0.5, 2) == 0.5
