"""Activations with a kink or a step at zero, by their Gaussian moments.

See docs/mathematics.md, M13.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import jax.numpy as jnp
import numpy as np
from jax import Array

from fixntk._numerics import safe_sqrt
from fixntk.ntk.angles import full_angle, sine_less_angle_times_cosine
from fixntk.ntk.gaussians import Activation, Gaussians, Haversines, Moments, as_degree, as_numbers

# Largest degree of a rectified monomial: its largest moment has room in float32.
_MAX_DEGREE = 25


def leaky_relu(slope: float = 0.01) -> Activation:
    """φ(x) = x for x > 0, slope · x otherwise; ReLU is slope 0, the absolute value slope −1.

    Raises
    ------
    TypeError
        If ``slope`` is not a number.
    ValueError
        If ``slope`` or its square is not finite.
    """
    (number,) = as_numbers("slope", [slope])
    if not math.isfinite(number * number):
        raise ValueError(f"slope must be finite, and its square too, got {number}")
    return _named_leaky_relu(number)


def ab_relu(negative: float, positive: float) -> Activation:
    """φ(x) = positive · x for x > 0, negative · x otherwise.

    Raises
    ------
    TypeError
        If a slope is not a number.
    ValueError
        If the square of a slope is not finite, or both are zero.
    """
    slopes = as_numbers("slopes", [negative, positive])
    if not all(math.isfinite(slope * slope) for slope in slopes) or not any(slopes):
        raise ValueError(f"slopes must be finite, their squares too, and not both zero, got {slopes}")
    return _ab_relu(*slopes)


@cache
def _named_leaky_relu(slope: float) -> Activation:
    return replace(_ab_relu(slope, 1.0), name=f"leaky_relu({slope:g})")


@cache
def _ab_relu(negative: float, positive: float) -> Activation:
    # φ(x) = (positive + negative)/2 · x + (positive − negative)/2 · |x|, and x is not correlated with |x'|: these are
    # the squared factors.
    odd, even = ((positive + negative) / 2) ** 2, ((positive - negative) / 2) ** 2

    def moments(pair: Gaussians) -> Moments:
        # E|u||v| = std1 std2 (2/π)(sin θ − θ cos θ) + E[uv] (Cho and Saul 2009, degree 1).
        lune = sine_less_angle_times_cosine(pair.haversine, pair.havercosine)
        values = (odd + even) * pair.covariance + (even * 2 / jnp.pi) * (pair.std1 * pair.std2 * lune)
        return values, odd + even * (1 - (2 / jnp.pi) * pair.angle)

    def haversines(pair: Gaussians) -> Haversines:
        if odd == 0:
            # |u| does not depend on the sign of u, so that angles θ and π − θ give the same result.
            smaller = jnp.minimum(pair.haversine, pair.havercosine)
            pair = pair._replace(haversine=smaller, havercosine=jnp.maximum(pair.haversine, pair.havercosine))
        lune = sine_less_angle_times_cosine(pair.haversine, pair.havercosine)
        # cos θ rises by twice this, so that the haversine falls by it.
        rise = (even / (jnp.pi * (odd + even))) * lune
        return jnp.maximum(pair.haversine - rise, 0), pair.havercosine + rise

    def function(x: Array) -> Array:
        return jnp.where(x > 0, positive * x, negative * x)

    return Activation(f"ab_relu({negative:g}, {positive:g})", moments, haversines, function=function)


def rectified_monomial(degree: int) -> Activation:
    """φ(x) = x^degree for x > 0, zero otherwise: the step for degree 0 (with 1/2 at zero), ReLU for degree 1.

    Raises
    ------
    TypeError
        If ``degree`` is not an integer.
    ValueError
        If ``degree`` is negative or above 25.

    References
    ----------
    Cho and Saul, "Kernel Methods for Deep Learning", NeurIPS 2009.
    """
    number = as_degree(degree)
    if number > _MAX_DEGREE:
        raise ValueError(f"degree must be at most {_MAX_DEGREE}, got {number}")
    return steps(0.5, 1.0) if number == 0 else _rectified_monomial(number)


@cache
def _rectified_monomial(degree: int) -> Activation:
    if degree == 1:
        return replace(_ab_relu(0.0, 1.0), name="rectified_monomial(1)")

    def moments(pair: Gaussians) -> Moments:
        lengths = pair.std1 * pair.std2
        values, derivatives = (lengths**k * _arc_cosine(k, pair) for k in (degree, degree - 1))
        return values, degree**2 * derivatives

    def function(x: Array) -> Array:
        return jnp.maximum(x, 0) ** degree

    return Activation(f"rectified_monomial({degree})", moments, function=function)


def _arc_cosine(degree: int, pair: Gaussians) -> Array:
    """E[φ(u)φ(v)] of the rectified monomial for variances 1: (A(cos θ)(π − θ) + B(cos θ) sin θ) / (2π)."""
    cosine, sine = pair.havercosine - pair.haversine, 2 * safe_sqrt(pair.haversine * pair.havercosine)
    # The angle of the opposite vector is π − θ, without a difference.
    supplement = full_angle(pair.havercosine, pair.haversine)
    whole, rest = (
        sum((coefficient * cosine**k for k, coefficient in enumerate(polynomial) if coefficient), jnp.zeros_like(sine))
        for polynomial in _arc_cosine_polynomials(degree)
    )
    return (whole * supplement + rest * sine) / (2 * jnp.pi)


@cache
def _arc_cosine_polynomials(degree: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Coefficients of the polynomials A and B in cos θ."""
    # At opposite signs as well as at equal ones, u^n v^n has the moment A = Σ_m c^m/m! E[(z^n)^(m)]², as in
    # Price's theorem.
    whole = [0.0] * (degree + 1)
    for m in range(degree % 2, degree + 1, 2):
        half = (degree - m) // 2
        mean = math.factorial(degree) / (math.factorial(half) * 2**half)
        whole[m] = mean**2 / math.factorial(m)
    if degree == 0:
        return tuple(whole), ()
    # d/dcos θ lowers the degree n by one and multiplies by n²; the terms without an angle are
    # A + (1 − c²) B' − c B = n² (1 − c²) B_{n−1}, from which the coefficients of B follow one after another.
    below = np.array([*_arc_cosine_polynomials(degree - 1)[1], 0.0, 0.0, 0.0])
    right = degree**2 * (below - np.roll(below, 2))
    right[: degree + 1] -= whole
    # At a right angle u and v are independent: E[φ(u)]² = A(0)/4 + B(0)/(2π).
    mean = 2 ** (degree / 2 - 1) * math.gamma((degree + 1) / 2) / math.sqrt(math.pi)
    rest = [2 * math.pi * mean**2 - whole[0] * math.pi / 2]
    for k in range(degree - 1):
        rest.append((right[k] + (k * rest[k - 1] if k else 0.0)) / (k + 1))
    parity = (degree - 1) % 2
    return tuple(whole), tuple(number if k % 2 == parity else 0.0 for k, number in enumerate(rest))


@cache
def steps(offset: float, height: float) -> Activation:
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

    def function(x: Array) -> Array:
        return height * jnp.sign(x) / 2 + offset

    return Activation("step" if offset else "sign", moments, haversines, function=function)
