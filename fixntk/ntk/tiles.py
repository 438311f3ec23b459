"""Empirical kernels of any number of examples, a tile of pairs at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from fixntk.ntk.contraction import OutputAxes
from fixntk.ntk.inputs import num_rows
from fixntk.ntk.methods import METHODS, Network, Pairwise, cheapest

# What a tile of examples, or of pairs of them, may take while it is computed when no batch size is given.
_TILE_BYTES = 2**28


class Request(NamedTuple):
    """What is static about a kernel: the function, axes of its batched output, each leaf's group, method, tile.

    The precision is the one that JAX's default has while the function is traced; two of them have different programs.
    """

    f: Callable[..., Any]
    traced: tuple[int, ...]
    diagonal: tuple[int, ...]
    groups: tuple[int, ...]
    method: str
    batch_size: int | None
    precision: str | None

    @property
    def is_paired(self) -> bool:
        """Whether examples are paired row by row."""
        return 0 in (*self.traced, *self.diagonal)


class Plan(NamedTuple):
    """A request read for given shapes: the network, the method, and the number of examples in a tile."""

    network: Network
    method: Pairwise
    tile: int

    def features(self, leaves: Sequence[Array], x: Any) -> Any:
        """Features of each example of a tile."""
        return jax.vmap(lambda inputs: self.method.features(leaves, jax.tree.leaves(inputs)))(x)

    def kernels(self, leaves: Sequence[Array], features1: Any, features2: Any) -> tuple[Array, ...]:
        """Kernels (b1, b2, …) of all pairs of two tiles."""
        pair = partial(self.method.kernels, leaves)
        return jax.vmap(jax.vmap(pair, in_axes=(None, 0)), in_axes=(0, None))(features1, features2)

    def mirrored(self, blocks: tuple[Array, ...]) -> tuple[Array, ...]:
        """Kernels of the pairs the other way round."""
        return tuple(self.network.axes.transposed(jnp.swapaxes(block, 0, 1), 2) for block in blocks)


def make_plan(request: Request, params: Any, x1: Any, x2: Any) -> Plan:
    """Read the network, choose the method and the size of a tile. Only shapes and dtypes of the arrays are used."""
    leaves, treedef = jax.tree.flatten(params)
    example = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), x1)

    def one(leaves: Sequence[Array], inputs: Any) -> Array:
        return request.f(jax.tree.unflatten(treedef, leaves), jax.tree.map(lambda a: a[None], inputs))[0]

    shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    closed = jax.make_jaxpr(one)(shapes, example)
    traced, diagonal = (tuple(k - 1 for k in axes if k > 0) for axes in (request.traced, request.diagonal))
    axes = OutputAxes(closed.jaxpr.outvars[0].aval.shape, traced, diagonal)
    network = Network(closed, shapes, axes, request.groups)
    counts = num_rows(x1), 1 if request.is_paired else num_rows(x1 if x2 is None else x2)
    method = cheapest(network, *counts) if request.method == "auto" else METHODS[request.method](network, *counts)
    tile = request.batch_size
    if tile is None and request.is_paired:
        tile = _TILE_BYTES // max(1, method.example_bytes + method.pair_bytes)
    elif tile is None:
        tile = min(_TILE_BYTES // max(1, method.example_bytes), math.isqrt(_TILE_BYTES // max(1, method.pair_bytes)))
    return Plan(network, method, max(1, tile))


def parts_of(request: Request, params: Any, x1: Any, x2: Any) -> list[tuple[Request, list[int]]]:
    """Requests whose kernels add up to those of a request, in each no more parameters than a tile may hold.

    Jacobians grow with the parameters, so those of one example alone may be too large. A leaf is not divided. With
    each request go the groups that its kernels belong to.
    """
    if request.method != "jacobian":
        return [(request, sorted(set(request.groups)))]
    network = _known_plan(request, _structs((params, x1, x2))).network
    bytes_per_parameter = network.axes.num_outputs * network.output.dtype.itemsize
    parts: list[list[int]] = [[]]
    taken = 0
    for leaf, struct in enumerate(network.leaves):
        size = math.prod(struct.shape) * bytes_per_parameter
        if parts[-1] and taken + size > _TILE_BYTES:
            parts.append([])
            taken = 0
        parts[-1].append(leaf)
        taken += size

    def request_of(part: list[int]) -> tuple[Request, list[int]]:
        present = sorted({request.groups[leaf] for leaf in part})
        groups = tuple(present.index(g) if leaf in part else -1 for leaf, g in enumerate(request.groups))
        return request._replace(groups=groups), present

    return [request_of(part) for part in parts]


def inside_transformation(request: Request, params: Any, x1: Any, x2: Any) -> tuple[Array, ...]:
    """Kernels of traced arrays: a loop inside the caller's program."""
    plan, leaves = make_plan(request, params, x1, x2), jax.tree.leaves(params)
    if request.is_paired:
        return _paired(request, plan, leaves, x1, x1 if x2 is None else x2)
    if _fits_one_tile(plan, x1, x2):
        return _one_tile(plan, leaves, x1, x2)
    grid = Grid(x1, x2, plan.tile)
    empty = _empty_results(plan, grid, jnp.zeros)
    return grid.fill(empty, partial(plan.features, leaves), partial(plan.kernels, leaves), plan.mirrored)


