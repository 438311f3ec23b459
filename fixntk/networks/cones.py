r"""The cones of a ReLU network's activation patterns, and a barrier for problems over them.

On data X, a ReLU neuron has the activation pattern D = diag(1{Xg ≥ 0}) of gate g exactly if its hidden weight lies in
the cone :math:`C = \{u : (2D − I) X u ≥ 0\}`. Problems over these cones are solved with a logarithmic barrier: Newton
steps follow the central path, whose points lie strictly inside the cones.

See docs/mathematics.md, M10.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float

from fixntk import _line_search
from fixntk._numerics import eps_of, matmul, tiny_of

# Number of accelerated dual steps that look for a direction far inside each cone.
_MARGIN_STEPS = 500
# Factor by which the objective's weight against the barrier grows.
_WEIGHT_GROWTH = 20.0
# The weight grows where the Newton decrement (no unit) is at most this.
_CENTRED_DECREMENT = 0.5
# Largest step, as a share of the distance to the cone's boundary.
_BOUNDARY_SHARE = 0.95
# Largest number of halvings in a line search.
_MAX_HALVINGS = 30
# Share of the linear model's decrease that a step must reach (Armijo's constant).
_ARMIJO_SHARE = 0.1
# Rounding error allowed in a comparison of objectives, in units of the dtype's epsilon.
_ROUNDING_UNITS = 10


class Cones(NamedTuple):
    """Cones {u : s_ip x_i·u ≥ 0 for all i}, one for each gate.

    Attributes
    ----------
    rows
        (n, d) rows of X scaled to one length, such that the matrix has spectral norm 1; zero rows stay zero.
    signs
        (n, P) s = 2M − 1.
    directions
        (P, d) unit vectors h_p well inside their cones.
    margins
        (n, P) s_ip x_i·h_p > 0; ∞ for zero rows.
    """

    rows: Float[Array, "n d"]
    signs: Float[Array, "n P"]
    directions: Float[Array, "P d"]
    margins: Float[Array, "n P"]

    @property
    def zero_rows(self) -> Bool[Array, "n 1"]:
        """Which rows are zero, and so constrain nothing."""
        return jnp.all(self.rows == 0, axis=1)[:, None]

    @property
    def num_terms(self) -> int:
        """Barrier parameter of a pair of vectors: on the central path its duality gap is this over the weight."""
        # Each of the two vectors has a logarithm for each row, and a second-order cone, whose barrier counts twice.
        return 2 * (self.rows.shape[0] + 2)

    def apply(self, vectors: Array) -> Float[Array, "... n P"]:
        """Values s_ip x_i·u_p of (..., P, d) vectors u, the product G_p u_p."""
        return with_ndim(self.signs, vectors.ndim) * matmul(self.rows, vectors.swapaxes(-1, -2))

    def adjoint(self, values: Array) -> Float[Array, "... P d"]:
        """Vectors Σ_i s_ip x_i a_ip of (..., n, P) values a, the product G_pᵀ a_p."""
        return matmul((with_ndim(self.signs, values.ndim) * values).swapaxes(-1, -2), self.rows)

    def shift(self, vectors: Array) -> Float[Array, "... P"]:
        """The smallest t ≥ 0 for which u_p + t h_p is in its cone, for each vector."""
        # Along h_p the value of row i grows by its margin per unit of t. Zero rows have margin ∞ and need no shift.
        return jnp.max(jnp.maximum(-self.apply(vectors), 0) / with_ndim(self.margins, vectors.ndim), axis=-2)


def with_ndim(array: Any, ndim: int) -> Any:
    """An array with leading axes of size one, as many as it lacks; scalars as they are."""
    return array.reshape(*(1,) * (ndim - array.ndim), *array.shape) if jnp.ndim(array) else array


class Barrier(NamedTuple):
    """Smoothed penalties τ_p ‖u_p‖ with the cones' barrier, for (..., P, d) vectors; see ``barrier_values``.

    Attributes
    ----------
    value
        (..., P) values.
    gradient
        (..., P, d) gradients.
    hessian
        (..., P, d, d) Hessians.
    multipliers
        (..., n, P) multipliers μ > 0 of the cones' inequalities.
    """

    value: Float[Array, "... P"]
    gradient: Float[Array, "... P d"]
    hessian: Float[Array, "... P d d"]
    multipliers: Float[Array, "... n P"]


def make_cones(x: Array, gates: Array, masks: Array) -> Cones:
    """The cones of the (n, P) masks that (P, d) gates have on x.

    Raises
    ------
    ValueError
        If a gate has a row of x on its boundary and no vector inside its cone is found.
    """
    cones = _make_cones(x, gates, masks)
    outside = np.flatnonzero(~(np.asarray(jnp.min(cones.margins, axis=0)) > 0))
    if outside.size:
        raise ValueError(
            f"gates must not have a row of x on their boundary, as gate {outside[0]} has "
            f"({outside.size} of {gates.shape[0]} gates): move the gate slightly"
        )
    return cones


@jax.jit
def _make_cones(x: Array, gates: Array, masks: Array) -> Cones:
    lengths = jnp.linalg.norm(x, axis=1, keepdims=True)
    # Positive factors of rows do not change the cones. Spectral norm 1 makes step size 1 valid for the dual problem of
    # the directions.
    units = x / jnp.where(lengths > 0, lengths, 1.0)
    rows = units / jnp.maximum(jnp.linalg.norm(units, 2), tiny_of(x))
    signs = 2 * masks.astype(x.dtype) - 1
    zero_row_margins = jnp.where(lengths > 0, 0.0, jnp.inf)
    # Directions and margins are filled in below.
    cones = Cones(rows, signs, gates, signs)
    # The gate itself lies in its cone, but often so close to the boundary that a shift along it would be very long:
    # use the direction of largest margin where that is better.
    own = gates / jnp.linalg.norm(gates, axis=1, keepdims=True)
    wide = _max_margin_directions(cones)
    own_margins, wide_margins = cones.apply(own) + zero_row_margins, cones.apply(wide) + zero_row_margins
    is_wider = jnp.min(wide_margins, axis=0) > jnp.min(own_margins, axis=0)
    directions = jnp.where(is_wider[:, None], wide, own)
    return cones._replace(directions=directions, margins=jnp.where(is_wider, wide_margins, own_margins))


def _max_margin_directions(cones: Cones) -> Float[Array, "P d"]:
    """Unit vectors close to the vectors of largest margin: min ½‖h‖² subject to G h ≥ 1, solved in its dual by FISTA.

    The dual is max over a ≥ 0 of Σ a − ½‖Gᵀa‖², with h = Gᵀa. Step size 1 is right, as ‖G‖ = 1.
    """
    zeros = jnp.zeros_like(cones.signs)

    def ascend(_: ArrayLike, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        # A projected step along the gradient 1 − G Gᵀ a, then Nesterov's extrapolation.
        old, extrapolated, momentum = carry
        new = jnp.maximum(extrapolated + 1 - cones.apply(cones.adjoint(extrapolated)), 0)
        next_momentum = 0.5 * (1 + jnp.sqrt(1 + 4 * momentum**2))
        return new, new + (momentum - 1) / next_momentum * (new - old), next_momentum

    start = (zeros, zeros, jnp.ones((), zeros.dtype))
    directions = cones.adjoint(lax.fori_loop(0, _MARGIN_STEPS, ascend, start)[0])
    lengths = jnp.linalg.norm(directions, axis=1, keepdims=True)
    return directions / jnp.where(lengths > 0, lengths, 1.0)


def barrier_values(cones: Cones, vectors: Array, thresholds: float | Array, weight: Array) -> Float[Array, "... P"]:
    """Smoothed τ_p ‖u_p‖ plus the cones' barrier −Σ_i log(s_ip x_i·u_p)/t, for (..., P, d) vectors; ∞ outside a cone.

    t is the weight of the objective against the barrier: values approach τ_p ‖u_p‖ as it grows. The norm is smoothed
    by the barrier of the second-order cone: min_r τ r − log(r² − ‖u‖²)/t. Its minimiser is
    r = (1 + √(1 + τ²t²‖u‖²)) / (τt), where r² − ‖u‖² = 2r / (τt).
    """
    values = cones.apply(vectors)
    radius, _ = smooth_radius(vectors, thresholds, weight)
    # Logarithms are taken of positive values only; a vector outside its cone gets ∞ in the last line.
    is_inside = jnp.all((values > 0) | with_ndim(cones.zero_rows, values.ndim), axis=-2)
    logarithms = jnp.sum(jnp.where(values > 0, jnp.log(jnp.where(values > 0, values, 1.0)), 0.0), axis=-2)
    thresholds, weight = with_ndim(thresholds, radius.ndim), with_ndim(weight, radius.ndim)
    smooth = thresholds * radius - (jnp.log(2 * radius / (thresholds * weight)) + logarithms) / weight
    return jnp.where(is_inside, smooth, jnp.inf)


def cone_barrier(cones: Cones, vectors: Array, thresholds: float | Array, weight: Array) -> Barrier:
    """:func:`barrier_values` with derivatives.

    With μ = 1 / (t G u): the gradient is (τ/r) u − Gᵀμ and the Hessian
    (τ/r) I − (τ/r)² t / √(1 + τ²t²‖u‖²) u uᵀ + Gᵀ diag(t μ²) G.
    """
    values = cones.apply(vectors)
    # A zero row constrains nothing and has multiplier zero.
    zero_rows, weights = with_ndim(cones.zero_rows, values.ndim), with_ndim(weight, values.ndim)
    multipliers = jnp.where(zero_rows, 0.0, 1 / (jnp.where(zero_rows, 1.0, values) * weights))
    radius, root = smooth_radius(vectors, thresholds, weight)
    slope = with_ndim(thresholds, radius.ndim) / radius
    num_features = cones.rows.shape[1]
    # Signs cancel in Gᵀ diag(·) G: one matrix product with the rows' outer products serves all gates.
    squares = (cones.rows[:, :, None] * cones.rows[:, None, :]).reshape(-1, num_features**2)
    hessian = matmul((weights * multipliers**2).swapaxes(-1, -2), squares)
    hessian = hessian.reshape(*hessian.shape[:-1], num_features, num_features)
    # The smoothed norm has the curvature τ/r, reduced along u itself.
    curvature = slope**2 * with_ndim(weight, radius.ndim) / root
    hessian -= curvature[..., None, None] * vectors[..., :, None] * vectors[..., None, :]
    hessian += slope[..., None, None] * with_ndim(jnp.eye(num_features, dtype=hessian.dtype), hessian.ndim)
    gradient = slope[..., None] * vectors - cones.adjoint(multipliers)
    return Barrier(barrier_values(cones, vectors, thresholds, weight), gradient, hessian, multipliers)


def next_weight(weight: Array, slope: Array) -> Array:
    """The weight t of the next step: larger where the Newton decrement √(−t ⟨∇, δ⟩) shows a start near the path."""
    return jnp.where(-slope * weight <= _CENTRED_DECREMENT**2, _WEIGHT_GROWTH * weight, weight)


def next_multipliers(cones: Cones, barrier: Barrier, directions: Array, weight: Array) -> Float[Array, "... n P"]:
    """Multipliers after a Newton step, to first order: μ − t μ² Gδ, not below zero.

    They satisfy the dual's equations far better than those at the step's start, and so give a tighter bound.
    """
    multipliers = barrier.multipliers
    weight = with_ndim(weight, multipliers.ndim)
    return jnp.maximum(multipliers * (1 - weight * multipliers * cones.apply(directions)), 0)


def smooth_radius(vectors: Array, thresholds: float | Array, weight: Array) -> tuple[Array, Array]:
    """The minimiser r of :func:`barrier_values`, and its root √(1 + τ²t²‖u‖²)."""
    scale = with_ndim(thresholds, vectors.ndim - 1) * with_ndim(weight, vectors.ndim - 1)
    root = jnp.sqrt(1 + scale**2 * jnp.sum(vectors**2, axis=-1))
    return (1 + root) / scale, root


def longest_step(cones: Cones, vectors: Array, directions: Array) -> Float[Array, "... P"]:
    """The longest step, up to 1, that keeps a fixed share of the distance to the cones' boundaries."""
    return _line_search.longest_step(cones.apply(vectors), cones.apply(directions), share=_BOUNDARY_SHARE, axis=-2)


def armijo_length(value: Callable[[Array], Array], before: Array, slope: Array, longest: Array) -> Array:
    """Step lengths under Armijo's rule, entry by entry.

    Parameters
    ----------
    value
        From step lengths to objectives; ∞ or NaN where a length is not allowed.
    before
        Objectives at length zero.
    slope
        Derivatives there, negative.
    longest
        The first lengths to try.
    """
    search = _line_search.search_by_armijo(
        lambda length: value(length) - before,
        slope,
        longest,
        share=_ARMIJO_SHARE,
        slack=_ROUNDING_UNITS * eps_of(before) * jnp.abs(before),
        max_halvings=_MAX_HALVINGS,
    )
    return search.length
