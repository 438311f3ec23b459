import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from numpy.polynomial.hermite_e import hermegauss
from scipy import special

from fixntk.ntk.activations import (
    ACTIVATIONS,
    Activation,
    Gaussians,
    ab_relu,
    as_activation,
    cos,
    elementwise,
    erf,
    exp,
    gaussian,
    hermite,
    leaky_relu,
    monomial,
    polynomial,
    rbf,
    rectified_monomial,
    sin,
)

COEFFICIENTS = (0.3, -0.7, 0.2, 0.5)

# Names of activations that grow with their inputs.
UNBOUNDED = ("relu", "leaky_relu", "abs", "gelu", "identity")


# Scale of the inputs of the error function that is close to the logistic one.
C = 2.4020563531719796


def logistic_like(u):
    return special.erf(u / C) / 2 + 0.5


SMOOTH = {
    "erf": (special.erf, lambda u: 2 / np.sqrt(np.pi) * np.exp(-(u**2))),
    "gelu": (
        lambda u: u * special.ndtr(u),
        lambda u: special.ndtr(u) + u * np.exp(-(u**2) / 2) / np.sqrt(2 * np.pi),
    ),
    "sin": (np.sin, np.cos),
    "cos": (np.cos, lambda u: -np.sin(u)),
    "gaussian": (lambda u: np.exp(-(u**2)), lambda u: -2 * u * np.exp(-(u**2))),
    "gabor": (
        lambda u: np.exp(-(u**2)) * np.sin(u),
        lambda u: np.exp(-(u**2)) * (np.cos(u) - 2 * u * np.sin(u)),
    ),
    "rbf": (
        lambda u: np.sqrt(2) * np.sin(np.sqrt(2) * u + np.pi / 4),
        lambda u: 2 * np.cos(np.sqrt(2) * u + np.pi / 4),
    ),
    "sigmoid_like": (logistic_like, lambda u: np.exp(-((u / C) ** 2)) / (C * np.sqrt(np.pi))),
    "identity": (lambda u: u, np.ones_like),
    "polynomial": (
        np.polynomial.Polynomial(COEFFICIENTS),
        np.polynomial.Polynomial(COEFFICIENTS).deriv(),
    ),
}


def pair_of(std1, std2, angle, dtype=jnp.float64):
    values = std1, std2, std1 * std2 * np.cos(angle), np.sin(angle / 2) ** 2, np.cos(angle / 2) ** 2
    return Gaussians(*(jnp.asarray(value, dtype) for value in values))


def named(name):
    return polynomial(COEFFICIENTS) if name == "polynomial" else ACTIVATIONS[name]


def by_quadrature(function, pair, num_nodes=120):
    """E[f(u)f(v)] by a product rule in two dimensions."""
    nodes, weights = hermegauss(num_nodes)
    weights = weights / np.sqrt(2 * np.pi)
    first, second = np.meshgrid(nodes, nodes, indexing="ij")
    std1, std2, covariance = float(pair.std1), float(pair.std2), float(pair.covariance)
    correlation = covariance / (std1 * std2)
    other = correlation * first + np.sqrt(max(0.0, 1 - correlation**2)) * second
    return np.sum(np.outer(weights, weights) * function(std1 * first) * function(std2 * other))


@pytest.mark.parametrize("angle", [0.0, 0.4, 1.5, 2.9, np.pi])
@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_moments_are_the_quadratures(name, angle):
    for std1, std2 in [(0.5, 0.8), (1.3, 1.0)]:
        pair = pair_of(std1, std2, angle)
        values, derivatives = named(name).moments(pair)
        function, derivative = SMOOTH[name]
        np.testing.assert_allclose(values, by_quadrature(function, pair), atol=1e-12)
        np.testing.assert_allclose(derivatives, by_quadrature(derivative, pair), atol=1e-12)


def homogeneous(slope, offset, degree):
    """Value and derivative of x ↦ x, slope·x on the two sides of 0 (degree 1), or 1, offset (degree 0)."""
    if degree == 1:
        return lambda u: u if u > 0 else slope * u, lambda u: mpmath.mpf(1) if u > 0 else mpmath.mpf(slope)
    return lambda u: mpmath.mpf(1) if u > 0 else mpmath.mpf(offset), lambda _: mpmath.mpf(0)


