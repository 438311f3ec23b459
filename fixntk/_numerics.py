"""Arithmetic with care that more than one part of the library needs."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax


def matmul(a: Array, b: Array) -> Array:
    """Matrix product in full precision: a GPU's TF32 would spoil certificates, masks near a boundary and angles."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def safe_sqrt(squares: Array) -> Array:
    """Square root, zero with derivative zero where the argument is not positive."""
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
