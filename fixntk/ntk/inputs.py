"""Checks of the arguments of empirical kernels: a function of a batch, its parameters, its inputs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import Jaxpr

from fixntk._checks import as_array, entries_of, is_key, is_traced
from fixntk._numerics import at_least_float32
from fixntk._tiling import num_rows
from fixntk.ntk.calls import OneOutput
from fixntk.ntk.dependence import blocking_operation
from fixntk.ntk.modules import check_is_bound
from fixntk.ntk.plan import Shapes, as_shapes
from fixntk.ntk.structure import inner_jaxprs


def as_hashable(f: Callable[..., Any]) -> Callable[..., Any]:
    """Return f, or a hashable wrapper if f itself cannot be a key of JAX's cache of compiled functions."""
    try:
        hash(f)
    except TypeError:
        return partial(f)
    return f


def as_operands(f: Callable[..., Any], params: Any, x1: Any, x2: Any, *, name: str = "x1") -> tuple[Any, Any, Any]:
    """Check the arguments and return params, x1 and x2 as pytrees of JAX arrays; ``name`` is that of x1 in messages.

    Raises
    ------
    TypeError, ValueError
        As :func:`fixntk.empirical_ntk` says.
    """
    params, x1, x2 = as_arguments(f, params, x1, x2, name=name)
    check_output(f, params, x1)
    return params, x1, x2


def as_arguments(f: Callable[..., Any], params: Any, x1: Any, x2: Any, *, name: str = "x1") -> tuple[Any, Any, Any]:
    """As :func:`as_operands`, without the check of the function's output."""
    if not callable(f):
        raise TypeError(f"f must be a function f(params, x), got {type(f).__name__}")
    check_is_bound(f)
    params = _as_params(params)
    x1 = _as_inputs(name, x1)
    if x2 is not None:
        x2 = _as_inputs("x2", x2)
        kinds: list[Any] = [jax.tree.structure(x) for x in (x1, x2)]
        if kinds[0] != kinds[1]:
            raise ValueError(f"x1 and x2 must be the same kind of pytree, got {kinds[0]} and {kinds[1]}")
        one, two = ([(a.shape[1:], str(a.dtype)) for a in jax.tree.leaves(x)] for x in (x1, x2))
        if one != two:
            raise ValueError(
                "x1 and x2 must agree except in their number of rows, got an example's shape and dtype"
                f" {_join(one)} in x1 and {_join(two)} in x2"
            )
    return params, x1, x2


def _join(items: list[Any]) -> str:
    return ", ".join(str(item) for item in items)


def _as_params(params: Any) -> Any:
    def as_leaf(path: Any, leaf: Any) -> Array:
        place = f"params{jax.tree_util.keystr(path)}"
        try:
            array = as_array(place, leaf)
        except TypeError:
            raise TypeError(
                f"{place} is a {type(leaf).__name__}, not an array: pass the arrays alone and keep the rest inside f"
                " (Equinox: eqx.partition(model, eqx.is_inexact_array); Flax NNX: nnx.split(model, nnx.Param, ...))"
            ) from None
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{place} must be a real floating-point array to be differentiated in, got {array.dtype}")
        return array

    params = jax.tree_util.tree_map_with_path(as_leaf, params)
    if not jax.tree.leaves(params):
        raise ValueError("params has no arrays")
    _check_finite("params", params)
    return params


def _as_inputs(name: str, x: Any) -> Any:
    x = jax.tree_util.tree_map_with_path(lambda path, leaf: as_array(f"{name}{jax.tree_util.keystr(path)}", leaf), x)
    leaves = jax.tree.leaves(x)
    if not leaves or any(leaf.ndim == 0 or leaf.shape[0] != leaves[0].shape[0] for leaf in leaves):
        raise ValueError(f"{name} must have one row for each example, got shapes {[leaf.shape for leaf in leaves]}")
    if leaves[0].shape[0] == 0:
        raise ValueError(f"{name} is empty: shape {leaves[0].shape}")
    _check_finite(name, x)
    return x