KINKED = {
    "relu": (homogeneous(0, 0, 1), 1),
    "leaky_relu": (homogeneous(0.01, 0, 1), 1),
    "abs": (homogeneous(-1, 0, 1), 1),
    "sign": (homogeneous(0, -1, 0), 0),
    "step": (homogeneous(0, 0, 0), 0),
}


def on_the_circle(function, degree, std1, std2, angle):
    """E[f(u)f(v)] of a function of that degree: E[r^(2 degree)] times a mean over directions, between the kinks."""
    with mpmath.workdps(30):
        angle = mpmath.mpf(angle)
        kinks = sorted(
            {mpmath.mpf(0), 2 * mpmath.pi}
            | {(shift + k * mpmath.pi / 2) % (2 * mpmath.pi) for shift in (0, angle) for k in (1, 3)}
        )
        integral = mpmath.quad(lambda t: function(mpmath.cos(t)) * function(mpmath.cos(t - angle)), kinks)
        return float(integral / (2 * mpmath.pi) * (2 * std1 * std2) ** degree)


WITH_CONSTANTS = {
    "erf": (erf(1.3, 0.7, 0.2), lambda u: 1.3 * special.erf(0.7 * u) + 0.2),
    "sin": (sin(1.3, 0.7, 0.2), lambda u: 1.3 * np.sin(0.7 * u + 0.2)),
    "cos": (cos(0.8, -1.2, 0.5), lambda u: 0.8 * np.cos(-1.2 * u + 0.5)),
    "gaussian": (gaussian(1.3, 0.6), lambda u: 1.3 * np.exp(-((0.6 * u) ** 2))),
    "exp": (exp(0.8, 0.5), lambda u: 0.8 * np.exp(0.5 * u)),
    "rbf": (rbf(0.7), lambda u: np.sqrt(2) * np.sin(np.sqrt(1.4) * u + np.pi / 4)),
    "monomial": (monomial(3), lambda u: u**3),
    "hermite": (hermite(4), lambda u: (u**4 - 6 * u**2 + 3) / np.sqrt(24)),
}


@pytest.mark.parametrize("name", WITH_CONSTANTS)
def test_activations_with_constants_are_the_quadratures(name):
    activation, function = WITH_CONSTANTS[name]
    pair = pair_of(1.1, 0.8, 0.9)
    values, derivatives = activation.moments(pair)
    slope = lambda u: np.imag(function(u + 1e-20j)) / 1e-20  # noqa: E731
    np.testing.assert_allclose(values, by_quadrature(function, pair), atol=1e-12)
    np.testing.assert_allclose(derivatives, by_quadrature(slope, pair), atol=1e-12)


@pytest.mark.parametrize("angle", [0.0, 0.7, np.pi / 2, 2.0, np.pi])
@pytest.mark.parametrize("degree", [0, 1, 2, 3, 6])
def test_rectified_monomials_are_integrals_over_the_circle(degree, angle):
    values, derivatives = rectified_monomial(degree).moments(pair_of(1.0, 1.0, angle))

    def integral(power):
        # E[r^(2 power)] = 2^power power! times the mean over directions in which both are positive.
        both = mpmath.quad(lambda t: (mpmath.cos(t) * mpmath.cos(t - angle)) ** power, [angle - np.pi / 2, np.pi / 2])
        return float(both) / (2 * np.pi) * 2**power * math.factorial(power)

    size = float(special.factorial2(2 * degree - 1)) if degree else 1.0
    np.testing.assert_allclose(values, integral(degree), atol=1e-13 * size)
    if degree:
        np.testing.assert_allclose(derivatives, degree**2 * integral(degree - 1), atol=1e-12 * size)


def test_two_slopes_are_the_sum_of_two_rectified_linear_units():
    """φ = b max(x, 0) − a max(−x, 0): four quadrants."""
    pair, opposite = pair_of(0.7, 1.9, 0.8), pair_of(0.7, 1.9, np.pi - 0.8)
    same, other = (ACTIVATIONS["relu"].moments(one) for one in (pair, opposite))
    values, derivatives = ab_relu(-0.3, 1.7).moments(pair)
    np.testing.assert_allclose(values, (1.7**2 + 0.3**2) * same[0] + 2 * 0.3 * 1.7 * other[0])
    np.testing.assert_allclose(derivatives, (1.7**2 + 0.3**2) * same[1] - 2 * 0.3 * 1.7 * other[1])


