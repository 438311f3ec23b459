"""Kernels that are given as functions of rows: checked, and evaluated in tiles of rows.

Rows are an array or a pytree of arrays, with a row for each example.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from fixntk._checks import as_array
from fixntk._numerics import at_least_float32
from fixntk._tiling import num_rows

# A kernel between two sets of rows, and the diagonal of the kernel of rows with themselves.
Kernel = Callable[[Any, Any], Any]
Diagonal = Callable[[Any], Any]

# Rows of the blocks of which the diagonal is taken where there is no function for it.
_DIAGONAL_ROWS = 64


def as_rows(x: Any) -> Any:
    """A pytree of arrays with the same number of rows, at least one.

    Raises
    ------
    TypeError, ValueError
        If it is anything else.
    """
    rows = jax.tree.map(lambda leaf: as_array("x", leaf), x)
    shapes = [leaf.shape for leaf in jax.tree.leaves(rows)]
    if not shapes or any(not shape for shape in shapes) or len({shape[0] for shape in shapes}) != 1 or not shapes[0][0]:
        raise ValueError(f"x must be arrays with the same number of rows, at least one, got shapes {shapes}")
    return rows


def take_rows(x: Any, rows: Any) -> Any:
    """Some rows, by a slice or by their indices."""
    return jax.tree.map(lambda leaf: leaf[rows], x)


def evaluate(kernel: Kernel, x: Any, others: Any, tile: int, dtype: Any) -> Float[Array, "m k"]:
    """The kernel between rows and others, in tiles of rows.

    Raises
    ------
    ValueError
        If its shape is not that of a kernel, or a value is not finite.
    """
    size, width = num_rows(x), num_rows(others)
    if not width:
        return jnp.zeros((size, 0), dtype)
    blocks = []
    for begin in range(0, size, tile):
        part = take_rows(x, slice(begin, begin + tile))
        padding = tile - num_rows(part)
        if padding and begin:
            # The last tile has the shape of the others, so that one shape is compiled.
            part = jax.tree.map(lambda leaf, k=padding: jnp.concatenate([leaf, jnp.repeat(leaf[-1:], k, axis=0)]), part)
        block = jnp.asarray(kernel(part, others))
        if block.shape != (num_rows(part), width):
            raise ValueError(f"kernel must give shape {(num_rows(part), width)}, got {block.shape}")
        blocks.append(block[: size - begin].astype(dtype))
    columns = jnp.concatenate(blocks) if len(blocks) > 1 else blocks[0]
    if not bool(jnp.all(jnp.isfinite(columns))):
        raise ValueError("kernel must be finite, got NaN or infinity")
    return columns


def diagonal_at(diagonal: Diagonal, x: Any, dtype: Any) -> Float[Array, " m"]:
    """The kernel of each row with itself, checked; of the function's own dtype, float32 at least, if none is given."""
    found = jnp.asarray(diagonal(x))
    if found.shape != (num_rows(x),):
        raise ValueError(f"diagonal must give shape {(num_rows(x),)}, got {found.shape}")
    if not bool(jnp.all(jnp.isfinite(found) & (found >= 0))):
        raise ValueError("the kernel's diagonal must be finite and not negative")
    return found.astype(at_least_float32(found.dtype) if dtype is None else dtype)


def diagonal_from_blocks(kernel: Kernel, x: Any) -> Array:
    """The diagonal of a kernel, from the kernels of blocks of rows with themselves."""
    size = num_rows(x)
    block = min(_DIAGONAL_ROWS, size)
    parts = []
    for begin in range(0, size, block):
        # The last block ends with the last row.
        start = min(begin, size - block)
        part = take_rows(x, slice(start, start + block))
        parts.append(jnp.diagonal(jnp.asarray(kernel(part, part)))[begin - start :])
    return jnp.concatenate(parts)
