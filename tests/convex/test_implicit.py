import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import random_problem

import fixntk as fx
from fixntk.convex.program import is_quadratic, replace_fields

CASES = {
    "squared": {"num_outputs": 2},
    "everything": {"loss": "logistic", "intercept": True, "sample_weight": np.linspace(0.5, 1.5, 30), "ridge": 0.1},
    "softmax": {"loss": "softmax", "num_outputs": 3, "intercept": True, "penalty_weights": np.linspace(0.5, 1.5, 20)},
}


def moved(program, step):
    """The program with λ and all real arrays moved, but for targets that are labels."""
    rng = np.random.default_rng(7)
    directions = {"x": rng.standard_normal(program.x.shape), "reg": float(program.reg)}
    if is_quadratic(program):
        directions["y"] = rng.standard_normal(program.y.shape)
    for name in ("sample_weight", "penalty_weights", "ridge"):
        if getattr(program, name) is not None:
            directions[name] = rng.random(getattr(program, name).shape)
    return replace_fields(program, **{name: getattr(program, name) + step * d for name, d in directions.items()})


def validation_loss(weights):
    return jnp.sum(jnp.sin(jnp.arange(weights.size).reshape(weights.shape)) * weights)


def loss_of(program, **options):
    return lambda step: validation_loss(fx.optimal_weights(moved(program, step), **options))


@pytest.mark.parametrize("case", CASES)
def test_derivatives_are_finite_differences(case):
    program = random_problem(1, share=0.2, **CASES[case])
    loss = loss_of(program, tol=1e-13)
    forward, backward = jax.jvp(loss, (0.0,), (1.0,))[1], jax.grad(loss)(0.0)
    # Newton's error is smooth in the step, and its derivative no smaller than that of the solution by as much.
    by_fista = loss_of(program, tol=1e-14, method="fista", max_iter=200_000)
    # Of fourth order, so that steps can be long beside FISTA's own error.
    ends = [by_fista(multiple * 5e-4) for multiple in (1, -1, 2, -2)]
    expected = (8 * (ends[0] - ends[1]) - (ends[2] - ends[3])) / 6e-3
    np.testing.assert_allclose(forward, expected, rtol=1e-4)
    np.testing.assert_allclose(backward, forward, rtol=1e-9)


def test_conjugate_gradients_and_jit_give_the_same(monkeypatch):
    program = random_problem(1, share=0.2, num_outputs=2)
    expected = jax.grad(loss_of(program, tol=1e-11))(0.0)
    traced = jax.jit(jax.grad(loss_of(program, tol=1e-11, max_iter=50_000)))(0.0)
    np.testing.assert_allclose(traced, expected, rtol=1e-6)
    monkeypatch.setattr("fixntk.convex.implicit._MOST_UNKNOWNS", 0)
    np.testing.assert_allclose(jax.grad(loss_of(program, tol=1e-11))(0.0), expected, rtol=1e-8)


def test_derivative_by_a_ridge_of_zero():
    program = random_problem(1, share=0.2)

    def loss(ridge):
        whole = fx.ConvexProgram(program.x, program.y, program.masks, program.reg, ridge=ridge)
        return validation_loss(fx.optimal_weights(whole, tol=1e-13))

    expected = (loss(2e-5) - loss(0.0)) / 2e-5
    np.testing.assert_allclose(jax.grad(loss)(0.0), expected, rtol=1e-2)


def test_float32_needs_no_tolerance():
    wide = random_problem(3, share=0.3)
    narrow = fx.ConvexProgram(wide.x.astype("float32"), wide.y.astype("float32"), wide.masks, wide.reg)
    assert float(narrow.gap(fx.optimal_weights(narrow))) <= 1e-4 * float(narrow.primal_at_zero())
    tighter = fx.optimal_weights(narrow, tol=1e-5)
    assert float(narrow.gap(tighter)) <= 1e-5 * float(narrow.primal_at_zero())


def test_above_max_reg_nothing_moves():
    program = random_problem(2, share=1.5)
    assert float(jax.grad(loss_of(program))(0.0)) == 0.0


def test_weights_are_those_of_the_solution():
    program = random_problem(3)
    weights, solution = fx.optimal_weights(program), fx.solve(program, tol=1e-8)
    np.testing.assert_allclose(weights, solution.weights, atol=1e-4 * float(jnp.max(jnp.abs(weights))))
    assert np.all(np.asarray(weights)[~np.asarray(solution.active)] == 0)


@pytest.mark.wrong_types
def test_what_is_no_program_is_named():
    with pytest.raises(TypeError, match="program must be a ConvexProgram"):
        fx.optimal_weights(None)


def test_the_nuclear_norm_is_refused():
    with pytest.raises(ValueError, match="for norm 'frobenius', not for 'nuclear'"):
        fx.optimal_weights(random_problem(4, num_outputs=2, norm="nuclear"))