def test_functions_have_the_moments():
    """The function for finite networks is the one whose moments are given."""
    pair = pair_of(1.1, 1.1, 0.0)
    nodes = np.linspace(-9, 9, 40_000)
    density = np.exp(-(nodes**2) / 2) / np.sqrt(2 * np.pi) * (nodes[1] - nodes[0])
    others = [activation for activation, _ in WITH_CONSTANTS.values()]
    for activation in [*ACTIVATIONS.values(), *others, rectified_monomial(3), polynomial(COEFFICIENTS)]:
        second = np.sum(density * np.asarray(activation.function(jnp.asarray(1.1 * nodes))) ** 2)
        np.testing.assert_allclose(activation.moments(pair)[0], second, rtol=1e-4, err_msg=activation.name)


@pytest.mark.parametrize("angle", [0.0, 1e-3, 0.7, 1.6, 3.0, np.pi])
@pytest.mark.parametrize("name", KINKED)
def test_moments_with_a_kink_are_integrals_over_the_circle(name, angle):
    (function, derivative), degree = KINKED[name]
    values, derivatives = ACTIVATIONS[name].moments(pair_of(0.7, 1.9, angle))
    np.testing.assert_allclose(values, on_the_circle(function, degree, 0.7, 1.9, angle), atol=1e-13)
    np.testing.assert_allclose(derivatives, on_the_circle(derivative, 0, 0.7, 1.9, angle), atol=1e-13)


