"""First-order Taylor expansion of a network in its parameters.

See docs/mathematics.md, M15.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fixntk.ntk.structure import uses_primitive


def linearize(f: Callable[..., Any], params0: Any) -> Callable[..., Any]:
    """First-order Taylor expansion of f around params0: f(ϑ₀, ·) + ∂f(ϑ₀, ·)/∂ϑ (ϑ − ϑ₀).

    Gradient descent on it has the empirical NTK at params0 as its fixed kernel, so :func:`gradient_flow` predicts it.
    Its matrix products have the same precision as the products of f at the place of the call, so that both agree at
    params0. On a GPU this is TF32 unless ``jax.default_matmul_precision("highest")`` is set.

    Parameters
    ----------
    f
        ``f(params, *args, **kwargs)``, differentiable in params. Its outputs are any pytree, in which integers keep
        their values at params0, or a single array if f uses ``jax.custom_vjp``.
    params0
        Pytree of real floating-point arrays.

    Returns
    -------
    ``f_lin(params, *args, **kwargs)`` for a pytree like params0, with the structure of the outputs of f. It raises
    ValueError if the structure or a shape of params differs from params0.

    Raises
    ------
    TypeError
        If f is not a function or a leaf of params0, named by its place, is no floating-point array.

    Notes
    -----
    See docs/mathematics.md, M15.
    """
    if not callable(f):
        raise TypeError(f"f must be a function f(params, ...), got {type(f).__name__}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(params0):
        if not jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.floating):
            kind = getattr(leaf, "dtype", type(leaf).__name__)
            raise TypeError(f"params0{jax.tree_util.keystr(path)} must be a real floating-point array, got {kind}")
    params0 = jax.tree.map(jnp.asarray, params0)

    def f_lin(params: Any, *args: Any, **kwargs: Any) -> Any:
        structures: list[Any] = [jax.tree.structure(tree) for tree in (params, params0)]
        if structures[0] != structures[1]:
            raise ValueError(f"params must be a pytree like params0, {structures[1]}, got {structures[0]}")
        for (path, leaf0), leaf in zip(
            jax.tree_util.tree_leaves_with_path(params0), jax.tree.leaves(params), strict=True
        ):
            if jnp.shape(leaf) != leaf0.shape:
                place = jax.tree_util.keystr(path)
                raise ValueError(f"params{place} must have params0's shape {leaf0.shape}, got {jnp.shape(leaf)}")
        step = jax.tree.map(lambda new, old: (new - old).astype(old.dtype), params, params0)
        value, change = value_and_change(lambda p: f(p, *args, **kwargs), params0, step)
        return jax.tree.map(lambda v, c: v if c.dtype == jax.dtypes.float0 else v + c, value, change)

    return f_lin


def value_and_change(f: Callable[[Any], Any], params: Any, direction: Any) -> tuple[Any, Any]:
    """f(params) and its directional derivative; if f has rules for the backward pass only, by transposing it.

    Raises
    ------
    TypeError
        If such a function returns more than one floating-point array.
    """
    if not uses_primitive(jax.make_jaxpr(f)(params).jaxpr, "custom_vjp"):
        return jax.jvp(f, (params,), (direction,))
    value, pullback = jax.vjp(f, params)
    if not hasattr(value, "dtype") or not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(
            "f must return one floating-point array where it uses jax.custom_vjp, which has no forward derivative"
        )
    return value, jax.linear_transpose(pullback, value)((direction,))[0]
