r"""One semismooth Newton step on the dual augmented Lagrangian φ.

.. math:: φ(Θ) = ½\|Θ\|² − ⟨Y, Θ⟩ + \tfrac{1}{2σ} \sum_p (\|U_p\| − σλ)_+^2,
    \qquad U_p = W_p + σ Z_p, \quad Z_p = X^⊤ D_p Θ.

Groups with ‖U_p‖ > σλ are active. With c_p = 1 − σλ/‖U_p‖, s_p = 1 − c_p on them and zero elsewhere,

.. math:: ∇φ = Θ − Y + \sum_p D_p X (c_p U_p), \qquad
    H = I + σ \bigl[K(c) + \sum_p s_p q_p q_p^⊤\bigr], \quad q_p = D_p X U_p / \|U_p\|.

A step linearises ∇φ, solves for the direction −H⁻¹∇φ, and follows it: it searches along it, and accepts what lowers
the gap.

See docs/mathematics.md, M8.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from fixntk._line_search import search_by_armijo
from fixntk._numerics import einsum, eps_of
from fixntk.convex import duality
from fixntk.convex.datafit import Fit
from fixntk.convex.penalties import group_norms, shares_kept
from fixntk.convex.program import (
    ConvexProgram,
    correlations_of,
    datafit_of,
    masked_outputs,
    penalty_of,
    targets_of,
    thresholds_of,
)
from fixntk.convex.solvers import newton_system
from fixntk.gram import masked_apply, select_masks

# σ grows, or shrinks, by at most this factor from one outer step to the next.
_MAX_SIGMA_GROWTH = 5.0
# The inner problem counts as solved where its gradient is shorter than this multiple of the multiplier's own step.
_INNER_LOOSENESS = 3.0
# Cosine of the angle between W_p and Z_p from which on they count as pointing the same way.
_ALIGNED_COSINE = 0.98
# Accept the step as the new multiplier if the gap falls below this fraction of its value before.
_ACCEPTED_GAP_SHARE = 0.5
# Share of the decrease expected from the slope that a step has to reach (Armijo's constant).
_ARMIJO_SHARE = 1e-4
# Largest number of halvings of a step.
_MAX_HALVINGS = 20


class NewtonState(NamedTuple):
    """State of the semismooth Newton method.

    Attributes
    ----------
    weights
        (P, d, c) the iterate of smallest gap since the first-order steps: prox(U) to first order in a step.
    primal, gap, objective, failed
        As for every method; the objective is the primal.
    multiplier
        (P, d, c) W of the augmented Lagrangian.
    theta, correlations
        (n, c) Θ and (P, d, c) Z.
    residual
        (n, c) that of prox(U).
    sigma
        σ.
    stalled
        Newton steps since the gap was last lowered.
    is_multiplier_new
        The multiplier was updated; the dual variable is not yet re-optimised.
    next_step
        Index of the next step in the schedule.
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
    stalled: Int[Array, ""]
    is_multiplier_new: Bool[Array, ""]
    next_step: Int[Array, ""]


class Prox(NamedTuple):
    """prox of U for σ times the penalty, group by group, and its derivative.

    Attributes
    ----------
    units
        (P, d, c) u_p = U_p / ‖U_p‖.
    kept
        (P,) c_p, the share of U_p that is kept, which is also the derivative across U_p.
    weights
        (P, d, c) c_p U_p.
    along
        (P,) the derivative along U_p: 1 where the group is active, divided by 1 + σα with a ridge.
    """

    units: Float[Array, "P d c"]
    kept: Float[Array, " P"]
    weights: Float[Array, "P d c"]
    along: Float[Array, " P"]


class Linearisation(NamedTuple):
    """φ's gradient around the correlations that are expected at the solution.

    Attributes
    ----------
    expected
        (P, d, c) Z°: Z itself, or the penalty's gradient at a new multiplier.
    prox
        At U° = W + σ Z°.
    gradient
        (n, c) ∇φ(Θ) = Θ − Y + Σ_p D_p X prox(U)_p, with prox linearised around U°.
    """

    expected: Float[Array, "P d c"]
    prox: Prox
    gradient: Float[Array, "n c"]


