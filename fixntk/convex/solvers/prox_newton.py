"""Proximal Newton for losses other than the squared one: each step solves a program of the squared loss (M8).

Around the outputs F the loss is nearly ½ Σ_i h_i ‖F_i + R_i/h_i − outputs_i‖², a squared loss of other targets whose
rows have weights, which is the same group lasso with rows of X multiplied by √h. Semismooth Newton solves it to a share
of the present gap, and a line search along the way there makes the objective fall.

Lee, Sun and Saunders (2014).
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from fixntk.convex.program import ConvexProgram, Fit
from fixntk.convex.solvers import newton

# The least share of the loss's steepest curvature that a row is given.
_LEAST_CURVATURE = 1e-5
# The inner program is solved to this share of the present gap, in at most so many steps.
_INNER_SHARE, _INNER_STEPS = 0.03, 40
_HALVINGS = 25
# Steps without a smaller gap after which rounding must be the reason.
_PATIENCE = 10


class ProxNewtonState(NamedTuple):
    """State of the proximal Newton method.

    Attributes
    ----------
    weights
        (P, d, c) the iterate.
    fitted
        (n, c) its outputs without the intercept.
    primal, gap, objective, failed
        As for every method; the objective is the primal. Failed where rounding lets nothing fall any more.
    stalled
        Steps since the gap was last lowered.
    """

    weights: Float[Array, "P d c"]
    fitted: Float[Array, "n c"]
    primal: Float[Array, ""]
    gap: Float[Array, ""]
    objective: Float[Array, ""]
    failed: Bool[Array, ""]
    stalled: Int[Array, ""]


def init(program: ConvexProgram, weights: Array) -> ProxNewtonState:
    """Start from the given group weights."""
    return _at(program, weights, program.fitted(weights))


def step(program: ConvexProgram, state: ProxNewtonState) -> ProxNewtonState:
    """Solve the squared loss's program around the iterate, and go as far towards that as the objective falls."""
    fit = program.fit(state.fitted)
    model = _model(program, fit)

    def unfinished(carry: tuple[Array, newton.NewtonState]) -> Array:
        count, inner = carry
        return (count < _INNER_STEPS) & (inner.gap > _INNER_SHARE * state.gap) & ~inner.failed

    start = (jnp.asarray(0), newton.init(model, state.weights))
    _, inner = lax.while_loop(unfinished, lambda carry: (carry[0] + 1, newton.step(model, carry[1])), start)
    change = inner.weights - state.weights
    fitted_change = program.fitted(inner.weights) - state.fitted
    # What the tangent of the loss and the penalty promise; the penalty is convex along the way.
    promised = jnp.sum(fit.residual * fitted_change) + program.penalty(state.weights) - program.penalty(inner.weights)
    slack = 4 * jnp.finfo(state.primal.dtype).eps * jnp.abs(state.primal)

    def primal(length: Array) -> Array:
        moved = program.fit(state.fitted + length * fitted_change)
        return program.primal_of(state.weights + length * change, moved)

    def too_long(trial: tuple[Array, Array]) -> Array:
        halvings, length = trial
        return (halvings < _HALVINGS) & ~(primal(length) <= state.primal - 1e-4 * length * promised + slack)

    halvings, length = lax.while_loop(
        too_long, lambda trial: (trial[0] + 1, 0.5 * trial[1]), (jnp.asarray(0), jnp.ones_like(slack))
    )
    moved = _at(program, state.weights + length * change, state.fitted + length * fitted_change)
    stalled = jnp.where(moved.gap < state.gap, 0, state.stalled + 1)
    stuck = (halvings >= _HALVINGS) | (stalled > _PATIENCE)
    return moved._replace(stalled=stalled, failed=moved.failed | stuck)


def _model(program: ConvexProgram, fit: Fit) -> ConvexProgram:
    """The program of the squared loss that is nearest around a fit."""
    targets = program.targets
    least = _LEAST_CURVATURE * program.loss.steepest
    curvatures = jnp.maximum(program.loss.curvatures(fit.outputs, targets), least)
    aims = fit.outputs + program.loss.residuals(fit.outputs, targets) / curvatures[:, None]
    weights = curvatures if program.sample_weight is None else curvatures * program.sample_weight
    return program.weighted(jnp.sqrt(weights), program.x, aims.reshape(program.y.shape), program.column)


def _at(program: ConvexProgram, weights: Array, fitted: Array) -> ProxNewtonState:
    fit = program.fit(fitted)
    primal = program.primal_of(weights, fit)
    gap = program.certificate(weights, fit, program.correlations(fit.residual)).gap
    failed = ~jnp.isfinite(primal)
    return ProxNewtonState(weights, fitted, primal, gap, primal, failed, jnp.zeros((), jnp.int32))
