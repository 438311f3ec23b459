"""Checks of a convex program's arguments: each error names the argument, its value and what is expected."""

from __future__ import annotations

import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from fixntk._checks import as_float_array, as_numpy, check_same_rows, is_traced, largest_entry
from fixntk._numerics import default_tol
from fixntk.convex.losses import Loss
from fixntk.convex.penalties import NORMS, Norm
from fixntk.gates.masks import as_masks

# A tolerance below this many roundings of the dtype cannot be reached.
_LEAST_TOL_IN_EPS = 4


def as_number(name: str, value: Any) -> float:
    """A number as Python's float."""
    if isinstance(value, str) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    return float(value)


def as_stopping(tol: Any, max_iter: Any, dtype: Any, default_max_iter: int) -> tuple[float, int]:
    """The tolerance and the largest number of iterations as plain numbers, with defaults for None."""
    tol = default_tol(dtype) if tol is None else as_number("tol", tol)
    reachable = _LEAST_TOL_IN_EPS * float(jnp.finfo(dtype).eps)
    if not reachable <= tol < float("inf"):
        raise ValueError(f"tol={tol} is not finite or below what {dtype} can reach, {reachable:.1e}")
    if max_iter is None:
        max_iter = default_max_iter
    elif not hasattr(max_iter, "__index__"):
        raise TypeError(f"max_iter must be an integer, got {type(max_iter).__name__}")
    if (max_iter := operator.index(max_iter)) < 0:
        raise ValueError(f"max_iter must not be negative, got {max_iter}")
    return tol, max_iter


def as_groups(name: str, weights: ArrayLike, shape: tuple[int, int, int], *, is_vector: bool) -> Array:
    """Group weights (P, d, c) of this shape; for targets that are a vector (P, d) is taken as well."""
    given = as_float_array(name, weights, (2, 3))
    groups = given[:, :, None] if given.ndim == 2 and is_vector else given
    if groups.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {given.shape}")
    return groups


def as_program_masks(masks: ArrayLike, num_gates: int | None) -> Array:
    """Masks of a program, which may be packed if the number of gates is given."""
    if num_gates is None and getattr(masks, "dtype", None) == np.uint8:
        raise ValueError(
            "masks of dtype uint8 are taken as packed: pass num_gates= with them, the number of gates; pass bool masks"
            " otherwise"
        )
    return as_masks("masks", masks, num_gates)


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
    largest, largest_x = largest_entry(y), largest_entry(x)
    limits = jnp.finfo(y.dtype)
    # In float64, where they can be looked at; float64's own limits are met by infinity and zero.
    with np.errstate(over="ignore", under="ignore"):
        square, largest_square = _sum_of_squares(y, largest), float(np.square(np.float64(largest)))
    if largest > 0 and not (float(limits.tiny) <= largest_square and square <= float(limits.max)):
        raise ValueError(
            f"y has entries up to {largest:.1e}, whose squares are out of {y.dtype}'s range: divide y by {largest:.1e}"
        )
    product, most = largest_x * largest, math.sqrt(float(limits.max)) / max(x.size, y.size)
    if product > 0 and not math.sqrt(float(limits.tiny) / float(limits.eps)) <= product <= most:
        raise ValueError(
            f"products of x, with entries up to {largest_x:.1e}, and y, up to {largest:.1e}, have squares out of "
            f"{y.dtype}'s range: divide x by {largest_x:.1e} and y by {largest:.1e}"
        )


def _sum_of_squares(array: Array, largest: float) -> float:
    if array.is_fully_addressable:
        return float(np.sum(as_numpy(array) ** 2))
    # Rows of other processes cannot be read: these add up squares of entries of order one, which any dtype can.
    shares = float(_squares_of_shares(array, largest or 1.0))
    return float(np.float64(shares) * np.square(np.float64(largest)))


@jax.jit
def _squares_of_shares(array: Array, largest: ArrayLike) -> Array:
    return jnp.sum((array / largest) ** 2)


def _limits(array: Array) -> tuple[float, float]:
    """The smallest and the largest entry."""
    if array.is_fully_addressable:
        entries = as_numpy(array)
        return float(np.min(entries)), float(np.max(entries))
    return float(jnp.min(array)), float(jnp.max(array))


def as_sample_weight(sample_weight: ArrayLike | None, x: Array, dtype: Any) -> Array | None:
    """Sample weights as an (n,) array, checked to be non-negative and not all zero."""
    if sample_weight is None:
        return None
    weights = as_float_array("sample_weight", sample_weight, (1,)).astype(dtype)
    check_same_rows("x", x, "sample_weight", weights)
    if not is_traced(weights):
        smallest, largest = _limits(weights)
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
        smallest = float(np.min(as_numpy(weights)))
        if smallest <= 0:
            raise ValueError(f"penalty_weights must be positive, got {smallest:g}")
    return weights


def check_intercept_exists(loss: Loss, y: Array, sample_weight: Array | None) -> None:
    """Raise ValueError where a class does not occur among the rows that count: the best intercept is infinite then."""
    if loss.name not in ("logistic", "softmax"):
        return
    # NumPy needs no compiling, and JAX can look at rows of other processes.
    xp, read = (np, as_numpy) if y.is_fully_addressable else (jnp, jnp.asarray)
    labels = read(y)
    classes = xp.stack([labels > 0, labels < 0], axis=1) if y.ndim == 1 else labels > 0
    if sample_weight is not None:
        classes = classes & (read(sample_weight) > 0)[:, None]
    if not bool(xp.all(xp.any(classes, axis=0))):
        raise ValueError(f"y must have rows of every class for an intercept with the {loss.name} loss")
