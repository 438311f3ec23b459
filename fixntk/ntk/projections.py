r"""Random projections of a network's gradients, whose inner products estimate the empirical NTK.

.. math:: Z[i, o] = S \, ∂f_o(x_i)/∂ϑ, \qquad E[S^⊤ S] = I, \qquad E[Z Z^⊤] = Θ

See docs/mathematics.md, M14.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from fixntk._checks import RowSharding, as_positive_int, row_sharding
from fixntk._files import replace_when_written
from fixntk._numerics import at_least_float32, full_precision, matmul
from fixntk._tiling import memory_for, num_rows
from fixntk.ntk.devices import compute_on_devices, run_within_memory
from fixntk.ntk.inputs import as_hashable, check_batch_size, check_rows_are_independent
from fixntk.ntk.kernel_functions import take_rows
from fixntk.ntk.selection import Select, selected_leaves
from fixntk.ntk.signatures import canonical, for_each_output
from fixntk.ntk.vector_product import restrict

Kind = Literal["sjlt", "gaussian", "rademacher"]

# Largest size, in bytes, of the gradients of a tile of examples.
_TILE_BYTES = 2**28
# Largest number of entries of the part of a dense projection that is in memory.
_MAX_DENSE_ENTRIES = 2**24


@full_precision()
def projected_gradients(
    f: Callable[..., Any],
    params: Any,
    x: Any = None,
    *,
    dim: int,
    key: Array,
    kind: Kind = "sjlt",
    select: Select | None = None,
    batch_size: int | None = None,
    out: str | os.PathLike[str] | None = None,
    batch_axes: tuple[int, int] = (0, 0),
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    r"""Random projections Z of the gradients of each example and output, with :math:`E[Z Z^⊤]` the empirical NTK.

    For features of data attribution, nearest neighbours in the tangent space, or kernels of more examples than an
    n×n matrix can hold. The same key gives the same projection, so that calls on different examples fit together. An
    entry of Z Zᵀ has standard deviation sqrt((Θ_ii Θ_jj + Θ_ij²) / dim) for ``"gaussian"``, and at most that on
    average over its random choices for the other kinds.

    Parameters
    ----------
    f, params, select, batch_axes, kwargs
        As in :func:`fixntk.empirical_ntk`: ``projected_gradients(model, x, …)`` for a module.
    x
        (n, …) inputs, or a pytree of them.
    dim
        Number of dimensions k of the projection; at most the number of selected parameters.
    key
        For the projection.
    kind
        ``"sjlt"``: a sparse Johnson–Lindenstrauss transform with one entry ±1 for each parameter, in time independent
        of ``dim``. ``"gaussian"`` and ``"rademacher"``: dense, entries N(0, 1/k) and ±1/√k, made block by block.
    batch_size
        Number of examples whose gradients are in memory together. By default the largest number that takes 256 MiB.
    out
        A path to write a ``.npy`` file to, tile by tile; the result is then a memory map of the finished file. Not
        possible under ``jax.jit``, nor where the function returns several arrays.

    Returns
    -------
    (n, …, k): after the example the axes of its output, then the projection. float32, or the widest dtype of the
    selected parameters and the output. A pytree of such arrays where the function returns a pytree, with one projection
    for all, so that inner products of two outputs are those of their gradients too.

    Raises
    ------
    TypeError
        As :func:`fixntk.empirical_ntk` does.
    ValueError
        As :func:`fixntk.empirical_ntk` does; also if ``dim`` is larger than the number of selected parameters, the
        kind is unknown, or ``out`` is given under a JAX transformation or for several arrays.
    OutOfMemoryError
        If memory does not suffice; a ValueError too.

    References
    ----------
    Kane and Nelson, "Sparser Johnson–Lindenstrauss transforms", J. ACM 2014. Park et al., "TRAK: Attributing model
    behavior at scale", ICML 2023, for the use in attribution.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, fixntk as fx
    >>> x, w = jnp.ones((5, 40)), jnp.zeros((40, 2))
    >>> fx.projected_gradients(lambda w, x: jnp.tanh(x @ w), w, x, dim=16, key=jax.random.key(0)).shape
    (5, 2, 16)

    See docs/mathematics.md, M14.
    """
    f, params, x, _ = canonical(f, params, {"x": x}, batch_axes, kwargs, "projected_gradients")
    check_batch_size(batch_size)
    selected = selected_leaves(params, select)
    if kind not in _PROJECTIONS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, _PROJECTIONS))}, got {kind!r}")
    if out is not None and len(jax.tree.leaves(jax.eval_shape(f, params, x))) > 1:
        raise ValueError("out cannot be given where f returns several arrays: project one at a time")
    return for_each_output(
        lambda f: _project_output(f, params, x, selected, dim, kind, key, batch_size, out), f, params, x
    )


def _project_output(
    f: Callable[..., Any],
    params: Any,
    x: Any,
    selected: tuple[bool, ...],
    dim: int,
    kind: Kind,
    key: Array,
    batch_size: int | None,
    out: str | os.PathLike[str] | None,
) -> Any:
    """Projections of the gradients of one array of outputs."""
    is_concrete = check_rows_are_independent(f, params, x)
    _, chosen = restrict(f, selected, params)
    dim, size = as_positive_int("dim", dim), sum(leaf.size for leaf in chosen)
    if dim > size:
        raise ValueError(f"dim must be at most the number of selected parameters, {size}, got {dim}")
    output = jax.eval_shape(f, params, x)
    dtype = _widest_dtype(output, *chosen)
    num_outputs = math.prod(output.shape[1:])
    tile = batch_size or max(1, _TILE_BYTES // (size * num_outputs * dtype.itemsize))
    project = partial(_project if not is_concrete else _compiled_project, as_hashable(f), selected, dim, kind)
    if not is_concrete:
        if out is not None:
            raise ValueError("out cannot be given under a JAX transformation")
        # Under a transformation the loop over tiles is part of the caller's program.
        return _project_in_tiles(project, tile, x, (params, key))
    if out is None and (sharding := row_sharding(x)) is not None:
        program = partial(_project_on_devices, as_hashable(f), selected, dim, kind, tile)
        return run_within_memory("the projection of gradients", "lower dim", program, sharding, x, (params, key))
    tiles = (
        (begin, project(params, take_rows(x, slice(begin, begin + tile)), key)) for begin in range(0, num_rows(x), tile)
    )
    in_tile = 2 * tile * num_outputs * (size + dim) * dtype.itemsize
    what = f"the projection of {num_rows(x)} examples to {dim} dimensions"
    if out is not None:
        with memory_for(what, in_tile, "lower batch_size or dim", x):
            return _write_tiles(Path(out), (*output.shape, dim), dtype, tiles)
    # The blocks and, when they are joined, the result.
    needed = 2 * num_rows(x) * num_outputs * dim * dtype.itemsize + in_tile
    with memory_for(what, needed, "pass out= to write it to a file, or lower dim", x) as done:
        return done(jnp.concatenate([block for _, block in tiles]))


def _project_in_tiles(project: Callable[..., Array], tile: int, x: Any, params_and_key: tuple[Any, Array]) -> Array:
    """Projections of examples in a loop over tiles inside the caller's program."""
    params, key = params_and_key
    return lax.map(lambda row: project(params, _as_batch(row), key)[0], x, batch_size=min(tile, num_rows(x)))


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _project_on_devices(
    f: Callable[..., Any],
    selected: tuple[bool, ...],
    dim: int,
    kind: Kind,
    tile: int,
    sharding: RowSharding,
    x: Any,
    params_and_key: tuple[Any, Array],
) -> Array:
    """Projections of examples that are divided over devices, each of those that it has."""
    project = partial(_project, f, selected, dim, kind)
    return compute_on_devices(partial(_project_in_tiles, project, tile), sharding, x, params_and_key)


