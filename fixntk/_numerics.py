"""Arithmetic with care that more than one part of the library needs."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.experimental
import jax.numpy as jnp
from jax import Array, lax


def matmul(a: Array, b: Array) -> Array:
    """Matrix product in full precision: a GPU's TF32 would spoil certificates, masks near a boundary and angles."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def einsum(subscripts: str, *operands: Array) -> Array:
    """Sum of products in full precision, as :func:`matmul`."""
    return jnp.einsum(subscripts, *operands, precision=lax.Precision.HIGHEST)


def safe_sqrt(squares: Array) -> Array:
    """Square root, zero with derivative zero where the argument is not positive."""
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)


def float64_allowed() -> AbstractContextManager[Any]:
    """A context in which float64 exists, in this thread alone; for host-driven solvers that need its digits."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    return jax.experimental.enable_x64(True)  # type: ignore[attr-defined]  # JAX below 0.8


def with_dtype(tree: Any, dtype: Any) -> Any:
    """A pytree with its floating-point arrays in another dtype."""

    def converted(leaf: Array) -> Array:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(converted, tree)
