"""Proximal Newton for losses other than the squared one: each step solves a program of the squared loss.

Around the outputs F the loss is nearly ½ Σ_i h_i ‖F_i + R_i/h_i − outputs_i‖², a squared loss of other targets whose
rows have weights, which is the same group lasso with rows of X multiplied by √h. Semismooth Newton solves it as well as
descent needs, and a line search along the way there makes the objective fall. Where it does not, first-order steps do.

Lee, Sun and Saunders (2014).

See docs/mathematics.md, M8.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from fixntk._checks import is_tracing
from fixntk._compilation import jit_for_host
from fixntk._line_search import extend, search_by_armijo
from fixntk._numerics import eps_of
from fixntk.convex import duality
from fixntk.convex.losses import LOSSES
from fixntk.convex.method import Method, check_norm, run_steps
from fixntk.convex.padding import padded_count
from fixntk.convex.program import (
    ConvexProgram,
    as_squared_loss,
    correlations_of,
    datafit_of,
    group_shape_of,
    masked_outputs,
    penalty_of,
    targets_of,
)
from fixntk.convex.solvers import newton, newton_system, working_sets
from fixntk.convex.solvers.softmax_model import softmax_model
from fixntk.convex.units import Units

# The smallest curvature that a row is given, as a share of the loss's largest, in a dtype that resolves it. A higher
# one would shorten the steps where classes are separable and all curvatures are small.
_MIN_CURVATURE_SHARE = 1e-9
# A row's target F + R/h is at most this multiple of the largest output or target away, as for an outlier of Huber's
# loss, whose curvature is zero: digits of the squared loss would be lost.
_MAX_AIM_MULTIPLE = 1e3
# Gap to which the inner program is solved, as a share of the present gap.
_INNER_GAP_SHARE = 0.03
# Largest gap of the inner program, as a share of the decrease of its objective, at which its solution is certainly a
# descent direction.
_INNER_DECREASE_SHARE = 0.5
# Gap of the inner program that is small enough whatever the decrease, in roundings of its objective.
_NEGLIGIBLE_GAP_IN_EPS = 1e3
# Largest number of Newton steps on the inner program.
_MAX_INNER_STEPS = 40
# Share of the promised decrease that a step has to reach (Armijo's constant).
_ARMIJO_SHARE = 1e-4
# Rounding errors of an objective that do not count as an increase or a decrease.
_ROUNDINGS_OF_OBJECTIVE = 4
# Largest number of halvings of a step.
_MAX_HALVINGS = 25
# Largest number of doublings of a step.
_MAX_DOUBLINGS = 30
# A step is in vain if the gap stays above this share of the least gap before it.
_VAIN_GAP_SHARE = 0.9
# Number of steps in vain after which first-order steps follow.
_PATIENCE_STEPS = 2
# Operations of the first-order steps after steps in vain. They are one call, which cannot be interrupted.
_FIRST_ORDER_FLOPS = 1.6e11
# Least number of first-order steps after steps in vain, even if they take more operations.
_LEAST_FIRST_ORDER_STEPS = 500
# Largest number of first-order steps after steps in vain, even if they take fewer operations.
_MAX_FIRST_ORDER_STEPS = 20_000
# The first-order steps stop at this share of the gap before them.
_FIRST_ORDER_GAP_SHARE = 0.1
# Largest number of rows, times that of classes squared, of which the softmax's Hessian is used: the model has a row and
# a copy of the columns for each class, and solving it takes more time than first-order steps beyond.
_MAX_SOFTMAX_SIZE = 4000


def has_own_hessian(program: ConvexProgram) -> bool:
    """Whether the model has the loss's own second derivatives; in large programs of the softmax it has a bound."""
    # Padded rows count, so that the answer is the same before and after they are added.
    size = padded_count(program.x.shape[0]) * group_shape_of(program)[2] ** 2
    return program.loss != LOSSES["softmax"] or size <= _MAX_SOFTMAX_SIZE


