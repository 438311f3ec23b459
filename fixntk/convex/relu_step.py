r"""One Newton step along the central path of the ReLU network's convex program.

See docs/mathematics.md, M10.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float

from fixntk._compilation import jit_for_host
from fixntk._numerics import einsum, eps_of, matmul
from fixntk.convex.duality import sparsest
from fixntk.convex.program import (
    ConvexProgram,
    correlations_of,
    datafit_of,
    masked_outputs,
    targets_of,
    thresholds_of,
)
from fixntk.networks.cones import (
    Cones,
    armijo_length,
    barrier_values,
    cone_barrier,
    longest_step,
    next_multipliers,
    next_weight,
)

# Multiples of the barrier's cost below which a group's penalty is tried as zero.
_ZERO_MULTIPLES = (0.0, 1.0, 10.0, 1e2, 1e3)
# Start: length of the vectors as a share of the one at which the penalty alone costs the barrier's terms.
_START_SHARE = 0.5
# Multiple of the dtype's resolution, relative to a Hessian's largest entry, that is added to its diagonal.
_JITTER_MULTIPLE = 4.0


class CertifiedPair(NamedTuple):
    """Vectors in the cones with their certificate."""

    pair: Float[Array, "2 P d"]
    intercept: Float[Array, " 1"]
    primal: Float[Array, ""]
    gap: Float[Array, ""]


class CentralPoint(NamedTuple):
    """A point inside of the cones, and the weight t of the objective against the barrier."""

    pair: Float[Array, "2 P d"]
    weight: Float[Array, ""]


@jit_for_host
def start(program: ConvexProgram, cones: Cones) -> CentralPoint:
    """Well inside of the cones, where their barrier and the norms balance."""
    terms = jnp.asarray(cones.num_terms, program.x.dtype)
    at_zero = program.primal_at_zero()
    # At this weight the barriers of all groups, terms / t for each, cost as much as the objective of zero.
    weight = program.num_gates * terms / jnp.where(at_zero > 0, at_zero, 1.0)
    lengths = _START_SHARE * terms / (jnp.broadcast_to(thresholds_of(program), (program.num_gates,)) * weight)
    return CentralPoint(jnp.stack(2 * [lengths[:, None] * cones.directions]), weight)


@jit_for_host
def step(
    program: ConvexProgram, cones: Cones, state: CentralPoint, best: CertifiedPair, enough: ArrayLike
) -> tuple[CentralPoint, CertifiedPair]:
    """A Newton step on F_t, its certificate, and a larger t where the step was short.

    Linearise: ∇F = ∇B − (±Xᵀ D_p R) and ∇²F = ∇²B + AᵀA, with the outputs A(v − u) and their residual R. Find the
    direction −(∇²F)⁻¹ ∇F, its length, and keep the better of the new certificate and the best one so far.
    """
    pair, weight = state
    barrier = cone_barrier(cones, pair, thresholds_of(program), weight)
    fit = datafit_of(program).fit(_outputs(program, pair))
    # The residual is minus the loss's gradient in the outputs.
    gradient = barrier.gradient - _signed_correlations(program, fit.residual)
    direction = _direction(program, barrier.hessian, gradient)
    slope = jnp.sum(gradient * direction)
    before = fit.loss + jnp.sum(barrier.value)
    pair = pair + _step_length(program, cones, state, direction, before, slope) * direction
    # The multipliers are those of the old point, moved to first order along the step.
    prices = next_multipliers(cones, barrier, direction, weight)
    found = _without_small_groups(program, cones, pair, prices, weight, enough)
    best = jax.tree.map(lambda new, old: jnp.where(found.gap < best.gap, new, old), found, best)
    return CentralPoint(pair, next_weight(weight, slope)), best


def _step_length(
    program: ConvexProgram, cones: Cones, state: CentralPoint, direction: Array, before: Array, slope: Array
) -> Float[Array, ""]:
    """Backtracking from near the cones' boundary by Armijo's rule, F(pair + s δ) ≤ F(pair) + 0.1 s ⟨∇F, δ⟩."""
    pair, weight = state

    def value(length: Array) -> Array:
        moved = pair + length * direction
        loss = datafit_of(program).fit(_outputs(program, moved)).loss
        return loss + jnp.sum(barrier_values(cones, moved, thresholds_of(program), weight))

    return armijo_length(value, before, slope, jnp.min(longest_step(cones, pair, direction)))


def _without_small_groups(
    program: ConvexProgram, cones: Cones, pair: Array, prices: Array, weight: Array, enough: ArrayLike
) -> CertifiedPair:
    """The pair without groups of a small penalty compared with their barrier's cost, as far as the gap allows."""
    penalties = thresholds_of(program) * jnp.linalg.norm(pair, axis=2)

    def without(multiple: Array) -> CertifiedPair:
        small = penalties <= multiple * cones.num_terms / weight
        return certify(program, cones, jnp.where(small[..., None], 0.0, pair), prices)

    multiples = jnp.asarray(_ZERO_MULTIPLES, program.x.dtype)
    return sparsest(without, multiples, lambda candidates: candidates.gap, enough)


