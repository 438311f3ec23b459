r"""The cones of a ReLU network's activation patterns, and differences of their vectors (M10).

On data X the neurons with gate g have the pattern of D = diag(1{Xg ≥ 0}) exactly for hidden weights in the cone
:math:`C = \{u : (2D − I) X u ≥ 0\}`. Programs over them are solved along their central path, whose points are inside.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float

from fixntk._numerics import float64_allowed, matmul, safe_sqrt, with_dtype
from fixntk._warnings import ConvergenceWarning
from fixntk.gates.masks import activation_masks

DECOMPOSITIONS = ("minimum_norm", "interior")

# Steps to find a direction far inside of each cone.
_MARGIN_STEPS = 500
# How the barrier's weight grows, and from which Newton decrement on.
_GROWTH, _CENTRED = 20.0, 0.5
# A Newton step goes at most this share of the way to a cone's boundary, and is halved at most so many times.
_TO_BOUNDARY, _HALVINGS = 0.95, 30


class Cones(NamedTuple):
    """Cones {u : s_ip x_i·u ≥ 0 for all i}, one for each gate.

    Attributes
    ----------
    rows
        (n, d) rows of X with one length, zero rows zero; a spectral norm of 1.
    signs
        (n, P) s = 2M − 1.
    directions
        (P, d) a unit vector well inside of each cone.
    margins
        (n, P) s_ip x_i·h_p for it; ∞ for zero rows.
    """

    rows: Float[Array, "n d"]
    signs: Float[Array, "n P"]
    directions: Float[Array, "P d"]
    margins: Float[Array, "n P"]

    @property
    def ignored(self) -> Bool[Array, "n 1"]:
        """Zero rows, which bound nothing."""
        return jnp.all(self.rows == 0, axis=1)[:, None]

    @property
    def num_terms(self) -> int:
        """What the barrier of a pair of vectors costs at the most, times its weight."""
        return 2 * (self.rows.shape[0] + 2)

    def apply(self, vectors: Array) -> Float[Array, "... n P"]:
        """G_p u_p of (..., P, d) vectors."""
        return self.signs * matmul(self.rows, vectors.swapaxes(-1, -2))

    def adjoint(self, values: Array) -> Float[Array, "... P d"]:
        """Σ_i s_ip x_i a_ip of (..., n, P) values."""
        return matmul((self.signs * values).swapaxes(-1, -2), self.rows)

    def shift(self, vectors: Array) -> Float[Array, "... P"]:
        """The least t ≥ 0 for which every u_p + t h_p is in its cone."""
        return jnp.max(jnp.maximum(-self.apply(vectors), 0) / self.margins, axis=-2)


class Decomposition(NamedTuple):
    """W_p = positive_p − negative_p, both in the cone of gate p.

    Attributes
    ----------
    positive, negative
        (P, d).
    gaps
        (P,) how far ‖positive‖ + ‖negative‖ can be above the least, absolute; ∞ where that is not known.
    """

    positive: Float[Array, "P d"]
    negative: Float[Array, "P d"]
    gaps: Float[Array, " P"]


class Barrier(NamedTuple):
    """Value, gradient and Hessian of τ_p ‖u_p‖, smoothed, and the cones' logarithms, for (..., P, d) vectors.

    Attributes
    ----------
    value
        (..., P).
    gradient
        (..., P, d).
    hessian
        (..., P, d, d).
    prices
        (..., n, P) multipliers μ > 0 of the cones.
    """

    value: Float[Array, "... P"]
    gradient: Float[Array, "... P d"]
    hessian: Float[Array, "... P d d"]
    prices: Float[Array, "... n P"]


def make_cones(x: Array, gates: Array, masks: Array) -> Cones:
    """Cones of (n, P) masks on x with the gates that give them.

    Raises
    ------
    ValueError
        If a gate has a row of x on its boundary and no vector inside of its cone is found.
    """
    cones = _make_cones(x, gates, masks)
    outside = np.flatnonzero(~(np.asarray(jnp.min(cones.margins, axis=0)) > 0))
    if outside.size:
        raise ValueError(
            f"gates must not have a row of x on their boundary, as gate {outside[0]} has "
            f"({outside.size} of {gates.shape[0]} in all): move it a little"
        )
    return cones


@jax.jit
def _make_cones(x: Array, gates: Array, masks: Array) -> Cones:
    lengths = jnp.linalg.norm(x, axis=1, keepdims=True)
    units = x / jnp.where(lengths > 0, lengths, 1.0)
    rows = units / jnp.maximum(jnp.linalg.norm(units, 2), jnp.finfo(x.dtype).tiny)
    signs = 2 * masks.astype(x.dtype) - 1
    present = jnp.where(lengths > 0, 0.0, jnp.inf)
    cones = Cones(rows, signs, gates, signs)
    best = gates / jnp.linalg.norm(gates, axis=1, keepdims=True)
    wide = _max_margin(cones)
    margins, wide_margins = cones.apply(best) + present, cones.apply(wide) + present
    better = jnp.min(wide_margins, axis=0) > jnp.min(margins, axis=0)
    directions = jnp.where(better[:, None], wide, best)
    return cones._replace(directions=directions, margins=jnp.where(better, wide_margins, margins))


def _max_margin(cones: Cones) -> Float[Array, "P d"]:
    """Unit vectors near those with the largest margins, the least of ½‖h‖² subject to G h ≥ 1, by its dual."""
    zeros = jnp.zeros_like(cones.signs)

    def ascend(_: int, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        old, extrapolated, momentum = carry
        new = jnp.maximum(extrapolated + 1 - cones.apply(cones.adjoint(extrapolated)), 0)
        following = 0.5 * (1 + jnp.sqrt(1 + 4 * momentum**2))
        return new, new + (momentum - 1) / following * (new - old), following

    start = (zeros, zeros, jnp.ones((), zeros.dtype))
    directions = cones.adjoint(lax.fori_loop(0, _MARGIN_STEPS, ascend, start)[0])
    lengths = jnp.linalg.norm(directions, axis=1, keepdims=True)
    return directions / jnp.where(lengths > 0, lengths, 1.0)


def decompose(x: Array, gates: Array, vectors: Array, *, method: str, tol: float, max_iter: int) -> Decomposition:
    """Write each of (P, d) vectors as a difference of two in the cone of its gate; see ``GatedReLUNetwork.to_relu``.

    In float64 whatever the dtype, in which the result comes back.
    """
    if method not in DECOMPOSITIONS:
        raise ValueError(f"method must be one of {', '.join(DECOMPOSITIONS)}, got {method!r}")
    dtype, masks = vectors.dtype, activation_masks(x, gates)
    with float64_allowed():
        x, gates, vectors = with_dtype((x, gates, vectors), jnp.float64)
        parts = _decompose(make_cones(x, gates, masks), vectors, method, tol, max_iter)
    return with_dtype(parts, dtype)


def _decompose(cones: Cones, vectors: Array, method: str, tol: float, max_iter: int) -> Decomposition:
    if method == "interior":
        return _shifted(cones, vectors)
    lengths = safe_sqrt(jnp.sum(vectors**2, axis=1, keepdims=True))
    units = vectors / jnp.where(lengths > 0, lengths, 1.0)
    best, iterations = _least_norms(cones, units, tol, max_iter)
    unfinished = int(jnp.sum(best.gaps > tol))
    if unfinished:
        warnings.warn(
            f"{unfinished} of {vectors.shape[0]} decompositions are up to {float(jnp.max(best.gaps)):.1e} of ‖w‖ above "
            f"the least after {int(iterations)} iterations, tol={tol:.1e}: raise max_iter or tol",
            ConvergenceWarning,
            stacklevel=4,
        )
    return Decomposition(lengths * best.positive, lengths * best.negative, lengths[:, 0] * best.gaps)


@jax.jit
def _shifted(cones: Cones, vectors: Array) -> Decomposition:
    """The closed form w = (w + t h) − t h, or w = t h − (t h − w), whichever is shorter."""
    both = jnp.stack([vectors, -vectors])
    shifts = cones.shift(both)[..., None] * cones.directions
    sizes = _norms(both + shifts) + _norms(shifts)
    forth = (sizes[0] <= sizes[1])[:, None]
    positive = jnp.where(forth, vectors + shifts[0], shifts[1])
    gaps = jnp.where(jnp.all(shifts == 0, axis=(0, 2)), 0.0, jnp.inf)
    return Decomposition(positive, jnp.where(forth, shifts[0], shifts[1] - vectors), gaps)


@jax.jit
def _least_norms(cones: Cones, units: Array, tol: float, max_iter: int) -> tuple[Decomposition, Array]:
    """Newton's method along the central path of min ‖w + u‖ + ‖u‖ with both in the cone, for each gate its own."""
    best = _shifted(cones, units)
    shift = jnp.max(cones.shift(jnp.stack([units, jnp.zeros_like(units)])), axis=0)
    start = (1.5 * shift + 0.1)[:, None] * cones.directions
    weight = cones.num_terms / (1 + 2 * _norms(start))

    def pair_of(negative: Array) -> Array:
        return jnp.stack([negative + units, negative])

    def unfinished(carry: tuple[Array, Array, Array, Decomposition]) -> Array:
        made, _, _, best = carry
        return (made < max_iter) & jnp.any(best.gaps > tol)

    def step(carry: tuple[Array, Array, Array, Decomposition]) -> tuple[Array, Array, Array, Decomposition]:
        made, negative, weight, best = carry
        barrier = cone_barrier(cones, pair_of(negative), 1.0, weight)
        gradient, hessian = jnp.sum(barrier.gradient, axis=0), jnp.sum(barrier.hessian, axis=0)
        direction = -jnp.linalg.solve(hessian, gradient[..., None])[..., 0]
        slope = jnp.sum(gradient * direction, axis=1)

        def value(length: Array) -> Array:
            return jnp.sum(smoothed_norms(cones, pair_of(negative + length[:, None] * direction), 1.0, weight), axis=0)

        longest = longest_step(cones, pair_of(negative), jnp.stack([direction, direction]))
        length = halved(value, jnp.sum(barrier.value, axis=0), slope, jnp.min(longest, axis=0))
        negative = negative + length[:, None] * direction
        prices = moved_prices(cones, barrier, jnp.stack([direction, direction]), weight)
        best = _better(best, _certified(cones, units, pair_of(negative), prices, weight))
        return made + 1, negative, grown(weight, slope), best

    made, _, _, best = lax.while_loop(unfinished, step, (jnp.asarray(0), start, weight, best))
    return best, made


