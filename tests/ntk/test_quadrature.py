"""Series of any elementwise function: polynomials exactly, other quadratures, closed forms, and what a series omits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.polynomial.hermite_e import hermegauss, hermeval
from scipy.special import factorial
from test_activations import by_quadrature, pair_of

from fixntk.ntk import quadrature
from fixntk.ntk.activations import ACTIVATIONS
from fixntk.ntk.quadrature import elementwise


def product_moment(k, m, std1, std2, covariance):
    """E[u^k v^m] by Isserlis: a sum over the number r of pairs of a u with a v."""

    def pairings(count):
        return factorial(count) / (2 ** (count // 2) * factorial(count // 2)) if count % 2 == 0 else 0.0

    total = 0.0
    for r in range(min(k, m) + 1):
        ways = factorial(k) * factorial(m) / (factorial(r) * factorial(k - r) * factorial(m - r))
        total += ways * covariance**r * pairings(k - r) * std1 ** (k - r) * pairings(m - r) * std2 ** (m - r)
    return total


def cubic(u):
    return 0.5 - u + 2 * u**3


@pytest.mark.parametrize("angle", [0.0, 0.9, 2.6, np.pi])
def test_polynomials_of_a_degree_below_the_number_of_terms_are_exact(angle):
    coefficients = {0: 0.5, 1: -1.0, 3: 2.0}
    for std1, std2 in ((0.7, 1.6), (5.0, 0.0)):
        pair = pair_of(std1, std2, angle)
        covariance = float(pair.covariance)
        expected = sum(
            a * b * product_moment(k, m, std1, std2, covariance)
            for k, a in coefficients.items()
            for m, b in coefficients.items()
        )
        slopes = {k - 1: k * a for k, a in coefficients.items() if k}
        expected_slope = sum(
            a * b * product_moment(k, m, std1, std2, covariance) for k, a in slopes.items() for m, b in slopes.items()
        )
        # With three terms the cube is cut off.
        for num_terms in (4, 30):
            values, derivatives = elementwise(cubic, num_terms).moments(pair)
            np.testing.assert_allclose(values, expected, rtol=1e-11)
            np.testing.assert_allclose(derivatives, expected_slope, rtol=1e-11)
        if std2:
            assert abs(elementwise(cubic, 3).moments(pair)[0] - expected) > 1e-2


@pytest.mark.parametrize("num_terms", [1, 6, 40])
def test_the_projection_gives_the_coefficients_of_normalised_hermite_polynomials(num_terms):
    nodes, projection = quadrature._hermite_projection(num_terms)
    expected_nodes, weights = hermegauss(4 * num_terms)
    np.testing.assert_allclose(nodes, expected_nodes, atol=1e-11)
    for k in range(min(num_terms, 20)):
        polynomial = hermeval(nodes, np.eye(k + 1)[k]) / np.sqrt(factorial(k))
        np.testing.assert_allclose(projection[:, k], weights / np.sqrt(2 * np.pi) * polynomial, atol=1e-12)


@pytest.mark.parametrize("function", [jnp.tanh, jax.nn.sigmoid, jax.nn.softplus, jax.nn.swish, jax.nn.gelu])
def test_any_function_by_quadrature(function):
    pair = pair_of(1.2, 0.9, 0.6)
    values, derivatives = elementwise(function).moments(pair)
    slope = lambda t: jax.jvp(function, (t,), (jnp.ones_like(t),))[1]  # noqa: E731
    np.testing.assert_allclose(values, by_quadrature(function, pair, num_nodes=150), rtol=1e-10)
    np.testing.assert_allclose(derivatives, by_quadrature(slope, pair, num_nodes=150), rtol=1e-9)


def test_quadrature_is_the_closed_form():
    pair = pair_of(0.9, 1.1, 0.8)
    for name, function in [("erf", jax.scipy.special.erf), ("sin", jnp.sin)]:
        np.testing.assert_allclose(elementwise(function).moments(pair), ACTIVATIONS[name].moments(pair), rtol=1e-12)
    np.testing.assert_allclose(elementwise(jax.nn.relu).moments(pair), ACTIVATIONS["relu"].moments(pair), rtol=2e-3)


def test_truncation_is_what_the_series_lacks():
    for function, derivative, std in [
        (jnp.tanh, lambda u: 1 / np.cosh(u) ** 2, 5.0),
        (lambda u: jnp.maximum(u, 0.0), lambda u: np.heaviside(u, 0.5), 1.0),
    ]:
        activation = elementwise(function, 40)
        shares = activation.truncation(jnp.array([0.0, std]))
        nodes = np.linspace(-12, 12, 200_001)
        density = np.exp(-(nodes**2) / 2) / np.sqrt(2 * np.pi) * (nodes[1] - nodes[0])
        moments = activation.moments(pair_of(std, std, 0.0))
        for share, moment, values in zip(
            shares, moments, (np.asarray(function(std * nodes)), derivative(std * nodes)), strict=True
        ):
            np.testing.assert_allclose(share[0], 0.0, atol=1e-13)
            np.testing.assert_allclose(share[1], 1 - moment / np.sum(density * values**2), rtol=0.5)
