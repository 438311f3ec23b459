"""Vectors written as differences of two vectors in a cone of activation patterns, with the smallest norms.

See docs/mathematics.md, M10.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from fixntk._numerics import ConvergenceWarning, allow_float64, blas_threads_for, safe_sqrt, with_dtype
from fixntk.gates.masks import activation_masks
from fixntk.networks.cones import (
    Cones,
    armijo_length,
    barrier_values,
    cone_barrier,
    longest_step,
    make_cones,
    next_multipliers,
    next_weight,
    smooth_radius,
    with_ndim,
)

DECOMPOSITIONS = ("minimum_norm", "interior")


class Decomposition(NamedTuple):
    """Vectors w_p = positive_p − negative_p, both parts in the cone of gate p.

    Attributes
    ----------
    positive, negative
        (P, d) the two parts.
    gaps
        (P,) upper bounds on the excess of ‖positive‖ + ‖negative‖ over its minimum, absolute; ∞ if none is known.
    """

    positive: Float[Array, "P d"]
    negative: Float[Array, "P d"]
    gaps: Float[Array, " P"]


def decompose(x: Array, gates: Array, vectors: Array, *, method: str, tol: float, max_iter: int) -> Decomposition:
    """Write each of (P, d) vectors as a difference of two in the cone of its gate; see ``GatedReLUNetwork.to_relu``.

    Computes in float64 and returns the dtype of ``vectors``.

    See docs/mathematics.md, M10.
    """
    if method not in DECOMPOSITIONS:
        raise ValueError(f"method must be one of {', '.join(DECOMPOSITIONS)}, got {method!r}")
    dtype, masks = vectors.dtype, activation_masks(x, gates)
    with allow_float64(), blas_threads_for(x.shape[1]):
        x, gates, vectors = with_dtype((x, gates, vectors), jnp.float64)
        parts = _decompose(make_cones(x, gates, masks), vectors, method, tol, max_iter)
    return with_dtype(parts, dtype)


def _decompose(cones: Cones, vectors: Array, method: str, tol: float, max_iter: int) -> Decomposition:
    if method == "interior":
        return _shift_into_cones(cones, vectors)
    lengths = safe_sqrt(jnp.sum(vectors**2, axis=1, keepdims=True))
    # The problem is homogeneous: solve it for unit vectors, so that the tolerance is relative.
    units = vectors / jnp.where(lengths > 0, lengths, 1.0)
    best, iterations = _minimize_norms(cones, units, tol, max_iter)
    num_unfinished = int(jnp.sum(best.gaps > tol))
    if num_unfinished:
        warnings.warn(
            f"{num_unfinished} of {vectors.shape[0]} decompositions are up to {float(jnp.max(best.gaps)):.1e} of ‖w‖ "
            f"above the minimum after {int(iterations)} iterations, tol={tol:.1e}: raise max_iter or tol",
            ConvergenceWarning,
            stacklevel=4,
        )
    return Decomposition(lengths * best.positive, lengths * best.negative, lengths[:, 0] * best.gaps)


@jax.jit
def _shift_into_cones(cones: Cones, vectors: Array) -> Decomposition:
    """The shorter of the closed forms w = (w + t h) − t h and w = t h − (t h − w)."""
    # The second form is the first one for −w, with the two parts exchanged.
    both = jnp.stack([vectors, -vectors])
    shifts = cones.shift(both)[..., None] * with_ndim(cones.directions, 3)
    sizes = _norms(both + shifts) + _norms(shifts)
    is_first = (sizes[0] <= sizes[1])[:, None]
    positive = jnp.where(is_first, vectors + shifts[0], shifts[1])
    # Only a zero vector needs no shift in either form, and is then decomposed exactly.
    gaps = jnp.where(jnp.all(shifts == 0, axis=(0, 2)), 0.0, jnp.inf)
    return Decomposition(positive, jnp.where(is_first, shifts[0], shifts[1] - vectors), gaps)


class _PathState(NamedTuple):
    """Position of Newton's method on the central path, and the shortest decomposition found."""

    iterations: Int[Array, ""]
    negative: Float[Array, "P d"]
    weight: Float[Array, " P"]
    best: Decomposition


