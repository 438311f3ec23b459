"""A semismooth Newton step: the augmented Lagrangian φ by its definition, its prox and its line search."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import random_problem

import fixntk as fx
from fixntk.convex.method import step_any
from fixntk.convex.program import correlations_of, group_shape_of, masked_outputs, targets_of, thresholds_of
from fixntk.convex.solvers import newton, newton_step

OPTIONS = {"penalty_weights": np.linspace(0.5, 2, 12), "ridge": 0.7}


def lagrangian(program, multiplier, sigma, theta):
    """φ(Θ) = ½‖Θ‖² − ⟨Y, Θ⟩ + Σ_p (‖W_p + σ Z_p‖ − σλτ_p)₊² / (2σ(1 + σα)), by loops over groups."""
    theta, x, masks = np.asarray(theta), np.asarray(program.x), np.asarray(program.masks)
    thresholds = np.broadcast_to(np.asarray(thresholds_of(program)), masks.shape[1])
    ridge = 0.0 if program.ridge is None else float(program.ridge)
    total = 0.5 * np.sum(theta**2) - np.sum(np.asarray(targets_of(program)) * theta)
    for mask, group, threshold in zip(masks.T, np.asarray(multiplier), thresholds, strict=True):
        length = np.linalg.norm(group + sigma * x.T @ (mask[:, None] * theta))
        total += max(length - sigma * threshold, 0) ** 2 / (2 * sigma * (1 + sigma * ridge))
    return total


def drawn_state(rng, program, sigma):
    """At a multiplier and Θ that have nothing to do with one another, half of the groups active."""
    theta, multiplier = (
        jnp.asarray(rng.standard_normal(shape)) for shape in (targets_of(program).shape, group_shape_of(program))
    )
    correlations = correlations_of(program, theta)
    shrunk = newton_step.shrink(program, multiplier + sigma * correlations, jnp.asarray(sigma))
    state = newton.init(program, multiplier)
    return state._replace(
        theta=theta,
        correlations=correlations,
        sigma=jnp.asarray(sigma),
        residual=targets_of(program) - masked_outputs(program, shrunk.weights),
        is_multiplier_new=jnp.asarray(False),
    )


@pytest.fixture(params=[{}, OPTIONS], ids=["plain", "options"])
def program(request):
    found = random_problem(2, 15, 3, 12, 2, **request.param)
    return found.with_reg(4.0)


def test_prox_is_the_minimum_of_its_definition_and_has_its_derivatives(rng, program):
    sigma, shifted = jnp.asarray(0.6), jnp.asarray(rng.standard_normal(group_shape_of(program)))
    prox = newton_step.shrink(program, shifted, sigma)
    thresholds = np.broadcast_to(np.asarray(thresholds_of(program)), 12)
    ridge = 0.0 if program.ridge is None else 0.7
    active = np.linalg.norm(prox.weights, axis=(1, 2)) > 0
    assert 0 < np.sum(active) < 12
    for k in range(12):
        weights, group = np.asarray(prox.weights)[k], np.asarray(shifted)[k]
        if active[k]:
            # The gradient of ½‖W − U‖² + σλτ ‖W‖ + σα/2 ‖W‖².
            slope = weights - group + 0.6 * (thresholds[k] * weights / np.linalg.norm(weights) + ridge * weights)
            np.testing.assert_allclose(slope, 0, atol=1e-12)
        else:
            assert np.linalg.norm(group) <= 0.6 * thresholds[k]
    across = rng.standard_normal(group_shape_of(program))
    across -= np.sum(across * prox.units, axis=(1, 2), keepdims=True) * prox.units
    for change, share in ((across, prox.kept), (prox.units, prox.along)):
        moved = [newton_step.shrink(program, shifted + step * change, sigma).weights for step in (1e-6, -1e-6)]
        np.testing.assert_allclose((moved[0] - moved[1]) / 2e-6, share[:, None, None] * change, atol=1e-7)


def test_the_gradient_is_that_of_the_augmented_lagrangian(rng, program):
    state = drawn_state(rng, program, 0.6)
    model = newton_step.linearise(program, state)
    for _ in range(3):
        direction = rng.standard_normal(state.theta.shape)
        high, low = (lagrangian(program, state.multiplier, 0.6, state.theta + s * direction) for s in (1e-6, -1e-6))
        np.testing.assert_allclose(jnp.sum(model.gradient * direction), (high - low) / 2e-6, rtol=1e-6)
    shifted = np.linalg.norm(np.asarray(state.multiplier + 0.6 * state.correlations), axis=(1, 2))
    thresholds = np.broadcast_to(np.asarray(thresholds_of(program)), 12)
    assert newton_step.num_active(program, state) == np.sum(shifted > 0.6 * thresholds)


def test_a_new_multiplier_expects_the_gradient_of_the_penalty(program):
    weights = fx.solve(program, method="fista", tol=1e-12).weights
    state = newton.init(program, weights)._replace(is_multiplier_new=jnp.asarray(True))
    # At the solution the penalty's gradient is Z where a group is not zero: the two agree.
    found = program.evaluate(weights)
    state = state._replace(correlations=found.correlations, theta=found.residual)
    model = newton_step.linearise(program, state)
    np.testing.assert_allclose(model.expected, found.correlations, atol=1e-4)
    np.testing.assert_allclose(model.prox.weights, weights, atol=1e-4)
    np.testing.assert_allclose(model.gradient, 0, atol=1e-4)


@pytest.mark.parametrize("stretch", [0.9, 7.0, 60.0])
def test_steps_are_halved_until_the_augmented_lagrangian_falls_enough(rng, program, stretch):
    state = drawn_state(rng, program, 0.6)
    model = newton_step.linearise(program, state)
    direction = stretch * newton_step.find_direction(program, state.sigma, model.prox, model.gradient, size=12)
    length = float(
        newton_step._step_length(program, state, model.gradient, direction, correlations_of(program, direction))
    )
    slope, start = float(jnp.sum(model.gradient * direction)), lagrangian(program, state.multiplier, 0.6, state.theta)
    assert slope < 0

    def falls(length):
        return (
            lagrangian(program, state.multiplier, 0.6, state.theta + length * direction)
            <= start + 1e-4 * length * slope
        )

    expected = next(2.0**-k for k in range(21) if falls(2.0**-k))
    assert length == expected
    if stretch > 10:
        assert length < 1


def test_the_iterate_is_what_the_step_expected_and_better_than_prox():
    program = random_problem(5, 80, 4, 60, share=0.1)
    near = fx.solve(program.with_reg(1.02 * program.reg), method="newton", tol=1e-10)
    state, step = newton.init(program, near.weights), jax.jit(partial(step_any, newton.METHOD))
    ahead = []
    for _ in range(3):
        before, state = state, step(program, state)
        shrunk = newton_step.shrink(
            program, before.multiplier + before.sigma * state.correlations, before.sigma
        ).weights
        ahead.append(float(program.gap(shrunk) / state.gap))
    assert float(state.gap / program.primal_at_zero()) < 1e-5
    assert min(ahead) >= 1
    assert max(ahead) > 10
    # A full step on groups none of which comes or goes: its residual is the dual variable.
    residual = targets_of(program) - masked_outputs(program, state.weights)
    assert float(jnp.linalg.norm(residual - state.theta)) < 1e-2 * float(jnp.linalg.norm(state.theta - before.theta))
