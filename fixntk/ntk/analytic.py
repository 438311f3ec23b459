"""Kernels of infinitely wide networks in closed form: gated-ReLU, fully connected, any stack of layers.

See docs/mathematics.md, M3 and M13.
"""

from __future__ import annotations

import math
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
    check_same_columns,
    check_scalar,
    check_squares,
    describe_fields,
    is_traced,
)
from fixntk.ntk.all_pairs import Patterns, kernels_of_all_pairs
from fixntk.ntk.angles import Rows, full_angle, products_and_angles
from fixntk.ntk.covariances import Covariances, covariances_of_inputs
from fixntk.ntk.layers.branches import mlp
from fixntk.ntk.layers.graphs import flat_pattern, is_mask
from fixntk.ntk.layers.layer import as_scalars, needs_all_positions
from fixntk.ntk.truncation import warn_if_truncated

# Number of entries in a temporary array of a tile, by backend. On a CPU the array should fit into the cache.
_TILE_SIZES = {"cpu": 2**18}
# Number of entries of such an array on all other backends, large enough to occupy an accelerator.
_ACCELERATORS_TILE_SIZE = 2**22


class Kernel(NamedTuple):
    """Two kernel matrices of an infinitely wide network.

    Attributes
    ----------
    nngp
        (n1, n2) covariances of the outputs at initialisation: the network as a Gaussian process.
    ntk
        (n1, n2) neural tangent kernel.

    See docs/mathematics.md, M3 and M13.
    """

    nngp: Array
    ntk: Array

    def __repr__(self) -> str:
        return describe_fields("Kernel", nngp=self.nngp, ntk=self.ntk)


def gated_relu_ntk(x1: ArrayLike, x2: ArrayLike | None = None) -> Float[Array, "n1 n2"]:
    r"""NTK of the gated-ReLU network of infinite width: k(x, x') = x·x' (π − θ) / (2π), θ the angle between them.

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
        If an argument is not a finite, non-empty matrix, its squares overflow, or the numbers of columns differ.
    OutOfMemoryError
        If memory does not suffice; a ValueError too.

    References
    ----------
    Dwaraknath, Ergen and Pilanci, "Fixing the NTK", NeurIPS 2023.

    Examples
    --------
    >>> import jax.numpy as jnp, fixntk as fx
    >>> fx.gated_relu_ntk(jnp.eye(2))
    Array([[0.5, 0. ],
           [0. , 0.5]], dtype=float32)

    See docs/mathematics.md, M3.
    """
    x1 = as_matrix("x1", x1)
    x2 = None if x2 is None else as_matrix("x2", x2)
    if x2 is not None:
        check_same_columns("x1", x1, "x2", x2)
    _check_squares(x1, x2)
    return kernels_of_all_pairs(_gated_relu, 1, None, x1, x2, _tile_rows(None, 1))[0]


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
    """NNGP and NTK of a fully connected network of infinite width.

    The network has ``depth`` hidden layers and a linear readout, all trained, in the NTK parameterisation
    W h · w_std/√N + b_std b with weights and biases from N(0, 1). ``mlp_kernel(x, depth=1)`` is the two-layer ReLU
    network; the part of its NTK that comes from the first layer, ``ntk − nngp``, is ``gated_relu_ntk(x) / d``.

    Parameters
    ----------
    x1
        (n1, d) inputs. No unit.
    x2
        (n2, d) inputs; x1 when None; of several tiles only about half are then computed.
    depth
        Number of hidden layers.
    activation
        "relu", "leaky_relu" (slope 0.01), "abs", "erf", "gelu", "sin", "cos", "sign", "step", "gaussian" (exp(−x²)) or
        "identity"; ``leaky_relu(slope)`` or ``polynomial(coefficients)`` of :mod:`fixntk.ntk.activations`; or an
        elementwise JAX function, by Gauss–Hermite quadrature unless it is one of these.
    w_std, b_std
        Standard deviations of weights and biases. No bias for 0. JAX scalars can be differentiated by.
    input_scale
        Factor of the inner products of inputs; 1/d when None.
    batch_size
        Number of rows of x1, and of x2, that are computed at a time; chosen by the size of the cache when None.
    store_on_device
        False collects the tiles in NumPy arrays on the host as they are finished, for kernels larger than the device's
        memory. Not possible under ``jax.jit``.

    Returns
    -------
    :class:`Kernel` of (n1, n2) matrices, of the inputs' dtype.

    Raises
    ------
    ValueError
        If an input is not a finite, non-empty matrix, its squares overflow, the numbers of columns differ, or an
        argument is out of range.
    OutOfMemoryError
        If memory does not suffice; a ValueError too.
    TypeError
        If a standard deviation is not a number, ``depth`` or ``batch_size`` is not an integer, or ``activation`` none
        of the above.

    Warns
    -----
    UserWarning
        If the series of an activation without closed form omits more than 1e-4 of a second moment.

    References
    ----------
    Jacot, Gabriel and Hongler, "Neural Tangent Kernel", NeurIPS 2018.

    Examples
    --------
    >>> import jax.numpy as jnp, fixntk as fx
    >>> kernel = fx.mlp_kernel(jnp.eye(4), depth=2)
    >>> kernel.nngp.shape, kernel.ntk.shape
    ((4, 4), (4, 4))

    See docs/mathematics.md, M13.
    """
    network = mlp(depth, activation, w_std, b_std)
    return _compute_kernels(network, x1, x2, (2,), input_scale, batch_size, store_on_device)