class Trial(NamedTuple):
    """Where a step leads.

    Attributes
    ----------
    theta, correlations
        The new Θ and Z.
    prox
        At the new U.
    residual
        (n, c) that of prox(U).
    weights, primal, gap
        prox(U) to first order around U°, as the step predicted it, and its certificate.
    """

    theta: Float[Array, "n c"]
    correlations: Float[Array, "P d c"]
    prox: Prox
    residual: Float[Array, "n c"]
    weights: Float[Array, "P d c"]
    primal: Float[Array, ""]
    gap: Float[Array, ""]


def linearise(program: ConvexProgram, state: NewtonState) -> Linearisation:
    """∇φ with prox(U) ≈ prox(U°) + σ ∂prox(U°)(Z − Z°)."""
    expected = _expected_correlations(program, state)
    prox = shrink(program, state.multiplier + state.sigma * expected, state.sigma)

    def residual_ahead() -> Array:
        change = _change_of_prox(prox, state.sigma, state.correlations - expected)
        return datafit_of(program).fit(masked_outputs(program, prox.weights + change)).residual

    # Where Z° = Z, the residual of prox(U) is known from the step before.
    residual = lax.cond(state.is_multiplier_new, residual_ahead, lambda: state.residual)
    return Linearisation(expected, prox, state.theta - residual)


def _expected_correlations(program: ConvexProgram, state: NewtonState) -> Array:
    """Z°: Z, or what Z would be if a new multiplier W were the solution.

    That is the penalty's gradient λτ_p W_p/‖W_p‖ + αW_p where W_p is not zero, and Z where it is. Along Z_p instead of
    W_p where these point different ways, as for a group that has just entered: its direction is not known from W.
    """
    norms, duals = group_norms(state.multiplier), group_norms(state.correlations)
    ridge = 0.0 if program.ridge is None else program.ridge
    alignments = jnp.sum(state.multiplier * state.correlations, axis=(1, 2))
    is_aligned = alignments >= _ALIGNED_COSINE * norms * duals
    towards = jnp.where(is_aligned[:, None, None], state.multiplier, state.correlations)
    lengths = jnp.where(is_aligned, norms, duals)
    factors = (thresholds_of(program) + ridge * norms) / jnp.where(lengths > 0, lengths, 1.0)
    is_gradient = state.is_multiplier_new & (norms > 0)
    return jnp.where(is_gradient[:, None, None], factors[:, None, None] * towards, state.correlations)


def num_active(program: ConvexProgram, state: NewtonState) -> Int[Array, ""]:
    """Number of active groups of the next Newton step, those with ‖W_p + σ Z°_p‖ > σλτ_p."""
    shifted = state.multiplier + state.sigma * _expected_correlations(program, state)
    return jnp.sum(group_norms(shifted) > state.sigma * thresholds_of(program))


def shrink(program: ConvexProgram, shifted: Array, sigma: Array) -> Prox:
    """Prox of U: c_p U_p with c_p = (1 − σλτ_p/‖U_p‖)₊ / (1 + σα)."""
    norms = group_norms(shifted)
    share = penalty_of(program).ridge_share(sigma)
    kept = share * shares_kept(norms, sigma * thresholds_of(program))
    units = shifted / jnp.where(norms > 0, norms, 1.0)[:, None, None]
    return Prox(units, kept, kept[:, None, None] * shifted, jnp.where(kept > 0, share, 0.0))


def _change_of_prox(prox: Prox, sigma: Array, change: Array) -> Array:
    """σ ∂prox(U) ΔZ: the change of prox(U) to first order."""
    return sigma * newton_system.derivative(prox.kept, prox.along, prox.units, change)


