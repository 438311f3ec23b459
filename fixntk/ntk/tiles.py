"""Empirical kernels of any number of examples, a tile of pairs at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from fixntk._checks import RowSharding, row_sharding
from fixntk._tiling import Blocks, BlocksBothWays, Grid, free_on_device, free_on_host, memory_for, num_rows
from fixntk.ntk.devices import compute_on_devices, run_within_memory
from fixntk.ntk.plan import Plan, Request, Shapes, as_shapes, cached_plan, make_plan

# What lowers the memory that a kernel takes.
_REMEDY = "pass x1 in blocks of rows, trace outputs (outputs='trace'), or lower batch_size"


def traced_kernels(request: Request, params: Any, x1: Any, x2: Any) -> Blocks:
    """Kernels of traced arrays: a loop inside the caller's program."""
    plan, leaves = make_plan(request, params, x1, x2), jax.tree.leaves(params)
    if request.is_paired:
        return _kernels_of_paired_rows(request, plan, leaves, x1, x1 if x2 is None else x2)
    if _fits_one_tile(plan, x1, x2):
        return _kernels_of_one_tile(plan, leaves, x1, x2)
    grid = Grid(x1, x2, plan.tile)
    shape = (*grid.padded_shape, *plan.network.axes.result_shape)
    empty = tuple(jnp.zeros(shape, plan.network.kernel_dtype) for _ in range(plan.network.num_groups))
    return grid.fill(empty, partial(plan.features, leaves), partial(plan.kernels_both_ways, leaves))


def compiled_kernels(
    request: Request, params: Any, x1: Any, x2: Any, store_on_device: bool
) -> Blocks | tuple[np.ndarray, ...]:
    """Kernels of concrete arrays: compiled tiles, dispatched from the host."""
    sharding = row_sharding(x1) if store_on_device and not request.is_paired else None
    if sharding is not None:
        program = partial(_kernels_on_devices, request)
        return run_within_memory(_describe(x1, x2), _REMEDY, program, sharding, params, x1, x2)
    shapes = as_shapes((params, x1, x2))
    plan = cached_plan(request, shapes)
    leaves = jax.tree.leaves(params)
    if request.is_paired or (store_on_device and _fits_one_tile(plan, x1, x2)):
        with memory_for(_describe(x1, x2), _bytes_at_once(request, plan, x1, x2), _REMEDY, x1, x2) as done:
            return done(_compute_whole_kernel(request, shapes, params, x1, x2))
    grid = Grid(x1, x2, plan.tile)
    shape, dtypes = plan.network.axes.result_shape, (plan.network.kernel_dtype,) * plan.network.num_groups
    needed = _bytes_of_grid(grid, plan)
    free = free_on_device if store_on_device else free_on_host
    with memory_for(_describe(x1, x2), needed, _REMEDY, x1, x2, free_memory=free) as done:
        kernels = grid.fill_from_host(
            shape,
            dtypes,
            lambda side, k: compiled_features(request, shapes, leaves, grid.column(k) if side else grid.row(k)),
            partial(_compiled_tile, request, shapes, leaves),
            store_on_device,
        )
        return done(kernels)


@partial(jax.jit, static_argnums=(0, 1))
def _kernels_on_devices(request: Request, sharding: RowSharding, params: Any, x1: Any, x2: Any) -> Blocks:
    """Kernels of examples that are divided over devices: those of a device's examples with all."""

    def kernels_of(rows: Any, others: tuple[Any, Any]) -> Blocks:
        params, columns = others
        return traced_kernels(request, params, rows, columns)

    return compute_on_devices(kernels_of, sharding, x1, (params, x1 if x2 is None else x2))


def _describe(x1: Any, x2: Any) -> str:
    return f"the empirical NTK of {num_rows(x1)}×{num_rows(x1 if x2 is None else x2)} examples"


