"""Pairs of Gaussian variables by samples and by the arc cosine."""

import jax
import jax.numpy as jnp
import numpy as np

from fixntk.ntk.gaussians import Activation, Gaussians


def pair_of(std1, std2, angle, dtype="float64"):
    values = std1, std2, std1 * std2 * np.cos(angle), np.sin(angle / 2) ** 2, np.cos(angle / 2) ** 2
    return Gaussians(*(jnp.asarray(value, dtype) for value in values))


def test_the_angle_is_the_arc_cosine_of_the_correlation_and_keeps_its_digits_at_the_ends(dtype):
    angles = np.array([0.0, 1e-12, 1e-6, 0.3, np.pi / 2, 2.0, np.pi - 1e-6, np.pi])
    pair = pair_of(np.full(8, 0.7), np.full(8, 1.9), angles, dtype)
    assert pair.angle.dtype == dtype
    np.testing.assert_allclose(pair.angle, angles, rtol={"float64": 4e-15, "float32": 1e-6}[str(dtype)])
    middle = slice(3, 6)
    correlation = np.asarray(pair.covariance / (pair.std1 * pair.std2), "float64")[middle]
    np.testing.assert_allclose(np.asarray(pair.angle)[middle], np.arccos(correlation), rtol=1e-6)


def test_a_deviation_of_zero_is_no_random_variable():
    stds = jnp.array([0.0, 1e-300, 2.0])
    pair = Gaussians(stds[:, None], stds[None, :], *(jnp.zeros((3, 3)),) * 3)
    np.testing.assert_array_equal(pair.are_both_random, np.outer([0, 1, 1], [0, 1, 1]).astype(bool))


def test_the_angle_of_jointly_gaussian_samples_is_twice_pi_times_the_share_of_opposite_signs(key):
    angle = 0.8
    first, second = jax.random.normal(key, (2, 400_000))
    u, v = 0.7 * first, 1.9 * (np.cos(angle) * first + np.sin(angle) * second)
    # P(u v < 0) = θ/π, with a standard error of 7e-4.
    opposite = jnp.mean(u * v < 0)
    pair = pair_of(0.7, 1.9, angle)
    np.testing.assert_allclose(pair.angle / np.pi, opposite, atol=3e-3)
    np.testing.assert_allclose(pair.covariance, jnp.mean(u * v), atol=1e-2)


def test_an_activation_without_other_formulas_has_its_moments_alone():
    identity = Activation("identity", lambda pair: (pair.covariance, jnp.ones_like(pair.covariance)))
    assert identity.haversines is None
    assert identity.truncation is None
    np.testing.assert_allclose(identity.moments(pair_of(0.7, 1.9, 0.8))[0], 0.7 * 1.9 * np.cos(0.8), rtol=1e-15)
