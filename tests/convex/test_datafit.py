"""The data term: definition, envelope theorem, conjugates by their suprema."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import PROGRAMS, program_of

from fixntk.convex.program import datafit_of, targets_of

CASES = ["squared", "squared_all", "logistic_all", "softmax_all", "hinge_all", "huber_all"]


@pytest.mark.parametrize("case", CASES)
def test_the_residual_is_the_negative_derivative_of_the_loss_at_the_best_intercept(rng, case):
    program = program_of(PROGRAMS[case])
    fitted, direction = (jnp.asarray(rng.standard_normal(targets_of(program).shape)) for _ in "ab")
    loss = jax.jit(lambda step: datafit_of(program).fit(fitted + step * direction).loss)
    expected = (8 * (loss(1e-3) - loss(-1e-3)) - (loss(2e-3) - loss(-2e-3))) / 12e-3
    fit = datafit_of(program).fit(fitted)
    np.testing.assert_allclose(-jnp.sum(fit.residual * direction), expected, rtol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_shifted_by_the_intercept_and_losses_weighted(rng, case):
    program = program_of(PROGRAMS[case])
    fitted = jnp.asarray(rng.standard_normal(targets_of(program).shape))
    fit = datafit_of(program).fit(fitted)
    np.testing.assert_allclose(fit.outputs - fitted, np.tile(fit.intercept, (30, 1)), atol=1e-14)
    assert np.any(fit.intercept) == (program.column is not None)
    weights = np.ones(30) if program.sample_weight is None else np.asarray(program.sample_weight)
    np.testing.assert_allclose(fit.loss, weights @ program.loss.values(fit.outputs, targets_of(program)), rtol=1e-12)
    assert not np.any(np.asarray(fit.residual)[weights == 0])


def test_the_conjugate_of_the_weighted_squared_loss_is_its_closed_form(rng):
    program = program_of({**PROGRAMS["sample_weight"], "num_outputs": 2})
    weights, targets = np.asarray(program.sample_weight), np.asarray(targets_of(program))
    theta = np.where(weights[:, None] > 0, rng.standard_normal((30, 2)), 0.0)
    present = weights > 0
    # sup_F −⟨Θ, F⟩ − (ω/2)‖Y − F‖² is attained at F = Y − Θ/ω.
    best = targets[present] - theta[present] / weights[present, None]
    expected = -np.sum(theta[present] * best) - 0.5 * weights[present] @ np.sum((targets[present] - best) ** 2, axis=1)
    np.testing.assert_allclose(datafit_of(program).conjugate(jnp.asarray(theta)), expected, rtol=1e-12)
    theta[np.flatnonzero(~present)[0]] = 1e-9
    assert float(datafit_of(program).conjugate(jnp.asarray(theta))) == np.inf


@pytest.mark.parametrize("case", CASES)
def test_only_outputs_with_this_residual_reach_the_bound_of_a_dual_point(rng, case):
    program = program_of(PROGRAMS[case])
    fitted = jnp.asarray(rng.standard_normal(targets_of(program).shape))
    fit = datafit_of(program).fit(fitted)
    theta, bound = fit.residual, -float(datafit_of(program).conjugate(fit.residual))
    # The outputs whose residual Θ is reach the bound.
    np.testing.assert_allclose(float(fit.loss) + float(jnp.sum(theta * fitted)), bound, rtol=1e-10, atol=1e-10)
    for size in (0.0, 0.3, 3.0):
        outputs = size * jnp.asarray(rng.standard_normal(targets_of(program).shape))
        loss = float(datafit_of(program).fit(outputs).loss)
        # With an intercept Θ sums to zero, so that shifting the outputs leaves ⟨Θ, F⟩ as it is.
        assert loss + float(jnp.sum(theta * outputs)) >= bound - 1e-10