def network_kernel(
    network: Any,
    x1: ArrayLike,
    x2: ArrayLike | None = None,
    *,
    pattern1: ArrayLike | None = None,
    pattern2: ArrayLike | None = None,
    input_scale: Any = None,
    batch_size: int | None = None,
    store_on_device: bool = True,
) -> Kernel:
    """NNGP and NTK of an infinitely wide network built of the layers in :mod:`fixntk.ntk.layers`.

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
        (n2, …) inputs; x1 when None; of several tiles only about half are then computed.
    pattern1, pattern2
        (n1, positions …, positions …) and (n2, …): the graph of each input, for
        :class:`~fixntk.ntk.layers.Aggregate`. Or boolean masks (n1, positions …), true at the positions that an input
        has, for :class:`~fixntk.ntk.layers.MaskedAveragePool` too. ``pattern2`` is given with x2.
    input_scale
        Factor of the inner products of inputs; one over the number of features or channels when None.
    batch_size, store_on_device
        As in :func:`mlp_kernel`, and so are the result and the warning.

    Returns
    -------
    :class:`Kernel` of (n1, n2) matrices, of the inputs' dtype.

    Raises
    ------
    ValueError
        If an input is not finite or empty, its squares overflow, the shapes of x1 and x2 do not fit together, the
        layers do not fit the inputs or each other, patterns do not fit the inputs or are missing, or an argument is out
        of range.
    OutOfMemoryError
        If memory does not suffice; a ValueError too.
    TypeError
        If ``network`` is not built of layers, a standard deviation is not a number, or ``batch_size`` not an integer.

    References
    ----------
    Jacot, Gabriel and Hongler, "Neural Tangent Kernel", NeurIPS 2018; Arora et al., "On Exact Computation with an
    Infinitely Wide Neural Net", NeurIPS 2019.

    See docs/mathematics.md, M13.
    """
    if isinstance(network, type) or not callable(network):
        raise TypeError(f"network must be a layer such as Dense(), got {network!r}")
    functions = [leaf for leaf in jax.tree.leaves(network) if callable(leaf)]
    if functions:
        raise TypeError(f"network must be built of layers that are pytrees, such as Dense(), got {functions[0]!r}")
    patterns = pattern1, pattern2
    return _compute_kernels(network, x1, x2, (2, 3, 4, 5), input_scale, batch_size, store_on_device, patterns)


def _compute_kernels(
    network: Any,
    x1: ArrayLike,
    x2: ArrayLike | None,
    ndims: tuple[int, ...],
    input_scale: Any,
    batch_size: int | None,
    store_on_device: bool,
    patterns: tuple[ArrayLike | None, ArrayLike | None] = (None, None),
) -> Kernel:
    x1 = as_float_array("x1", x1, ndims)
    x2 = None if x2 is None else as_float_array("x2", x2, ndims)
    if x2 is not None and x1.shape[1:] != x2.shape[1:]:
        raise ValueError(f"x1 and x2 must have examples of the same shape, got shapes {x1.shape} and {x2.shape}")
    _check_squares(x1, x2)
    pattern1, pattern2 = _as_patterns(patterns, x1, x2)
    # A pair of examples takes one number for each position, or for each pair of positions.
    num_positions = math.prod(x1.shape[1:-1])
    tile = _tile_rows(batch_size, num_positions**2 if needs_all_positions(network) else num_positions)
    if input_scale is None:
        input_scale = 1 / x1.shape[-1]
    check_scalar("input_scale", input_scale)
    is_concrete = not is_traced(network, input_scale, x1, x2, pattern1, pattern2)
    if not is_concrete and not store_on_device:
        raise ValueError("store_on_device=False cannot be used under a JAX transformation: leave it True there")
    if is_concrete:
        inputs = [(x, pattern) for x, pattern in ((x1, pattern1), (x2, pattern2)) if x is not None]
        warn_if_truncated(network, input_scale, inputs, tile)
    parameters = network, input_scale
    return Kernel(*kernels_of_all_pairs(_network, 2, parameters, x1, x2, tile, store_on_device, (pattern1, pattern2)))


