"""Proximal Newton for losses other than the squared one: each step solves a program of the squared loss.

Around the outputs F the loss is nearly ½ Σ_i h_i ‖F_i + R_i/h_i − outputs_i‖², a squared loss of other targets whose
rows have weights, which is the same group lasso with rows of X multiplied by √h. Semismooth Newton solves it to a share
of the present gap, and a line search along the way there makes the objective fall.

Lee, Sun and Saunders (2014).

See docs/mathematics.md, M8.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from fixntk._line_search import backtrack
from fixntk.convex import duality
from fixntk.convex.datafit import Fit
from fixntk.convex.method import Method, check_norm
from fixntk.convex.program import ConvexProgram, as_squared_loss
from fixntk.convex.solvers import newton

# The smallest curvature that a row is given, as a share of the loss's largest.
_MIN_CURVATURE_SHARE = 1e-5
# The inner program is solved to this share of the present gap.
_INNER_GAP_SHARE = 0.03
_MAX_INNER_STEPS = 40
# Armijo's rule.
_ARMIJO_SHARE = 1e-4
_MAX_HALVINGS = 25
# Steps without a smaller gap after which rounding must be the reason.
_PATIENCE_STEPS = 10


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


def init(program: ConvexProgram, weights: Array, _: Array | None = None) -> ProxNewtonState:
    """Start from the given group weights."""
    return _state_at(program, weights, program.fitted(weights))


def step(program: ConvexProgram, state: ProxNewtonState) -> ProxNewtonState:
    """Solve the squared loss's program around the iterate, and go as far towards that as the objective falls."""
    datafit, penalty = program.datafit, program.penalty
    fit = datafit.fit(state.fitted)
    target = _solve_model(program, fit, state)
    change, fitted_change = target - state.weights, program.fitted(target) - state.fitted
    # The decrease that the tangent of the loss and the penalty promise; the penalty is convex along the way.
    promised = jnp.sum(fit.residual * fitted_change) + penalty.value(state.weights) - penalty.value(target)
    slack = 4 * jnp.finfo(state.primal.dtype).eps * jnp.abs(state.primal)

    def is_lower(length: Array) -> Array:
        moved = datafit.fit(state.fitted + length * fitted_change)
        primal = moved.loss + penalty.value(state.weights + length * change)
        return primal <= state.primal - _ARMIJO_SHARE * length * promised + slack

    search = backtrack(is_lower, jnp.ones_like(slack), max_halvings=_MAX_HALVINGS)
    moved = _state_at(program, state.weights + search.length * change, state.fitted + search.length * fitted_change)
    stalled = jnp.where(moved.gap < state.gap, 0, state.stalled + 1)
    is_stuck = ~search.accepted | (stalled > _PATIENCE_STEPS)
    return moved._replace(stalled=stalled, failed=moved.failed | is_stuck)


def _solve_model(program: ConvexProgram, fit: Fit, state: ProxNewtonState) -> Array:
    """Weights of the program of the squared loss that is nearest around a fit, to a share of the present gap."""
    model, units = newton.prepare(_model(program, fit))
    goal = _INNER_GAP_SHARE * state.gap / units.objective

    def is_unfinished(carry: tuple[Array, newton.NewtonState]) -> Array:
        count, inner = carry
        return (count < _MAX_INNER_STEPS) & (inner.gap > goal) & ~inner.failed

    start = (jnp.asarray(0), newton.init(model, state.weights / units.weights))
    _, inner = lax.while_loop(is_unfinished, lambda carry: (carry[0] + 1, newton.step(model, carry[1])), start)
    return inner.weights * units.weights


def _model(program: ConvexProgram, fit: Fit) -> ConvexProgram:
    """Targets F_i + R_i/h_i with row weights h, where h are the loss's curvatures."""
    loss, targets = program.loss, program.targets
    curvatures = jnp.maximum(loss.curvatures(fit.outputs, targets), _MIN_CURVATURE_SHARE * loss.steepest)
    aims = fit.outputs + loss.residuals(fit.outputs, targets) / curvatures[:, None]
    weights = curvatures if program.sample_weight is None else curvatures * program.sample_weight
    return as_squared_loss(program, jnp.sqrt(weights), aims.reshape(program.y.shape))


def _state_at(program: ConvexProgram, weights: Array, fitted: Array) -> ProxNewtonState:
    fit = program.datafit.fit(fitted)
    correlations = program.correlations(fit.residual)
    found = duality.evaluate_fit(program.datafit, program.penalty, weights, fit, correlations)
    failed = ~jnp.isfinite(found.primal)
    return ProxNewtonState(weights, fitted, found.primal, found.gap, found.primal, failed, jnp.zeros((), jnp.int32))


def _supports(program: ConvexProgram) -> None:
    check_norm("newton", program)


# It answers to the name of Newton, which it is for these losses.
METHOD = Method(name="newton", init=init, steps=lambda _: (step,), supports=_supports, max_iter=200)
