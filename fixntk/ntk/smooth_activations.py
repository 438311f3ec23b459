"""Smooth activations, by their Gaussian moments in closed form.

Those with constants are amplitude · φ(rate · x), where ``amplitude`` and ``rate`` are numbers known before compilation.

See docs/mathematics.md, M13.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fixntk.ntk.gaussians import Activation, Gaussians, Moments, as_degree, as_numbers

# φ(x) = erf(x / this)/2 + 1/2 is closest to the logistic function in the mean square over −5 ≤ x ≤ 5.
_SIGMOID_RATE = 2.4020563531719796


@cache
def _polynomial(coefficients: tuple[float, ...]) -> Activation:
    def expectation(pair: Gaussians, coefficients: Sequence[float]) -> Array:
        # Price's theorem: E[φ(u)φ(v)] = Σ_m E[uv]^m / m! E[φ^(m)(u)] E[φ^(m)(v)], by Horner's rule from the last term.
        total = jnp.zeros_like(pair.covariance)
        for m in reversed(range(len(coefficients))):
            # E[φ^(m)(u)] from E[z^2h] = (2h)! / (h! 2^h); odd moments are zero.
            means = [
                sum(
                    coefficients[k] * math.factorial(k) / (math.factorial(h) * 2**h) * std ** (2 * h)
                    for h, k in enumerate(range(m, len(coefficients), 2))
                )
                for std in (pair.std1, pair.std2)
            ]
            total = total * pair.covariance / (m + 1) + means[0] * means[1]
        return total

    derivative = [k * coefficient for k, coefficient in enumerate(coefficients)][1:] or [0.0]
    name = f"polynomial({', '.join(f'{coefficient:g}' for coefficient in coefficients)})"

    def moments(pair: Gaussians) -> Moments:
        return expectation(pair, coefficients), expectation(pair, derivative)

    def function(x: Array) -> Array:
        # Highest degree first.
        return jnp.polyval(jnp.asarray(coefficients[::-1], x.dtype), x)

    return Activation(name, moments, function=function)


def polynomial(coefficients: Sequence[float]) -> Activation:
    """φ(x) = Σ_k coefficients[k] x^k.

    Raises
    ------
    TypeError
        If a coefficient is not a number.
    ValueError
        If there is no coefficient, or one is not finite, or the degree is above 100.
    """
    values = as_numbers("coefficients", list(coefficients))
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError(f"coefficients must be one or more finite numbers, got {coefficients!r}")
    if len(values) > 101:
        raise ValueError(f"coefficients must belong to a degree of at most 100, got {len(values) - 1}")
    return _polynomial(tuple(values))


def monomial(degree: int) -> Activation:
    """φ(x) = x^degree; errors as for :func:`polynomial`."""
    return polynomial([0.0] * as_degree(degree) + [1.0])


def hermite(degree: int) -> Activation:
    """The Hermite polynomial He_degree(x) / √(degree!), of mean square 1 for a standard normal x.

    For any variance of its inputs, unlike neural-tangents' layer, which takes it to be 1. Errors as for
    :func:`polynomial`.
    """
    number = as_degree(degree)
    coefficients = np.polynomial.hermite_e.herme2poly([0.0] * number + [1.0])
    return polynomial(list(coefficients / math.sqrt(math.factorial(number))))


class _NoisyPair(NamedTuple):
    """Two Gaussian variables plus independent noise of variance 1, by ratios that stay in range for any variance.

    Attributes
    ----------
    noise1, noise2
        √(1 / (1 + s std²)) of u and of v, where s scales the variance of the variable relative to the noise.
    correlation
        s E[uv] / √((1 + s std1²)(1 + s std2²)).
    sine
        √(1 − correlation²), without cancellation.
    """

    noise1: Array
    noise2: Array
    correlation: Array
    sine: Array


def _add_noise(pair: Gaussians, s: int) -> _NoisyPair:
    noise1, noise2 = (1 / (1 + s * std**2) for std in (pair.std1, pair.std2))
    signal1, signal2 = 1 - noise1, 1 - noise2
    rest = noise1 * noise2 + signal1 * noise2 + noise1 * signal2
    sine = jnp.sqrt(rest + 4 * signal1 * signal2 * pair.haversine * pair.havercosine)
    root1, root2 = jnp.sqrt(noise1), jnp.sqrt(noise2)
    return _NoisyPair(root1, root2, s * (pair.covariance * root1) * root2, sine)


def erf(amplitude: float = 1.0, rate: float = 1.0, offset: float = 0.0) -> Activation:
    """φ(x) = amplitude · erf(rate · x) + offset.

    Raises
    ------
    TypeError, ValueError
        If a constant is not a finite number; so for all activations with constants.
    """
    return _erf(*_as_constants(amplitude, rate, offset))


@cache
def _erf(amplitude: float, rate: float, offset: float) -> Activation:
    def moments(pair: Gaussians) -> Moments:
        # Williams 1997: E[erf(u)erf(v)] = (2/π) arcsin(correlation); arctan2 keeps its digits near ±1.
        noise1, noise2, correlation, sine = _add_noise(pair, 2)
        return (2 / jnp.pi) * jnp.arctan2(correlation, sine), (4 / jnp.pi) * (noise1 / sine) * noise2

    def shifted(pair: Gaussians) -> Moments:
        # erf is odd, so that its means vanish.
        values, derivatives = _scale(moments, amplitude, rate)(pair)
        return values + offset**2, derivatives

    return Activation(
        f"erf({amplitude:g}, {rate:g}, {offset:g})",
        shifted,
        function=lambda x: amplitude * jax.scipy.special.erf(rate * x) + offset,
    )


def sigmoid_like() -> Activation:
    """The function closest to the logistic one among a · erf(b · x) + c, in closed form."""
    return erf(0.5, 1 / _SIGMOID_RATE, 0.5)


def _gelu(pair: Gaussians) -> Moments:
    noise1, noise2, correlation, sine = _add_noise(pair, 1)
    # φ(x) = x Φ(x), and Φ(x) is the probability that x plus noise is positive: first that both are.
    both_positive = 0.25 + jnp.arctan2(correlation, sine) / (2 * jnp.pi)
    # The normal density at u and v, times E[uv].
    density = correlation / (2 * jnp.pi * sine)
    shares = noise1**2 + noise2**2
    spread = (pair.std1**2 * noise1) * (pair.std2**2 * noise2) * (4 * pair.haversine * pair.havercosine / sine)
    values = pair.covariance * (both_positive + density * shares) + spread / (2 * jnp.pi)
    return values, both_positive + density * (shares + (noise1 / sine * noise2) ** 2)


GELU = Activation("gelu", _gelu, function=lambda x: jax.nn.gelu(x, approximate=False))


def sin(amplitude: float = 1.0, rate: float = 1.0, phase: float = 0.0) -> Activation:
    """φ(x) = amplitude · sin(rate · x + phase); errors as for :func:`erf`."""
    return _sin(*_as_constants(amplitude, rate, phase))


def cos(amplitude: float = 1.0, rate: float = 1.0, phase: float = 0.0) -> Activation:
    """φ(x) = amplitude · cos(rate · x + phase); errors as for :func:`erf`."""
    amplitude, rate, phase = _as_constants(amplitude, rate, phase)
    return _sin(amplitude, rate, phase + math.pi / 2)


def rbf(gamma: float = 1.0) -> Activation:
    """φ(x) = √2 sin(√(2γ) x + π/4), whose covariance is the Gaussian kernel exp(−γ E[(u − v)²]).

    Raises
    ------
    TypeError, ValueError
        If ``gamma`` is not a positive finite number.
    """
    (gamma,) = _as_constants(gamma)
    if gamma <= 0:
        raise ValueError(f"gamma must be positive, got {gamma}")
    return _sin(math.sqrt(2), math.sqrt(2 * gamma), math.pi / 4)


@cache
def _sin(amplitude: float, rate: float, phase: float) -> Activation:
    def moments(pair: Gaussians) -> Moments:
        # sin a sin b and cos a cos b are half of cos(a − b) ∓ cos(a + b). cos(u ∓ v) has the mean exp(−Var(u ∓ v)/2),
        # and Var(u − v) = (std1 − std2)² + 4 std1 std2 sin²(θ/2).
        spread, product = (pair.std1 - pair.std2) ** 2, 4 * pair.std1 * pair.std2
        difference = jnp.exp(-(spread + product * pair.haversine) / 2)
        total = math.cos(2 * phase) * jnp.exp(-(spread + product * pair.havercosine) / 2)
        return (difference - total) / 2, (difference + total) / 2

    return Activation(
        f"sin({amplitude:g}, {rate:g}, {phase:g})",
        _scale(moments, amplitude, rate),
        function=lambda x: amplitude * jnp.sin(rate * x + phase),
    )


def exp(amplitude: float = 1.0, rate: float = 1.0) -> Activation:
    """φ(x) = amplitude · exp(rate · x); errors as for :func:`erf`."""
    return _exp(*_as_constants(amplitude, rate))


@cache
def _exp(amplitude: float, rate: float) -> Activation:
    def moments(pair: Gaussians) -> Moments:
        # u + v has the variance std1² + std2² + 2 E[uv], and exp is its own derivative.
        values = jnp.exp((pair.std1**2 + pair.std2**2) / 2 + pair.covariance)
        return values, values

    return Activation(
        f"exp({amplitude:g}, {rate:g})",
        _scale(moments, amplitude, rate),
        function=lambda x: amplitude * jnp.exp(rate * x),
    )


def gaussian(amplitude: float = 1.0, rate: float = 1.0) -> Activation:
    """φ(x) = amplitude · exp(−(rate · x)²); errors as for :func:`erf`."""
    return _gaussian(*_as_constants(amplitude, rate))


@cache
def _gaussian(amplitude: float, rate: float) -> Activation:
    def moments(pair: Gaussians) -> Moments:
        noise1, noise2, correlation, sine = _add_noise(pair, 2)
        values = noise1 / sine * noise2
        return values, 2 * correlation * values * (noise1 / sine) * (noise2 / sine)

    return Activation(
        f"gaussian({amplitude:g}, {rate:g})",
        _scale(moments, amplitude, rate),
        function=lambda x: amplitude * jnp.exp(-((rate * x) ** 2)),
    )


@cache
def gabor() -> Activation:
    """φ(x) = exp(−x²) sin x."""

    def moments(pair: Gaussians) -> Moments:
        # Gaussian integrals of exp(−x² + ix), with everything divided by Δ = (1 + 2q)(1 + 2q') − 4 E[uv]².
        noise1, noise2, correlation, sine = _add_noise(pair, 2)
        root = noise1 / sine * noise2
        signal1, signal2 = 1 - noise1**2, 1 - noise2**2
        growth = correlation * (noise1 / sine) * (noise2 / sine)
        variances = (signal1 * (noise2 / sine) ** 2 + signal2 * (noise1 / sine) ** 2) / 2
        determinant = 4 * (signal1 / sine) * (signal2 / sine) * pair.haversine * pair.havercosine
        damping = root * jnp.exp(-(variances + determinant + growth) / 2) / 2
        values = damping * jnp.expm1(growth)
        shared, crossed = root**2 + 2 * growth**2, 2 * growth * (determinant + 3 * variances + 2 * root**2)
        return values, damping * (shared * (1 + jnp.exp(growth)) + crossed * jnp.expm1(growth))

    return Activation("gabor", moments, function=lambda x: jnp.exp(-(x**2)) * jnp.sin(x))


def exp_normalized(gamma: float = 1.0, shift: float = -1.0) -> Activation:
    """The dual activation std1 std2 exp(γ (cos θ + shift)), without a function φ: for kernels alone.

    Errors as for :func:`erf`.

    References
    ----------
    Shankar et al., "Neural Kernels Without Tangents", ICML 2020.
    """
    return _exp_normalized(*_as_constants(gamma, shift))


@cache
def _exp_normalized(gamma: float, shift: float) -> Activation:
    def moments(pair: Gaussians) -> Moments:
        growth = jnp.exp(gamma * (pair.havercosine - pair.haversine + shift))
        return pair.std1 * pair.std2 * growth, gamma * growth

    return Activation(f"exp_normalized({gamma:g}, {shift:g})", moments)


def _as_constants(*values: float) -> list[float]:
    numbers = as_numbers("constants", values)
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"constants must be finite, got {numbers}")
    return numbers


def _scale(moments: Callable[[Gaussians], Moments], amplitude: float, rate: float) -> Callable[[Gaussians], Moments]:
    """Moments of amplitude · φ(rate · x) from those of φ."""

    def scaled(pair: Gaussians) -> Moments:
        # A negative rate flips the signs of u and v together, which changes no second moment.
        values, derivatives = moments(
            pair._replace(std1=abs(rate) * pair.std1, std2=abs(rate) * pair.std2, covariance=rate**2 * pair.covariance)
        )
        return amplitude**2 * values, (amplitude * rate) ** 2 * derivatives

    return scaled
