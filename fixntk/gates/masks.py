"""Gates and their masks on data: sampling, evaluating, packing and merging them.

See docs/mathematics.md, M1.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Bool, Float, Key, UInt8

from fixntk._checks import (
    as_matrix,
    as_positive_int,
    as_real_array,
    check_same_columns,
    describe_fields,
    is_traced,
)
from fixntk._numerics import matmul
from fixntk._tiling import compute_in_row_tiles, memory_for, rows_here

# Largest temporary, in bytes, that the inner products of rows and gates may make before they are taken in tiles.
_TILE_BYTES = 2**28


class Arrangements(NamedTuple):
    """Masks on a data set with one representative gate each.

    Attributes
    ----------
    masks
        (n, P) bool; ``masks[i, p]`` tells whether row i is on the active side of gate p.
    gates
        (P, d); gate p has the mask ``masks[:, p]``. No unit; unit norm where they are enumerated.

    See docs/mathematics.md, M1 and M4.
    """

    masks: Bool[Array, "n P"]
    gates: Float[Array, "P d"]

    def __repr__(self) -> str:
        return describe_fields("Arrangements", masks=self.masks, gates=self.gates)


def sample_gates(
    key: Key[Array, ""], num_gates: int, num_features: int, *, dtype: DTypeLike | None = None
) -> Float[Array, "P d"]:
    """Draw gates from N(0, I), as a gated-ReLU network at initialisation has them.

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
    TypeError
        If either number is not an integer.
    ValueError
        If either number is below 1.
    OutOfMemoryError
        If memory does not suffice; a ValueError too.

    See docs/mathematics.md, M1 and M3.
    """
    shape = as_positive_int("num_gates", num_gates), as_positive_int("num_features", num_features)
    dtype = jnp.dtype(dtype or jnp.result_type(float))
    needed = shape[0] * shape[1] * dtype.itemsize
    with memory_for(f"the array of {shape[0]}×{shape[1]} gates", needed, "take fewer gates", key) as done:
        return done(jax.random.normal(key, shape, dtype))


def activation_masks(x: ArrayLike, gates: ArrayLike) -> Bool[Array, "n P"]:
    """Masks 1{x·g ≥ 0} of gates on the rows of x; a zero row is active under every gate.

    The inner products are computed for some rows at a time, so that memory beyond the masks stays bounded.

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
    OutOfMemoryError
        If memory does not suffice; a ValueError too.

    Examples
    --------
    >>> import jax, fixntk as fx
    >>> x = jax.random.normal(jax.random.key(0), (6, 2))
    >>> masks = fx.activation_masks(x, fx.sample_gates(jax.random.key(1), 4, 2))
    >>> masks.shape, masks.dtype
    ((6, 4), dtype('bool'))

    See docs/mathematics.md, M1.
    """
    x, gates = as_matrix("x", x), as_matrix("gates", gates)
    check_same_columns("x", x, "gates", gates)
    num_rows, num_gates = x.shape[0], gates.shape[0]
    remedy = "take fewer gates, or rows in blocks, each packed by pack_masks to an eighth"
    row_bytes = num_gates * jnp.result_type(x, gates).itemsize
    tile = min(max(1, _TILE_BYTES // row_bytes), num_rows)
    needed = rows_here(x) * num_gates + tile * row_bytes
    with memory_for(f"the array of {num_rows}×{num_gates} masks", needed, remedy, x, gates) as done:
        return done(_masks_in_tiles(x, gates, tile))


@partial(jax.jit, static_argnames="tile")
def _masks_in_tiles(x: Array, gates: Array, tile: int) -> Array:
    def masks_of(rows: Array) -> Array:
        return matmul(rows, gates.T) >= 0

    if tile == x.shape[0]:
        return masks_of(x)
    return compute_in_row_tiles(masks_of, x, tile)


def pack_masks(masks: ArrayLike) -> UInt8[Array, "n bytes"]:
    """Pack bool masks eight gates to a byte, an eighth of their memory.

    Every function of masks also accepts packed masks: dtype uint8 means packed.

    Parameters
    ----------
    masks
        (n, P) bool, or numbers 0 and 1.

    Returns
    -------
    (n, ⌈P/8⌉) uint8.

    Raises
    ------
    TypeError
        If they are not real numbers.
    ValueError
        If they are not a matrix with an entry, are packed already, or hold other numbers than 0 and 1.

    See docs/mathematics.md, M2.
    """
    return jnp.packbits(as_masks("masks", masks), axis=1)


def as_masks(name: str, masks: ArrayLike, num_gates: int | None = None) -> Array:
    """Check masks and return them as (n, P) bool, or unchanged if they are packed.

    Parameters
    ----------
    name
        The argument's name for error messages.
    masks
        Bool, 0/1 numbers, or uint8 packed by :func:`pack_masks`.
    num_gates
        P, if known; packed masks are accepted only with it.

    Raises
    ------
    TypeError
        If it is not a real numeric array.
    ValueError
        If there are no masks, the shape does not fit ``num_gates``, or a number is neither 0 nor 1.
    """
    array = as_real_array(name, masks)
    if array.ndim != 2:
        raise ValueError(f"{name} must have 2 dimensions (rows, gates), got shape {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name} holds no masks: shape {array.shape}")
    if array.dtype == jnp.uint8 and num_gates == 1:
        # One byte a row, packed or not: packed it is 0 or 128, as a number 0 or 1, so that both can be read.
        array = jnp.where(array == 128, 1, array)
    elif array.dtype == jnp.uint8:
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
        raise ValueError(f"{name} must have {num_gates} columns, one for each gate, got shape {array.shape}")
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
    """Keep one gate for each distinct mask, with the sum of the weights of all gates of that mask.

    Runs on the host: the number of distinct masks depends on the values.

    Parameters
    ----------
    masks
        (n, P) bool.
    gates
        (P, d) gates with these masks.
    weights
        (P,) weights; 1/P each when None, the Monte Carlo weights of sampled gates.

    Returns
    -------
    The distinct masks with the first gate of each, in order of first appearance, and their weights.

    Raises
    ------
    ValueError
        If the numbers of masks, gates and weights differ.

    See docs/mathematics.md, M1 and M3.
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
    _, first, group = np.unique(row_bytes(columns.T), return_index=True, return_inverse=True)
    # np.unique sorts the masks by value; rank brings them to the order of their first appearance.
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size)
    merged = jnp.zeros(order.size, weights.dtype).at[rank[group]].add(weights)
    kept = first[order]
    return Arrangements(jnp.asarray(columns[:, kept]), gates[kept]), merged


def row_bytes(rows: np.ndarray) -> np.ndarray:
    """View each bool row as one opaque byte string, which sorts and compares fast."""
    packed = np.ascontiguousarray(np.packbits(rows, axis=1))
    return packed.view(np.dtype((np.void, packed.shape[1]))).ravel()
