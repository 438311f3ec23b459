"""Covariances of explicit vectors: sums and means of values are longer vectors, images are loops over positions."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fixntk.ntk.angles import as_rows
from fixntk.ntk.covariances import (
    Pairs,
    add_pairs,
    average_pairs,
    covariances_of_inputs,
    haversines_from_moments,
    haversines_from_shares,
)


def pairs_of(first, second):
    """Of vectors (n1, …, k) and (n2, …, k) whose inner products are the moments; angles in extended precision."""
    u, v = np.asarray(first, "longdouble")[:, None], np.asarray(second, "longdouble")[None]
    lengths = [np.sqrt(np.sum(array**2, axis=-1, keepdims=True)) for array in (u, v)]
    one, two = u / lengths[0], v / lengths[1]
    moments = [np.sum(array, axis=-1) for array in (u**2, v**2, u * v, (one - two) ** 2 / 4, (one + two) ** 2 / 4)]
    variance1, variance2, covariance, *haversines = (jnp.asarray(np.asarray(moment, float)) for moment in moments)
    return Pairs(variance1, variance2, covariance, *haversines, 3 * covariance)


def assert_same(found, expected, atol=1e-14):
    """Angles themselves, not their squares, to rounding."""
    for name in ("variance1", "variance2", "covariance", "ntk"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-13, atol=1e-13)
    for name in ("haversine", "havercosine"):
        np.testing.assert_allclose(np.sqrt(getattr(found, name)), np.sqrt(getattr(expected, name)), atol=atol)


def of_inputs(x, others, has_all_positions):
    """Of inputs with the scale 1/4, compiled."""
    traced = []

    @jax.jit
    def compute(x, others):
        rows1 = as_rows(x, jnp.arange(len(x)))
        rows2 = rows1 if others is None else as_rows(others, -1 - jnp.arange(len(others)))
        traced.append(covariances_of_inputs(rows1, rows2, 0.25, has_all_positions))
        return traced[0].pairs, traced[0].own1, traced[0].own2

    pairs, own1, own2 = compute(jnp.asarray(x), None if others is None else jnp.asarray(others))
    return replace(traced[0], pairs=pairs, own1=own1, own2=own2)


def near(rng, x):
    """Other vectors, nearly parallel and nearly opposite ones."""
    signs = np.resize([1.0, -1.0], len(x)).reshape(-1, *(1,) * (x.ndim - 1))
    return np.concatenate([rng.standard_normal(x.shape), signs * x * (1 + 1e-9 * rng.standard_normal(x.shape))])


def test_a_sum_of_independent_values_is_that_of_stacked_vectors(rng):
    x = rng.standard_normal((4, 6))
    others = near(rng, x)
    # The two parts have other lengths, in other ratios.
    one, two = (pairs_of(x[:, part], others[:, part]) for part in (slice(0, 2), slice(2, 6)))
    assert_same(jax.jit(add_pairs)(one, two), pairs_of(x, others))


def test_equal_values_keep_the_angle_zero_in_sums():
    variance = jnp.array([[0.1, 1e-8, 3.3, 7e5]])
    zero = jnp.zeros_like(variance)
    same = Pairs(variance, variance, variance, zero, zero + 1, variance)
    other = Pairs(0.7 * variance, 0.7 * variance, 0.7 * variance, zero, zero + 1, variance)
    total = add_pairs(same, add_pairs(other, same))
    np.testing.assert_array_equal(total.haversine, 0.0)
    np.testing.assert_allclose(total.havercosine, 1.0, rtol=4e-16)


def mean_with_neighbour(array, *sides):
    """Mean over each position and the one before, the same one for all sides; axes of size one have one position."""
    shifted = array
    for axes in sides:
        shifted = jnp.roll(shifted, 1, axes[0])
    return (array + shifted) / 2


@pytest.mark.parametrize("has_all_positions", [False, True])
def test_a_mean_over_positions_is_that_of_stacked_vectors(rng, has_all_positions):
    x = rng.standard_normal((4, 5, 3))
    others = near(rng, x)
    stacked = [np.concatenate([a, np.roll(a, 1, axis=1)], axis=-1) / np.sqrt(2) for a in (x, others)]
    if has_all_positions:
        sides = ((2,), (3,))
        x, stacked[0] = x[:, :, None], stacked[0][:, :, None]
        others, stacked[1] = others[:, None], stacked[1][:, None]
    else:
        sides = ((2,), (2,))
    found = jax.jit(lambda pairs: average_pairs(pairs, mean_with_neighbour, sides))(pairs_of(x, others))
    # A difference of lengths below the rounding of a mean counts as none.
    assert_same(found, pairs_of(*stacked), atol=2e-7)


def test_haversines_of_moments_are_those_of_their_correlation_and_of_shares_their_ratio(dtype):
    variance1, variance2 = jnp.asarray([2.0, 0.5, 3.0, 3.0], dtype), jnp.asarray([0.3, 0.5, 3.0, 0.0], dtype)
    covariance = jnp.asarray([0.4, -0.5, 3.0, 0.0], dtype)
    haversine, havercosine = haversines_from_moments(variance1, variance2, covariance)
    cosine = 0.4 / np.sqrt(0.6)
    np.testing.assert_allclose(haversine, [(1 - cosine) / 2, 1, 0, 0.5], atol=1e-6)
    np.testing.assert_allclose(havercosine, [(1 + cosine) / 2, 0, 1, 0.5], atol=1e-6)
    # Rounding below the correlation one is no angle.
    eps = float(jnp.finfo(dtype).eps)
    assert haversines_from_moments(variance1[2], variance2[2], covariance[2] * (1 - 2 * eps))[0] == 0
    shares = haversines_from_shares(jnp.asarray([1.0, 0.0, 1e-30], dtype), jnp.asarray([3.0, 0.0, 1.0], dtype))
    np.testing.assert_allclose(shares, [[0.25, 0.5, 1e-30], [0.75, 0.5, 1.0]], rtol=1e-6)


def test_vectors_without_positions_are_their_inner_products(rng):
    x, others = rng.standard_normal((3, 4)), rng.standard_normal((5, 4))
    found = of_inputs(x, others, has_all_positions=False)
    assert (found.num_positions, found.is_gaussian, found.own1) == (0, False, None)
    expected = pairs_of(x / 2, others / 2)
    assert not np.any(found.pairs.ntk)
    for name in ("variance1", "variance2", "covariance", "haversine", "havercosine"):
        np.testing.assert_allclose(getattr(found.pairs, name), getattr(expected, name), atol=1e-13)


# The pairs hold NumPy arrays.
@pytest.mark.wrong_types
@pytest.mark.parametrize("has_all_positions", [False, True])
def test_images_are_loops_over_their_positions(rng, has_all_positions):
    x, others = rng.standard_normal((2, 2, 3, 4)), rng.standard_normal((3, 2, 3, 4))
    found = of_inputs(x, others, has_all_positions)
    assert (found.num_positions, found.has_all_positions) == (2, has_all_positions)
    assert found.sides == (((2, 3), (4, 5)) if has_all_positions else ((2, 3), (2, 3)))

    def check(pairs, first, second):
        arrays = [np.broadcast_to(part, pairs.covariance.shape) for part in (pairs.variance1, pairs.variance2)]
        for index in np.ndindex(*pairs.covariance.shape):
            i, j, p, q, *other = index
            u, v = first[i, p, q], second[(j, *(other or (p, q)))]
            cosine = u @ v / np.sqrt(u @ u * (v @ v))
            np.testing.assert_allclose(pairs.covariance[index], 0.25 * u @ v, atol=1e-13)
            np.testing.assert_allclose([array[index] for array in arrays], [0.25 * u @ u, 0.25 * v @ v], rtol=1e-13)
            np.testing.assert_allclose(pairs.haversine[index], (1 - cosine) / 2, atol=1e-13)
            np.testing.assert_allclose(pairs.havercosine[index], (1 + cosine) / 2, atol=1e-13)

    check(jax.tree.map(np.asarray, found.pairs), x, others)
    if not has_all_positions:
        return
    # Of the images themselves, whose positions are not taken for one another.
    check(jax.tree.map(np.asarray, of_inputs(x, None, has_all_positions).pairs), x, x)
    for own, images, side in ((found.own1, x, 0), (found.own2, others, 1)):
        for i, image in enumerate(images):
            one = jax.tree.map(lambda a, i=i, side=side: np.take(np.asarray(a), [i], axis=side), own)
            check(one, image[None], image[None])
            # A position and itself are the same vector to the last bit.
            np.testing.assert_array_equal(np.diag(one.haversine.reshape(6, 6)), 0.0)


# The pairs stand for themselves and hold nothing.
@pytest.mark.wrong_types
def test_a_change_is_made_to_every_set_of_pairs(rng):
    for has_all_positions in (True, False):
        before = of_inputs(*rng.standard_normal((2, 2, 3, 4)), has_all_positions)
        after = before.map(lambda pairs: jax.tree.map(lambda part: 2 * part, pairs), is_gaussian=True)
        assert after.is_gaussian
        for name in ("pairs", "own1", "own2"):
            one, other = getattr(before, name), getattr(after, name)
            jax.tree.map(lambda a, b: np.testing.assert_array_equal(2 * a, b), one, other)
        assert (after.own1 is None) == (not has_all_positions)
