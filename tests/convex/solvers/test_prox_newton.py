"""Proximal Newton: it never rises, and each step solves the squared loss's program around the iterate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import PROGRAMS, program_of, random_problem

import fixntk as fx
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
    state = prox_newton.init(program, jnp.zeros(program.group_shape))
    found = jax.jit(prox_newton.step)(program, state)
    # It solves the model to a share of the gap, and the whole step lowers the objective here.
    near = float(model.primal(found.weights)) - float(model.primal(expected))
    assert 0 <= near <= 0.03 * float(state.gap)
    assert float(found.primal) < float(state.primal)
    assert float(found.gap) < 0.2 * float(state.gap)