def _better(old: Decomposition, new: Decomposition) -> Decomposition:
    """The shorter of two pairs for each gate; both bounds from below hold, whichever is kept."""
    lower = jnp.fmax(_sizes(new) - new.gaps, _sizes(old) - old.gaps)
    shorter = (_sizes(new) < _sizes(old))[:, None]
    positive, negative = (jnp.where(shorter, *parts) for parts in zip(new[:2], old[:2], strict=True))
    kept = Decomposition(positive, negative, old.gaps)
    return kept._replace(gaps=jnp.maximum(_sizes(kept) - lower, 0))


def _certified(cones: Cones, units: Array, pair: Array, prices: Array, weight: Array) -> Decomposition:
    """A pair inside of the cones, with a bound from below by the dual.

    For ‖α‖ ≤ 1, μ, ν ≥ 0 with ‖Gᵀ(μ + ν) − α‖ ≤ 1, and a = w + u, b = u: ‖a‖ + ‖b‖ ≥ ⟨α − Gᵀμ, w⟩.
    """
    alpha = pair[0] / _radius(pair[0], 1.0, weight)[0][:, None]
    first, second = cones.adjoint(prices)
    needed = jnp.maximum(1.0, _norms(first + second - alpha))
    lower = jnp.sum((alpha - first) * units, axis=1) / needed
    return Decomposition(pair[0], pair[1], _norms(pair[0]) + _norms(pair[1]) - lower)


