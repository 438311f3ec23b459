"""Gaussian moments of activations: E[φ(u)φ(v)] and E[φ'(u)φ'(v)] of two Gaussian variables, in closed form.

See docs/mathematics.md, M13.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fixntk.ntk.angles import sine_less_angle_times_cosine
from fixntk.ntk.gaussians import Activation, Gaussians, Haversines, Moments
from fixntk.ntk.quadrature import elementwise


def leaky_relu(slope: float = 0.01) -> Activation:
    """φ(x) = x for x > 0, slope · x otherwise; ReLU is slope 0, the absolute value slope −1.

    Raises
    ------
    TypeError
        If ``slope`` is not a number.
    ValueError
        If ``slope`` or its square is not finite.
    """
    (number,) = _as_numbers("slope", [slope])
    if not math.isfinite(number * number):
        raise ValueError(f"slope must be finite, and its square too, got {number}")
    return _leaky_relu(number)


@cache
def _leaky_relu(slope: float) -> Activation:
    # φ(x) = (1 + slope)/2 · x + (1 − slope)/2 · |x|, and x is not correlated with |x'|: these are the squared factors.
    odd, even = ((1 + slope) / 2) ** 2, ((1 - slope) / 2) ** 2

    def moments(pair: Gaussians) -> Moments:
        # E|u||v| = std1 std2 (2/π)(sin θ − θ cos θ) + E[uv] (Cho and Saul 2009, degree 1).
        lune = sine_less_angle_times_cosine(pair.haversine, pair.havercosine)
        values = (odd + even) * pair.covariance + (even * 2 / jnp.pi) * (pair.std1 * pair.std2 * lune)
        return values, odd + even * (1 - (2 / jnp.pi) * pair.angle)

    def haversines(pair: Gaussians) -> Haversines:
        if slope == -1:
            # |u| does not depend on the sign of u, so that angles θ and π − θ give the same result.
            smaller = jnp.minimum(pair.haversine, pair.havercosine)
            pair = pair._replace(haversine=smaller, havercosine=jnp.maximum(pair.haversine, pair.havercosine))
        lune = sine_less_angle_times_cosine(pair.haversine, pair.havercosine)
        # cos θ rises by twice this, so that the haversine falls by it.
        rise = (even / (jnp.pi * (odd + even))) * lune
        return jnp.maximum(pair.haversine - rise, 0), pair.havercosine + rise

    return Activation(f"leaky_relu({slope:g})", moments, haversines)


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
    return Activation(name, lambda pair: (expectation(pair, coefficients), expectation(pair, derivative)))


def polynomial(coefficients: Sequence[float]) -> Activation:
    """φ(x) = Σ_k coefficients[k] x^k.

    Raises
    ------
    TypeError
        If a coefficient is not a number.
    ValueError
        If there is no coefficient, or one is not finite, or the degree is above 100.
    """
    values = _as_numbers("coefficients", list(coefficients))
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError(f"coefficients must be one or more finite numbers, got {coefficients!r}")
    if len(values) > 101:
        raise ValueError(f"coefficients must belong to a degree of at most 100, got {len(values) - 1}")
    return _polynomial(tuple(values))


def _as_numbers(name: str, values: Any) -> list[float]:
    """Check constants, for which there are no derivatives."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be numbers known before the compilation, got {values!r}") from error
    if array.dtype.kind not in "biuf" or array.ndim != 1:
        raise TypeError(f"{name} must be real numbers, got {values!r}")
    return [float(value) for value in array]


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


def _erf(pair: Gaussians) -> Moments:
    # Williams 1997: E[erf(u)erf(v)] = (2/π) arcsin(correlation); arctan2 keeps its digits near ±1.
    noise1, noise2, correlation, sine = _add_noise(pair, 2)
    return (2 / jnp.pi) * jnp.arctan2(correlation, sine), (4 / jnp.pi) * (noise1 / sine) * noise2


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