class ProxNewtonState(NamedTuple):
    """State of the proximal Newton method.

    Attributes
    ----------
    weights
        (P, d, c) the iterate of smallest gap.
    primal, gap, objective, failed
        As for every method; the objective is the primal. Failed where first-order steps lower neither it nor the gap.
    iterate
        (P, d, c) where the next step starts.
    fitted
        (n, c) its outputs without the intercept.
    stalled
        Number of steps in vain, one after the other.
    next_step
        0 for a proximal Newton step, 1 for first-order steps.
    """

    weights: Float[Array, "P d c"]
    primal: Float[Array, ""]
    gap: Float[Array, ""]
    objective: Float[Array, ""]
    failed: Bool[Array, ""]
    iterate: Float[Array, "P d c"]
    fitted: Float[Array, "n c"]
    stalled: Int[Array, ""]
    next_step: Int[Array, ""]


class _Model(NamedTuple):
    """The program of the squared loss around an iterate, its units, and where its solver starts."""

    program: ConvexProgram
    units: Units
    start: newton.NewtonState
    gap_goal: Float[Array, ""]


def init(program: ConvexProgram, weights: Array, _: Array | None = None) -> ProxNewtonState:
    """Start from the given group weights."""
    return _state_at(program, weights, masked_outputs(program, weights))


def _newton_step(program: ConvexProgram, state: ProxNewtonState) -> ProxNewtonState:
    """Solve the squared loss's program around the iterate, and go as far towards that as the objective falls."""
    model = _model_around(program, state)
    first_primal, gap_goal = model.start.primal, model.gap_goal
    negligible = _NEGLIGIBLE_GAP_IN_EPS * eps_of(gap_goal)
    if not is_tracing(first_primal):
        first_primal, gap_goal = jax.device_get((first_primal, gap_goal))

    # Its arguments are JAX arrays in a traced loop, and NumPy's numbers on the host.
    def is_unfinished(primal: Any, gap: Any) -> Any:
        is_descent_certain = gap <= _INNER_DECREASE_SHARE * (first_primal - primal)
        return (gap > gap_goal) | ~(is_descent_certain | (gap <= negligible * first_primal))

    inner = run_steps(newton.FROM_HOST, model.program, model.start, is_unfinished, _MAX_INNER_STEPS)
    return _move(program, state, inner.weights, model.units.weights)


@jit_for_host
def _model_around(program: ConvexProgram, state: ProxNewtonState) -> _Model:
    """The squared loss with targets F_i + R_i/h_i and row weights h, where h are the loss's curvatures."""
    loss, targets = program.loss, targets_of(program)
    outputs = datafit_of(program).fit(state.fitted).outputs
    share = max(_MIN_CURVATURE_SHARE, float(jnp.finfo(targets.dtype).eps))
    residuals = loss.residuals(outputs, targets)
    farthest = _MAX_AIM_MULTIPLE * (jnp.max(jnp.abs(outputs)) + jnp.max(jnp.abs(targets)))
    smallest = jnp.maximum(share * loss.steepest, jnp.abs(residuals) / jnp.where(farthest > 0, farthest, 1.0))
    # Where the curvature jumps, as at the bend of Huber's loss, steps can oscillate between its two sides. With the
    # largest curvature the model is nowhere below the loss, and its minimum is on the right side.
    is_stalled = state.stalled % 2 == 1
    if loss == LOSSES["softmax"] and has_own_hessian(program):
        # Shares that are all ½ have the least Hessian that is nowhere below the loss's.
        shares = jnp.where(is_stalled, 0.5, jnp.maximum(jax.nn.softmax(outputs, axis=1), smallest))
        around = softmax_model(program, outputs, residuals, shares)
    else:
        curvatures = jnp.maximum(loss.curvatures(outputs, targets), jnp.max(smallest, axis=1))
        curvatures = jnp.where(is_stalled, loss.steepest, curvatures)
        aims = outputs + residuals / curvatures[:, None]
        weights = curvatures if program.sample_weight is None else curvatures * program.sample_weight
        around = as_squared_loss(program, jnp.sqrt(weights), aims.reshape(program.y.shape))
    model, units = newton.prepare(around)
    start = newton.init(model, state.iterate.reshape(group_shape_of(model)) / units.weights)
    return _Model(model, units, start, _INNER_GAP_SHARE * state.gap / units.objective)