def _sizes(parts: Decomposition) -> Array:
    return _norms(parts.positive) + _norms(parts.negative)


def _norms(vectors: Array) -> Array:
    return jnp.linalg.norm(vectors, axis=-1)


def smoothed_norms(cones: Cones, vectors: Array, thresholds: float | Array, weight: Array) -> Float[Array, "... P"]:
    """τ_p ‖u_p‖ with the logarithmic barriers of the second-order cone and of u's cone, over the weight.

    The norm's is min_r τ r − log(r² − ‖u‖²)/t, at r = (1 + √(1 + τ²t²‖u‖²)) / (τt). ∞ outside of the cone.
    """
    values = cones.apply(vectors)
    radius, _ = _radius(vectors, thresholds, weight)
    inside = jnp.all((values > 0) | cones.ignored, axis=-2)
    logarithms = jnp.sum(jnp.where(values > 0, jnp.log(jnp.where(values > 0, values, 1.0)), 0.0), axis=-2)
    smooth = thresholds * radius - (jnp.log(2 * radius / (thresholds * weight)) + logarithms) / weight
    return jnp.where(inside, smooth, jnp.inf)


def cone_barrier(cones: Cones, vectors: Array, thresholds: float | Array, weight: Array) -> Barrier:
    """:func:`smoothed_norms` with derivatives."""
    values = cones.apply(vectors)
    prices = jnp.where(cones.ignored, 0.0, 1 / (jnp.where(cones.ignored, 1.0, values) * weight))
    radius, root = _radius(vectors, thresholds, weight)
    slope = thresholds / radius
    num_features = cones.rows.shape[1]
    squares = (cones.rows[:, :, None] * cones.rows[:, None, :]).reshape(-1, num_features**2)
    hessian = matmul((weight * prices**2).swapaxes(-1, -2), squares)
    hessian = hessian.reshape(*hessian.shape[:-1], num_features, num_features)
    bend = slope**2 * weight / root
    hessian -= bend[..., None, None] * vectors[..., :, None] * vectors[..., None, :]
    hessian += slope[..., None, None] * jnp.eye(num_features, dtype=hessian.dtype)
    gradient = slope[..., None] * vectors - cones.adjoint(prices)
    return Barrier(smoothed_norms(cones, vectors, thresholds, weight), gradient, hessian, prices)