def _widest_dtype(*arrays: Any) -> jnp.dtype:
    """The widest floating-point dtype of arrays, or float32 if that is wider."""
    return max((at_least_float32(array.dtype) for array in arrays), key=lambda dtype: jnp.finfo(dtype).bits)


def _as_batch(row: Any) -> Any:
    return jax.tree.map(lambda a: a[None], row)


def _write_tiles(path: Path, shape: tuple[int, ...], dtype: Any, tiles: Any) -> np.ndarray:
    """Write blocks of rows to a .npy file, which replaces ``path`` when it is finished, and map it into memory."""
    with replace_when_written(path) as part:
        store = np.lib.format.open_memmap(part, mode="w+", dtype=np.dtype(dtype), shape=shape)
        for begin, block in tiles:
            store[begin : begin + len(block)] = np.asarray(block)
        store.flush()
    return np.load(path, mmap_mode="r")


def _project(
    f: Callable[..., Any], selected: tuple[bool, ...], dim: int, kind: str, params: Any, x: Any, key: Array
) -> Float[Array, "b *outputs k"]:
    """Projected gradients of a tile of examples."""
    apply, chosen = restrict(f, selected, params)

    def jacobian(row: Any) -> Array:
        """(outputs, p) derivatives of one example's outputs in all selected parameters."""
        leaves = jax.jacrev(lambda c: apply(c, _as_batch(row))[0])(chosen)
        dtype = _widest_dtype(outputs, *leaves)
        return jnp.concatenate([leaf.reshape(num_outputs, -1).astype(dtype) for leaf in leaves], axis=1)

    outputs = jax.eval_shape(f, params, x)
    num_outputs = math.prod(outputs.shape[1:])
    gradients = jax.vmap(jacobian)(x)
    projected = _PROJECTIONS[kind](gradients.reshape(-1, gradients.shape[-1]), dim, key)
    return projected.reshape(*outputs.shape, dim)


