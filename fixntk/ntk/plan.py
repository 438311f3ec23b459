"""Plan of an empirical kernel: the network traced for one example, the method, the number of examples in a tile."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from fixntk._tiling import Blocks, BlocksBothWays, num_rows
from fixntk.ntk.contraction import OutputAxes
from fixntk.ntk.methods import METHODS, cheapest_method
from fixntk.ntk.pairwise import Network, Pairwise

# Largest size, in bytes, of the temporary arrays of a tile of examples, or of pairs of them, if no batch size is given.
_TILE_BYTES = 2**28


class Request(NamedTuple):
    """Static part of a kernel: the function, axes of its batched output, group of each leaf, method, tile, precision.

    The precision is JAX's default while the function is traced; each precision has its own compiled program. The
    platform is that of JAX's default device.
    """

    f: Callable[..., Any]
    traced: tuple[int, ...]
    diagonal: tuple[int, ...]
    groups: tuple[int, ...]
    method: str
    batch_size: int | None
    precision: str | None
    platform: str = "cpu"

    @property
    def is_paired(self) -> bool:
        """Whether examples are paired row by row."""
        return 0 in (*self.traced, *self.diagonal)


class Plan(NamedTuple):
    """A request for given shapes: the traced network, the method, and the number of examples in a tile."""

    network: Network
    method: Pairwise
    tile: int

    def features(self, leaves: Sequence[Array], x: Any) -> Any:
        """Features of each example of a tile."""
        return jax.vmap(lambda inputs: self.method.features(leaves, jax.tree.leaves(inputs)))(x)

    def kernels(self, leaves: Sequence[Array], features1: Any, features2: Any) -> Blocks:
        """Kernels (b1, b2, …) of all pairs of two tiles."""
        pair = partial(self.method.kernels, leaves)
        return jax.vmap(jax.vmap(pair, in_axes=(None, 0)), in_axes=(0, None))(features1, features2)

    def kernels_both_ways(self, leaves: Sequence[Array], features1: Any, features2: Any) -> BlocksBothWays:
        """Kernels of all pairs of two tiles, and the kernels with the two tiles exchanged."""
        blocks = self.kernels(leaves, features1, features2)
        return blocks, tuple(self.network.axes.transpose(jnp.swapaxes(block, 0, 1), 2) for block in blocks)


def make_plan(request: Request, params: Any, x1: Any, x2: Any) -> Plan:
    """Trace the network, choose the method and the size of a tile. Only shapes and dtypes of the arrays are used."""
    leaves, treedef = jax.tree.flatten(params)
    example = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), x1)

    def apply_to_example(leaves: Sequence[Array], inputs: Any) -> Array:
        return request.f(jax.tree.unflatten(treedef, leaves), jax.tree.map(lambda a: a[None], inputs))[0]

    shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    closed = jax.make_jaxpr(apply_to_example)(shapes, example)
    # Axis 0 of a batch is the examples; the output of one example has the other axes, counted from 0.
    traced, diagonal = (tuple(k - 1 for k in axes if k > 0) for axes in (request.traced, request.diagonal))
    axes = OutputAxes(closed.jaxpr.outvars[0].aval.shape, traced, diagonal)
    network = Network(closed, shapes, axes, request.groups)
    # n1 paired rows make n1 pairs, as n1 rows and a single one would.
    counts = num_rows(x1), 1 if request.is_paired else num_rows(x1 if x2 is None else x2)
    if request.method == "auto":
        method = cheapest_method(network, *counts, request.platform)
    else:
        method = METHODS[request.method](network, *counts)
    tile = request.batch_size
    if tile is None and request.is_paired:
        # A tile of paired rows holds one pair for each row.
        tile = _TILE_BYTES // max(1, method.example_bytes + method.pair_bytes)
    elif tile is None:
        # All pairs of two tiles are in memory together: a tile of b examples has b² of them.
        tile = min(_TILE_BYTES // max(1, method.example_bytes), math.isqrt(_TILE_BYTES // max(1, method.pair_bytes)))
    return Plan(network, method, max(1, tile))


def split_request(request: Request, params: Any, x1: Any, x2: Any) -> list[tuple[Request, list[int]]]:
    """Split a request into requests whose kernels add up to its kernels, each with parameters that fit into a tile.

    The size of a Jacobian is proportional to the number of parameters, so that the Jacobian of a single example may be
    too large. A leaf is not divided. Each request is returned with the groups of its kernels.
    """
    if request.method != "jacobian":
        return [(request, sorted({group for group in request.groups if group >= 0}))]
    network = cached_plan(request, as_shapes((params, x1, x2))).network
    bytes_per_parameter = network.axes.num_outputs * network.output.dtype.itemsize
    parts: list[list[int]] = [[]]
    taken = 0
    for leaf, struct in enumerate(network.leaves):
        if request.groups[leaf] < 0:
            continue
        size = math.prod(struct.shape) * bytes_per_parameter
        if parts[-1] and taken + size > _TILE_BYTES:
            parts.append([])
            taken = 0
        parts[-1].append(leaf)
        taken += size

    def request_of(part: list[int]) -> tuple[Request, list[int]]:
        # Groups without a leaf in this part would be kernels of zeros, so that the others are numbered anew.
        present = sorted({request.groups[leaf] for leaf in part})
        groups = tuple(present.index(g) if leaf in part else -1 for leaf, g in enumerate(request.groups))
        return request._replace(groups=groups), present

    return [request_of(part) for part in parts]


class Shapes(NamedTuple):
    """Shapes and dtypes of a pytree of arrays, as a key."""

    treedef: Any
    leaves: tuple[jax.ShapeDtypeStruct, ...]

    def tree(self) -> Any:
        """The pytree of shapes and dtypes itself."""
        return jax.tree.unflatten(self.treedef, self.leaves)


def as_shapes(tree: Any) -> Shapes:
    """Shapes and dtypes of a pytree of arrays."""
    leaves, treedef = jax.tree.flatten(tree)
    return Shapes(treedef, tuple(map(_shape_of, leaves)))


def _shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=getattr(leaf, "weak_type", False))


@lru_cache(maxsize=64)
def cached_plan(request: Request, shapes: Shapes) -> Plan:
    """The cached plan for the shapes of (params, x1, x2), so that a network is traced once for all compiled parts."""
    return make_plan(request, *shapes.tree())