def _as_patterns(patterns: tuple[ArrayLike | None, ArrayLike | None], x1: Array, x2: Array | None) -> Patterns:
    """The graphs of both inputs as (n, S, S), of their dtype."""
    if all(pattern is None for pattern in patterns):
        return None, None
    if x1.ndim == 2:
        raise ValueError(f"pattern1 needs inputs with positions, (n, …, channels), got x1 of shape {x1.shape}")
    found: list[Array | None] = []
    dtype = x1.dtype if x2 is None else jnp.promote_types(x1.dtype, x2.dtype)
    for number, (x, pattern) in enumerate(zip((x1, x2), patterns, strict=True), start=1):
        if (x is None) != (pattern is None):
            raise ValueError(f"pattern{number} and x{number} must be given together")
        if x is None or pattern is None:
            found.append(None)
            continue
        mask = pattern if isinstance(pattern, Array) else np.asarray(pattern)
        if is_mask(mask, x):
            if mask.shape != x.shape[:-1]:
                raise ValueError(f"pattern{number}, a mask, must have shape {x.shape[:-1]}, got {mask.shape}")
            found.append(flat_pattern(jnp.asarray(mask), x.astype(dtype)))
            continue
        array = as_float_array(f"pattern{number}", pattern, (3, 5, 7))
        expected = (x.shape[0], *x.shape[1:-1], *x.shape[1:-1])
        nodes = array.shape[1 : 1 + (array.ndim - 1) // 2]
        if array.shape != (x.shape[0], *nodes, *nodes):
            raise ValueError(f"pattern{number} must have shape (n, nodes, nodes), here {expected}, got {array.shape}")
        found.append(flat_pattern(array, x.astype(dtype)))
    return found[0], found[1]


def _check_squares(x1: Array, x2: Array | None) -> None:
    check_squares("x1", x1)
    if x2 is not None:
        check_squares("x2", x2)


def _tile_rows(batch_size: int | None, numbers_per_pair: int) -> int:
    """Number of rows of a tile."""
    if batch_size is not None:
        return as_positive_int("batch_size", batch_size)
    size = _TILE_SIZES.get(jax.default_backend(), _ACCELERATORS_TILE_SIZE)
    return max(1, math.isqrt(size // numbers_per_pair))


def _gated_relu(_: None, rows1: Rows, rows2: Rows) -> tuple[Array]:
    products, haversine, havercosine = products_and_angles(rows1, rows2)
    # A random gate is active at both inputs with probability (π − θ) / 2π, by the angle θ between them.
    return (products * (0.5 - full_angle(haversine, havercosine) / (2 * jnp.pi)),)


def _network(parameters: tuple[Any, Any], rows1: Rows, rows2: Rows) -> tuple[Array, Array]:
    network, input_scale = as_scalars(*parameters, rows1.lengths.dtype)
    outputs = network(covariances_of_inputs(rows1, rows2, input_scale, needs_all_positions(network)))
    if not isinstance(outputs, Covariances):
        raise TypeError(f"network must return Covariances, got {outputs!r}")
    if outputs.num_positions:
        raise ValueError(
            f"network must end without axes of positions, it has {outputs.num_positions}: add Flatten or "
            "GlobalAveragePool, then Dense"
        )
    shape = rows1.lengths.shape[0], rows2.lengths.shape[0]
    # Arrays that do not depend on one of the inputs have an axis of size one until here.
    return jnp.broadcast_to(outputs.pairs.covariance, shape), jnp.broadcast_to(outputs.pairs.ntk, shape)
