"""Newton against CVXPY, FISTA, and the definition of its matrix (float64 unless said)."""

import jax.numpy as jnp
import numpy as np
import pytest
from problems import cvxpy_optimum, random_problem

import fixntk as fx
from fixntk.convex.method import step_any
from fixntk.convex.penalties import group_norms
from fixntk.convex.program import group_shape_of
from fixntk.convex.solvers import newton, working_sets

EARLY = pytest.mark.filterwarnings("ignore::fixntk.ConvergenceWarning")


@pytest.mark.parametrize("num_outputs", [None, 3])
@pytest.mark.parametrize("share", [0.5, 0.05, 0.001])
def test_newton_reaches_the_optimum_of_cvxpy(num_outputs, share):
    program = random_problem(0, num_outputs=num_outputs, share=share)
    solution = fx.solve(program, method="newton", tol=1e-10)
    assert bool(solution.converged)
    assert int(solution.iterations) <= 60
    np.testing.assert_allclose(solution.primal, cvxpy_optimum(program)[0], rtol=1e-6)


@pytest.mark.parametrize(
    "shape", [(10, 30, 5), (200, 2, 3), (30, 4, 1), (12, 1, 2), (5, 3, 300), (60, 5, 40), (300, 3, 20)]
)
@pytest.mark.parametrize("share", [0.9, 0.1, 1e-4, 1e-6])
def test_newton_on_unusual_shapes(shape, share):
    num_rows, num_features, num_gates = shape
    program = random_problem(1, num_rows, num_features, num_gates, share=share)
    solution = fx.solve(program, method="newton", tol=1e-9)
    assert bool(solution.converged), solution.message


@pytest.mark.parametrize(
    ("seed", "num_outputs", "share"),
    [(1024, None, 0.0546875), (283, None, 1.1e-4), (6231, None, 7.9e-4)],
)
def test_a_large_sigma_does_not_end_in_rounding(seed, num_outputs, share):
    solution = fx.solve(random_problem(seed, num_outputs=num_outputs, share=share), method="newton", tol=1e-12)
    assert bool(solution.converged), solution.message


def test_working_sets_grow_from_the_nearest_groups(monkeypatch):
    program = random_problem(3, 120, 5, 300, share=0.02)
    schedule, active = working_sets.Schedule((300,), (32, 64, 128, 256, 300)), []
    monkeypatch.setattr(working_sets, "schedule_of", lambda _: schedule)
    state = newton.init(program, jnp.zeros(group_shape_of(program)))
    while len(schedule.newton_sizes) <= int(state.next_step) < schedule.last_resort:
        nearest = np.argsort(-np.asarray(group_norms(state.correlations)))[:32]
        state = step_any(newton.METHOD, program, state)
        active.append(np.flatnonzero(group_norms(state.weights)))
        if len(active) == 1:
            assert set(active[0]) <= set(nearest)
    counts = [len(groups) for groups in active]
    assert 0 < counts[0] <= 32 < counts[1] < counts[-1] < 300
    optimum = fx.solve(program, method="fista", tol=1e-10)
    np.testing.assert_allclose(fx.solve(program, method="newton", tol=1e-10).primal, optimum.primal, rtol=1e-9)


def test_a_step_on_all_groups_is_the_step_on_those_that_are_active():
    program = random_problem(4, 60, 4, 100, share=0.1)
    start = fx.solve(program, method="fista", tol=1e-2).weights
    state = newton.init(program, start)
    assert 0 < int(jnp.sum(group_norms(start) > 0)) <= 64
    whole, active = (
        newton.METHOD.on_active_groups.steps(program)[0](program, state),
        step_any(newton.METHOD, program, state),
    )
    np.testing.assert_allclose(whole.theta, active.theta, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(whole.gap, active.gap, rtol=1e-2)


def test_packed_masks_give_the_same_solution():
    program = random_problem(3)
    packed = fx.ConvexProgram(program.x, program.y, fx.pack_masks(program.masks), program.reg, num_gates=20)
    one, two = (fx.solve(p, method="newton", tol=1e-9) for p in (program, packed))
    np.testing.assert_allclose(one.weights, two.weights, atol=1e-9)


def test_duplicated_columns_and_rows_converge():
    program = random_problem(4, 40, 3, 15, share=0.01)
    x = jnp.concatenate([program.x, program.x[:, :1], jnp.zeros((40, 1))], axis=1)
    masks = jnp.concatenate([program.masks, program.masks[:, :5], jnp.zeros((40, 2), bool)], axis=1)
    x, masks, y = (jnp.concatenate([a, a]) for a in (x, masks, program.y))
    solution = fx.solve(fx.ConvexProgram(x, y, masks, program.reg), method="newton", tol=1e-9)
    assert bool(solution.converged), solution.message


@EARLY
@pytest.mark.parametrize("share", [0.5, 0.01, 1e-5])
def test_float32_converges_or_says_that_it_broke_off(share):
    wide = random_problem(5, 60, 4, 30, share=share)
    for scales in ([1.0, 1.0, 1.0, 1.0], [1.0, 1e-3, 1.0, 10.0]):
        x = wide.x * jnp.asarray(scales)
        narrow = fx.ConvexProgram(x.astype("float32"), wide.y.astype("float32"), wide.masks, wide.reg)
        solution = fx.solve(narrow, method="newton", tol=1e-5)
        assert np.all(np.isfinite(solution.weights))
        assert bool(solution.converged) or "limited by float32 rounding error" in solution.message
        assert float(solution.relative_gap) < 1e-2
        # The certificate holds of the float64 problem.
        exact = fx.solve(fx.ConvexProgram(x, wide.y, wide.masks, wide.reg), method="newton", tol=1e-9)
        assert float(solution.primal - exact.primal) <= float(solution.gap) + 1e-5 * float(wide.primal_at_zero())


@pytest.mark.parametrize("scales", [(1e9, 1.0), (1e-9, 1e9), (1e30, 1e10), (1.0, 1e-25)])
def test_the_scales_of_inputs_and_targets_change_nothing(scales):
    program = random_problem(6, share=0.01)
    x_scale, y_scale = scales
    scaled = fx.ConvexProgram(program.x * x_scale, program.y * y_scale, program.masks, program.reg * x_scale * y_scale)
    one, two = (fx.solve(p, method="newton", tol=1e-9) for p in (program, scaled))
    assert bool(two.converged)
    np.testing.assert_allclose(two.primal, one.primal * y_scale**2, rtol=1e-7)


def test_float32_converges_where_the_problem_is_well_posed():
    wide = random_problem(5, 60, 4, 30, share=0.5)
    narrow = fx.ConvexProgram(wide.x.astype("float32"), wide.y.astype("float32"), wide.masks, wide.reg)
    assert bool(fx.solve(narrow, method="newton", tol=1e-5).converged)