def outside_transformation(
    request: Request, params: Any, x1: Any, x2: Any, store_on_device: bool
) -> tuple[Array, ...] | tuple[np.ndarray, ...]:
    """Kernels of concrete arrays: compiled tiles, sent off by a loop in Python that waits for none of them.

    Not one compiled loop, because XLA's convolutions on a CPU are tens of times slower inside a loop.
    """
    shapes = _structs((params, x1, x2))
    plan = _known_plan(request, shapes)
    leaves = jax.tree.leaves(params)
    if request.is_paired or (store_on_device and _fits_one_tile(plan, x1, x2)):
        return _compiled_whole(request, shapes, params, x1, x2)
    grid = Grid(x1, x2, plan.tile)
    results: Any = _empty_results(plan, grid, jnp.zeros if store_on_device else np.zeros)
    put = _put_in_place if store_on_device else put_on_host
    for i in range(grid.num_rows):
        features1 = _compiled_features(request, shapes, leaves, grid.row(i))
        for j in grid.columns_of(i):
            same = grid.is_symmetric and i == j
            features2 = features1 if same else _compiled_features(request, shapes, leaves, grid.column(j))
            blocks, mirrored = _compiled_kernels(request, shapes, leaves, features1, features2)
            results = put(results, blocks, i * grid.height, j * grid.width)
            if grid.is_symmetric and not same:
                results = put(results, mirrored, j * grid.width, i * grid.height)
    return grid.without_padding(results)


def _empty_results(plan: Plan, grid: Grid, zeros: Callable[..., Any]) -> tuple[Any, ...]:
    shape = (*grid.padded_shape, *plan.network.axes.result_shape)
    return tuple(zeros(shape, plan.network.kernel_dtype) for _ in range(plan.network.num_groups))


class _Structs(NamedTuple):
    """Shapes and dtypes of a pytree of arrays, as a key."""

    treedef: Any
    leaves: tuple[jax.ShapeDtypeStruct, ...]

    def tree(self) -> Any:
        return jax.tree.unflatten(self.treedef, self.leaves)


def _structs(tree: Any) -> _Structs:
    leaves, treedef = jax.tree.flatten(tree)
    return _Structs(treedef, tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves))


@lru_cache(maxsize=64)
def _known_plan(request: Request, shapes: _Structs) -> Plan:
    """The plan for the shapes of (params, x1, x2), so that a network is read once for all compiled parts."""
    return make_plan(request, *shapes.tree())


@partial(jax.jit, static_argnums=(0, 1))
def _compiled_whole(request: Request, shapes: _Structs, params: Any, x1: Any, x2: Any) -> tuple[Array, ...]:
    plan, leaves = _known_plan(request, shapes), jax.tree.leaves(params)
    if request.is_paired:
        return _paired(request, plan, leaves, x1, x1 if x2 is None else x2)
    return _one_tile(plan, leaves, x1, x2)


@partial(jax.jit, static_argnums=(0, 1))
def _compiled_features(request: Request, shapes: _Structs, leaves: Sequence[Array], x: Any) -> Any:
    return _known_plan(request, shapes).features(leaves, x)


