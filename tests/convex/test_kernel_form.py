"""The kernel form: definition, ridge regressions on the features, CVXPY, minima over multiples."""

import jax.numpy as jnp
import numpy as np
import pytest
from problems import PROGRAMS, cvxpy_optimum, program_of, random_problem
from scipy.optimize import minimize_scalar

import fixntk as fx
from fixntk.convex.kernel_form import weights_of_norms
from fixntk.convex.penalties import group_norms
from fixntk.convex.program import targets_of

OUTPUTS = pytest.mark.parametrize("num_outputs", [None, 1, 3])


@OUTPUTS
def test_kernel_objective_is_its_definition_and_above_the_optimum(rng, num_outputs):
    program = random_problem(6, num_outputs=num_outputs)
    weights = rng.random(20)
    kernel = np.asarray(fx.masked_gram(weights, program.masks, program.x)) + float(program.reg) * np.eye(30)
    targets = np.asarray(targets_of(program))
    expected = 0.5 * float(program.reg) * (np.sum(targets * np.linalg.solve(kernel, targets)) + weights.sum())
    np.testing.assert_allclose(program.kernel_objective(weights), expected, rtol=1e-10)
    assert expected > cvxpy_optimum(program)[0]


@OUTPUTS
def test_kernel_objective_at_the_optimal_norms_is_the_optimum(num_outputs):
    program = random_problem(7, num_outputs=num_outputs)
    optimum, weights = cvxpy_optimum(program)
    np.testing.assert_allclose(program.kernel_objective(group_norms(jnp.asarray(weights))), optimum, rtol=1e-6)


def test_best_scale_is_the_minimum_over_multiples(rng):
    program = random_problem(8)
    weights = rng.random(20)
    best = program.best_scale(weights)
    found = minimize_scalar(
        lambda t: float(program.kernel_objective(np.exp(t) * weights)), bracket=(-5, 0, 5), tol=1e-12
    )
    np.testing.assert_allclose(best.objective, found.fun, rtol=1e-10)
    np.testing.assert_allclose(best.scale, np.exp(found.x), rtol=1e-4)


def test_best_scale_is_zero_where_any_multiple_is_worse():
    program = random_problem(9, share=1.0)
    weights = np.full(20, 1 / 20)
    best = program.best_scale(weights)
    assert float(best.scale) == 0
    np.testing.assert_allclose(best.objective, program.primal_at_zero())
    assert float(program.kernel_objective(1e-3 * weights)) > float(best.objective)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(19), r"kernel_weights must have shape \(20,\), got \(19,\)"),
        (-np.ones(20), "must not be negative, got -1"),
    ],
)
def test_bad_kernel_weights_are_named(weights, message):
    with pytest.raises(ValueError, match=message):
        random_problem(14).kernel_objective(weights)


def minimum_over_weights(program, kernel_weights):
    """min_W ½ Σ ω_i ‖Y_i − F_i − b‖² + (λ/2) Σ_p (‖W_p‖²/η_p + τ_p² η_p), by least squares with √λ I below."""
    masks, x = np.asarray(program.masks, float), np.asarray(program.x)
    reg, targets = float(program.reg), np.asarray(targets_of(program))
    # In units of √η_p the penalty is that of a ridge regression.
    features = np.concatenate(
        [np.sqrt(eta) * mask[:, None] * x for eta, mask in zip(kernel_weights, masks.T, strict=True)], axis=1
    )
    penalised = np.sqrt(reg) * np.eye(features.shape[1])
    if program.column is not None:
        features = np.column_stack([features, np.ones(len(x))])
        penalised = np.column_stack([penalised, np.zeros(len(penalised))])
    roots = np.ones(len(x)) if program.sample_weight is None else np.sqrt(program.sample_weight)
    matrix = np.concatenate([roots[:, None] * features, penalised])
    right = np.concatenate([roots[:, None] * targets, np.zeros((len(penalised), targets.shape[1]))])
    rest = right - matrix @ np.linalg.lstsq(matrix, right)[0]
    taus = 1.0 if program.penalty_weights is None else np.asarray(program.penalty_weights)
    return 0.5 * np.sum(rest**2) + 0.5 * reg * np.sum(taus**2 * kernel_weights)


@pytest.mark.parametrize("case", ["squared", "sample_weight", "intercept", "penalty_weights", "squared_all"])
def test_kernel_objective_is_the_minimum_over_group_weights_with_these_kernel_weights(rng, case):
    program = program_of({**PROGRAMS[case], "ridge": 0.0})
    for scale in (1e-3, 1.0, 30.0):
        weights = scale * rng.random(20) * (rng.random(20) < 0.7)
        expected = minimum_over_weights(program, weights)
        np.testing.assert_allclose(program.kernel_objective(weights), expected, rtol=1e-10)


def test_kernel_weights_of_norms_minimise_the_bound_on_the_penalty(rng):
    norms, taus = rng.uniform(0.1, 2, 20), rng.uniform(0.5, 2, 20)

    def bound(kernel_weights):
        return 0.5 * np.sum(norms**2 / kernel_weights + taus**2 * kernel_weights)

    best = np.asarray(weights_of_norms(jnp.asarray(norms), jnp.asarray(taus)))
    np.testing.assert_allclose(bound(best), np.sum(taus * norms), rtol=1e-12)
    for _ in range(20):
        assert bound(best * np.exp(0.1 * rng.standard_normal(20))) > bound(best)
