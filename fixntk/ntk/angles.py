"""Angles θ between vectors, to full precision: as haversine sin²(θ/2) and havercosine cos²(θ/2).

See docs/mathematics.md, M3 and M13.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from fixntk._numerics import matmul, safe_sqrt

# Largest number of columns for which all differences of rows cost no more than a second pass over their products.
_FEW_COLUMNS = 16

# A product of unit vectors loses at most three bits of sin(θ/2) or cos(θ/2) while both are above 1/16.
_NEARLY_PARALLEL = 1 - 2 / 16**2


class Rows(NamedTuple):
    """Vectors with the quantities that the angles of all their pairs need.

    Attributes
    ----------
    x
        (…, d) vectors.
    units
        (…, d) unit vectors of the same directions; a zero vector stays zero.
    lengths
        (…) Euclidean lengths.
    numbers
        (…) integers that identify the vectors: rows with the same number are the same vector.
    scaled
        (…, d) the vectors, divided exactly by powers of two that bring their lengths to between a half and one.
    scaled_lengths
        (…) lengths of the scaled vectors; zero for a zero vector.
    pattern
        (n, S, S) the graph of each row, where rows have positions.
    """

    x: Array
    units: Array
    lengths: Array
    numbers: Array
    scaled: Array
    scaled_lengths: Array
    pattern: Array | None = None


def as_rows(x: Array, numbers: Array) -> Rows:
    """Rows of an array (…, d), each with its number."""
    # Scaling by the largest entry first keeps squares of large and small entries in range.
    half1, half2 = _powers_of_two(jnp.max(jnp.abs(x), axis=-1))
    # Two divisions: the power of two itself may be out of range for entries near the limits of the dtype.
    small = x / half1[..., None] / half2[..., None]
    small_lengths = _lengths(small)
    # A second power of two brings the length, up to √d times the largest entry, to between a half and one.
    power1, power2 = _powers_of_two(small_lengths)
    power = power1 * power2
    scaled, scaled_lengths = small / power[..., None], small_lengths / power
    units = jnp.where(
        scaled_lengths[..., None] > 0, scaled / jnp.where(scaled_lengths > 0, scaled_lengths, 1.0)[..., None], 0.0
    )
    return Rows(x, units, small_lengths * half1 * half2, numbers, scaled, scaled_lengths)


def _powers_of_two(sizes: Array) -> tuple[Array, Array]:
    """Two powers of two within the dtype's range, whose product is the next one above a size; ones for zero."""
    # frexp writes a size as m · 2^e with 1/2 ≤ m < 1. The exponent e is piecewise constant and has no derivative.
    exponents = jnp.where(sizes > 0, jnp.frexp(lax.stop_gradient(sizes))[1], 0)
    half = exponents // 2
    ones = jnp.ones_like(sizes)
    return jnp.ldexp(ones, half), jnp.ldexp(ones, exponents - half)


