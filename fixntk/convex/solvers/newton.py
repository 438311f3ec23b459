r"""Semismooth Newton on the dual augmented Lagrangian, after first-order steps on working sets (M8).

With A the dual variable, W the multiplier, Z_p = Xᵀ D_p A and U_p = W_p + σ Z_p, each outer step minimises

.. math:: φ(A) = ½\|A\|² − ⟨Y, A⟩ + \tfrac{1}{2σ} \sum_p (\|U_p\| − σλ)_+^2

by Newton steps with Armijo's rule, then W ← prox(U) and σ grows. The Newton system has the active groups alone,
gathered into the smallest of a few fixed sizes that holds them. It is solved, whichever takes fewest operations, by a
Cholesky factorisation of n·c rows (a masked Gram kernel), of as many rows as the active groups have features, or by
conjugate gradients. First-order steps in single precision go first, on working sets of the groups nearest to being
active, as long as these grow, or lower the gap by more than Newton would for the same cost.

Li, Sun and Toh (2018) for the lasso, Zhang, Zhang, Sun and Toh (2020) for the group lasso.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from fixntk._numerics import einsum
from fixntk.convex.penalties import group_norms, shares_kept
from fixntk.convex.program import ConvexProgram, Fit
from fixntk.convex.solvers import newton_system, working_sets
from fixntk.gram import masked_apply, select_masks

# A Newton step is expected to lower the logarithm of the gap by this much; first-order steps that do worse for their
# cost give way.
_NEWTON_PROGRESS = 0.28
# σ starts at this multiple of ‖W_p‖ / λ, which is what makes W_p and σ Z_p alike in size, at up to the second one where
# the start is good, with a gap of a few per cent of the objective or less, and grows by the third.
_FIRST_SIGMA, _LARGER_SIGMA, _GROWTH = 10.0, 300.0, 5.0
# The inner problem counts as solved where its gradient is shorter than so many times the multiplier's own step.
_LOOSENESS = 3.0
# Cosine of the angle between W_p and Z_p from which on they count as pointing the same way.
_ALIGNED = 0.98
# A step has served if it lowers the gap to this share.
_SERVED = 0.5
# Newton steps without a smaller gap after which rounding must be the reason: first-order steps bear it better.
_PATIENCE = 25
_LAST_STEPS = 500

# Phases, in the order of `PHASES`.
_NEWTON, _WORKING_SETS, _LAST = range(3)


class NewtonState(NamedTuple):
    """State of the semismooth Newton method.

    Attributes
    ----------
    weights
        (P, d, c) prox(U) to first order in the last step, where that has had the smallest gap since the first-order
        steps.
    primal, gap, objective, failed
        As for every method; the objective is the primal.
    multiplier
        (P, d, c) W of the augmented Lagrangian.
    theta, correlations
        (n, c) A and (P, d, c) Z.
    residual
        (n, c) that of prox(U).
    sigma
        σ.
    phase
        What the next step is: Newton, first-order steps on a working set, or on all groups as a last resort where
        rounding has stopped Newton.
    stalled
        Newton steps since the gap was last lowered.
    fresh
        Whether W has just changed, and A has not yet followed.
    """

    weights: Float[Array, "P d c"]
    primal: Float[Array, ""]
    gap: Float[Array, ""]
    objective: Float[Array, ""]
    failed: Bool[Array, ""]
    multiplier: Float[Array, "P d c"]
    theta: Float[Array, "n c"]
    residual: Float[Array, "n c"]
    correlations: Float[Array, "P d c"]
    sigma: Float[Array, ""]
    phase: Int[Array, ""]
    stalled: Int[Array, ""]
    fresh: Bool[Array, ""]


class _Prox(NamedTuple):
    """prox of U, group by group: U_p / ‖U_p‖, shares c_p kept, c_p U_p, and the derivative along U_p (1 if active).

    Across U_p the derivative is c_p. A ridge divides both by 1 + σα.
    """

    units: Float[Array, "P d c"]
    kept: Float[Array, " P"]
    weights: Float[Array, "P d c"]
    along: Float[Array, " P"]


class _Units(NamedTuple):
    """Of x and y: powers of two near their root mean squares, so that dividing by them does not round."""

    x: Float[Array, ""]
    y: Float[Array, ""]


def _units(program: ConvexProgram) -> _Units:
    def unit(array: Array) -> Array:
        largest = jnp.max(jnp.abs(array))
        largest = jnp.where(largest > 0, largest, 1.0)
        mean_square = jnp.mean((array / largest) ** 2)
        exponent = jnp.log2(largest) + 0.5 * jnp.log2(jnp.where(mean_square > 0, mean_square, 1.0))
        return jnp.ldexp(jnp.ones((), array.dtype), jnp.round(exponent).astype(jnp.int32))

    return _Units(unit(program.x), unit(program.targets))


def _rescaled(state: NewtonState, units: _Units) -> NewtonState:
    """A state found in units, in those of the program."""
    return state._replace(
        weights=state.weights * (units.y / units.x),
        primal=state.primal * units.y**2,
        gap=state.gap * units.y**2,
        objective=state.objective * units.y**2,
        multiplier=state.multiplier * (units.y / units.x),
        theta=state.theta * units.y,
        residual=state.residual * units.y,
        correlations=state.correlations * units.x * units.y,
        sigma=state.sigma / units.x**2,
    )


def init(program: ConvexProgram, weights: Array) -> NewtonState:
    """Start at rest from the given group weights; with a Newton step unless they are zero."""
    units = _units(program)
    return _rescaled(_init(program.in_units(*units), weights * (units.x / units.y)), units)


def step(program: ConvexProgram, state: NewtonState) -> NewtonState:
    """First-order steps as long as they are worth more than a Newton step, then Newton steps."""
    return lax.switch(state.phase, PHASES, program, state)


def refine(program: ConvexProgram, state: NewtonState) -> NewtonState:
    """A Newton step where most groups are active: on all of them, so that one size is compiled."""
    return _in_units(partial(_newton_step, buckets=[program.num_gates]), program, state)


def _on_active_groups(program: ConvexProgram, state: NewtonState) -> NewtonState:
    return _newton_step(program, state, working_sets.buckets(program.num_gates))


def _in_units(
    run: Callable[[ConvexProgram, NewtonState], NewtonState], program: ConvexProgram, state: NewtonState
) -> NewtonState:
    units = _units(program)
    scaled = _rescaled(state, _Units(1 / units.x, 1 / units.y))
    return _rescaled(run(program.in_units(*units), scaled), units)


def _init(program: ConvexProgram, weights: Array) -> NewtonState:
    """A is the residual, scaled to be dual feasible (M7), so that no group that is zero is taken for active at once."""
    point = program.point(weights)
    _, fit, correlations = point
    primal = program.primal_of(weights, fit)
    gap, scale = program.certificate(*point)
    norms = group_norms(weights)
    typical = jnp.sum(norms) / jnp.maximum(jnp.sum(norms > 0), 1)
    tiny = jnp.finfo(program.x.dtype).tiny
    largest = jnp.maximum(jnp.max(group_norms(correlations)), tiny)
    multiple = jnp.clip(10 * primal / jnp.maximum(gap, tiny), _FIRST_SIGMA, _LARGER_SIGMA)
    return NewtonState(
        weights=weights,
        primal=primal,
        gap=gap,
        objective=primal,
        failed=~jnp.isfinite(primal),
        multiplier=weights,
        theta=scale * fit.residual,
        residual=fit.residual,
        correlations=scale * correlations,
        sigma=jnp.where(typical > 0, multiple * typical / jnp.mean(program.thresholds), 1 / largest),
        phase=jnp.where(jnp.any(weights != 0), _NEWTON, _WORKING_SETS).astype(jnp.int32),
        stalled=jnp.zeros((), jnp.int32),
        fresh=jnp.ones((), bool),
    )


def _moved_to(program: ConvexProgram, state: NewtonState, weights: Array) -> NewtonState:
    """At rest at weights found in single precision, if that lowered the objective."""
    moved = _init(program, weights.astype(program.x.dtype))
    is_lower = moved.primal < state.primal
    return jax.tree.map(lambda new, old: jnp.where(is_lower, new, old), moved, state)


def _round(program: ConvexProgram, state: NewtonState) -> NewtonState:
    """A round on a working set.

    Another follows while the sets grow, or while the gap falls by enough for the cost; then Newton, which is fast near
    the solution and not bound to single precision.
    """
    weights, cost = working_sets.improved(program, state.weights, state.correlations, state.gap)
    moved = _moved_to(program, state, weights)
    were, are = group_norms(state.weights) > 0, group_norms(moved.weights) > 0
    progress = jnp.log(state.gap / jnp.maximum(moved.gap, jnp.finfo(program.x.dtype).tiny))
    grows = working_sets.size(program, are) > working_sets.size(program, were)
    newton_next = ~grows & (progress <= _NEWTON_PROGRESS * cost)
    return moved._replace(phase=jnp.where(newton_next, _NEWTON, _WORKING_SETS).astype(jnp.int32))


def _last_resort(program: ConvexProgram, state: NewtonState) -> NewtonState:
    """First-order steps on all groups, in the program's precision; the end where the gap is no smaller."""
    weights, _ = working_sets.first_order(program.with_numbers(), state.weights, 0.1 * state.gap, _LAST_STEPS)
    moved = _init(program, weights)._replace(phase=state.phase)
    better = moved.gap < state.gap
    kept = state._replace(failed=jnp.ones((), bool))
    return jax.tree.map(lambda new, old: jnp.where(better, new, old), moved, kept)