@jit_for_host
def _move(program: ConvexProgram, state: ProxNewtonState, inner_weights: Array, unit: Array) -> ProxNewtonState:
    """From the iterate towards the model's solution, by Armijo's rule."""
    datafit, penalty = datafit_of(program), penalty_of(program)
    fit, target = datafit.fit(state.fitted), (inner_weights * unit).reshape(state.iterate.shape)
    primal = fit.loss + penalty.value(state.iterate)
    change, fitted_change = target - state.iterate, masked_outputs(program, target) - state.fitted
    # The decrease that the tangent of the loss and the penalty promise; the penalty is convex along the way.
    promised = jnp.sum(fit.residual * fitted_change) + penalty.value(state.iterate) - penalty.value(target)

    def increase(length: Array) -> Array:
        moved = datafit.fit(state.fitted + length * fitted_change)
        return moved.loss + penalty.value(state.iterate + length * change) - primal

    slack, longest = _slack(primal), jnp.ones_like(primal)
    search = search_by_armijo(
        increase, -promised, longest, share=_ARMIJO_SHARE, slack=slack, max_halvings=_MAX_HALVINGS
    )
    # Where rows have hardly any curvature, the smallest that a row is given can be far too large, and steps too short.
    length = jnp.where(search.accepted, search.length, 0.0)
    length = extend(increase, length, slack=slack, max_doublings=_MAX_DOUBLINGS)
    moved = _state_at(program, state.iterate + length * change, state.fitted + length * fitted_change)
    kept = _keep_best(moved, state)
    is_stuck = ~search.accepted | (kept.stalled > _PATIENCE_STEPS)
    return kept._replace(next_step=is_stuck.astype(jnp.int32))


@partial(jit_for_host, optimised=True)
def _first_order_step(program: ConvexProgram, state: ProxNewtonState) -> ProxNewtonState:
    """First-order steps from the last iterate; the solve fails where they lower neither the gap nor the objective."""
    goal = _FIRST_ORDER_GAP_SHARE * state.gap
    each = newton_system.pass_flops(program, program.num_gates)
    num_steps = np.clip(_FIRST_ORDER_FLOPS / each, _LEAST_FIRST_ORDER_STEPS, _MAX_FIRST_ORDER_STEPS)
    weights, _ = working_sets.run_first_order(program, state.iterate, goal, int(num_steps))
    reached = init(program, weights)
    moved = _keep_best(reached, state)
    primal = datafit_of(program).fit(state.fitted).loss + penalty_of(program).value(state.iterate)
    is_in_vain = (reached.gap >= state.gap) & (reached.primal >= primal - _slack(primal))
    return moved._replace(stalled=jnp.zeros((), jnp.int32), failed=moved.failed | is_in_vain)


def _slack(primal: Array) -> Array:
    """What rounding may change of an objective."""
    return _ROUNDINGS_OF_OBJECTIVE * eps_of(primal) * jnp.abs(primal)


def _keep_best(moved: ProxNewtonState, state: ProxNewtonState) -> ProxNewtonState:
    """The new state, with the weights of the smaller gap."""
    is_better = moved.gap < state.gap
    kept = {
        name: jnp.where(is_better, getattr(moved, name), getattr(state, name))
        for name in ("weights", "primal", "gap", "objective")
    }
    stalled = jnp.where(moved.gap < _VAIN_GAP_SHARE * state.gap, 0, state.stalled + 1)
    return moved._replace(stalled=stalled, **kept)


def _state_at(program: ConvexProgram, weights: Array, fitted: Array) -> ProxNewtonState:
    fit = datafit_of(program).fit(fitted)
    correlations = correlations_of(program, fit.residual)
    found = duality.evaluate_fit(datafit_of(program), penalty_of(program), weights, fit, correlations)
    zero, failed = jnp.zeros((), jnp.int32), ~jnp.isfinite(found.primal)
    return ProxNewtonState(weights, found.primal, found.gap, found.primal, failed, weights, fitted, zero, zero)


def _supports(program: ConvexProgram) -> None:
    check_norm("newton", program)


# Registered as 'newton': it is Newton's method for these losses.
METHOD = Method(
    name="newton",
    init=init,
    steps=lambda _: (_newton_step, _first_order_step),
    supports=_supports,
    max_iter=200,
    steps_from_host=lambda _: True,
)
