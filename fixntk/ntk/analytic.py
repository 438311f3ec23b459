"""Kernels of infinitely wide networks in closed form (M3, M13): gated-ReLU, fully connected, any stack of layers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from fixntk._checks import (
    as_float_array,
    as_matrix,
    as_positive_int,
    check_kernel_fits,
    check_same_columns,
    check_scalar,
    check_squares,
    is_traced,
)
from fixntk.ntk.angles import Rows, as_rows, full_angle, products_and_angles
from fixntk.ntk.layers import Activate, Covariances, GlobalAveragePool, Layer, Pairs, mlp
from fixntk.ntk.tiles import Grid, put_blocks, put_on_host

_REMEDY = "pass x1 in blocks of rows"

# Numbers in a temporary of a tile. On a CPU it should stay in the cache, on an accelerator keep it busy.
_TILE_SIZES = {"cpu": 2**18}
_ACCELERATORS_TILE_SIZE = 2**22

# The share of a second moment left out by a series above which there is a warning.
_TRUNCATION = 1e-4


class Kernel(NamedTuple):
    """Two kernel matrices of an infinitely wide network.

    Attributes
    ----------
    nngp
        (n1, n2) covariances of the outputs at initialisation: the network as a Gaussian process.
    ntk
        (n1, n2) neural tangent kernel.
    """

    nngp: Array
    ntk: Array


def gated_relu_ntk(x1: ArrayLike, x2: ArrayLike | None = None) -> Float[Array, "n1 n2"]:
    r"""NTK of the gated-ReLU network of infinite width: k(x, x') = x·x' (π − θ) / (2π), θ the angle between them (M3).

    The network is :math:`f(x) = m^{-1/2} \sum_j v_j 1\{g_j·x ≥ 0\} w_j·x` with gates from N(0, I) and v = ±1 fixed
    and w trained; a bias is a column of ones in x. The values are exact to rounding at parallel points (x·x'/2),
    opposite points (0) and x = 0 (0). Gradients are finite everywhere; where the kernel has a kink (parallel and
    opposite points, x = 0) they are the mean of the one-sided ones.

    Parameters
    ----------
    x1
        (n1, d) inputs. No unit.
    x2
        (n2, d) inputs; x1 when None.

    Returns
    -------
    (n1, n2), of the inputs' dtype.

    Raises
    ------
    ValueError
        If an argument is not a finite, non-empty matrix, its squares overflow, the numbers of columns differ, or the
        result would not fit into the device's memory.

    References
    ----------
    Dwaraknath, Ergen and Pilanci, "Fixing the NTK", NeurIPS 2023; docs/mathematics.md, M3.

    Examples
    --------
    >>> import jax.numpy as jnp, fixntk as fx
    >>> fx.gated_relu_ntk(jnp.eye(2))
    Array([[0.5, 0. ],
           [0. , 0.5]], dtype=float32)
    """
    x1 = as_matrix("x1", x1)
    x2 = None if x2 is None else as_matrix("x2", x2)
    if x2 is not None:
        check_same_columns("x1", x1, "x2", x2)
    _check_squares(x1, x2)
    check_kernel_fits(x1, x1 if x2 is None else x2, _REMEDY)
    return _of_all_pairs(_gated_relu, 1, None, x1, x2, _tile(None, 1))[0]


def mlp_kernel(
    x1: ArrayLike,
    x2: ArrayLike | None = None,
    *,
    depth: int,
    activation: Any = "relu",
    w_std: Any = 1.0,
    b_std: Any = 0.0,
    input_scale: Any = None,
    batch_size: int | None = None,
    store_on_device: bool = True,
) -> Kernel:
    """NNGP and NTK of a fully connected network of infinite width (M13).

    The network has ``depth`` hidden layers and a linear readout, all trained, in the NTK parameterisation
    W h · w_std/√N + b_std b with weights and biases from N(0, 1). ``mlp_kernel(x, depth=1)`` is the two-layer ReLU
    network; the part of its NTK that comes from the first layer, ``ntk − nngp``, is ``gated_relu_ntk(x) / d``.

    Parameters
    ----------
    x1
        (n1, d) inputs. No unit.
    x2
        (n2, d) inputs; x1 when None; then only about half of the tiles, where there are several, is computed.
    depth
        Number of hidden layers.
    activation
        "relu", "leaky_relu" (slope 0.01), "abs", "erf", "gelu", "sin", "cos", "sign", "step", "gaussian" (exp(−x²)) or
        "identity"; ``leaky_relu(slope)`` or ``polynomial(coefficients)`` of :mod:`fixntk.ntk.activations`; or an
        elementwise JAX function, by Gauss–Hermite quadrature unless it is one of these.
    w_std, b_std
        Standard deviations of weights and biases. No bias for 0. JAX scalars can be differentiated by.
    input_scale
        What the inner products of inputs are multiplied with; 1/d when None.
    batch_size
        Rows of x1 and x2 that are computed at a time; chosen by the size of the cache when None.
    store_on_device
        False collects the tiles in NumPy arrays on the host as they are finished, for kernels larger than the device's
        memory. Not possible under ``jax.jit``.

    Returns
    -------
    :class:`Kernel` of (n1, n2) matrices, of the inputs' dtype.

    Raises
    ------
    ValueError
        If an input is not a finite, non-empty matrix, its squares overflow, the numbers of columns differ, an argument
        is out of range, or the result would not fit into the device's memory.
    TypeError
        If a standard deviation is not a number, ``depth`` or ``batch_size`` is not an integer, or ``activation`` none
        of the above.

    Warns
    -----
    UserWarning
        If the series of an activation that is integrated leaves out more than 1e-4 of a second moment.

    References
    ----------
    Jacot, Gabriel and Hongler, "Neural Tangent Kernel", NeurIPS 2018; docs/mathematics.md, M13.

    Examples
    --------
    >>> import jax.numpy as jnp, fixntk as fx
    >>> kernel = fx.mlp_kernel(jnp.eye(4), depth=2)
    >>> kernel.nngp.shape, kernel.ntk.shape
    ((4, 4), (4, 4))
    """
    network = mlp(depth, activation, w_std, b_std)
    return _checked(network, x1, x2, (2,), input_scale, batch_size, store_on_device)


def network_kernel(
    network: Layer,
    x1: ArrayLike,
    x2: ArrayLike | None = None,
    *,
    input_scale: Any = None,
    batch_size: int | None = None,
    store_on_device: bool = True,
) -> Kernel:
    """NNGP and NTK of an infinitely wide network built of the layers in :mod:`fixntk.ntk.layers` (M13).

    Values are exact to rounding for identical, parallel and opposite inputs. Where an activation without a kink, a
    convolution or a pooling precedes ReLU or another activation with one, the angle between inputs that are nearly
    but not quite identical is known to the square root of rounding only. Derivatives are finite everywhere; at kinks
    they are the mean of the one-sided ones.

    Parameters
    ----------
    network
        A layer, usually ``Serial(...)``; it has to end without axes of positions.
    x1
        (n1, d) inputs, or (n1, …, channels), such as images, with up to three axes of positions. No unit.
    x2
        (n2, …) inputs; x1 when None; then only about half of the tiles, where there are several, is computed.
    input_scale
        What the inner products of inputs are multiplied with; one over the number of features or channels when None.
    batch_size
        Rows of x1 and x2 that are computed at a time; chosen by the size of the cache when None.
    store_on_device
        False collects the tiles in NumPy arrays on the host as they are finished, for kernels larger than the device's
        memory. Not possible under ``jax.jit``.

    Returns
    -------
    :class:`Kernel` of (n1, n2) matrices, of the inputs' dtype.

    Raises
    ------
    ValueError
        If an input is not finite or empty, its squares overflow, the shapes of x1 and x2 do not fit together, the
        layers do not fit the inputs or each other, an argument is out of range, or the result would not fit into the
        device's memory.
    TypeError
        If ``network`` is not built of layers, a standard deviation is not a number, or ``batch_size`` not an integer.

    Warns
    -----
    UserWarning
        If the series of an activation that is integrated leaves out more than 1e-4 of a second moment.

    References
    ----------
    Jacot, Gabriel and Hongler, "Neural Tangent Kernel", NeurIPS 2018; Arora et al., "On Exact Computation with an
    Infinitely Wide Neural Net", NeurIPS 2019; docs/mathematics.md, M13.
    """
    if isinstance(network, type) or not callable(network):
        raise TypeError(f"network must be a layer such as Dense(), got {network!r}")
    functions = [leaf for leaf in jax.tree.leaves(network) if callable(leaf)]
    if functions:
        raise TypeError(f"network must be built of layers that are pytrees, such as Dense(), got {functions[0]!r}")
    return _checked(network, x1, x2, (2, 3, 4, 5), input_scale, batch_size, store_on_device)


def _checked(
    network: Layer,
    x1: ArrayLike,
    x2: ArrayLike | None,
    ndims: tuple[int, ...],
    input_scale: Any,
    batch_size: int | None,
    store_on_device: bool,
) -> Kernel:
    x1 = as_float_array("x1", x1, ndims)
    x2 = None if x2 is None else as_float_array("x2", x2, ndims)
    if x2 is not None and x1.shape[1:] != x2.shape[1:]:
        raise ValueError(f"x1 and x2 must have the same shape of an example, got shapes {x1.shape} and {x2.shape}")
    _check_squares(x1, x2)
    if store_on_device:
        check_kernel_fits(x1, x1 if x2 is None else x2, _REMEDY, num_kernels=2)
    num_positions = math.prod(x1.shape[1:-1])
    tile = _tile(batch_size, num_positions**2 if _pools(network) else num_positions)
    if input_scale is None:
        input_scale = 1 / x1.shape[-1]
    check_scalar("input_scale", input_scale)
    is_concrete = not is_traced(network, input_scale, x1, x2)
    if not is_concrete and not store_on_device:
        raise ValueError("store_on_device=False cannot be used under a JAX transformation: leave it True there")
    if is_concrete:
        _warn_if_truncated(network, input_scale, [x for x in (x1, x2) if x is not None], tile)
    return Kernel(*_of_all_pairs(_network, 2, (network, input_scale), x1, x2, tile, store_on_device))


def _check_squares(x1: Array, x2: Array | None) -> None:
    check_squares("x1", x1)
    if x2 is not None:
        check_squares("x2", x2)


def _tile(batch_size: int | None, numbers_per_pair: int) -> int:
    """Rows of a tile."""
    if batch_size is not None:
        return as_positive_int("batch_size", batch_size)
    size = _TILE_SIZES.get(jax.default_backend(), _ACCELERATORS_TILE_SIZE)
    return max(1, math.isqrt(size // numbers_per_pair))


def _pools(network: Any) -> bool:
    """Whether covariances between different positions are needed."""
    return bool(_layers_of(GlobalAveragePool, network))


def _layers_of(kind: type, network: Any) -> list[Any]:
    leaves = jax.tree.leaves(network, is_leaf=lambda layer: isinstance(layer, kind))
    return [leaf for leaf in leaves if isinstance(leaf, kind)]


def _gated_relu(_: None, rows1: Rows, rows2: Rows) -> tuple[Array]:
    products, haversine, havercosine = products_and_angles(rows1, rows2)
    return (products * (0.5 - full_angle(haversine, havercosine) / (2 * jnp.pi)),)


def _network(parameters: tuple[Layer, Any], rows1: Rows, rows2: Rows) -> tuple[Array, Array]:
    network, input_scale = _as_scalars(*parameters, rows1.lengths.dtype)
    outputs = network(_of_inputs(rows1, rows2, input_scale, _pools(network)))
    if not isinstance(outputs, Covariances):
        raise TypeError(f"network must return Covariances, got {outputs!r}")
    if outputs.num_positions:
        raise ValueError(
            f"network must end without axes of positions, it has {outputs.num_positions}: add Flatten or "
            "GlobalAveragePool, then Dense"
        )
    shape = rows1.lengths.shape[0], rows2.lengths.shape[0]
    return jnp.broadcast_to(outputs.pairs.covariance, shape), jnp.broadcast_to(outputs.pairs.ntk, shape)


def _warn_if_truncated(network: Layer, input_scale: Any, inputs: list[Array], tile: int) -> None:
    """Warn if a series of an activation converges slowly at a standard deviation that occurs."""
    if not any(layer.activation.truncation for layer in _layers_of(Activate, network)):
        return
    for x in inputs:
        for name, share in _truncations((network, input_scale), x, tile).items():
            if share > _TRUNCATION:
                warnings.warn(
                    f"the series of activation {name} leaves out a share of {float(share):.0e} of its second moment or "
                    "its derivative's: kernels of similar inputs are too small by up to as much. Give more terms, "
                    "elementwise(…, num_terms=…), an activation in closed form, or smaller w_std and inputs.",
                    stacklevel=4,
                )


@partial(jax.jit, static_argnums=2)
def _truncations(parameters: tuple[Layer, Any], x: Array, tile: int) -> dict[str, Array]:
    """Largest share that series leave out, by activation: of each input's own variances, layer by layer."""
    network, input_scale = _as_scalars(*parameters, x.dtype)

    def of_one(x: Array) -> dict[str, Array]:
        shares: dict[str, list[Array]] = {}

        def watched(layer: Any) -> Any:
            if not isinstance(layer, Activate) or layer.activation.truncation is None:
                return layer

            def watch(covariances: Covariances) -> Covariances:
                std1 = covariances.pairs.gaussians().std1
                shares.setdefault(layer.activation.name, []).extend(layer.activation.truncation(std1))
                return layer(covariances)

            return watch

        watching = jax.tree.map(watched, network, is_leaf=lambda layer: isinstance(layer, Activate))
        row = as_rows(x[None], jnp.zeros(1, int))
        watching(_of_inputs(row, row, input_scale, _pools(network)))
        return {name: jnp.max(jnp.stack([jnp.max(share) for share in found])) for name, found in shares.items()}

    return jax.tree.map(jnp.max, jax.lax.map(of_one, x, batch_size=tile))


def _as_scalars(network: Layer, input_scale: Any, dtype: Any) -> tuple[Layer, Array]:
    """All numbers that the kernels depend on in the dtype of the inputs, whatever theirs."""

    def as_scalar(path: tuple[Any, ...], value: Any) -> Array:
        array = jnp.asarray(value, dtype)
        if array.ndim:
            name = getattr(path[-1], "name", "input_scale")
            raise ValueError(f"{name} must be a single number, got an array of shape {array.shape}")
        return array

    return jax.tree_util.tree_map_with_path(as_scalar, (network, input_scale))


# Kernels (b1, b2) of the pairs of two tiles of rows, from what the kernel depends on besides them.
_Kernels = Callable[[Any, Rows, Rows], tuple[Array, ...]]


def _of_all_pairs(
    kernels: _Kernels,
    num_kernels: int,
    parameters: Any,
    x1: Array,
    x2: Array | None,
    tile: int,
    store_on_device: bool = True,
) -> tuple[Any, ...]:
    """Kernels of all pairs of rows of x1 and x2, a tile at a time."""
    if x2 is not None:
        dtype = jnp.promote_types(x1.dtype, x2.dtype)
        x1, x2 = x1.astype(dtype), x2.astype(dtype)
    if store_on_device and max(x1.shape[0], 0 if x2 is None else x2.shape[0]) <= tile:
        blocks = _one_tile(kernels, parameters, x1, x2)
        return _symmetrised(blocks) if x2 is None else blocks
    rows1, rows2 = _as_rows(x1, x2)
    grid = Grid(rows1, rows2, tile)
    block = partial(kernels, parameters)
    zeros = jnp.zeros if store_on_device else np.zeros
    results: tuple[Any, ...] = tuple(zeros(grid.padded_shape, x1.dtype) for _ in range(num_kernels))
    if is_traced(parameters, x1, x2):
        # For derivatives a tile is computed again rather than kept.
        return grid.fill(results, lambda rows: rows, jax.checkpoint(block, prevent_cse=False), _mirrored)
    # Not one compiled loop, inside which XLA uses a single core of a CPU for entrywise functions.
    for i in range(grid.num_rows):
        for j in grid.columns_of(i):
            # Two programs: in one, XLA would compute everything again for the mirrored tile.
            blocks = _tile_kernels(kernels, parameters, grid.tiles, i, j)
            if grid.is_symmetric and i == j:
                blocks = _symmetrised(blocks)
            if store_on_device:
                results = _put_tile(grid.is_symmetric, results, blocks, i, j)
                continue
            put_on_host(results, blocks, i * grid.height, j * grid.width)
            if grid.is_symmetric:
                put_on_host(results, _mirrored(blocks), j * grid.width, i * grid.height)
    return grid.without_padding(results)


@partial(jax.jit, static_argnums=0)
def _one_tile(kernels: _Kernels, parameters: Any, x1: Array, x2: Array | None) -> tuple[Array, ...]:
    rows1, rows2 = _as_rows(x1, x2)
    return kernels(parameters, rows1, rows1 if rows2 is None else rows2)


@partial(jax.jit, static_argnums=0)
def _tile_kernels(
    kernels: _Kernels, parameters: Any, tiles: tuple[Rows, Rows], i: Array, j: Array
) -> tuple[Array, ...]:
    rows1, rows2 = tiles
    return kernels(parameters, jax.tree.map(lambda a: a[i], rows1), jax.tree.map(lambda a: a[j], rows2))


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _put_tile(
    is_symmetric: bool, results: tuple[Array, ...], blocks: tuple[Array, ...], i: Array, j: Array
) -> tuple[Array, ...]:
    height, width = blocks[0].shape
    results = put_blocks(results, blocks, i * height, j * width)
    return put_blocks(results, _mirrored(blocks), j * width, i * height) if is_symmetric else results


@jax.jit
def _symmetrised(blocks: tuple[Array, ...]) -> tuple[Array, ...]:
    """Rounding may differ by the order of two inputs: take the upper half."""
    return tuple(jnp.triu(block) + jnp.triu(block, 1).T for block in blocks)


def _mirrored(blocks: tuple[Array, ...]) -> tuple[Array, ...]:
    return tuple(block.T for block in blocks)


@jax.jit
def _as_rows(x1: Array, x2: Array | None) -> tuple[Rows, Rows | None]:
    rows1 = as_rows(x1, jnp.arange(x1.shape[0]))
    # Negative numbers: a row of x2 may equal one of x1, but only its entries tell.
    return rows1, None if x2 is None else as_rows(x2, -1 - jnp.arange(x2.shape[0]))


def _of_inputs(rows1: Rows, rows2: Rows, scale: Any, has_all_positions: bool) -> Covariances:
    """Covariances of inputs: they are fixed, so their inner products take the place of expectations."""
    positions = rows1.lengths.shape[1:]
    if not positions:
        return Covariances(_inner_products(rows1, rows2, scale), None, None, 0, is_gaussian=False)
    size, ones = math.prod(positions), (1,) * len(positions)

    def stacked(rows: Rows) -> Rows:
        """Positions (n, S, …) in one axis, each with a number of its own."""
        step = jnp.where(rows.numbers < 0, -1, 1)[:, None]
        numbers = rows.numbers[:, None] * size + step * jnp.arange(size)
        vectors = (array.reshape(-1, size, array.shape[-1]) for array in (rows.x, rows.units, rows.scaled))
        x, units, scaled = vectors
        return Rows(x, units, rows.lengths.reshape(-1, size), numbers, scaled, rows.scaled_lengths.reshape(-1, size))

    first, second = stacked(rows1), stacked(rows2)
    if not has_all_positions:
        at_each = jax.vmap(partial(_inner_products, scale=scale), in_axes=1, out_axes=-1)(first, second)
        pairs = jax.tree.map(lambda array: array.reshape(*array.shape[:2], *positions), at_each)
        return Covariances(pairs, None, None, len(positions), is_gaussian=False)

    def of_all(first: Rows, second: Rows) -> Pairs:
        """Every position of every input in one long list."""
        flat1, flat2 = jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), (first, second))
        num_rows1, num_rows2 = first.lengths.shape[0], second.lengths.shape[0]

        def unfolded(array: Array) -> Array:
            array = array.reshape(num_rows1, size, num_rows2, size).swapaxes(1, 2)
            return array.reshape(num_rows1, num_rows2, *positions, *positions)

        flat = _inner_products(flat1, flat2, scale)
        variance1 = flat.variance1.reshape(num_rows1, 1, *positions, *ones)
        variance2 = flat.variance2.reshape(1, num_rows2, *ones, *positions)
        crossed = (flat.covariance, flat.haversine, flat.havercosine, flat.ntk)
        return Pairs(variance1, variance2, *map(unfolded, crossed))

    def own(rows: Rows) -> Pairs:
        def alone(row: Rows) -> Pairs:
            single = jax.tree.map(lambda array: array[None], row)
            return of_all(single, single)

        return jax.tree.map(lambda array: array[:, 0], jax.vmap(alone)(rows))

    own2 = jax.tree.map(lambda array: array.swapaxes(0, 1), own(second))
    return Covariances(of_all(first, second), own(first), own2, len(positions), is_gaussian=False)


def _inner_products(rows1: Rows, rows2: Rows, scale: Any) -> Pairs:
    """Pairs of plain vectors."""
    products, haversine, havercosine = products_and_angles(rows1, rows2)
    variance1, variance2 = scale * rows1.lengths[:, None] ** 2, scale * rows2.lengths**2
    return Pairs(variance1, variance2[None], scale * products, haversine, havercosine, jnp.zeros_like(products))