def _check_finite(name: str, tree: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not is_traced(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating):
            # A concrete array that a traced function closes over has known values, but reading them needs eager
            # evaluation.
            with jax.ensure_compile_time_eval():
                finite = bool(jnp.all(jnp.isfinite(leaf)))
            if not finite:
                raise ValueError(f"{name}{jax.tree_util.keystr(path)} holds NaN or infinite values")


def check_output(f: Callable[..., Any], params: Any, x: Any) -> None:
    """Check that f returns one floating-point array with a row for each example.

    Raises
    ------
    TypeError, ValueError
        As :func:`fixntk.empirical_ntk` says.
    """
    output = jax.eval_shape(f, params, x)
    if not hasattr(output, "shape"):
        raise TypeError(f"f must return one array, got {type(output).__name__}: select the output inside f")
    if not jnp.issubdtype(output.dtype, jnp.floating):
        raise TypeError(f"f must return a real floating-point array, got {output.dtype}")
    if output.ndim == 0 or output.shape[0] != num_rows(x):
        raise ValueError(
            f"f must map a batch to one row for each example: x1 has {num_rows(x)} rows, f(params, x1) has shape"
            f" {output.shape}. For a function of one example pass jax.vmap(f, in_axes=(None, 0))"
        )
    single = jax.eval_shape(f, params, jax.tree.map(lambda a: a[:1], x)).shape
    if single != (1, *output.shape[1:]):
        raise ValueError(
            f"f must keep the axes of its output for a batch of one example, expected {(1, *output.shape[1:])}, got"
            f" {single}: squeeze one axis by name, not all"
        )


def check_batch_size(batch_size: int | None) -> None:
    """Raise ValueError unless the number of examples in a tile is a positive integer or None."""
    if batch_size is not None and (not hasattr(batch_size, "__index__") or operator.index(batch_size) < 1):
        raise ValueError(f"batch_size must be a positive integer or None, got {batch_size!r}")


def check_rows_are_independent(
    f: Callable[..., Any], params: Any, x1: Any, x2: Any = None, *, needs_derivative: bool = True
) -> bool:
    """Check that a row has the same output and derivative alone and in a batch, unlike with batch statistics.

    The derivative in the parameters detects a dependence that the output hides, for instance in a network whose last
    layer starts at zero. The batch has the first row, a row of x1 or x2 that differs from it, and the last row.

    Returns
    -------
    Whether the values are known; they are not under a JAX transformation of the arguments or of values in f.

    Raises
    ------
    ValueError
        If they differ by more than rounding errors; also if a derivative is needed and is zero because the outputs
        depend on the parameters only through an operation without one, such as argmax.
    """
    if is_traced(params, x1, x2):
        return False
    f = as_hashable(f)
    probe = _probe(x1 if x2 is None else jax.tree.map(_concatenate, x1, x2))
    first = jax.tree.map(lambda a: a[:1], probe)
    alone = _output_and_derivative(f, params, first, 0)
    if is_traced(alone):
        return False
    # Batches of different sizes round differently; this bound, relative to the largest entry 6e-4 in float32, is well
    # above such errors. A change by half of the largest entry is none of them in any precision.
    is_double = bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined]  # JAX adds its options at run time.
    tolerance = min(100 * _resolution(f, as_shapes((params, first)), is_double) ** 0.75, 0.5)
    # The same row first and last in a batch: one that depends only on rows before it, or only on rows behind it, is
    # found too.
    behind = jax.tree.map(lambda a: a[::-1], probe)
    last = num_rows(probe) - 1
    found = _output_and_derivative(f, params, probe, 0), _output_and_derivative(f, params, behind, last)
    scales, *changes = jax.device_get(_scales_and_changes(alone, *found))
    if needs_derivative and scales[1] <= jnp.finfo(scales[1].dtype).tiny:
        _check_has_derivative(f, params, first)
    for change in changes:
        for what, difference, scale in zip(("output", "derivative"), change, scales, strict=True):
            if difference > tolerance * scale:
                raise ValueError(
                    f"f's {what} for an example changes with the rest of the batch (by {difference:.2g}): batch"
                    " statistics or randomness? The NTK is of a function of one example: use the evaluation mode of"
                    " batch normalisation and dropout"
                )
    return True