@pytest.mark.parametrize("name", [*KINKED, "identity"])
def test_haversines_are_those_of_the_second_moments(name):
    """And keeps its digits where they cancel: checked in fifty."""
    activation = ACTIVATIONS[name] if name != "leaky_relu" else leaky_relu(-0.4)
    for angle in (1e-7, 1e-3, 0.5, 2.0, 3.1, np.pi - 1e-7):
        pair = pair_of(0.7, 1.9, angle)
        haversine, havercosine = activation.haversines(pair)
        same = activation.moments(pair_of(1.0, 1.0, 0.0))[0]
        with mpmath.workdps(50):
            angle = 2 * mpmath.atan2(*(mpmath.sqrt(mpmath.mpf(float(h))) for h in (pair.haversine, pair.havercosine)))
            absolute = 2 / mpmath.pi * (mpmath.sin(angle) + (mpmath.pi / 2 - angle) * mpmath.cos(angle))
            slope = {"relu": 0, "abs": -1, "leaky_relu": mpmath.mpf(-0.4), "identity": 1}.get(name)
            if slope is not None:
                even, odd = ((1 - slope) / mpmath.mpf(2)) ** 2, ((1 + slope) / mpmath.mpf(2)) ** 2
                cosine = (odd * mpmath.cos(angle) + even * absolute) / (odd + even)
            else:
                cosine = 1 - {"sign": 2, "step": 1}[name] * angle / mpmath.pi
            expected = mpmath.acos(cosine) / 2
            expected_sin, expected_cos = float(mpmath.sin(expected)), float(mpmath.cos(expected))
        assert same > 0
        np.testing.assert_allclose(np.sqrt(haversine), expected_sin, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(np.sqrt(havercosine), expected_cos, rtol=1e-9, atol=1e-12)


def test_float32_moments():
    for name in [*SMOOTH, *KINKED]:
        double, single = (named(name).moments(pair_of(1.3, 0.6, 0.4, dtype)) for dtype in (jnp.float64, jnp.float32))
        assert all(moment.dtype == jnp.float32 for moment in single)
        np.testing.assert_allclose(single, double, rtol=2e-6)


@pytest.mark.parametrize("scale", [1e-15, 1e-6, 1e6, 1e15])
def test_float32_moments_of_any_size(scale):
    for name in ACTIVATIONS:
        for angle in (0.0, 1e-3, 1.4, np.pi):
            double, single = (
                ACTIVATIONS[name].moments(pair_of(1.3 * scale, 0.6 * scale, angle, dtype))
                for dtype in (jnp.float64, jnp.float32)
            )
            size = 1.3 * 0.6 * scale**2 if name in UNBOUNDED else 1
            np.testing.assert_allclose(single[0], double[0], rtol=2e-5, atol=2e-7 * size)
            np.testing.assert_allclose(single[1], double[1], rtol=2e-5, atol=2e-6)


def test_a_constant_is_neither_positive_nor_negative():
    """sign(0) = 0 and step(0) = 1/2, with a random variable (angle π/2), another zero, and itself (angle 0)."""
    for std2, angle in [(1.7, np.pi / 2), (0.0, np.pi / 2), (0.0, 0.0)]:
        pair = pair_of(0.0, std2, angle)
        np.testing.assert_allclose(ACTIVATIONS["sign"].moments(pair)[0], 0.0, atol=1e-16)
        np.testing.assert_allclose(ACTIVATIONS["step"].moments(pair)[0], 0.25)
        haversine, havercosine = ACTIVATIONS["step"].haversines(pair)
        cosine = 0.25 / np.sqrt(0.25 * (0.5 if std2 else 0.25))
        np.testing.assert_allclose([haversine, havercosine], [(1 - cosine) / 2, (1 + cosine) / 2], atol=1e-15)
        np.testing.assert_allclose(ACTIVATIONS["sign"].haversines(pair), 0.5)


def test_known_functions_have_their_closed_forms():
    assert as_activation(jax.nn.relu) is ACTIVATIONS["relu"]
    assert as_activation(jnp.sin) is ACTIVATIONS["sin"]
    assert as_activation(jax.nn.leaky_relu) is ACTIVATIONS["leaky_relu"]
    assert as_activation(jnp.tanh) is as_activation(jnp.tanh)
    assert isinstance(as_activation(jax.nn.gelu), Activation)
    assert as_activation(jax.nn.gelu) is not ACTIVATIONS["gelu"]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: as_activation("tanhh"), ValueError, "activation must be one of relu, .*got 'tanhh'"),
        pytest.param(
            lambda: as_activation(3), TypeError, "activation must be a function", marks=pytest.mark.wrong_types
        ),
        pytest.param(
            lambda: as_activation([1]), TypeError, "activation must be hashable", marks=pytest.mark.wrong_types
        ),
        (lambda: leaky_relu(np.inf), ValueError, "slope must be finite"),
        (lambda: leaky_relu(1e200), ValueError, "slope must be finite"),
        (lambda: ab_relu(0.0, 0.0), ValueError, "slopes must be finite, their squares too, and not both zero"),
        (lambda: rectified_monomial(-1), ValueError, "degree must be at least 1"),
        (lambda: rectified_monomial(26), ValueError, "degree must be at most 25, got 26"),
        (lambda: rbf(-1.0), ValueError, "gamma must be positive"),
        (lambda: erf(np.nan), ValueError, "constants must be finite"),
        pytest.param(lambda: leaky_relu("a"), TypeError, "slope must be real numbers", marks=pytest.mark.wrong_types),
        pytest.param(
            lambda: jax.grad(lambda s: leaky_relu(s).moments(pair_of(1.0, 1.0, 1.0))[0])(0.1),
            TypeError,
            "slope must be",
            marks=pytest.mark.wrong_types,
        ),
        pytest.param(
            lambda: polynomial("12"), TypeError, "coefficients must be real numbers", marks=pytest.mark.wrong_types
        ),
        (lambda: polynomial([1.0] * 200), ValueError, "degree of at most 100, got 199"),
        (lambda: elementwise(jax.nn.softmax), ValueError, "activation must work entry by entry"),
        (lambda: elementwise(lambda _: 1.0), ValueError, "activation must work entry by entry"),
        (lambda: elementwise(np.tanh), TypeError, "activation must be a function of JAX, such as jnp.tanh"),
        (lambda: polynomial([]), ValueError, "coefficients must be one or more finite"),
        (lambda: polynomial([1.0, np.nan]), ValueError, "coefficients must be one or more finite"),
        (lambda: elementwise(jnp.tanh, 0), ValueError, "num_terms must be at least 1"),
        (lambda: elementwise(jnp.sum), ValueError, "activation must work entry by entry"),
    ],
)
def test_bad_activations_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