def bytes_needed(request: Request, plan: Plan, x1: Any, x2: Any) -> int | float:
    """Estimate of the memory for a kernel on the device."""
    if request.is_paired or _fits_one_tile(plan, x1, x2):
        return _bytes_at_once(request, plan, x1, x2)
    return _bytes_of_grid(Grid(x1, x2, plan.tile), plan)


def _bytes_of_grid(grid: Grid, plan: Plan) -> int | float:
    """Estimate of the memory for kernels in tiles."""
    shape, dtypes = plan.network.axes.result_shape, (plan.network.kernel_dtype,) * plan.network.num_groups
    # The features of two tiles, while those of a third are computed.
    return grid.bytes_needed(shape, dtypes) + 3 * grid.height * plan.method.example_bytes


def _bytes_at_once(request: Request, plan: Plan, x1: Any, x2: Any) -> int | float:
    """Estimate of the memory for kernels that one program computes: of one tile, or of paired rows."""
    n1, n2 = num_rows(x1), num_rows(x1 if x2 is None else x2)
    network = plan.network
    pair_bytes = math.prod(network.axes.result_shape) * network.num_groups * jnp.dtype(network.kernel_dtype).itemsize
    if request.is_paired:
        tile = min(plan.tile, n1)
        return n1 * pair_bytes + tile * (2 * plan.method.example_bytes + plan.method.pair_bytes)
    num_examples = n1 if x2 is None else n1 + n2
    return num_examples * plan.method.example_bytes + n1 * n2 * max(pair_bytes, plan.method.pair_bytes)


@partial(jax.jit, static_argnums=(0, 1))
def _compute_whole_kernel(request: Request, shapes: Shapes, params: Any, x1: Any, x2: Any) -> Blocks:
    plan, leaves = cached_plan(request, shapes), jax.tree.leaves(params)
    if request.is_paired:
        return _kernels_of_paired_rows(request, plan, leaves, x1, x1 if x2 is None else x2)
    return _kernels_of_one_tile(plan, leaves, x1, x2)


@partial(jax.jit, static_argnums=(0, 1))
def compiled_features(request: Request, shapes: Shapes, leaves: Sequence[Array], x: Any) -> Any:
    """Features of each example of a tile, by a compiled program."""
    return cached_plan(request, shapes).features(leaves, x)


@partial(jax.jit, static_argnums=(0, 1))
def _compiled_tile(
    request: Request, shapes: Shapes, leaves: Sequence[Array], features1: Any, features2: Any
) -> BlocksBothWays:
    return cached_plan(request, shapes).kernels_both_ways(leaves, features1, features2)


def _fits_one_tile(plan: Plan, x1: Any, x2: Any) -> bool:
    return max(num_rows(x1), num_rows(x1 if x2 is None else x2)) <= plan.tile


def _kernels_of_one_tile(plan: Plan, leaves: Sequence[Array], x1: Any, x2: Any) -> Blocks:
    # Features cost about a pass through the network, so that those of x1 serve both sides.
    features1 = plan.features(leaves, x1)
    return plan.kernels(leaves, features1, features1 if x2 is None else plan.features(leaves, x2))


def _kernels_of_paired_rows(request: Request, plan: Plan, leaves: Sequence[Array], x1: Any, x2: Any) -> Blocks:
    def kernels_of_pair(pair: tuple[Any, Any]) -> Blocks:
        features1, features2 = (plan.method.features(leaves, jax.tree.leaves(x)) for x in pair)
        return plan.method.kernels(leaves, features1, features2)

    pairs = (x1, x2)
    results = (
        jax.vmap(kernels_of_pair)(pairs)
        if num_rows(x1) <= plan.tile
        else lax.map(kernels_of_pair, pairs, batch_size=plan.tile)
    )
    # A traced axis is a mean over its indices, as everywhere; here over the examples.
    return tuple(jnp.mean(result, axis=0) for result in results) if 0 in request.traced else results