def _direction(program: ConvexProgram, hessian: Array, gradient: Array) -> Float[Array, "2 P d"]:
    """−(H + AᵀA)⁻¹ g with the groups' (2, P, d, d) own matrices H and the outputs A, by Woodbury's formula.

        (H + AᵀA)⁻¹ = H⁻¹ − H⁻¹Aᵀ (I + A H⁻¹ Aᵀ)⁻¹ A H⁻¹

    Near a cone's boundary the condition numbers of H reach the inverse of the dtype's resolution: the direction is
    refined once, by solving for its residual.
    """
    factors = _block_factors(hessian)
    kernel = _output_kernel(program, factors) + jnp.eye(program.x.shape[0], dtype=program.x.dtype)
    kernel_factor = (jnp.linalg.cholesky(kernel), True)

    def apply_inverse(right: Array) -> Array:
        return _solve_lower(factors, _solve_lower(factors, right[..., None]), transposed=True)[..., 0]

    def solve(right: Array) -> Array:
        start = apply_inverse(right)
        outputs = jsl.cho_solve(kernel_factor, datafit_of(program).remove_intercept(_outputs(program, start)))
        return start - apply_inverse(_signed_correlations(program, datafit_of(program).remove_intercept(outputs)))

    def apply(direction: Array) -> Array:
        own = einsum("spde,spe->spd", hessian, direction)
        return own + _signed_correlations(program, datafit_of(program).remove_intercept(_outputs(program, direction)))

    direction = -solve(gradient)
    return direction - solve(gradient + apply(direction))


def _block_factors(hessian: Array) -> Float[Array, "2 P d d"]:
    """Cholesky factors of the groups' matrices."""
    largest = jnp.max(jnp.abs(hessian), axis=(2, 3), keepdims=True)
    jitter = _JITTER_MULTIPLE * eps_of(hessian) * largest
    return jnp.linalg.cholesky(hessian + jitter * jnp.eye(hessian.shape[2], dtype=hessian.dtype)[None, None])


def bytes_needed(program: ConvexProgram) -> int:
    """Estimate of the memory that a step takes, from shapes."""
    num_rows, num_features = program.x.shape
    # The features of :func:`_output_kernel` in two orders of their axes; the values and multipliers of the cones.
    features = 2 * num_rows * num_features * program.num_gates
    cones = 2 * num_rows * program.num_gates
    return (2 * features + 4 * cones + 2 * num_rows**2) * program.x.dtype.itemsize


def _output_kernel(program: ConvexProgram, factors: Array) -> Float[Array, "n n"]:
    """A H⁻¹ Aᵀ = Σ_p D_p X H_p⁻¹ Xᵀ D_p, the product of features L_p⁻¹ Xᵀ D_p with themselves."""
    # The outputs of v and of u have opposite signs, which cancel where the features are multiplied with themselves.
    rows = jnp.broadcast_to(program.x.T, (*factors.shape[:2], *program.x.T.shape))
    masks = program.masks.astype(factors.dtype)
    features = _solve_lower(factors, rows).swapaxes(1, 3) * masks[None, :, None, :]  # (2, n, d, P)
    features = datafit_of(program).remove_intercept(jnp.moveaxis(features, 1, 0).reshape(program.x.shape[0], -1))
    return matmul(features, features.T)


def _solve_lower(lower: Array, right: Array, *, transposed: bool = False) -> Array:
    """L⁻¹ or L⁻ᵀ times columns, for each of the leading axes."""
    return lax.linalg.triangular_solve(lower, right, left_side=True, lower=True, transpose_a=transposed)


@jit_for_host
def certify(program: ConvexProgram, cones: Cones, pair: Array, prices: Array) -> CertifiedPair:
    """Primal and gap of a pair in the cones, with multipliers μ of the cones.

    The dual point is sR with s = min(1, min_p λτ_p / ‖±Xᵀ D_p R + Gᵀμ‖). The gap is the sum of the Fenchel–Young
    divergences of the loss and of penalty − s⟨±Xᵀ D_p R, (v, u)⟩.
    """
    fit = datafit_of(program).fit(_outputs(program, pair))
    correlations = _signed_correlations(program, fit.residual)
    thresholds = thresholds_of(program)
    norms = jnp.linalg.norm(pair, axis=2)
    bounds = jnp.linalg.norm(correlations + cones.adjoint(prices), axis=2)
    scale = 1 / jnp.maximum(1.0, jnp.max(bounds / thresholds))
    divergence = jnp.sum(program.loss.divergences(fit.outputs, targets_of(program), scale))
    penalty = jnp.sum(thresholds * norms)
    # Rounding can leave a sum of non-negative terms a little below zero, and an overflow makes NaN.
    gap = divergence + (penalty - scale * jnp.sum(correlations * pair))
    gap = jnp.where(jnp.isfinite(gap), jnp.maximum(gap, 0), jnp.inf)
    return CertifiedPair(pair, fit.intercept, fit.loss + penalty, gap)


def _outputs(program: ConvexProgram, pair: Array) -> Float[Array, "n 1"]:
    """Σ_p D_p X (v_p − u_p), without the intercept."""
    return masked_outputs(program, (pair[0] - pair[1])[:, :, None])


def _signed_correlations(program: ConvexProgram, residual: Array) -> Float[Array, "2 P d"]:
    """Xᵀ D_p R for v and its negative for u."""
    correlations = correlations_of(program, residual)[:, :, 0]
    return jnp.stack([correlations, -correlations])
