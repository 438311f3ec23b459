"""Checks of what the empirical kernels are given: a function of a batch, its parameters, its inputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from fixntk._checks import is_traced


def num_rows(x: Any) -> int:
    """Number of examples in a pytree of inputs."""
    return jax.tree.leaves(x)[0].shape[0]


def hashable(f: Callable[..., Any]) -> Callable[..., Any]:
    """Return f, or f in a wrapper that is its own key where f cannot be one in JAX's cache of compiled functions."""
    try:
        hash(f)
    except TypeError:
        return partial(f)
    return f


def as_operands(f: Callable[..., Any], params: Any, x1: Any, x2: Any) -> tuple[Any, Any, Any]:
    """Check what is passed and return params, x1 and x2 as pytrees of JAX arrays.

    Raises
    ------
    TypeError, ValueError
        As :func:`fixntk.empirical_ntk` says.
    """
    if not callable(f):
        raise TypeError(f"f must be a function f(params, x), got {type(f).__name__}")
    params = _as_params(params)
    x1 = _as_inputs("x1", x1)
    if x2 is not None:
        x2 = _as_inputs("x2", x2)
        kinds: list[Any] = [jax.tree.structure(x) for x in (x1, x2)]
        if kinds[0] != kinds[1]:
            raise ValueError(f"x1 and x2 must be the same kind of pytree, got {kinds[0]} and {kinds[1]}")
        one, two = ([(a.shape[1:], str(a.dtype)) for a in jax.tree.leaves(x)] for x in (x1, x2))
        if one != two:
            raise ValueError(
                f"x1 and x2 must agree but for their rows, got an example's shape and dtype {_listed(one)} in x1 and"
                f" {_listed(two)} in x2"
            )
    _check_output(f, params, x1)
    return params, x1, x2


def _listed(items: list[Any]) -> str:
    return ", ".join(str(item) for item in items)


def _as_params(params: Any) -> Any:
    def as_leaf(path: Any, leaf: Any) -> Array:
        place = f"params{jax.tree_util.keystr(path)}"
        try:
            array = jnp.asarray(leaf)
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
    try:
        x = jax.tree.map(jnp.asarray, x)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a numeric array or a pytree of them: {error}") from None
    leaves = jax.tree.leaves(x)
    if not leaves or any(leaf.ndim == 0 or leaf.shape[0] != leaves[0].shape[0] for leaf in leaves):
        raise ValueError(f"{name} must have one row an example, got shapes {[leaf.shape for leaf in leaves]}")
    if leaves[0].shape[0] == 0:
        raise ValueError(f"{name} is empty: shape {leaves[0].shape}")
    _check_finite(name, x)
    return x


def _check_finite(name: str, tree: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not is_traced(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating):
            # A concrete array closed over by a traced function can be looked at, but only eagerly.
            with jax.ensure_compile_time_eval():
                finite = bool(jnp.all(jnp.isfinite(leaf)))
            if not finite:
                raise ValueError(f"{name}{jax.tree_util.keystr(path)} holds NaN or infinite values")


def _check_output(f: Callable[..., Any], params: Any, x: Any) -> None:
    output = jax.eval_shape(f, params, x)
    if not hasattr(output, "shape"):
        raise TypeError(f"f must return one array, got {type(output).__name__}: select the output inside f")
    if not jnp.issubdtype(output.dtype, jnp.floating):
        raise TypeError(f"f must return a real floating-point array, got {output.dtype}")
    if output.ndim == 0 or output.shape[0] != num_rows(x):
        raise ValueError(
            f"f must map a batch to one row an example: x1 has {num_rows(x)} rows, f(params, x1) has shape"
            f" {output.shape}. For a function of one example pass jax.vmap(f, in_axes=(None, 0))"
        )


def check_rows_are_independent(f: Callable[..., Any], params: Any, x: Any) -> bool:
    """Compare the first row's output alone, and before and behind the second row: batch statistics show.

    Returns
    -------
    Whether the values could be looked at; not so under a JAX transformation, also of what f closes over.

    Raises
    ------
    ValueError
        If they differ by more than rounding.
    """
    if is_traced(params, x):
        return False
    outputs = _first_output(hashable(f), params, jax.tree.map(lambda a: a[:2], x))
    if is_traced(outputs):
        return False
    scale = max(float(jnp.max(jnp.abs(outputs))), float(jnp.finfo(outputs.dtype).tiny))
    difference = float(jnp.max(jnp.abs(outputs - outputs[0])))
    if difference > 100 * float(jnp.finfo(outputs.dtype).eps) ** 0.75 * scale:
        raise ValueError(
            f"f's output for an example changes with the rest of the batch (by {difference:.2g}): batch"
            " statistics or randomness? The NTK is of a function of one example: use the evaluation mode of batch"
            " normalisation and dropout"
        )
    return True


@partial(jax.jit, static_argnums=0)
def _first_output(f: Callable[..., Any], params: Any, x: Any) -> Array:
    """Output of the first row alone, before the second row, and behind it."""
    alone, behind = (jax.tree.map(lambda a, rows=rows: a[rows], x) for rows in (slice(1), slice(None, None, -1)))
    return jnp.stack([f(params, alone)[0], f(params, x)[0], f(params, behind)[-1]])