def find_direction(program: ConvexProgram, sigma: Array, prox: Prox, gradient: Array, *, size: int) -> Array:
    """−H⁻¹∇φ with H/σ = I/σ + K(c) + Σ_p s_p q_p q_pᵀ over the active groups, at most ``size``, and s_p = 1 − c_p.

    With an intercept, on the subspace orthogonal to its column, where Θ and ∇φ lie.
    """
    kept, chosen = lax.top_k(prox.kept, size)
    # Places that are left over hold groups that are not active, with masks of zeros.
    masks = select_masks(program.masks, chosen) * (kept > 0).astype(kept.dtype)[None, :]
    units = prox.units[chosen]
    active = newton_system.Active(
        masks=masks,
        kept=kept,
        along=prox.along[chosen],
        units=units,
        rays=einsum("nd,pdc->npc", program.x, units) * masks[:, :, None],
    )
    invert = newton_system.cheapest_solver(program, size)
    return -invert(program, sigma, active)(gradient) / sigma


def follow(program: ConvexProgram, state: NewtonState, model: Linearisation, direction: Array) -> NewtonState:
    """Search along a direction, and accept what lowers the gap."""
    # Where I + σ K(c) is indefinite by rounding the direction is not finite: a smaller σ makes it definite again.
    is_broken = ~jnp.all(jnp.isfinite(direction))
    direction = jnp.where(is_broken, 0.0, direction)
    direction_correlations = correlations_of(program, direction)
    length = _step_length(program, state, model.gradient, direction, direction_correlations)
    trial = _move(program, state, model, length * direction, length * direction_correlations)
    return _accept(program, state, model, trial, is_broken)


def _step_length(
    program: ConvexProgram, state: NewtonState, gradient: Array, direction: Array, direction_correlations: Array
) -> Array:
    """Armijo's rule by halving: φ(Θ + tV) ≤ φ(Θ) + 10⁻⁴ t ⟨∇φ, V⟩.

    φ along the direction needs inner products of groups alone, no product with the masks.
    """
    sigma, threshold, ahead = state.sigma, state.sigma * thresholds_of(program), direction_correlations
    shifted = state.multiplier + sigma * state.correlations
    share = penalty_of(program).ridge_share(sigma)
    quadratic = 0.5 * jnp.sum(direction**2)
    linear = jnp.sum((state.theta - targets_of(program)) * direction)
    # ‖U_p + tσ V_p‖² = ‖U_p‖² + 2tσ ⟨U_p, V_p⟩ + t²σ² ‖V_p‖² with V_p = Xᵀ D_p V.
    squares, mixed, steepness = (
        jnp.sum(one * two, axis=(1, 2)) for one, two in ((shifted, shifted), (shifted, ahead), (ahead, ahead))
    )

    def change(length: Array) -> Array:
        """φ(Θ + length·direction) − φ(Θ), group by group so that nothing large cancels."""
        before = jnp.sqrt(squares)
        after = jnp.sqrt(jnp.maximum(squares + 2 * length * sigma * mixed + (length * sigma) ** 2 * steepness, 0))
        over_before, over_after = jnp.maximum(before - threshold, 0), jnp.maximum(after - threshold, 0)
        hinge = share * jnp.sum((over_after - over_before) * (over_after + over_before)) / (2 * sigma)
        return length * linear + length**2 * quadratic + hinge

    search = search_by_armijo(
        change,
        jnp.sum(gradient * direction),
        jnp.ones((), program.x.dtype),
        share=_ARMIJO_SHARE,
        slack=10 * eps_of(program.x) * jnp.sum(targets_of(program) ** 2),
        max_halvings=_MAX_HALVINGS,
    )
    return search.length