def _sin_and_cos(pair: Gaussians) -> tuple[Array, Array]:
    """E[sin u sin v] and E[cos u cos v]."""
    # cos(u ∓ v) has the mean exp(−Var(u ∓ v)/2), and Var(u − v) = (std1 − std2)² + 4 std1 std2 sin²(θ/2).
    spread, product = (pair.std1 - pair.std2) ** 2, 4 * pair.std1 * pair.std2
    difference = jnp.exp(-(spread + product * pair.haversine) / 2)
    total = jnp.exp(-(spread + product * pair.havercosine) / 2)
    return (difference - total) / 2, (difference + total) / 2


def _gaussian(pair: Gaussians) -> Moments:
    noise1, noise2, correlation, sine = _add_noise(pair, 2)
    values = noise1 / sine * noise2
    return values, 2 * correlation * values * (noise1 / sine) * (noise2 / sine)


def _steps(offset: float, height: float) -> Activation:
    """φ(x) = height · sign(x)/2 + offset, with φ' = 0 almost everywhere and sign(0) = 0."""

    def moments(pair: Gaussians) -> Moments:
        angle = jnp.where(pair.are_both_random, pair.angle, jnp.pi / 2)
        return offset**2 + height**2 * (0.25 - angle / (2 * jnp.pi)), jnp.zeros_like(angle)

    def haversines(pair: Gaussians) -> Haversines:
        random, constant = offset**2 + height**2 / 4, offset**2
        haversine = height**2 * pair.angle / (4 * random * jnp.pi)
        # A constant with another one, or with a random variable.
        to_constant = 0.5 - offset / (2 * math.sqrt(random))
        is_one_random = (pair.std1 > 0) | (pair.std2 > 0)
        between_constants = jnp.where(is_one_random, to_constant, 0.0 if constant else 0.5)
        haversine = jnp.where(pair.are_both_random, haversine, between_constants)
        return haversine, 1 - haversine

    return Activation("step" if offset else "sign", moments, haversines)


ACTIVATIONS: dict[str, Activation] = {
    "relu": replace(leaky_relu(0.0), name="relu"),
    "leaky_relu": replace(leaky_relu(), name="leaky_relu"),
    "abs": replace(leaky_relu(-1.0), name="abs"),
    "erf": Activation("erf", _erf),
    "gelu": Activation("gelu", _gelu),
    "sin": Activation("sin", _sin_and_cos),
    "cos": Activation("cos", lambda pair: _sin_and_cos(pair)[::-1]),
    "sign": _steps(0.0, 2.0),
    "step": _steps(0.5, 1.0),
    "gaussian": Activation("gaussian", _gaussian),
    "identity": Activation(
        "identity",
        lambda pair: (pair.covariance, jnp.ones_like(pair.covariance)),
        lambda pair: (pair.haversine, pair.havercosine),
    ),
}

# jax.nn.gelu is not here: its default is an approximation by tanh, which has no closed form.
_KNOWN_FUNCTIONS: dict[Any, str] = {
    jax.nn.relu: "relu",
    jax.nn.leaky_relu: "leaky_relu",
    jax.nn.identity: "identity",
    jax.scipy.special.erf: "erf",
    jax.lax.erf: "erf",
    jnp.abs: "abs",
    jnp.absolute: "abs",
    jax.lax.abs: "abs",
    jnp.sin: "sin",
    jax.lax.sin: "sin",
    jnp.cos: "cos",
    jax.lax.cos: "cos",
    jnp.sign: "sign",
    jax.lax.sign: "sign",
}


def as_activation(activation: str | Activation | Callable[[Array], Array]) -> Activation:
    """Return an activation by its name, unchanged, or from a function: in closed form if known, else by quadrature.

    Raises
    ------
    ValueError
        If the name is unknown.
    TypeError
        If it is neither a name, nor an :class:`Activation`, nor callable.
    """
    if isinstance(activation, Activation):
        return activation
    if isinstance(activation, str):
        if activation not in ACTIVATIONS:
            names = ", ".join(ACTIVATIONS)
            raise ValueError(f"activation must be one of {names}, a function or an Activation, got {activation!r}")
        return ACTIVATIONS[activation]
    try:
        known = _KNOWN_FUNCTIONS.get(activation)
    except TypeError as error:
        raise TypeError(f"activation must be hashable to be compiled once, got {activation!r}") from error
    return elementwise(activation) if known is None else ACTIVATIONS[known]