def _newton_step(program: ConvexProgram, state: NewtonState, buckets: list[int]) -> NewtonState:
    program = program.with_numbers()
    expected = jnp.where(state.fresh, _subgradients(program, state), state.correlations)
    shifted = state.multiplier + state.sigma * expected
    prox = _shrunk(program, shifted, state.sigma)

    def residual_ahead() -> Array:
        change = _moved_by(prox, state.sigma, state.correlations - expected)
        return program.fit(program.fitted(prox.weights + change)).residual

    slope = state.theta - lax.cond(state.fresh, residual_ahead, lambda: state.residual)
    direction = _direction(program, state.sigma, prox, slope, buckets)
    # Where I + σ K(c) is indefinite by rounding, a smaller σ makes it definite again.
    broken = ~jnp.all(jnp.isfinite(direction))
    direction = jnp.where(broken, 0.0, direction)
    along = program.correlations(direction)
    length = _step_length(program, state, slope, direction, along)

    theta = state.theta + length * direction
    correlations = state.correlations + length * along
    linear = prox.weights + _moved_by(prox, state.sigma, correlations - expected)
    were_active = prox.kept > 0
    prox = _shrunk(program, state.multiplier + state.sigma * correlations, state.sigma)
    # σ multiplies what A is away from the solution in prox(U), but not in what the step expected of it.
    linear = jnp.where((prox.kept > 0)[:, None, None], linear, 0.0)
    fit, ahead = _fits(program, prox.weights, linear)
    primal = program.primal_of(linear, ahead)
    gap = program.certificate(linear, ahead, program.correlations(ahead.residual)).gap

    # A gradient about as short as the multiplier's own step, or than rounding leaves it: the inner problem is solved as
    # well as it needs to be. Where rounding is what stops it, a smaller σ has less of it.
    moved = jnp.sqrt(jnp.sum((prox.weights - state.multiplier) ** 2)) / state.sigma
    rounding = _rounding(program) * state.sigma
    solved = jnp.sqrt(jnp.sum((theta - fit.residual) ** 2)) <= jnp.maximum(_LOOSENESS * moved, rounding)
    better = gap < state.gap
    # Where no group enters, the step was one of a proximal Newton method on W: if it served, the next may follow from
    # there without a nearer minimum of φ.
    served = (gap < _SERVED * state.gap) & jnp.all(were_active | (prox.kept == 0))
    multiplier = jnp.where(solved, prox.weights, jnp.where(served, linear, state.multiplier))
    solved = solved | served
    stalled = jnp.where(better, 0, state.stalled + 1)
    change = jnp.clip(moved / rounding, 1 / _GROWTH, _GROWTH)
    grown = jnp.where(
        solved & ~broken,
        jnp.minimum(change * state.sigma, newton_system.largest_sigma(program, prox.kept)),
        state.sigma,
    )
    return NewtonState(
        weights=jnp.where(better, linear, state.weights),
        primal=jnp.where(better, primal, state.primal),
        gap=jnp.where(better, gap, state.gap),
        objective=jnp.where(better, primal, state.objective),
        failed=state.failed,
        multiplier=multiplier,
        theta=theta,
        residual=fit.residual,
        correlations=correlations,
        sigma=jnp.where(broken, state.sigma / _GROWTH, grown),
        phase=jnp.where(stalled > _PATIENCE, _LAST, state.phase),
        stalled=stalled,
        fresh=solved | (broken & state.fresh),
    )


