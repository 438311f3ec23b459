"""Angles between vectors in fifty digits: relative errors of sin²(θ/2) and cos²(θ/2) at every angle."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from fixntk.ntk.angles import as_rows, full_angle, products_and_angles, sine_less_angle_times_cosine

EPS = {"float64": 2.0**-52, "float32": 2.0**-23}


def exact(a, b):
    """Product, haversine and havercosine, of which the two keep their digits: ‖u ∓ v‖² / 4."""
    a, b = ([mpmath.mpf(float(value)) for value in row] for row in (a, b))
    lengths = [mpmath.sqrt(mpmath.fdot(row, row)) for row in (a, b)]
    if 0 in lengths:
        return mpmath.mpf(0), mpmath.mpf(1) / 2, mpmath.mpf(1) / 2
    units = [[value / length for value in row] for row, length in zip((a, b), lengths, strict=True)]
    apart, together = (
        sum((one + sign * other) ** 2 for one, other in zip(*units, strict=True)) / 4 for sign in (-1, 1)
    )
    return mpmath.fdot(a, b), apart, together


def special_rows(rng, num_columns, dtype):
    """Nearly parallel and opposite rows at many distances and of other lengths, orthogonal ones, and zero."""
    x = rng.standard_normal(num_columns)
    rows = [x, rng.standard_normal(num_columns), np.zeros(num_columns), np.roll(x, 1) * np.array([1, -1])[0]]
    for distance in (1e-1, 1e-3, 1e-6, 1e-9):
        near = x * (1 + distance * rng.standard_normal(num_columns))
        rows += [near, -1.7 * near, 5.3 * near, 0.01 * near]
    return jnp.asarray(np.array(rows), dtype)


@pytest.mark.parametrize("num_columns", [3, 20])
def test_products_and_angles_keep_their_digits_at_every_angle(rng, dtype, num_columns):
    x = special_rows(rng, num_columns, dtype)
    rows1, rows2 = as_rows(x, jnp.arange(len(x))), as_rows(x[::-1], -1 - jnp.arange(len(x)))
    found = jax.jit(products_and_angles)(rows1, rows2)
    with mpmath.workdps(50):
        expected = [np.array(part, float) for part in zip(*(exact(a, b) for a in x for b in x[::-1]), strict=True)]
    product, haversine, havercosine = (part.reshape(len(x), -1) for part in expected)
    lengths = np.linalg.norm(np.asarray(x, "float64"), axis=1)
    eps = EPS[str(dtype)]
    np.testing.assert_array_less(np.abs(found[0] - product), 8 * eps * np.outer(lengths, lengths[::-1]) + 1e-300)
    # Angles to a few units of rounding, where the arc cosine of the product would lose half of the digits.
    np.testing.assert_allclose(np.sqrt(found[1]), np.sqrt(haversine), atol=32 * eps)
    np.testing.assert_allclose(np.sqrt(found[2]), np.sqrt(havercosine), atol=32 * eps)
    # Of vectors of nearly one length, small angles keep their relative precision as well.
    near = np.arange(4, len(x), 4)
    np.testing.assert_allclose(found[1][0, len(x) - 1 - near], haversine[0, len(x) - 1 - near], rtol=1e4 * eps)


def test_small_angles_keep_their_relative_precision_across_a_power_of_two(rng):
    x = rng.standard_normal(4)
    x *= (1 - 1e-10) / np.linalg.norm(x)
    other = x * (1 + 1e-9 * rng.uniform(1, 2, 4))
    assert np.linalg.norm(x) < 1 < np.linalg.norm(other)
    rows = (as_rows(jnp.asarray([row]), jnp.array([k])) for k, row in enumerate((x, other)))
    with mpmath.workdps(50):
        expected = float(exact(x, other)[1])
    np.testing.assert_allclose(products_and_angles(*rows)[1], [[expected]], rtol=1e-12)


def test_vectors_of_one_number_are_the_same_and_zero_is_at_a_right_angle(rng):
    x = jnp.asarray(np.vstack([rng.standard_normal((3, 4)), np.zeros((2, 4))]))
    rows = as_rows(x, jnp.arange(5))
    product, haversine, havercosine = products_and_angles(rows, rows)
    np.testing.assert_array_equal(jnp.diagonal(haversine), 0.0)
    np.testing.assert_array_equal(jnp.diagonal(havercosine), 1.0)
    np.testing.assert_array_equal(haversine[3], [0.5, 0.5, 0.5, 0.0, 0.5])
    np.testing.assert_allclose(jnp.diagonal(product), np.sum(np.asarray(x) ** 2, axis=1), rtol=1e-14)


def test_rows_are_scaled_by_powers_of_two_alone(rng, dtype):
    largest = {"float64": 1e300, "float32": 1e35}[str(dtype)]
    base = rng.standard_normal((3, 5))
    x = jnp.asarray(np.vstack([base, base * largest, base / largest, 0 * base[:1]]), dtype)
    rows = as_rows(x, jnp.arange(10))
    lengths = np.array([float(mpmath.norm(mpmath.matrix(np.asarray(row, float).tolist()))) for row in x])
    np.testing.assert_allclose(rows.lengths, lengths, rtol=4 * EPS[str(dtype)])
    np.testing.assert_allclose(jnp.linalg.norm(rows.units[:9], axis=1), 1.0, rtol=4 * EPS[str(dtype)])
    assert np.all((np.asarray(rows.scaled_lengths)[:9] >= 0.5) & (np.asarray(rows.scaled_lengths)[:9] <= 1.0))
    for row, scaled in zip(np.asarray(x, "longdouble")[:6], np.asarray(rows.scaled, "longdouble"), strict=False):
        mantissas, exponents = np.frexp(row / scaled)
        np.testing.assert_array_equal(mantissas, 0.5)
        assert len(set(exponents.tolist())) == 1
    np.testing.assert_array_equal([*rows.units[9], rows.lengths[9], rows.scaled_lengths[9]], 0.0)
    # The next power of two above the largest number is out of range.
    edge = jnp.zeros((1, 3), dtype).at[0, 1].set(float(0.9 * jnp.finfo(dtype).max))
    rows = as_rows(edge, jnp.zeros(1, int))
    np.testing.assert_allclose(rows.units, [[0, 1, 0]], rtol=4 * EPS[str(dtype)])
    np.testing.assert_allclose(rows.lengths, edge[:, 1], rtol=4 * EPS[str(dtype)])


@pytest.mark.parametrize("num_columns", [3, 30])
def test_derivatives_of_near_and_far_pairs_are_finite_differences_in_fifty_digits(rng, num_columns):
    x, y, d_x, d_y = (rng.standard_normal((4, num_columns)) for _ in range(4))
    y[1], y[2], y[3] = 2 * x[1] * (1 + 1e-4 * y[1]), -0.7 * x[2] * (1 + 1e-6 * y[2]), x[3] * (1 + 1e-8 * y[3])
    numbers = jnp.arange(4)

    @jax.jit
    def derivative(primals, tangents):
        return jax.jvp(
            lambda a, b: products_and_angles(as_rows(a, numbers), as_rows(b, -1 - numbers)), primals, tangents
        )[1]

    found = derivative((jnp.asarray(x), jnp.asarray(y)), (jnp.asarray(d_x), jnp.asarray(d_y)))
    with mpmath.workdps(50):
        step = mpmath.mpf(10) ** -20
        for i in range(4):

            def moved(t, i=i):
                rows = [
                    [mpmath.mpf(float(a)) + t * mpmath.mpf(float(b)) for a, b in zip(row, change, strict=True)]
                    for row, change in ((x[i], d_x[i]), (y[i], d_y[i]))
                ]
                units = [[v / mpmath.sqrt(mpmath.fdot(row, row)) for v in row] for row in rows]
                cosine = mpmath.fdot(*units)
                return mpmath.fdot(*rows), (1 - cosine) / 2, (1 + cosine) / 2

            for part, high, low in zip(found, moved(step), moved(-step), strict=True):
                np.testing.assert_allclose(part[i, i], float((high - low) / (2 * step)), rtol=1e-7)


def squares(dtype):
    """sin²(θ/2) and cos²(θ/2), of which the smaller one is any number."""
    small = np.concatenate([[0.0], np.geomspace(1e-30, 0.5, 60)]).astype(dtype)
    return jnp.asarray(np.concatenate([small, 1 - small])), jnp.asarray(np.concatenate([1 - small, small]))


def exact_angle(haversine, havercosine):
    roots = (mpmath.sqrt(mpmath.mpf(float(h))) for h in (haversine, havercosine))
    return 2 * mpmath.atan2(*roots)


def test_the_full_angle_has_every_digit(dtype):
    haversine, havercosine = squares(dtype)
    with mpmath.workdps(50):
        expected = [float(exact_angle(s, c)) for s, c in zip(haversine, havercosine, strict=True)]
    np.testing.assert_allclose(full_angle(haversine, havercosine), expected, rtol=16 * EPS[str(dtype)])
    slopes = jax.vmap(jax.grad(lambda h: full_angle(h, 1 - h)))(jnp.array([0.0, 0.2, 0.5, 0.8, 1.0]))
    np.testing.assert_allclose(slopes, [0.0, 2.5, 2.0, 2.5, 0.0], rtol=1e-14)


def test_sine_less_angle_times_cosine_has_every_digit_though_its_terms_cancel(dtype):
    haversine, havercosine = squares(dtype)
    with mpmath.workdps(80):
        angles = [exact_angle(s, c) for s, c in zip(haversine, havercosine, strict=True)]
        expected = [float(mpmath.sin(angle) - angle * mpmath.cos(angle)) for angle in angles]
    found = sine_less_angle_times_cosine(haversine, havercosine)
    tiny = np.finfo(str(dtype)).tiny
    np.testing.assert_allclose(found, expected, rtol=16 * EPS[str(dtype)], atol=tiny)
    # The derivative in θ is θ sin θ; that of sin²(θ/2) is sin θ / 2.
    points = jnp.array([0.1, 0.4, 0.9])
    slopes = jax.vmap(jax.grad(lambda h: sine_less_angle_times_cosine(h, 1 - h)))(points)
    np.testing.assert_allclose(slopes, 2 * full_angle(points, 1 - points), rtol=1e-14)
