"""Checks of a convex program's arguments: each error names the argument, its value and what is expected."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from fixntk._checks import as_float_array, check_same_rows, is_traced
from fixntk.convex.losses import Loss
from fixntk.convex.penalties import NORMS, Norm


def as_reg(reg: ArrayLike, dtype: Any) -> Float[Array, ""]:
    """λ as a scalar, checked to be positive and finite."""
    reg = as_float_array("reg", reg, (0, 1)).astype(dtype)
    if reg.ndim != 0:
        raise ValueError(f"reg must be a number (vmap over several), got shape {reg.shape}")
    if not is_traced(reg) and not 0 < float(reg) < math.inf:
        raise ValueError(f"reg must be positive and finite, got {float(reg)}")
    return reg


def as_norm(norm: str) -> Norm:
    """The norm of this name."""
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
    return NORMS[norm]


def as_ridge(ridge: ArrayLike, norm: Norm, dtype: Any) -> Float[Array, ""] | None:
    """α as a scalar; None where it is known to be zero, so that nothing is computed for it."""
    with jax.ensure_compile_time_eval():  # so that a number stays one under jit
        ridge = as_float_array("ridge", ridge, (0, 1)).astype(dtype)
    if ridge.ndim != 0 or (not is_traced(ridge) and float(ridge) < 0):
        raise ValueError(f"ridge must be a finite number that is not negative, got {ridge}")
    if not is_traced(ridge) and float(ridge) == 0:
        return None
    if norm.name == "nuclear":
        raise ValueError("ridge must be 0 with norm 'nuclear'")
    return ridge


def check_scale(x: Array, y: Array) -> None:
    """Raise ValueError if ½‖Y‖², by which gaps are measured, or squares of Xᵀ D_p Y under- or overflow."""
    if is_traced(x, y):
        return
    with jax.ensure_compile_time_eval():
        largest, square = float(jnp.max(jnp.abs(y))), float(jnp.sum(y**2))
        largest_x = float(jnp.max(jnp.abs(x)))
    if largest > 0 and not 0 < square < math.inf:
        raise ValueError(
            f"y has entries up to {largest:.1e}, whose squares are out of {y.dtype}'s range: divide y by {largest:.1e}"
        )
    limits = jnp.finfo(y.dtype)
    product, most = largest_x * largest, math.sqrt(float(limits.max)) / max(x.size, y.size)
    if product > 0 and not math.sqrt(float(limits.tiny) / float(limits.eps)) <= product <= most:
        raise ValueError(
            f"products of x, with entries up to {largest_x:.1e}, and y, up to {largest:.1e}, have squares out of "
            f"{y.dtype}'s range: divide x by {largest_x:.1e} and y by {largest:.1e}"
        )


def as_sample_weight(sample_weight: ArrayLike | None, x: Array, dtype: Any) -> Array | None:
    """Sample weights as an (n,) array, checked to be non-negative and not all zero."""
    if sample_weight is None:
        return None
    weights = as_float_array("sample_weight", sample_weight, (1,)).astype(dtype)
    check_same_rows("x", x, "sample_weight", weights)
    if not is_traced(weights):
        with jax.ensure_compile_time_eval():
            smallest, largest = float(jnp.min(weights)), float(jnp.max(weights))
        if smallest < 0 or largest == 0:
            raise ValueError(
                f"sample_weight must not be negative and not all zero, got from {smallest:g} to {largest:g}"
            )
    return weights


def as_penalty_weights(penalty_weights: ArrayLike | None, num_gates: int, dtype: Any) -> Array | None:
    """Penalty weights as a (P,) array, checked to be positive."""
    if penalty_weights is None:
        return None
    weights = as_float_array("penalty_weights", penalty_weights, (1,)).astype(dtype)
    if weights.shape != (num_gates,):
        raise ValueError(f"penalty_weights must have shape ({num_gates},), got {weights.shape}")
    if not is_traced(weights):
        with jax.ensure_compile_time_eval():
            smallest = float(jnp.min(weights))
        if smallest <= 0:
            raise ValueError(f"penalty_weights must be positive, got {smallest:g}")
    return weights


def check_intercept_exists(loss: Loss, y: Array, sample_weight: Array | None) -> None:
    """Raise ValueError where a class does not occur among the rows that count: the best intercept is infinite then."""
    if loss.name not in ("logistic", "softmax"):
        return
    with jax.ensure_compile_time_eval():
        present = jnp.ones(y.shape[0], bool) if sample_weight is None else sample_weight > 0
        classes = jnp.stack([y > 0, y < 0], axis=1) if y.ndim == 1 else y > 0
        occur = jnp.any(classes & present[:, None], axis=0)
        if not bool(jnp.all(occur)):
            raise ValueError(f"y must have rows of every class for an intercept with the {loss.name} loss")