@jax.custom_jvp
def products_and_angles(rows1: Rows, rows2: Rows) -> tuple[Array, Array, Array]:
    """Inner products (n1, n2) of vectors (n1, d) and (n2, d), haversines and havercosines of the angles between them.

    θ is π/2 to a zero vector and exactly 0 between vectors of the same number.

    ‖u − v‖²/4 and ‖u + v‖²/4 of unit vectors keep full precision at every angle, where arccos(u·v) loses half of the
    digits near 0 and π. Away from 0 and π they are computed from u·v, one matrix product. Pairs near 0 and π are
    recomputed from the differences of the vectors, one row at a time if there are many columns.
    """
    same = rows1.numbers[:, None] == rows2.numbers[None, :]
    cosine = matmul(rows1.units, rows2.units.T)
    # 1 − cos θ = 2 sin²(θ/2) and 1 + cos θ = 2 cos²(θ/2); rounding errors can make them negative.
    haversine, havercosine = jnp.maximum(1 - cosine, 0) / 2, jnp.maximum(1 + cosine, 0) / 2
    # Only pairs that are nearly parallel, or nearly opposite (sign −1), need their differences.
    near, sign = (jnp.abs(cosine) > _NEARLY_PARALLEL) & ~same, jnp.sign(cosine)

    def recompute(
        rows1: Rows, rows2: Rows, sign: Array, near: Array, haversine: Array, havercosine: Array
    ) -> tuple[Array, Array]:
        # sin²(θ/2) of the angle to v, or to −v where the vectors are nearly opposite. One minus this small number has
        # full relative precision.
        quarter = jnp.sum(_difference(rows1, rows2, sign) ** 2, axis=-1) / 4
        smaller, larger = jnp.where(near, quarter, 0.0), jnp.where(near, 1 - quarter, 0.0)
        haversine = jnp.where(near, jnp.where(sign > 0, smaller, larger), haversine)
        return haversine, jnp.where(near, jnp.where(sign > 0, larger, smaller), havercosine)

    if rows1.units.shape[1] <= _FEW_COLUMNS:
        each1, each2 = _facing(rows1, rows2)
        haversine, havercosine = recompute(each1, each2, sign, near, haversine, havercosine)
    else:
        # A loop over the rows that have such a pair, usually none: all differences would take n1 × n2 × d numbers.
        has_near = jnp.any(near, axis=1)
        num_rows = jnp.sum(has_near)
        numbers = jnp.nonzero(has_near, size=near.shape[0], fill_value=0)[0]

        def recompute_row(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            step, haversine, havercosine = state
            row = numbers[step]
            one = jax.tree.map(lambda array: array[row][None], rows1)
            new = recompute(one, rows2, sign[row], near[row], haversine[row], havercosine[row])
            return step + 1, haversine.at[row].set(new[0]), havercosine.at[row].set(new[1])

        # The lengths of the loop are known only at run time: a while loop, not a scan.
        start = jnp.zeros_like(num_rows), haversine, havercosine
        _, haversine, havercosine = lax.while_loop(lambda state: state[0] < num_rows, recompute_row, start)
    haversine, havercosine = jnp.where(same, 0.0, haversine), jnp.where(same, 1.0, havercosine)
    # cos θ = cos²(θ/2) − sin²(θ/2) replaces the less exact product of the unit vectors.
    cosine = jnp.where(near | same, havercosine - haversine, cosine)
    return _outer(rows1.lengths, rows2.lengths) * cosine, haversine, havercosine


def _outer(vector1: Array, vector2: Array) -> Array:
    """Products of all pairs of entries."""
    return vector1[:, None] * vector2[None, :]


def _facing(rows1: Rows, rows2: Rows) -> tuple[Rows, Rows]:
    """Rows with axes of size one added, so that operations broadcast over all pairs."""
    return jax.tree.map(lambda array: array[:, None], rows1), jax.tree.map(lambda array: array[None], rows2)


def _difference(rows1: Rows, rows2: Rows, sign: Array) -> Array:
    """Difference u − sign·v of unit vectors from x − sign·y, which is exact where they are close.

    With δ = ‖x‖ − ‖y‖ it is (x − sign·y − sign·δ v) / ‖x‖. Powers of two first bring the lengths close to each
    other, so that the first difference is exact for all lengths.
    """
    sign, length1, length2 = (array[..., None] for array in (sign, rows1.scaled_lengths, rows2.scaled_lengths))
    power = jnp.where(length1 > 1.4 * length2, 2.0, jnp.where(1.4 * length1 < length2, 0.5, 1.0)).astype(sign.dtype)
    length2, total = power * length2, length1 + power * length2
    # δ = ‖x‖ − ‖y‖ = (x − sign·y)·(x + sign·y) / (‖x‖ + ‖y‖), again without cancellation.
    between = rows1.scaled - sign * power * rows2.scaled
    mean = (length1 * rows1.units + sign * length2 * rows2.units) / jnp.where(total > 0, total, 1.0)
    longer = jnp.sum(between * mean, axis=-1, keepdims=True)
    return (between - sign * longer * rows2.units) / jnp.where(length1 > 0, length1, 1.0)


@products_and_angles.defjvp
def _products_and_angles_jvp(primals: tuple[Rows, Rows], tangents: tuple[Rows, Rows]) -> tuple[Any, Any]:
    (rows1, rows2), (change1, change2) = primals, tangents
    values = products_and_angles(rows1, rows2)
    _, haversine, havercosine = values
    # Not by the units, which have no derivative at zero, where the product has one.
    product = matmul(change1.x, rows2.x.T) + matmul(rows1.x, change2.x.T)
    # The derivative of cos θ = product / lengths is (d product − cos θ d lengths) / lengths; stretch is d lengths.
    lengths = _outer(rows1.lengths, rows2.lengths)
    stretch = _outer(change1.lengths, rows2.lengths) + _outer(rows1.lengths, change2.lengths)
    cosine = (product - (havercosine - haversine) * stretch) / jnp.where(lengths > 0, lengths, 1.0)
    cosine = jnp.where(lengths > 0, cosine, 0.0)
    # This difference cancels near 0 and π, where the derivative of the angle divides by its sine.
    near = (jnp.abs(havercosine - haversine) > _NEARLY_PARALLEL) & (rows1.numbers[:, None] != rows2.numbers[None, :])
    sign = jnp.sign(havercosine - haversine)
    # There cos θ = sign · (1 − ‖u − sign·v‖²/2) is differentiated instead.
    cosine = jnp.where(near, -sign * _differences_along(near, sign, primals, tangents), cosine)
    # The haversine is (1 − cos θ)/2 and the havercosine (1 + cos θ)/2.
    return values, (product, -cosine / 2, cosine / 2)


def _differences_along(near: Array, sign: Array, rows: tuple[Rows, Rows], changes: tuple[Rows, Rows]) -> Array:
    """(u − sign·v)·(du − sign·dv) of the pairs (n1, n2) that are near, row by row where columns are many."""
    rows1, rows2 = _facing(*rows)
    changes1, changes2 = changes[0].units[:, None], changes[1].units[None]

    # Not kept for the backward pass: n1 × n2 × d numbers.
    @jax.checkpoint
    def sum_products(rows1: Rows, sign: Array, changes1: Array, changes2: Array) -> Array:
        """Rows (n1, 1, d), or one of them, (1, 1, d), with all of the second."""
        return jnp.sum(_difference(rows1, rows2, sign) * (changes1 - sign[..., None] * changes2), axis=-1)

    if changes1.shape[-1] <= _FEW_COLUMNS:
        return sum_products(rows1, sign, changes1, changes2)

    def sum_products_by_rows(changes1: Array, changes2: Array) -> Array:
        @jax.checkpoint
        def sum_products_of_row(_: None, row: tuple[Array, Rows, Array, Array]) -> tuple[None, Array]:
            # Rows without a near pair, usually all, skip the differences.
            near, *operands = row
            zeros = jnp.zeros_like(row[2])
            return None, lax.cond(jnp.any(near), sum_products, lambda *_: zeros, *operands, changes2)

        each = jax.tree.map(lambda array: array[:, None], (near, rows1, sign, changes1))
        return lax.scan(sum_products_of_row, None, each)[1][:, 0]

    # The sums are linear in the changes, and so their own derivative. JAX below 0.7 transposes a loop over changes only
    # where it has taken the derivative itself.
    zeros = jnp.zeros_like(changes1), jnp.zeros_like(changes2)
    return jax.jvp(sum_products_by_rows, zeros, (changes1, changes2))[1]


@jax.custom_jvp
def full_angle(haversine: Array, havercosine: Array) -> Array:
    """θ in [0, π] from sin²(θ/2) and cos²(θ/2), to a few units of rounding.

    A polynomial of the smaller one: several times faster than the library's arctan2. The derivative is zero at 0 and
    π, where the angle between vectors has a kink: the mean of the one-sided ones.
    """
    # The smaller one, t = sin² of half the angle or of half its supplement, is at most 1/2, where the series is short.
    square = jnp.minimum(haversine, havercosine)
    doubled = 2 * safe_sqrt(square) * _polynomial_value(_arcsine_series, square)
    return jnp.where(haversine > havercosine, jnp.pi - doubled, doubled)


@full_angle.defjvp
def _full_angle_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    haversine, havercosine = primals
    # With h = sin²(θ/2), dh = √(h (1 − h)) dθ; the tangents of h and of 1 − h enter symmetrically.
    half_sine = safe_sqrt(haversine * havercosine)
    change = havercosine * tangents[0] - haversine * tangents[1]
    change = jnp.where(half_sine > 0, change / jnp.where(half_sine > 0, half_sine, 1.0), 0.0)
    return full_angle(haversine, havercosine), change


@jax.custom_jvp
def sine_less_angle_times_cosine(haversine: Array, havercosine: Array) -> Array:
    """Sin θ − θ cos θ, about θ³/3 near 0, to a few units of rounding; so is its derivative θ sin θ."""
    square = jnp.minimum(haversine, havercosine)
    folded = 2 * square * safe_sqrt(square) * _polynomial_value(_lune_series, square)
    # The function at θ is its value at π − θ minus π cos θ.
    return jnp.where(haversine > havercosine, folded + jnp.pi * (haversine - havercosine), folded)


@sine_less_angle_times_cosine.defjvp
def _sine_less_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    haversine, havercosine = primals
    # sin θ dθ without the division by sin θ that dθ alone would need.
    change = 2 * (havercosine * tangents[0] - haversine * tangents[1])
    return sine_less_angle_times_cosine(*primals), full_angle(*primals) * change


def _polynomial_value(series: Callable[[bool], tuple[float, ...]], square: Array) -> Array:
    """The series at a square, by Horner's rule, with the coefficients for its dtype."""
    total = jnp.zeros_like(square)
    for coefficient in reversed(series(bool(jnp.finfo(square.dtype).eps < 1e-10))):
        total = total * square + coefficient
    return total


@cache
def _arcsine_series(is_double: bool) -> tuple[float, ...]:
    """Coefficients of θ / (2√t) = arcsin(√t)/√t in powers of t = sin²(θ/2) ≤ 1/2, to 3e-9 or to double precision."""
    return _short_polynomial(_ARCSINE, is_double)


@cache
def _lune_series(is_double: bool) -> tuple[float, ...]:
    """Coefficients of (sin θ − θ cos θ) / (2 t√t) in t, from sin θ = 2 √t √(1 − t) and cos θ = 1 − 2t."""
    # Taylor coefficients of √(1 − t), and of t times the arcsine series.
    roots = np.cumprod([1.0, *((k - 1.5) / k for k in range(1, _NUM_TERMS))])
    shifted = np.concatenate([[0.0], _ARCSINE[:-1]])
    # The constant terms cancel, so that the division by t drops the first coefficient.
    return _short_polynomial((roots - _ARCSINE + 2 * shifted)[1:], is_double)


# Number of Taylor coefficients of arcsin(√t)/√t; further ones add less than rounding error at t = 1/2.
_NUM_TERMS = 80
# Taylor coefficients of arcsin(√t)/√t.
_ARCSINE = np.cumprod([1.0, *((2 * k - 1) ** 2 / (2 * k * (2 * k + 1)) for k in range(1, _NUM_TERMS))])


def _short_polynomial(taylor: np.ndarray, is_double: bool) -> tuple[float, ...]:
    """A shorter polynomial for t ≤ 1/2, by interpolation; above degree 18 rounding in the powers of t costs digits."""
    degree = 18 if is_double else 8
    interpolant = np.polynomial.Chebyshev.interpolate(np.polynomial.Polynomial(taylor), degree, domain=[0, 0.5])
    return tuple(float(coefficient) for coefficient in interpolant.convert(kind=np.polynomial.Polynomial).coef)


def _lengths(rows: Array) -> Array:
    return safe_sqrt(jnp.sum(rows**2, axis=-1))