def _move(
    program: ConvexProgram, state: NewtonState, model: Linearisation, change: Array, correlations_change: Array
) -> Trial:
    """The new prox(U) after a change of Θ, and its prediction by the linearisation."""
    correlations = state.correlations + correlations_change
    prox = shrink(program, state.multiplier + state.sigma * correlations, state.sigma)
    # σ multiplies the distance of Θ from the solution in prox(U), but not in its linearisation.
    linear = model.prox.weights + _change_of_prox(model.prox, state.sigma, correlations - model.expected)
    linear = jnp.where((prox.kept > 0)[:, None, None], linear, 0.0)
    fit, ahead = _fits(program, prox.weights, linear)
    ahead_correlations = correlations_of(program, ahead.residual)
    found = duality.evaluate_fit(datafit_of(program), penalty_of(program), linear, ahead, ahead_correlations)
    return Trial(state.theta + change, correlations, prox, fit.residual, linear, found.primal, found.gap)


def _fits(program: ConvexProgram, *weights: Array) -> list[Fit]:
    """The fits of several weights, in one product with the masks."""
    fitted = masked_apply(program.masks, program.x, jnp.concatenate(weights, axis=2))
    return [datafit_of(program).fit(part) for part in jnp.split(fitted, len(weights), axis=1)]


def _accept(
    program: ConvexProgram, state: NewtonState, model: Linearisation, trial: Trial, is_broken: Array
) -> NewtonState:
    """The state after a step: the iterate if its gap is smaller, and the multiplier and σ if φ is minimised."""
    # A gradient about as short as the multiplier's own step, or than rounding leaves it: the inner problem is solved as
    # well as it needs to be.
    own_step = jnp.sqrt(jnp.sum((trial.prox.weights - state.multiplier) ** 2)) / state.sigma
    rounding = _gradient_rounding(program) * state.sigma
    gradient_norm = jnp.sqrt(jnp.sum((trial.theta - trial.residual) ** 2))
    is_minimised = gradient_norm <= jnp.maximum(_INNER_LOOSENESS * own_step, rounding)
    # Where no group enters, the step was one of a proximal Newton method on W: if it lowered the gap well, the next may
    # follow from there without a nearer minimum of φ.
    nothing_enters = jnp.all((model.prox.kept > 0) | (trial.prox.kept == 0))
    is_proximal = (trial.gap < _ACCEPTED_GAP_SHARE * state.gap) & nothing_enters
    multiplier = jnp.where(is_minimised, trial.prox.weights, jnp.where(is_proximal, trial.weights, state.multiplier))
    is_new = is_minimised | is_proximal

    # σ ← σ · clip(‖W⁺ − W‖/σ / rounding error of ∇φ), as a smaller σ has less rounding error.
    growth = jnp.clip(own_step / rounding, 1 / _MAX_SIGMA_GROWTH, _MAX_SIGMA_GROWTH)
    largest = newton_system.largest_sigma(program, trial.prox.kept)
    sigma = jnp.where(is_new & ~is_broken, jnp.minimum(growth * state.sigma, largest), state.sigma)
    is_better = trial.gap < state.gap
    return NewtonState(
        weights=jnp.where(is_better, trial.weights, state.weights),
        primal=jnp.where(is_better, trial.primal, state.primal),
        gap=jnp.where(is_better, trial.gap, state.gap),
        objective=jnp.where(is_better, trial.primal, state.objective),
        failed=state.failed,
        multiplier=multiplier,
        theta=trial.theta,
        residual=trial.residual,
        correlations=trial.correlations,
        sigma=jnp.where(is_broken, state.sigma / _MAX_SIGMA_GROWTH, sigma),
        stalled=jnp.where(is_better, 0, state.stalled + 1),
        is_multiplier_new=is_new | (is_broken & state.is_multiplier_new),
        next_step=state.next_step,
    )


def _gradient_rounding(program: ConvexProgram) -> Array:
    """The length that rounding leaves of ∇φ, divided by σ: W_p + σ Z_p, of size σλ, is rounded, times the norm of x."""
    return eps_of(program.x) * jnp.mean(thresholds_of(program)) * jnp.sqrt(jnp.sum(program.x**2))
