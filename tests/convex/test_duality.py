"""The certificate: feasible dual points by NumPy, weak duality, CVXPY's optimum, the cancelling formula."""

import jax.numpy as jnp
import numpy as np
import pytest
from problems import PROGRAMS, cvxpy_optimum, program_of

from fixntk.convex import duality
from fixntk.convex.program import datafit_of, group_shape_of, penalty_of, thresholds_of

WITHOUT_RIDGE = [case for case, options in PROGRAMS.items() if "ridge" not in options]


def dual_norms(program, theta):
    """‖Xᵀ D_p Θ‖_* / (λτ_p) of every group, by a loop."""
    masks, x, theta = np.asarray(program.masks, float), np.asarray(program.x), np.asarray(theta)
    kind = 2 if program.norm.name == "nuclear" else "fro"
    norms = [np.linalg.norm(x.T @ (mask[:, None] * theta), kind) for mask in masks.T]
    return np.array(norms) / np.asarray(thresholds_of(program))


@pytest.mark.parametrize("case", PROGRAMS)
def test_certificate_is_primal_minus_dual(rng, case):
    program = program_of(PROGRAMS[case])
    for scale in np.geomspace(1e-5, 1, 6):
        weights = scale * rng.standard_normal(group_shape_of(program))
        gap = float(program.gap(weights))
        dual = float(program.dual(program.dual_point(weights)))
        assert np.isfinite(dual)
        np.testing.assert_allclose(gap, float(program.primal(weights)) - dual, rtol=1e-7)


@pytest.mark.parametrize("case", PROGRAMS)
def test_zero_is_optimal_exactly_from_max_reg_on(case):
    zero = np.zeros(group_shape_of(program_of(PROGRAMS[case])))
    above, below = program_of(PROGRAMS[case], share=1 + 1e-9), program_of(PROGRAMS[case], share=0.99)
    assert float(above.gap(zero)) < 1e-10
    assert float(below.gap(zero)) > 1e-6


@pytest.mark.parametrize("case", WITHOUT_RIDGE)
def test_the_residual_is_scaled_as_little_as_feasibility_needs(rng, case):
    program = program_of(PROGRAMS[case], share=0.5)
    for size in (0.0, 0.1, 3.0):
        found = program.evaluate(size * rng.standard_normal(group_shape_of(program)))
        largest = dual_norms(program, found.residual).max()
        np.testing.assert_allclose(found.dual_scale, min(1.0, 1 / largest), rtol=1e-12)
        point = found.dual_scale * found.residual
        assert np.isfinite(program.dual(point))
        if largest > 1:
            np.testing.assert_allclose(dual_norms(program, point).max(), 1, rtol=1e-12)
            assert float(program.dual((1 + 1e-6) * point)) == -np.inf


@pytest.mark.parametrize("case", PROGRAMS)
def test_no_dual_value_is_above_any_primal_value_and_the_highest_is_near(rng, case):
    # Near λ_max zero is nearly optimal, so that the bound is tight.
    program = program_of(PROGRAMS[case], share=0.95)
    sizes = np.geomspace(1e-3, 1, 5)
    primals = [program.primal(size * rng.standard_normal(group_shape_of(program))) for size in (0.0, *sizes)]
    points = [program.dual_point(size * rng.standard_normal(group_shape_of(program))) for size in (0.0, *sizes)]
    # Zero is in the domain of every conjugate, so that multiples of a feasible point below one are feasible.
    duals = np.array([float(program.dual(share * point)) for point in points for share in (0.0, 0.3, 0.9, 1.0)])
    assert np.all(np.isfinite(duals))
    assert 0.95 * float(min(primals)) <= duals.max() <= float(min(primals)) * (1 + 1e-12)


@pytest.mark.parametrize("case", ["squared", "nuclear", "logistic", "softmax", "hinge_all", "huber_all"])
def test_the_gap_is_zero_at_the_optimum_of_cvxpy_and_bounds_the_distance_from_it_elsewhere(rng, case):
    program = program_of(PROGRAMS[case])
    optimum, weights = cvxpy_optimum(program)
    unit = float(program.primal_at_zero())
    # CVXPY's accuracy of 1e-8 in the weights is one of about its root in the correlations.
    assert float(program.gap(weights)) < 1e-4 * unit
    for share in (0.0, 0.5, 0.99, 1.01):
        moved = share * weights + 1e-3 * rng.standard_normal(weights.shape)
        distance = float(program.primal(moved)) - optimum
        assert distance > 1e-5 * unit
        assert float(program.gap(moved)) >= distance - 1e-7 * unit


@pytest.mark.parametrize("case", ["squared_all", "logistic", "nuclear"])
def test_an_evaluation_at_another_reg_needs_no_products(rng, case):
    program = program_of(PROGRAMS[case])
    weights = 0.1 * rng.standard_normal(group_shape_of(program))
    other = program.with_reg(3 * program.reg)
    again = duality.evaluate_again(datafit_of(other), penalty_of(other), program.evaluate(weights))
    for one, expected in zip(again, other.evaluate(weights), strict=True):
        np.testing.assert_allclose(one, expected, rtol=1e-12)


def test_the_last_point_within_a_gap_is_chosen_and_the_best_where_there_is_none():
    for gaps, enough, expected in (
        ([1.0, 0.2, 3.0, 0.5], 1.0, 3),
        ([1.0, 0.2, 3.0, 0.5], 0.1, 1),
        ([0.1, 2.0], 1.0, 0),
    ):
        assert int(duality.last_within(jnp.array(gaps), enough)) == expected