_compiled_project = jax.jit(_project, static_argnums=(0, 1, 2, 3))


def _sjlt(gradients: Float[Array, "r p"], dim: int, key: Array) -> Float[Array, "r k"]:
    """Signed sums of the parameters of each bucket.

    The parameters are cut into blocks of ``dim``; block b goes to the buckets in order, from a random one on. Two
    parameters of a block never meet, those of two blocks do with probability 1/dim, no more often than under a hash of
    each parameter, and only contiguous memory is read.
    """

    def project(part: Array, block_key: Array) -> Array:
        sign_key, shift_key = jax.random.split(block_key)
        signs = jax.random.rademacher(sign_key, (dim,), part.dtype)
        return jnp.roll(part * signs[None, :], jax.random.randint(shift_key, (), 0, dim), axis=1)

    return _sum_over_blocks(project, gradients, dim, dim, key)


def _dense(draw: Callable[..., Array], gradients: Float[Array, "r p"], dim: int, key: Array) -> Float[Array, "r k"]:
    """Products with a matrix of independent entries, of which a block of rows is in memory."""
    rows = max(1, min(gradients.shape[1], _MAX_DENSE_ENTRIES // dim))

    def project(part: Array, block_key: Array) -> Array:
        # Made anew for each tile instead of kept: the whole matrix would have p · dim entries.
        return matmul(part, draw(block_key, (rows, dim), part.dtype))

    return _sum_over_blocks(project, gradients, rows, dim, key) / math.sqrt(dim)


def _sum_over_blocks(
    project: Callable[[Array, Array], Array], gradients: Float[Array, "r p"], size: int, dim: int, key: Array
) -> Float[Array, "r k"]:
    """The sum of ``project(block, key)`` over blocks of ``size`` parameters, each with a key of its own."""
    num_blocks = -(-gradients.shape[1] // size)
    # Derivatives of zero fill the last block and add nothing.
    padded = jnp.pad(gradients, ((0, 0), (0, num_blocks * size - gradients.shape[1])))

    def add_block(total: Array, block: Array) -> tuple[Array, None]:
        part = lax.dynamic_slice_in_dim(padded, block * size, size, axis=1)
        # The randomness depends on the key and the block alone, so that all tiles have the same projection.
        return total + project(part, jax.random.fold_in(key, block)), None

    empty = jnp.zeros((gradients.shape[0], dim), gradients.dtype)
    return lax.scan(add_block, empty, jnp.arange(num_blocks))[0]


_PROJECTIONS: dict[str, Callable[[Array, int, Array], Array]] = {
    "sjlt": _sjlt,
    "gaussian": partial(_dense, jax.random.normal),
    "rademacher": partial(_dense, jax.random.rademacher),
}
