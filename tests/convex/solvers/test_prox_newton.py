"""Proximal Newton: it never rises, and each step solves the squared loss's program around the iterate."""

import jax.numpy as jnp
import numpy as np
import pytest
from problems import PROGRAMS, cvxpy_optimum, program_of, random_problem

import fixntk as fx
from fixntk.convex.program import group_shape_of
from fixntk.convex.solvers import prox_newton


@pytest.mark.parametrize("case", ["logistic", "hinge_all", "huber_all"])
def test_the_objective_never_rises_and_few_steps_do(case):
    solution = fx.solve(program_of(PROGRAMS[case], share=0.02), method="newton", tol=1e-9)
    objective = np.asarray(solution.history.objective)
    assert np.all(np.diff(objective) <= 1e-12 * objective[:-1])
    assert bool(solution.converged)
    assert int(solution.iterations) <= 30


def test_the_first_step_from_zero_is_the_optimum_of_the_quadratic_model():
    program = random_problem(0, loss="logistic", share=0.3)
    # Around zero: probabilities ½, curvatures ¼, and so targets of ±2.
    model = fx.ConvexProgram(0.5 * program.x, 0.5 * 2 * program.y, program.masks, program.reg)
    expected = np.asarray(fx.solve(model, tol=1e-12).weights)
    state = prox_newton.init(program, jnp.zeros(group_shape_of(program)))
    found = prox_newton.METHOD.steps(program)[0](program, state)
    # It solves the model to a share of the gap, and the whole step lowers the objective here.
    near = float(model.primal(found.weights)) - float(model.primal(expected))
    assert 0 <= near <= 0.03 * float(state.gap)
    assert float(found.primal) < float(state.primal)
    assert float(found.gap) < 0.2 * float(state.gap)


def _repeated_rows(loss, seed, options):
    """Twelve rows, five of them distinct, with labels that contradict each other."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((5, 2))[rng.integers(0, 5, 12)]
    y = 3 * rng.standard_normal(12) if loss == "huber" else rng.permutation(np.tile([-1.0, 1.0], 6))
    options = {"sample_weight": rng.exponential(size=12)} if options == "weights" else options
    return fx.ConvexProgram(x, y, fx.activation_masks(x, rng.standard_normal((6, 2))), 1.0, loss=loss, **options)


@pytest.mark.parametrize("options", [{}, "weights", {"ridge": 0.3}], ids=str)
@pytest.mark.parametrize("loss", ["huber", "squared_hinge", "logistic"])
def test_it_converges_on_repeated_rows_for_every_reg(loss, options):
    for seed in range(4):
        program = _repeated_rows(loss, seed, options)
        for share in (1.1, 0.5, 0.1, 1e-2, 1e-4, 1e-6):
            solution = fx.solve(program.with_reg(share * program.max_reg()), method="newton", tol=1e-5)
            assert bool(solution.converged), (seed, share, solution.message)


@pytest.mark.parametrize("seed", [3, 12])
def test_it_crosses_regions_in_which_two_outliers_cancel_and_the_loss_is_flat(seed):
    # Beyond the bend on both sides, equal rows leave Huber's loss flat in their output: only λ says where it ends.
    program = _repeated_rows("huber", seed, {})
    program = program.with_reg(1e-6 * program.max_reg())
    # To less than the error that is looked at.
    solution = fx.solve(program, method="newton", tol=5e-9)
    assert bool(solution.converged), solution.message
    assert int(solution.iterations) <= 60
    np.testing.assert_allclose(solution.primal, cvxpy_optimum(program)[0], rtol=1e-8)


@pytest.mark.parametrize(("loss", "num_outputs"), [("squared_hinge", None), ("huber", None), ("huber", 2)])
def test_it_leaves_places_where_its_steps_are_short(loss, num_outputs):
    # Few distinct rows and labels at random: the curvature vanishes on most rows, and of two outputs Newton's model
    # only bounds the loss. First-order steps lead out of it.
    for seed in range(6):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((6, 2))[rng.integers(0, 6, 16)] * 10.0 ** rng.integers(-3, 4)
        y = rng.standard_normal(16 if num_outputs is None else (16, num_outputs))
        y = np.sign(y) if loss == "squared_hinge" else 10 * y
        program = fx.ConvexProgram(x, y, x @ rng.standard_normal((2, 10)) >= 0, 1.0, loss=loss)
        for share in (1e-3, 1e-5, 1e-6):
            solution = fx.solve(program.with_reg(share * program.max_reg()), method="newton", tol=1e-5)
            assert bool(solution.converged), (seed, share, solution.message)


def test_a_small_squared_hinge_with_repeated_rows_converges():
    a, b, c, d = (
        [0.516605, -0.93322462],
        [1.52737854, -0.82404265],
        [-0.17791958, -1.34175138],
        [-0.75237747, -1.12241775],
    )
    x, y = np.array([a, b, b, c, d, a, d, b]), np.array([1.0, -1, 1, -1, -1, 1, -1, 1])
    first = [0, 1, 0, 1, 0, 1]
    second = [0, 1, 0, 1, 1, 1]
    third = [0, 1, 1, 1, 1, 0]
    masks = np.array([first, first, first, second, third, first, third, first], bool)
    program = fx.ConvexProgram(x, y, masks, 0.0004336849958255354, loss="squared_hinge")
    solution = fx.solve(program, tol=1e-5)
    assert bool(solution.converged)
    optimum = fx.solve(program, tol=1e-7, method="fista", max_iter=200_000)
    np.testing.assert_allclose(solution.primal, optimum.primal, rtol=1e-5)
