"""Gates and their masks on data: sampling, evaluating, packing and merging them (M1)."""

from __future__ import annotations

import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Key, UInt8

from fixntk._checks import as_matrix, check_same_columns, is_traced


class Arrangements(NamedTuple):
    """Masks on a data set with one representative gate each (M1, M4).

    Attributes
    ----------
    masks
        (n, P) bool; ``masks[i, p]`` tells whether row i is on the active side of gate p.
    gates
        (P, d); gate p has exactly the mask ``masks[:, p]``. No unit; unit norm where they are enumerated.
    """

    masks: Bool[Array, "n P"]
    gates: Float[Array, "P d"]


def sample_gates(
    key: Key[Array, ""], num_gates: int, num_features: int, *, dtype: jnp.dtype | None = None
) -> Float[Array, "P d"]:
    """Draw gates from N(0, I), as a gated-ReLU network at initialisation has them (M1, M3).

    Parameters
    ----------
    key
        JAX random key.
    num_gates, num_features
        P and d, the shape of the result. Count the bias column among the features.
    dtype
        Floating-point type; JAX's default when None.

    Raises
    ------
    ValueError
        If either number is below 1.
    """
    for name, number in (("num_gates", num_gates), ("num_features", num_features)):
        if operator.index(number) < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    return jax.random.normal(key, (num_gates, num_features), dtype or jnp.result_type(float))


def activation_masks(x: ArrayLike, gates: ArrayLike) -> Bool[Array, "n P"]:
    """Masks 1{x·g ≥ 0} of gates on the rows of x (M1); a zero row is active under every gate.

    Parameters
    ----------
    x
        (n, d) inputs.
    gates
        (P, d) gates.

    Returns
    -------
    (n, P) bool.

    Raises
    ------
    ValueError
        If the numbers of columns differ, or either argument is empty or not finite.
    """
    x, gates = as_matrix("x", x), as_matrix("gates", gates)
    check_same_columns("x", x, "gates", gates)
    # A product in TF32 would put points near a boundary on the wrong side of it.
    return jnp.matmul(x, gates.T, precision=jax.lax.Precision.HIGHEST) >= 0


def pack_masks(masks: ArrayLike) -> UInt8[Array, "n ceil(P/8)"]:
    """Pack bool masks eight gates to a byte, an eighth of their memory (M2).

    Every function that takes masks takes them packed as well: dtype uint8 always means packed.

    Parameters
    ----------
    masks
        (n, P) bool.

    Returns
    -------
    (n, ⌈P/8⌉) uint8.
    """
    return jnp.packbits(as_masks("masks", masks), axis=1)


def as_masks(name: str, masks: ArrayLike, num_gates: int | None = None) -> Array:
    """Return masks as (n, P) bool, or as they are if packed, having checked shape and values.

    Parameters
    ----------
    name
        The argument's name for error messages.
    masks
        Bool, 0/1 numbers, or uint8 packed by :func:`pack_masks`.
    num_gates
        P where it is known from elsewhere; packed masks are not accepted without it.

    Raises
    ------
    ValueError
        If there are no masks, the shape does not fit ``num_gates``, or a number is neither 0 nor 1.
    """
    array = jnp.asarray(masks)
    if array.ndim != 2:
        raise ValueError(f"{name} must have 2 dimensions (rows, gates), got shape {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name} holds no masks: shape {array.shape}")
    if array.dtype == jnp.uint8:
        if num_gates is None:
            raise ValueError(f"{name} of dtype uint8 are taken as packed, and bool is expected here")
        expected = -(-num_gates // 8)
        if array.shape[1] != expected:
            raise ValueError(
                f"{name} of dtype uint8 are taken as packed: {num_gates} gates need {expected} bytes a row, "
                f"got shape {array.shape}; pass bool masks otherwise"
            )
        return array
    if num_gates is not None and array.shape[1] != num_gates:
        raise ValueError(f"{name} must have {num_gates} columns, one a gate, got shape {array.shape}")
    if array.dtype != jnp.bool_:
        if not is_traced(array):
            with jax.ensure_compile_time_eval():
                zero_one = bool(jnp.all((array == 0) | (array == 1)))
            if not zero_one:
                raise ValueError(f"{name} must be bool or 0/1, got other values of dtype {array.dtype}")
        array = array != 0
    return array


def merge_duplicate_masks(
    masks: ArrayLike, gates: ArrayLike, weights: ArrayLike | None = None
) -> tuple[Arrangements, Float[Array, " P"]]:
    """Keep one gate for each distinct mask and sum the weights of those that it stands for (M1).

    Runs on the host: the number of distinct masks depends on the values.

    Parameters
    ----------
    masks
        (n, P) bool.
    gates
        (P, d) gates with these masks.
    weights
        (P,) weights; 1/P each when None, the Monte Carlo weights of sampled gates (M3).

    Returns
    -------
    The distinct masks with the first gate of each, in order of first appearance, and their weights.

    Raises
    ------
    ValueError
        If the numbers of masks, gates and weights differ.
    """
    columns = np.asarray(as_masks("masks", masks))
    gates = as_matrix("gates", gates)
    num_gates = columns.shape[1]
    weights = jnp.full(num_gates, 1 / num_gates, gates.dtype) if weights is None else jnp.asarray(weights)
    if gates.shape[0] != num_gates or weights.shape != (num_gates,):
        raise ValueError(
            f"masks, gates and weights must have one number of gates, "
            f"got shapes {columns.shape}, {gates.shape} and {weights.shape}"
        )
    _, first, group = np.unique(_row_bytes(columns.T), return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size)
    merged = jnp.zeros(order.size, weights.dtype).at[rank[group]].add(weights)
    kept = first[order]
    return Arrangements(jnp.asarray(columns[:, kept]), gates[kept]), merged


def _row_bytes(rows: np.ndarray) -> np.ndarray:
    """View each bool row as one opaque byte string, which sorts and compares fast."""
    packed = np.ascontiguousarray(np.packbits(rows, axis=1))
    return packed.view(np.dtype((np.void, packed.shape[1]))).ravel()
