"""Analytic kernels of all pairs of rows of two arrays, computed for a tile of pairs at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from fixntk._checks import RowSharding, is_traced, is_tracing, row_sharding
from fixntk._compilation import workspace_bytes
from fixntk._tiling import Blocks, BlocksBothWays, Grid, free_on_device, free_on_host, memory_for
from fixntk.ntk.angles import Rows, as_rows
from fixntk.ntk.devices import compute_on_devices, run_within_memory

# Kernels (b1, b2) of all pairs of two tiles of rows, from the kernel's parameters and the tiles.
_Kernels = Callable[[Any, Rows, Rows], Blocks]

# Graphs (n, S, S) of the rows of both arrays, which may have none.
Patterns = tuple[Array | None, Array | None]

# What lowers the memory of kernels of rows without positions.
_REMEDY = "pass x1 in blocks of rows"


def kernels_of_all_pairs(
    kernels: _Kernels,
    num_kernels: int,
    parameters: Any,
    x1: Array,
    x2: Array | None,
    tile: int,
    store_on_device: bool = True,
    patterns: Patterns = (None, None),
) -> tuple[Any, ...]:
    """Kernels of all pairs of rows of x1 and x2, computed by ``kernels`` for two tiles of rows at a time.

    ``patterns`` are the graphs (n, S, S) of the rows of x1 and of x2, if they have any.
    """
    if x2 is not None:
        dtype = jnp.promote_types(x1.dtype, x2.dtype)
        x1, x2 = x1.astype(dtype), x2.astype(dtype)
    sharding = row_sharding(x1) if store_on_device and not is_tracing(parameters, x1, x2) else None
    if sharding is not None:
        program = partial(_kernels_on_devices, kernels, num_kernels, tile)
        return run_within_memory("kernels of all pairs", _remedy(x1), program, sharding, parameters, x1, x2, patterns)
    num_rows, num_columns = x1.shape[0], (x1 if x2 is None else x2).shape[0]
    matrices = "kernel matrix" if num_kernels == 1 else "pair of kernel matrices"
    what = f"the {num_rows}×{num_columns} {matrices}"
    if store_on_device and max(num_rows, num_columns) <= tile:
        # Results, and as much again while they are computed or made symmetric.
        needed = 2 * num_kernels * num_rows * num_columns * x1.dtype.itemsize
        needed += _bytes_of_positions(x1, _kernels_of_one_tile, kernels, parameters, x1, x2, patterns)
        with memory_for(what, needed, _remedy(x1), x1, x2) as done:
            blocks = _kernels_of_one_tile(kernels, parameters, x1, x2, patterns)
            return done(_symmetrize(blocks) if x2 is None else blocks)
    rows1, rows2 = _as_rows(x1, x2, patterns)
    grid = Grid(rows1, rows2, tile)
    dtypes = (x1.dtype,) * num_kernels
    if is_traced(parameters, x1, x2):
        # For derivatives a tile is computed again rather than kept.
        block = jax.checkpoint(partial(kernels, parameters), prevent_cse=False)
        empty = tuple(jnp.zeros(grid.padded_shape, x1.dtype) for _ in range(num_kernels))
        return grid.fill(empty, lambda rows: rows, lambda rows1, rows2: _add_transposes(block(rows1, rows2)))

    def tile_kernels(i: int, j: int) -> BlocksBothWays:
        blocks = _tile_kernels(kernels, parameters, grid.tiles, i, j)
        if not grid.is_symmetric:
            return blocks, ()
        if i == j:
            return _symmetrize(blocks), ()
        # Two programs: in one, XLA would compute everything again for the transposed tile.
        return blocks, _transpose(blocks)

    # The numbers of tiles are their features: taking tiles out of the grid is a part of the compiled program.
    needed, free = grid.bytes_needed((), dtypes), free_on_device if store_on_device else free_on_host
    needed += _bytes_of_positions(x1, _tile_kernels, kernels, parameters, grid.tiles, 0, 0)
    with memory_for(what, needed, _remedy(x1), x1, x2, free_memory=free) as done:
        return done(grid.fill_from_host((), dtypes, lambda _, k: k, tile_kernels, store_on_device))


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _kernels_on_devices(
    kernels: _Kernels,
    num_kernels: int,
    tile: int,
    sharding: RowSharding,
    parameters: Any,
    x1: Array,
    x2: Array | None,
    patterns: Patterns,
) -> Blocks:
    """Kernels of rows that are divided over devices: those of a device's rows with all rows, in a loop over tiles."""

    def kernels_of(rows1: Rows, others: tuple[Any, Rows]) -> Blocks:
        parameters, rows2 = others
        grid = Grid(rows1, rows2, tile)
        empty = tuple(jnp.zeros(grid.padded_shape, x1.dtype) for _ in range(num_kernels))
        return grid.fill(empty, lambda rows: rows, lambda one, two: (kernels(parameters, one, two), ()))

    rows1, rows2 = _as_rows(x1, x2, patterns)
    return compute_on_devices(kernels_of, sharding, rows1, (parameters, rows1 if rows2 is None else rows2))


def _bytes_of_positions(x: Array, program: Any, *args: Any) -> int:
    """Bytes that a program for one tile takes while it runs, if rows have positions; otherwise 0.

    A pair of rows without positions takes a few numbers, of which a tile has few. One with them takes some for each
    position, or pair of positions. How many are in memory together depends on the network, so that XLA is asked.
    """
    return 0 if x.ndim == 2 or is_tracing(args) else workspace_bytes(program, *args)


def _remedy(x: Array) -> str:
    """What lowers the memory that kernels take."""
    return _REMEDY if x.ndim == 2 else f"{_REMEDY}, or take a smaller batch_size"


@partial(jax.jit, static_argnums=0)
def _kernels_of_one_tile(kernels: _Kernels, parameters: Any, x1: Array, x2: Array | None, patterns: Patterns) -> Blocks:
    rows1, rows2 = _as_rows(x1, x2, patterns)
    return kernels(parameters, rows1, rows1 if rows2 is None else rows2)


@partial(jax.jit, static_argnums=0)
def _tile_kernels(kernels: _Kernels, parameters: Any, tiles: tuple[Rows, Rows], i: Array, j: Array) -> Blocks:
    rows1, rows2 = tiles
    return kernels(parameters, jax.tree.map(lambda a: a[i], rows1), jax.tree.map(lambda a: a[j], rows2))


@jax.jit
def _symmetrize(blocks: Blocks) -> Blocks:
    """Copy the upper half into the lower half, as rounding errors can depend on the order of two inputs."""
    return tuple(jnp.triu(block) + jnp.triu(block, 1).T for block in blocks)


def _add_transposes(blocks: Blocks) -> BlocksBothWays:
    return blocks, tuple(block.T for block in blocks)


@jax.jit
def _transpose(blocks: Blocks) -> Blocks:
    return tuple(block.T for block in blocks)


@jax.jit
def _as_rows(x1: Array, x2: Array | None, patterns: Patterns) -> tuple[Rows, Rows | None]:
    rows1 = as_rows(x1, jnp.arange(x1.shape[0]))._replace(pattern=patterns[0])
    if x2 is None:
        return rows1, None
    # Negative numbers: whether a row of x2 equals a row of x1 is not known in advance.
    return rows1, as_rows(x2, -1 - jnp.arange(x2.shape[0]))._replace(pattern=patterns[1])