@jax.jit
def _minimize_norms(
    cones: Cones, units: Array, tol: ArrayLike, max_iter: ArrayLike
) -> tuple[Decomposition, Int[Array, ""]]:
    """Minimise ‖w + u‖ + ‖u‖ subject to both vectors in the cone, for all gates at once, each with its own steps.

    Newton's method on the sum of two barriers, at u and at w + u, along the central path.
    """
    best = _shift_into_cones(cones, units)
    # Strictly inside both cones, and not close to their boundaries.
    shift = jnp.max(cones.shift(jnp.stack([units, jnp.zeros_like(units)])), axis=0)
    start = (1.5 * shift + 0.1)[:, None] * cones.directions
    # Begin where the central path's duality gap, num_terms / t, is about the objective of the starting pair.
    weight = cones.num_terms / (1 + 2 * _norms(start))

    def pair_of(negative: Array) -> Array:
        return jnp.stack([negative + units, negative])

    def is_unfinished(state: _PathState) -> Array:
        return (state.iterations < max_iter) & jnp.any(state.best.gaps > tol)

    def step(state: _PathState) -> _PathState:
        pair, weight = pair_of(state.negative), state.weight
        barrier = cone_barrier(cones, pair, 1.0, weight)
        # Both parts move with u, so their derivatives add up.
        gradient, hessian = jnp.sum(barrier.gradient, axis=0), jnp.sum(barrier.hessian, axis=0)
        direction = -jnp.linalg.solve(hessian, gradient[..., None])[..., 0]
        pair_direction = jnp.stack([direction, direction])
        slope = jnp.sum(gradient * direction, axis=1)

        # Each gate has its own step length: its largest step inside both cones, shortened by Armijo's rule.
        def value(length: Array) -> Array:
            moved = pair_of(state.negative + length[:, None] * direction)
            return jnp.sum(barrier_values(cones, moved, 1.0, weight), axis=0)

        longest = jnp.min(longest_step(cones, pair, pair_direction), axis=0)
        length = armijo_length(value, jnp.sum(barrier.value, axis=0), slope, longest)
        negative = state.negative + length[:, None] * direction
        multipliers = next_multipliers(cones, barrier, pair_direction, weight)
        found = _certify(cones, units, pair_of(negative), multipliers, weight)
        return _PathState(
            state.iterations + 1, negative, next_weight(weight, slope), _select_shorter(state.best, found)
        )

    end = lax.while_loop(is_unfinished, step, _PathState(jnp.asarray(0), start, weight, best))
    return end.best, end.iterations


def _select_shorter(old: Decomposition, new: Decomposition) -> Decomposition:
    """The shorter of two decompositions of each vector, with the better of their two lower bounds."""
    # Lower bounds hold for every decomposition, so the larger one is kept; fmax ignores the NaN of a failed step.
    lower = jnp.fmax(_sizes(new) - new.gaps, _sizes(old) - old.gaps)
    is_shorter = (_sizes(new) < _sizes(old))[:, None]
    positive, negative = (jnp.where(is_shorter, *parts) for parts in zip(new[:2], old[:2], strict=True))
    selected = Decomposition(positive, negative, old.gaps)
    return selected._replace(gaps=jnp.maximum(_sizes(selected) - lower, 0))


def _certify(cones: Cones, units: Array, pair: Array, multipliers: Array, weight: Array) -> Decomposition:
    """A pair inside the cones as a decomposition, with a gap from the dual.

    For ‖α‖ ≤ 1, μ, ν ≥ 0 with ‖Gᵀ(μ + ν) − α‖ ≤ 1, and a = w + u, b = u: ‖a‖ + ‖b‖ ≥ ⟨α − Gᵀμ, w⟩.
    """
    # The smoothed norm's gradient has length below 1.
    alpha = pair[0] / smooth_radius(pair[0], 1.0, weight)[0][:, None]
    first, second = cones.adjoint(multipliers)
    # Divide α, μ and ν by one number that makes them feasible.
    scale = jnp.maximum(1.0, _norms(first + second - alpha))
    lower = jnp.sum((alpha - first) * units, axis=1) / scale
    return Decomposition(pair[0], pair[1], _norms(pair[0]) + _norms(pair[1]) - lower)


def _sizes(parts: Decomposition) -> Array:
    return _norms(parts.positive) + _norms(parts.negative)


def _norms(vectors: Array) -> Array:
    return jnp.linalg.norm(vectors, axis=-1)