@partial(jax.jit, static_argnums=(0, 1))
def _compiled_kernels(
    request: Request, shapes: _Structs, leaves: Sequence[Array], features1: Any, features2: Any
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    plan = _known_plan(request, shapes)
    blocks = plan.kernels(leaves, features1, features2)
    return blocks, plan.mirrored(blocks)


def _fits_one_tile(plan: Plan, x1: Any, x2: Any) -> bool:
    return max(num_rows(x1), num_rows(x1 if x2 is None else x2)) <= plan.tile


def _one_tile(plan: Plan, leaves: Sequence[Array], x1: Any, x2: Any) -> tuple[Array, ...]:
    features1 = plan.features(leaves, x1)
    return plan.kernels(leaves, features1, features1 if x2 is None else plan.features(leaves, x2))


def _paired(request: Request, plan: Plan, leaves: Sequence[Array], x1: Any, x2: Any) -> tuple[Array, ...]:
    def one(pair: tuple[Any, Any]) -> tuple[Array, ...]:
        features1, features2 = (plan.method.features(leaves, jax.tree.leaves(x)) for x in pair)
        return plan.method.kernels(leaves, features1, features2)

    pairs = (x1, x2)
    results = jax.vmap(one)(pairs) if num_rows(x1) <= plan.tile else lax.map(one, pairs, batch_size=plan.tile)
    return tuple(jnp.mean(result, axis=0) for result in results) if 0 in request.traced else results


class Grid:
    """The grid of tiles of pairs of rows of two pytrees, x1 and x2, or of x1 with itself when x2 is None.

    Of a symmetric kernel's N×N tiles, those (i, i + s mod N) with s ≤ N/2 hold every pair. Rows are cut into equal
    tiles, the last one filled up with copies of the last row: ``tiles`` holds x1's and x2's, (N, b, …) each.
    """

    def __init__(self, x1: Any, x2: Any, tile: int) -> None:
        self.is_symmetric = x2 is None
        self._size = num_rows(x1), num_rows(x1 if x2 is None else x2)
        rows = _tiles(x1, tile)
        self.tiles = rows, rows if x2 is None else _tiles(x2, tile)
        self.num_rows, self.height = jax.tree.leaves(self.tiles[0])[0].shape[:2]
        self.num_columns, self.width = jax.tree.leaves(self.tiles[1])[0].shape[:2]
        self.num_steps = self.num_columns // 2 + 1 if self.is_symmetric else self.num_columns
        self.padded_shape = self.num_rows * self.height, self.num_columns * self.width

    def row(self, i: Any) -> Any:
        """The i-th tile of x1."""
        return jax.tree.map(lambda a: a[i], self.tiles[0])

    def column(self, j: Any) -> Any:
        """The j-th tile of x2."""
        return jax.tree.map(lambda a: a[j], self.tiles[1])

    def column_number(self, i: Any, step: Any) -> Any:
        """The tile of x2 that tile i of x1 meets in a step."""
        return (i + step) % self.num_columns if self.is_symmetric else step

    def columns_of(self, i: int) -> list[int]:
        """The tiles of x2 that tile i of x1 meets, itself first if symmetric, so that no two tiles meet twice."""
        # With an even number of tiles, those half way round would meet from both sides.
        num_met = self.num_steps - (self.is_symmetric and 2 * i >= self.num_columns and self.num_columns % 2 == 0)
        return [self.column_number(i, step) for step in range(num_met)]

    def without_padding(self, results: tuple[Any, ...]) -> tuple[Any, ...]:
        """Results of all pairs from those of the padded ones."""
        return tuple(result[: self._size[0], : self._size[1]] for result in results)

    def fill(
        self,
        results: tuple[Array, ...],
        features: Callable[[Any], Any],
        kernels: Callable[[Any, Any], tuple[Array, ...]],
        mirrored: Callable[[tuple[Array, ...]], tuple[Array, ...]],
    ) -> tuple[Array, ...]:
        """Fill padded results with the kernels of all pairs, in a loop inside the caller's program.

        Kernels are those of the features of two tiles; mirrored turns them into those of the pairs the other way round.
        """

        def fill_row(results: tuple[Array, ...], i: Array) -> tuple[tuple[Array, ...], None]:
            features1 = features(self.row(i))

            def fill(results: tuple[Array, ...], step: Array) -> tuple[tuple[Array, ...], None]:
                j = self.column_number(i, step)
                blocks = kernels(features1, features(self.column(j)))
                results = put_blocks(results, blocks, i * self.height, j * self.width)
                if self.is_symmetric:
                    results = put_blocks(results, mirrored(blocks), j * self.width, i * self.height)
                return results, None

            return lax.scan(fill, results, jnp.arange(self.num_steps))[0], None

        results, _ = lax.scan(fill_row, results, jnp.arange(self.num_rows))
        return self.without_padding(results)


def _tiles(x: Any, tile: int) -> Any:
    """Cut rows (n, …) into equal tiles (N, b, …), b ≤ tile; the last is filled up with its last row."""

    def cut(array: Array) -> Array:
        count = -(-array.shape[0] // tile)
        height = -(-array.shape[0] // count)
        width = [(0, count * height - array.shape[0]), *[(0, 0)] * (array.ndim - 1)]
        return jnp.pad(array, width, mode="edge").reshape(count, height, *array.shape[1:])

    return jax.tree.map(cut, x)


def put_blocks(results: tuple[Array, ...], blocks: tuple[Array, ...], row: Any, column: Any) -> tuple[Array, ...]:
    """Results with a block each put in at a row and column."""
    corners = [(row, column, *(0 for _ in block.shape[2:])) for block in blocks]
    return tuple(map(lax.dynamic_update_slice, results, blocks, corners))


_put_in_place: Callable[..., tuple[Array, ...]] = jax.jit(put_blocks, donate_argnums=0)


def put_on_host(
    results: tuple[np.ndarray, ...], blocks: tuple[Array, ...], row: int, column: int
) -> tuple[np.ndarray, ...]:
    """The same on the host, in place."""
    for result, block in zip(results, blocks, strict=True):
        result[row : row + block.shape[0], column : column + block.shape[1]] = block
    return results
