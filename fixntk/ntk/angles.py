"""Angles θ between vectors, to full precision: as haversine sin²(θ/2) and havercosine cos²(θ/2) (M3, M13)."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from fixntk._numerics import matmul, safe_sqrt

# Up to so many columns the differences of rows cost no more than passing over their products twice.
_FEW_COLUMNS = 16

# A product of unit vectors loses at most three bits of sin(θ/2) or cos(θ/2) while both are above 1/16.
_NEARLY_PARALLEL = 1 - 2 / 16**2


class Rows(NamedTuple):
    """Vectors with what all their pairs need.

    Attributes
    ----------
    x
        (…, d) vectors.
    units
        (…, d) unit vectors of the same directions; a zero vector stays zero.
    lengths
        (…) Euclidean lengths.
    numbers
        (…) integers that tell who is who: the same number, the same vector.
    """

    x: Array
    units: Array
    lengths: Array
    numbers: Array


def as_rows(x: Array, numbers: Array) -> Rows:
    """Rows of an array (…, d), each with its number."""
    # Scaling by the largest entry first keeps squares of large and small entries in range.
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    largest = lax.stop_gradient(jnp.where(largest > 0, largest, 1.0))
    scaled = x / largest
    lengths = _lengths(scaled)[..., None]
    units = jnp.where(lengths > 0, scaled / jnp.where(lengths > 0, lengths, 1.0), 0.0)
    return Rows(x, units, (lengths * largest)[..., 0], numbers)


@jax.custom_jvp
def products_and_angles(rows1: Rows, rows2: Rows) -> tuple[Array, Array, Array]:
    """Inner products (n1, n2) of vectors (n1, d) and (n2, d), haversines and havercosines of the angles between them.

    θ is π/2 to a zero vector and exactly 0 between vectors of the same number.

    ‖u − v‖²/4 and ‖u + v‖²/4 of unit vectors keep full precision at every angle, where arccos(u·v) loses half of the
    digits near 0 and π. Away from there they come from u·v, one matrix product; pairs near there are taken again by
    their differences, a row at a time.
    """
    units1, units2 = rows1.units, rows2.units
    same = rows1.numbers[:, None] == rows2.numbers
    cosine = matmul(units1, units2.T)
    haversine, havercosine = jnp.maximum(1 - cosine, 0) / 2, jnp.maximum(1 + cosine, 0) / 2
    near = (jnp.abs(cosine) > _NEARLY_PARALLEL) & ~same
    if units1.shape[1] <= _FEW_COLUMNS:
        haversine = jnp.where(near, _quarter_squares(units2 - units1[:, None]), haversine)
        havercosine = jnp.where(near, _quarter_squares(units2 + units1[:, None]), havercosine)
    else:
        has_near = jnp.any(near, axis=1)
        num_rows = jnp.sum(has_near)
        numbers = jnp.nonzero(has_near, size=units1.shape[0], fill_value=0)[0]

        def correct(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            step, haversine, havercosine = state
            row = numbers[step]
            difference, total = _quarter_squares(units2 - units1[row]), _quarter_squares(units2 + units1[row])
            haversine = haversine.at[row].set(jnp.where(near[row], difference, haversine[row]))
            havercosine = havercosine.at[row].set(jnp.where(near[row], total, havercosine[row]))
            return step + 1, haversine, havercosine

        start = jnp.zeros_like(num_rows), haversine, havercosine
        _, haversine, havercosine = lax.while_loop(lambda state: state[0] < num_rows, correct, start)
    haversine, havercosine = jnp.where(same, 0.0, haversine), jnp.where(same, 1.0, havercosine)
    cosine = jnp.where(near | same, havercosine - haversine, cosine)
    return rows1.lengths[:, None] * rows2.lengths * cosine, haversine, havercosine


@products_and_angles.defjvp
def _products_and_angles_jvp(primals: tuple[Rows, Rows], tangents: tuple[Rows, Rows]) -> tuple[Any, Any]:
    (rows1, rows2), (change1, change2) = primals, tangents
    values = products_and_angles(rows1, rows2)
    _, haversine, havercosine = values
    # Not by the units, which have no derivative at zero, where the product has one.
    product = matmul(change1.x, rows2.x.T) + matmul(rows1.x, change2.x.T)
    lengths = rows1.lengths[:, None] * rows2.lengths
    stretch = change1.lengths[:, None] * rows2.lengths + rows1.lengths[:, None] * change2.lengths
    cosine = (product - (havercosine - haversine) * stretch) / jnp.where(lengths > 0, lengths, 1.0)
    cosine = jnp.where(lengths > 0, cosine, 0.0)
    return values, (product, -cosine / 2, cosine / 2)


@jax.custom_jvp
def full_angle(haversine: Array, havercosine: Array) -> Array:
    """θ in [0, π] from sin²(θ/2) and cos²(θ/2), to a few units of rounding.

    A polynomial of the smaller one: several times faster than the library's arctan2. The derivative is zero at 0 and
    π, where the angle between vectors has a kink: the mean of the one-sided ones.
    """
    square = jnp.minimum(haversine, havercosine)
    series = jnp.zeros_like(square)
    for coefficient in reversed(_arcsine_series(jnp.finfo(square.dtype).eps < 1e-10)):
        series = series * square + coefficient
    doubled = 2 * safe_sqrt(square) * series
    return jnp.where(haversine > havercosine, jnp.pi - doubled, doubled)


@full_angle.defjvp
def _full_angle_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    haversine, havercosine = primals
    half_sine = safe_sqrt(haversine * havercosine)
    change = havercosine * tangents[0] - haversine * tangents[1]
    change = jnp.where(half_sine > 0, change / jnp.where(half_sine > 0, half_sine, 1.0), 0.0)
    return full_angle(haversine, havercosine), change


@cache
def _arcsine_series(is_double: bool) -> tuple[float, ...]:
    """Coefficients of arcsin(√t)/√t in powers of t for 0 ≤ t ≤ 1/2, to 3e-9 or to double precision."""

    def ratio(t: np.ndarray) -> np.ndarray:
        root = np.sqrt(np.maximum(t, 1e-30))
        return np.arcsin(root) / root

    interpolant = np.polynomial.Chebyshev.interpolate(ratio, 22 if is_double else 8, domain=[0, 0.5])
    return tuple(float(coefficient) for coefficient in interpolant.convert(kind=np.polynomial.Polynomial).coef)


def _quarter_squares(rows: Array) -> Array:
    return jnp.sum(rows**2, axis=-1) / 4


def _lengths(rows: Array) -> Array:
    return safe_sqrt(jnp.sum(rows**2, axis=-1))