def grown(weight: Array, slope: Array) -> Array:
    """The next weight: heavier where the Newton decrement √(−t ⟨∇, δ⟩) says that the step began near the path."""
    return jnp.where(-slope * weight <= _CENTRED**2, _GROWTH * weight, weight)


def moved_prices(cones: Cones, barrier: Barrier, directions: Array, weight: Array) -> Float[Array, "... n P"]:
    """Multipliers after a Newton step, to first order: they fulfil the dual's equations far better than those at it."""
    return jnp.maximum(barrier.prices * (1 - weight * barrier.prices * cones.apply(directions)), 0)


def _radius(vectors: Array, thresholds: float | Array, weight: Array) -> tuple[Array, Array]:
    scale = thresholds * weight
    root = jnp.sqrt(1 + scale**2 * jnp.sum(vectors**2, axis=-1))
    return (1 + root) / scale, root


def longest_step(cones: Cones, vectors: Array, directions: Array) -> Float[Array, "... P"]:
    """The longest step up to 1 that stays well inside of the cones."""
    values, changes = cones.apply(vectors), cones.apply(directions)
    towards = changes < 0
    room = jnp.where(towards, -values / jnp.where(towards, changes, 1.0), jnp.inf)
    return jnp.minimum(1.0, _TO_BOUNDARY * jnp.min(room, axis=-2))


def halved(value: Callable[[Array], Array], before: Array, slope: Array, longest: Array) -> Array:
    """Armijo's rule by halving, entry by entry."""
    slack = 10 * jnp.finfo(before.dtype).eps * jnp.abs(before)

    def is_too_long(length: Array) -> Array:
        return ~(value(length) <= before + 0.1 * length * slope + slack)

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        return (carry[0] < _HALVINGS) & jnp.any(carry[1])

    def halve(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count, too_long, length = carry
        length = jnp.where(too_long, 0.5 * length, length)
        return count + 1, is_too_long(length), length

    return lax.while_loop(unfinished, halve, (jnp.asarray(0), is_too_long(longest), longest))[2]
