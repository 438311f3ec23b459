"""The relaxed program: the adaptive group lasso of a solution's gates, certified as its own program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import random_problem

import fixntk as fx


def solved(seed=0, share=0.2, **options):
    program = random_problem(seed, 40, share=share, **options)
    return program, fx.solve(program, tol=1e-9)


def test_its_solution_satisfies_the_optimality_conditions_of_the_reweighted_penalty():
    program, solution = solved()
    relaxed = fx.solve(fx.relaxed_program(program, solution), init=solution, tol=1e-11)
    # Group by group, with masks and products of NumPy: Xᵀ D_p R = λ (mean / ‖W°_p‖) W_p / ‖W_p‖ where W_p ≠ 0.
    x, masks = np.asarray(program.x), np.asarray(program.masks, float)
    weights, norms = np.asarray(relaxed.weights)[:, :, 0], np.linalg.norm(solution.weights[:, :, 0], axis=1)
    active = norms > 1e-4 * norms.max()
    residual = np.asarray(program.y) - sum(masks[:, p] * (x @ weights[p]) for p in range(len(norms)))
    assert 0 < active.sum() < len(norms)
    for p in range(len(norms)):
        length = np.linalg.norm(weights[p])
        if not active[p]:
            assert length == 0
        elif length > 1e-6 * norms.max():
            reg = float(program.reg) * norms[active].mean() / norms[p]
            np.testing.assert_allclose(x.T @ (masks[:, p] * residual), reg * weights[p] / length, atol=1e-4 * reg)
    assert bool(relaxed.converged)


def test_power_zero_gives_the_solution_back():
    program, solution = solved()
    again = fx.solve(fx.relaxed_program(program, solution, power=0), tol=1e-9)
    np.testing.assert_allclose(again.primal, solution.primal, rtol=1e-7)


def test_at_its_best_reg_it_is_nearer_to_a_planted_network_than_the_group_lasso_at_any(rng):
    x = rng.standard_normal((200, 4))
    masks = np.asarray(fx.activation_masks(x, fx.sample_gates(jax.random.key(0), 30, 4, dtype=jnp.float64)))
    planted = np.zeros((30, 4))
    planted[[3, 11]] = 2 * rng.standard_normal((2, 4))

    def outputs(weights):
        return np.einsum("np,nd,pd->n", masks.astype(float), x, weights)

    program = fx.ConvexProgram(x, outputs(planted) + 0.5 * rng.standard_normal(200), masks, 1.0)
    regs = float(program.max_reg()) * np.logspace(0, -3.5, 15)
    relaxed = fx.relaxed_program(program, fx.solve(program.with_reg(0.03 * program.max_reg())))

    def least_error(program):
        found = [np.asarray(solution.weights)[:, :, 0] for solution in fx.solve_path(program, regs)]
        return min(np.linalg.norm(outputs(weights - planted)) for weights in found)

    assert least_error(relaxed) < 0.9 * least_error(program)


def test_several_outputs_packed_masks_and_other_losses_are_taken(rng):
    x = rng.standard_normal((40, 3))
    gates = fx.sample_gates(jax.random.key(0), 11, 3, dtype=jnp.float64)
    masks = fx.activation_masks(x, gates)
    for y, loss in ((rng.standard_normal((40, 2)), "squared"), (x[:, 0] > 0, "logistic")):
        solutions = []
        for given, options in ((masks, {}), (fx.pack_masks(masks), {"num_gates": 11})):
            program = fx.ConvexProgram(x, y, given, 0.5, loss, intercept=True, **options)
            solution = fx.solve(program, method="fista")
            solutions.append(fx.solve(fx.relaxed_program(program, solution), init=solution, method="fista"))
            assert bool(solutions[-1].converged)
        np.testing.assert_allclose(solutions[0].primal, solutions[1].primal, rtol=1e-5)


def test_what_cannot_be_relaxed_is_named():
    program, solution = solved()
    with pytest.raises(ValueError, match="power must not be negative, got -1"):
        fx.relaxed_program(program, solution, power=-1)
    zero = fx.solve(program.with_reg(2 * program.max_reg()))
    with pytest.raises(ValueError, match="solution must have a weight that is not zero"):
        fx.relaxed_program(program, zero)
    with pytest.raises(ValueError, match="program must have no penalty_weights"):
        fx.relaxed_program(fx.relaxed_program(program, solution), solution)