def _moved_by(prox: _Prox, sigma: Array, change: Array) -> Array:
    """What a change of Z moves prox by, to first order."""
    return sigma * newton_system.derivative(prox.kept, prox.along, prox.units, change)


def _fits(program: ConvexProgram, *weights: Array) -> list[Fit]:
    """Those of several weights, in one product with the masks."""
    fitted = masked_apply(program.masks, program.x, jnp.concatenate(weights, axis=2))
    return [program.fit(part) for part in jnp.split(fitted, len(weights), axis=1)]


def _subgradients(program: ConvexProgram, state: NewtonState) -> Array:
    """What Z would be if W were the solution: the penalty's gradient where W_p is not zero, Z where it is.

    Along Z_p instead of W_p where these point different ways, as for a group that has just entered: its direction is
    not known from W.
    """
    norms, duals = group_norms(state.multiplier), group_norms(state.correlations)
    ridge = 0.0 if program.ridge is None else program.ridge
    aligned = jnp.sum(state.multiplier * state.correlations, axis=(1, 2)) >= _ALIGNED * norms * duals
    towards = jnp.where(aligned[:, None, None], state.multiplier, state.correlations)
    lengths = jnp.where(aligned, norms, duals)
    factors = (program.thresholds + ridge * norms) / jnp.where(lengths > 0, lengths, 1.0)
    return jnp.where((norms > 0)[:, None, None], factors[:, None, None] * towards, state.correlations)