def _check_has_derivative(f: Callable[..., Any], params: Any, x: Any) -> None:
    # A single output without a derivative, next to others that have one, has a kernel of zeros as it should.
    name = blocking_operation(f.f if isinstance(f, OneOutput) else f, params, x)
    if name is not None:
        raise ValueError(
            f"f depends on the parameters only through {name!r}, which has no derivative, so that the NTK is zero: take"
            " the outputs before it"
        )


# What is known of an output: its values, its derivative, the sensitivity.
_Found = tuple[Array, Array, Array]


@jax.jit
def _scales_and_changes(alone: _Found, *found: _Found) -> list[tuple[Array, Array]]:
    """Scales of the output and of the derivative, then for each of several batches by how much they change there."""
    output, derivative, sensitivity = alone
    sizes = [jnp.maximum(jnp.max(jnp.abs(one)), jnp.finfo(one.dtype).tiny) for one in (output, derivative)]
    # An output near zero by cancellation, such as a residual, has the rounding errors of what cancels.
    wide = _widest((output.dtype, sensitivity.dtype))
    scales = jnp.maximum(sizes[0].astype(wide), sensitivity.astype(wide)), sizes[1]
    return [scales, *((jnp.max(jnp.abs(output - one)), jnp.max(jnp.abs(derivative - two))) for one, two, _ in found)]


def _widest(dtypes: Iterable[Any]) -> jnp.dtype:
    """The widest of some dtypes and float32; without promotion, which JAX may be configured to refuse."""
    return max(map(at_least_float32, dtypes), key=lambda dtype: jnp.finfo(dtype).bits)


@lru_cache(maxsize=64)
def _resolution(f: Callable[..., Any], shapes: Shapes, is_double: bool) -> float:
    """The resolution of the coarsest dtype in which a function or its derivative has values, for given shapes."""
    del is_double  # The default dtype is a part of the key.
    params, x = shapes.tree()
    return _coarsest_eps(_output_and_derivative.trace(f, params, x, 0).jaxpr.jaxpr)


def _coarsest_eps(jaxpr: Jaxpr) -> float:
    """The largest resolution of a dtype in which a jaxpr has results: values are no more accurate than that."""
    found = [0.0]
    for equation in jaxpr.eqns:
        dtypes = [v.aval.dtype for v in equation.outvars if hasattr(v.aval, "dtype")]
        found += [float(jnp.finfo(dtype).eps) for dtype in dtypes if jnp.issubdtype(dtype, jnp.inexact)]
        found += map(_coarsest_eps, inner_jaxprs(equation))
    return max(found)


def _concatenate(one: Array, two: Array) -> Any:
    # NumPy, which has no keys, compiles nothing.
    return jnp.concatenate([one, two]) if is_key(one) else np.concatenate([one, two])


def _probe(x: Any) -> Any:
    """Three rows: the first, the next one that differs from it, and the last."""
    leaves = [entries_of(leaf).reshape(num_rows(x), -1) for leaf in jax.tree.leaves(x)]
    differs = np.any([np.any(leaf != leaf[:1], axis=1) for leaf in leaves], axis=0)
    rows = np.array([0, int(np.argmax(differs)), differs.size - 1])
    return jax.tree.map(lambda a: jnp.asarray(a)[rows], x)


@partial(jax.jit, static_argnums=0)
def _output_and_derivative(f: Callable[..., Any], params: Any, x: Any, row: Array) -> tuple[Array, Array, Array]:
    """Output of one row, the derivative in all parameters of its product with a random vector, and its sensitivity.

    The sensitivity is the largest change of this product for a relative change of 1 of a parameter.
    """
    output, pullback = jax.vjp(lambda p: f(p, x)[row], params)
    # One backward pass for a random combination of outputs, which a dependence of any of them changes almost surely.
    cotangent = jax.random.normal(jax.random.key(0), output.shape, output.dtype)
    derivatives = jax.tree.leaves(pullback(cotangent)[0])
    dtype = _widest(leaf.dtype for leaf in derivatives)
    pairs = zip(derivatives, jax.tree.leaves(params), strict=True)
    changes = [jnp.max(jnp.abs(derivative * leaf), initial=0) for derivative, leaf in pairs]
    sensitivity = jnp.max(jnp.stack([change.astype(dtype) for change in changes]))
    return output, jnp.concatenate([leaf.astype(dtype).ravel() for leaf in derivatives]), sensitivity
