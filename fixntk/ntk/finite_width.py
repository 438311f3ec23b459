"""Kernels of networks of finite width over their random parameters: one network's NNGP, and means over networks.

See docs/mathematics.md, M14.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from fixntk._checks import as_positive_int
from fixntk._numerics import at_least_float32, full_precision
from fixntk.ntk.analytic import Kernel
from fixntk.ntk.contraction import OutputAxes
from fixntk.ntk.empirical import Outputs, empirical_ntk, of_each_output
from fixntk.ntk.inputs import check_rows_are_independent
from fixntk.ntk.plan import Request


class MonteCarloKernel(NamedTuple):
    """Kernels of random networks of finite width.

    Attributes
    ----------
    mean
        The means of their NNGP and NTK, with the shapes of :func:`fixntk.empirical_ntk`.
    standard_error
        The standard errors of these means, of the same shapes.

    See docs/mathematics.md, M14.
    """

    mean: Kernel
    standard_error: Kernel


@full_precision()
def empirical_nngp(
    f: Callable[..., Any],
    params: Any,
    x1: Any = None,
    x2: Any = None,
    *,
    outputs: Outputs | None = None,
    trace_axes: int | Sequence[int] = (),
    diagonal_axes: int | Sequence[int] = (),
    batch_axes: tuple[int, int] = (0, 0),
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    r"""Products of the outputs of a network of finite width, whose mean over its parameters is its NNGP kernel.

    .. math:: K[i, j, o, q] = f_o(x_i) f_q(x_j)

    Parameters
    ----------
    f, params, x1, x2, outputs, trace_axes, diagonal_axes, batch_axes, kwargs
        As in :func:`fixntk.empirical_ntk`. With ``outputs="trace"`` the outputs of one network are averaged over.

    Returns
    -------
    (n1, n2, …), with axes as in :func:`fixntk.empirical_ntk`; a pytree of kernels where the function returns a pytree.
    float32, or the output's dtype if that is wider.

    Raises
    ------
    TypeError, ValueError
        As :func:`fixntk.empirical_ntk` does.

    Examples
    --------
    >>> import jax.numpy as jnp, fixntk as fx
    >>> x = jnp.array([[1.0, 2.0], [0.0, 1.0]])
    >>> fx.empirical_nngp(lambda w, x: x @ w, jnp.ones(2), x)
    Array([[9., 3.],
           [3., 1.]], dtype=float32)

    See docs/mathematics.md, M14.
    """

    def kernel(f: Callable[..., Any], request: Request, params: Any, x1: Any, x2: Any) -> Array:
        check_rows_are_independent(f, params, x1, x2, needs_derivative=False)
        return _products(request.f, request.traced, request.diagonal, params, x1, x2)

    axes = {"outputs": outputs, "trace_axes": trace_axes, "diagonal_axes": diagonal_axes}
    options: dict[str, Any] = {**axes, "method": "auto", "batch_size": None}
    return of_each_output(kernel, f, params, x1, x2, None, batch_axes, kwargs, "empirical_nngp", **options)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _products(
    f: Callable[..., Any], traced: tuple[int, ...], diagonal: tuple[int, ...], params: Any, x1: Any, x2: Any
) -> Array:
    one = f(params, x1)
    two = one if x2 is None else f(params, x2)
    # The examples are an axis like those of the outputs: full, unless they are paired row by row.
    axes = OutputAxes(one.shape, traced, diagonal)
    first, second, result = axes.subscripts()
    wide = at_least_float32(one.dtype)
    subscripts, precision = f"{first},{second}->{result}", lax.Precision.HIGHEST
    total = jnp.einsum(subscripts, one, two, precision=precision, preferred_element_type=wide)
    return total / axes.traced_size


def monte_carlo_kernel(
    f: Callable[..., Any],
    init: Callable[[Array], Any],
    x1: Any,
    x2: Any = None,
    *,
    key: Array,
    num_samples: int,
    outputs: Outputs | None = "trace",
    trace_axes: int | Sequence[int] = (),
    diagonal_axes: int | Sequence[int] = (),
    batch_size: int | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> MonteCarloKernel:
    """Mean NNGP and NTK of networks with random parameters, with standard errors.

    As the width grows the means tend to the kernels of :func:`fixntk.network_kernel`.

    Parameters
    ----------
    f
        ``f(params, x)`` for a batch, as in :func:`fixntk.empirical_ntk`; of a network of :mod:`fixntk.ntk.layers` its
        method ``apply``.
    init
        ``init(key)`` draws the parameters, for instance ``lambda key: network.init(key, x.shape[1:], width)``.
    x1, x2, trace_axes, diagonal_axes, batch_size, kwargs
        As in :func:`fixntk.empirical_ntk`.
    key
        From which the keys of all networks are drawn.
    num_samples
        Number of networks, at least 2. They are sampled one after another.
    outputs
        As in :func:`fixntk.empirical_ntk`; by default the mean over all outputs. Give None to choose by axes.

    Returns
    -------
    A :class:`MonteCarloKernel`. Where f returns a pytree, its kernels are pytrees.

    Raises
    ------
    TypeError, ValueError
        As :func:`fixntk.empirical_ntk` does, or if ``num_samples`` is less than 2.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, fixntk as fx
    >>> from fixntk.ntk.layers import Activate, Dense, Serial
    >>> network, x = Serial(Dense(), Activate("relu"), Dense(width=1)), jnp.eye(3)
    >>> found = fx.monte_carlo_kernel(
    ...     network.apply, lambda key: network.init(key, (3,), 64), x, key=jax.random.key(0), num_samples=4
    ... )
    >>> found.mean.ntk.shape, found.standard_error.nngp.shape
    ((3, 3), (3, 3))

    See docs/mathematics.md, M14.
    """
    if as_positive_int("num_samples", num_samples) < 2:
        raise ValueError(f"num_samples must be at least 2 for standard errors, got {num_samples}")
    axes: dict[str, Any] = {"outputs": outputs, "trace_axes": trace_axes, "diagonal_axes": diagonal_axes}
    # One network at a time is in memory: the mean, and the sum of squared deviations from it, are updated by each.
    mean: Any = None
    squares: Any = None
    for count, each in enumerate(jax.random.split(key, num_samples), 1):
        params = init(each)
        nngp = empirical_nngp(f, params, x1, x2, kwargs=kwargs, **axes)
        sample = Kernel(nngp, empirical_ntk(f, params, x1, x2, batch_size=batch_size, kwargs=kwargs, **axes))
        if count == 1:
            mean, squares = sample, jax.tree.map(jnp.zeros_like, sample)
            continue
        change = jax.tree.map(jnp.subtract, sample, mean)
        mean = jax.tree.map(lambda average, by, count=count: average + by / count, mean, change)
        squares = jax.tree.map(lambda total, by, count=count: total + by**2 * ((count - 1) / count), squares, change)
    error = jax.tree.map(lambda total: jnp.sqrt(total / (num_samples * (num_samples - 1))), squares)
    return MonteCarloKernel(mean, error)