def _shrunk(program: ConvexProgram, shifted: Array, sigma: Array) -> _Prox:
    norms = group_norms(shifted)
    share = program.ridge_share(sigma)
    kept = share * shares_kept(norms, sigma * program.thresholds)
    units = shifted / jnp.where(norms > 0, norms, 1.0)[:, None, None]
    return _Prox(units, kept, kept[:, None, None] * shifted, jnp.where(kept > 0, share, 0.0))


def _rounding(program: ConvexProgram) -> Array:
    """How long rounding leaves ∇φ, as a multiple of σ: what W_p + σ Z_p, of size σλ, loses, times the norm of x."""
    return jnp.finfo(program.x.dtype).eps * jnp.mean(program.thresholds) * jnp.sqrt(jnp.sum(program.x**2))


def _step_length(program: ConvexProgram, state: NewtonState, slope: Array, direction: Array, along: Array) -> Array:
    """Armijo's rule by halving. φ along the direction needs inner products of groups alone, no product with masks."""
    sigma, threshold = state.sigma, state.sigma * program.thresholds
    shifted = state.multiplier + sigma * state.correlations
    share = program.ridge_share(sigma)
    quadratic = 0.5 * jnp.sum(direction**2)
    linear = jnp.sum((state.theta - program.targets) * direction)
    squares, mixed, steepness = (
        jnp.sum(one * two, axis=(1, 2)) for one, two in ((shifted, shifted), (shifted, along), (along, along))
    )

    def change(length: Array) -> Array:
        """φ(A + length·direction) − φ(A), group by group so that nothing large cancels."""
        before = jnp.sqrt(squares)
        after = jnp.sqrt(jnp.maximum(squares + 2 * length * sigma * mixed + (length * sigma) ** 2 * steepness, 0))
        over_before, over_after = jnp.maximum(before - threshold, 0), jnp.maximum(after - threshold, 0)
        hinge = share * jnp.sum((over_after - over_before) * (over_after + over_before)) / (2 * sigma)
        return length * linear + length**2 * quadratic + hinge

    expected = jnp.sum(slope * direction)
    # What rounding leaves of φ near its minimum must not stop the full step there.
    slack = 10 * jnp.finfo(program.x.dtype).eps * jnp.sum(program.targets**2)

    def too_long(length: Array) -> Array:
        return (change(length) > 1e-4 * length * expected + slack) & (length > 1e-6)

    return lax.while_loop(too_long, lambda length: 0.5 * length, jnp.ones((), program.x.dtype))


def _direction(program: ConvexProgram, sigma: Array, prox: _Prox, slope: Array, buckets: list[int]) -> Array:
    """−H⁻¹∇φ with H/σ = I/σ + K(c) + Σ_p s_p q_p q_pᵀ over the active groups, s_p = 1 − c_p (M8).

    With an intercept on what is orthogonal to its column, where A and ∇φ are.
    """
    active = prox.kept > 0
    count = jnp.sum(active)

    def solve(bucket: int) -> Array:
        chosen = jnp.nonzero(active, size=bucket, fill_value=0)[0]
        present = (jnp.arange(bucket) < count).astype(program.x.dtype)
        masks = present * select_masks(program.masks, chosen)
        kept, along, units = present * prox.kept[chosen], present * prox.along[chosen], prox.units[chosen]
        rays = einsum("nd,pdc->npc", program.x, units) * masks[:, :, None]
        groups = newton_system.Active(masks, kept, along, units, rays)
        return -newton_system.inverse(program, sigma, groups)(slope) / sigma

    return working_sets.in_bucket(count, buckets, solve)


# What a step is in each phase, in general and where most groups are active.
PHASES = tuple(partial(_in_units, run) for run in (_on_active_groups, _round, _last_resort))
REFINEMENT = (refine, refine, PHASES[_LAST])
