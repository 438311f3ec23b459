"""Results that are made block by block, so that no more than a block's intermediate values is in memory."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax


def in_row_tiles(block_from: Callable[[Array], Array], num_rows: int, tile: int) -> Array:
    """Result of ``num_rows`` rows from blocks of ``tile`` rows, each given by the row at which it begins."""
    block = jax.eval_shape(block_from, jnp.asarray(0))

    def fill_tile(i: Array, result: Array) -> Array:
        # The last tile ends with the rows, and so goes over some of them again.
        begin = jnp.minimum(i * tile, num_rows - tile)
        return lax.dynamic_update_slice_in_dim(result, block_from(begin), begin, axis=0)

    empty = jnp.zeros((num_rows, *block.shape[1:]), block.dtype)
    return lax.fori_loop(0, -(-num_rows // tile), fill_tile, empty)
