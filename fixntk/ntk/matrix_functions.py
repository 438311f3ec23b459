"""Functions of a kernel along gradient flow, with derivatives that stay finite where eigenvalues repeat.

The functions of an eigenvalue μ at s = αt: "inverse" (1 − e^(−sμ))/μ, "progress" 1 − e^(−sμ), "decay" e^(−sμ). At
eigenvalues that count as zero all three are zero. The derivative of a matrix function F(Θ) in the direction E is
V (Γ ∘ (Vᵀ E V)) Vᵀ with Γ the divided differences of F (Daleckii and Krein). It is finite also where eigenvalues
repeat and eigenvectors have no derivative.

See docs/mathematics.md, M15.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from fixntk._numerics import matmul

# Below this argument z, (1 − e^(−z))/z and its divided differences are summed as power series, because the closed forms
# would suffer from cancellation.
_SERIES_BELOW = 0.5
# Number of terms of the series. At z = 0.5 the remainder is below the rounding error of float64.
_NUM_TERMS = 14


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def apply_function(
    kind: str, matrix: Array, eigenvalues: Array, eigenvectors: Array, cutoff: Array, times: Array, vectors: Array
) -> Float[Array, "t m k"]:
    """F_s(matrix) @ vectors for (t,) values of s and (m, k) vectors, by the eigendecomposition that is passed."""
    # The matrix is an argument only because derivatives are taken with respect to it.
    del matrix
    factors = _spectral_function(kind, jnp.maximum(eigenvalues, 0)[None, :], times[:, None], cutoff)
    return matmul(eigenvectors, factors[:, :, None] * matmul(eigenvectors.T, vectors)[None])


@partial(apply_function.defjvp, symbolic_zeros=True)
def _apply_function_jvp(kind: str, primals: tuple[Array, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    matrix, _, _, cutoff, times, vectors = primals
    d_matrix, _, _, _, d_times, d_vectors = tangents
    value = apply_function(kind, *primals)
    change = jnp.zeros_like(value)
    if not _is_zero(d_times):
        # Derivatives in s: e^(−sμ) for "inverse", μ e^(−sμ) for "progress", −μ e^(−sμ) for "decay".
        rate = apply_function("decay", *primals)
        if kind != "inverse":
            rate = matmul(matrix, rate) * (1 if kind == "progress" else -1)
        change += d_times[:, None, None] * rate
    if _is_zero(d_matrix) and _is_zero(d_vectors):
        return value, change
    # The matrix is decomposed again, so that second derivatives in it go through the eigenvectors. (Code that is linear
    # in the tangents cannot call apply_function instead, because its transpose would not use this rule.)
    eigenvalues, eigenvectors = jnp.linalg.eigh(matrix, symmetrize_input=False)
    eigenvalues = jnp.maximum(eigenvalues, 0)
    if not _is_zero(d_vectors):
        factors = _spectral_function(kind, eigenvalues[None, :], times[:, None], cutoff)
        change += matmul(eigenvectors, factors[:, :, None] * matmul(eigenvectors.T, d_vectors)[None])
    if not _is_zero(d_matrix):
        rotated = matmul(eigenvectors.T, vectors)

        def along(direction: Array) -> Array:
            # One time after another, because the divided differences of each time are an (m, m) matrix.
            def at_time(time: Array) -> Array:
                differences = _divided_differences(kind, eigenvalues, time, cutoff)
                return matmul(eigenvectors, matmul(differences * direction, rotated))

            return lax.map(at_time, times)

        # Linear in the direction, and so its own derivative. JAX below 0.7 transposes a loop over tangents only where
        # it has taken the derivative itself.
        direction = matmul(matmul(eigenvectors.T, d_matrix), eigenvectors)
        change += jax.jvp(along, (jnp.zeros_like(direction),), (direction,))[1]
    return value, change


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, jax.custom_derivatives.SymbolicZero)


def _spectral_function(kind: str, mu: Array, s: Array, cutoff: Array) -> Array:
    if kind == "decay":
        value = jnp.where(jnp.isinf(s), 0, jnp.exp(-mu * _finite_times(s)))
    else:
        value = _inverse(mu, s) if kind == "inverse" else _progress(mu, s)
    return jnp.where(_is_null(mu, s, cutoff), 0, value)


def _divided_differences(kind: str, mu: Array, s: Array, cutoff: Array) -> Float[Array, "m m"]:
    """(F(a) − F(b))/(a − b) for all pairs of eigenvalues, F'(a) where they are equal."""
    high, low = jnp.maximum(mu[:, None], mu[None, :]), jnp.minimum(mu[:, None], mu[None, :])
    null_high, null_low = _is_null(high, s, cutoff), _is_null(low, s, cutoff)
    safe_high = jnp.where(high > 0, high, 1)
    safe_low = jnp.where(low > 0, low, 1)
    # (e^(−s low) − e^(−s high))/(high − low) = e^(−s low) (1 − e^(−s (high − low)))/(high − low), without cancellation.
    progress = jnp.where(jnp.isinf(s), 0, jnp.exp(-_finite_times(s) * low) * _inverse(high - low, _finite_times(s)))
    if kind == "inverse":
        # Leibniz's rule for μ F(μ) = 1 − e^(−sμ) gives high · [F] + F(low) = progress; for small sμ by the series.
        small = _finite_times(s) * high < _SERIES_BELOW
        x, y = (jnp.where(small, _finite_times(s) * value, 0) for value in (high, low))
        series = _finite_times(s) ** 2 * _series(x, y)[1]
        value = jnp.where(small, series, (progress - _inverse(low, _finite_times(s))) / safe_high)
        value = jnp.where(jnp.isinf(s), -1 / (safe_high * safe_low), value)
    else:
        value = progress if kind == "progress" else -progress
    # An eigenvalue that counts as zero has F = 0 at μ = 0, so the difference to it is F(high)/high.
    against_null = _spectral_function(kind, high, s, cutoff) / safe_high
    return jnp.where(null_high & null_low, 0, jnp.where(null_low & ~null_high, against_null, value))


def _is_null(mu: Array, s: Array, cutoff: Array) -> Array:
    # Not s · cutoff ≥ 1: for the zero kernel at t = ∞ the product is NaN, and its eigenvalues have to count as zero.
    return (mu <= cutoff) & ~(s * cutoff < 1)


def _finite_times(s: Array) -> Array:
    return jnp.where(jnp.isinf(s), 1, s)


def _progress(mu: Array, s: Array) -> Array:
    return jnp.where(jnp.isinf(s), 1, -jnp.expm1(-mu * _finite_times(s)))


def _inverse(mu: Array, s: Array) -> Array:
    """(1 − e^(−sμ))/μ, and s at μ = 0."""
    z = _finite_times(s) * mu
    small = (z < _SERIES_BELOW) & ~jnp.isinf(s)
    z = jnp.where(small, z, 0)
    series, _ = _series(z, z)
    return jnp.where(small, _finite_times(s) * series, _progress(mu, s) / jnp.where(mu > 0, mu, 1))


def _series(x: Array, y: Array) -> tuple[Array, Array]:
    """(1 − e^(−z))/z = Σ_k (−z)^k/(k + 1)! at small y, and its divided difference between small x and y (Horner)."""
    value, difference = jnp.zeros_like(y), jnp.zeros_like(y)
    for k in reversed(range(_NUM_TERMS)):
        # For q(z) = p(z) z + c, the divided difference is (q(x) − q(y))/(x − y) = [p] x + p(y).
        difference = difference * x + value
        value = value * y + (-1) ** k / math.factorial(k + 1)
    return value, difference
