"""Taylor expansions of a network in its parameters.

See docs/mathematics.md, M15.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from fixntk._tiling import memory_for
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
        If f is not a function or a leaf of params0, named by its place, is not a floating-point array.

    See docs/mathematics.md, M15.
    """
    params0 = _as_start(f, params0)

    def f_lin(params: Any, *args: Any, **kwargs: Any) -> Any:
        step = _step_from(params0, params)
        value, change = value_and_change(lambda p: f(p, *args, **kwargs), params0, step)
        # JAX gives outputs that are integers a tangent of the dtype float0.
        return jax.tree.map(lambda v, c: v if c.dtype == jax.dtypes.float0 else v + c, value, change)

    return f_lin


def taylor_expand(f: Callable[..., Any], params0: Any, degree: int) -> Callable[..., Any]:
    r"""Taylor expansion of f around params0 to a degree in the parameters.

    .. math:: f_k(ϑ, ·) = \sum_{j=0}^{k} \frac{1}{j!} \frac{d^j}{dt^j} f(ϑ_0 + t (ϑ − ϑ_0), ·) \Big|_{t=0}

    Degree 0 is constant, degree 1 the linearisation. Each degree differentiates forwards once more, at about twice the
    cost of the one before.

    Parameters
    ----------
    f, params0
        As for :func:`linearize`. From degree 2 on f must have forward derivatives: no ``jax.custom_vjp``.
    degree
        k ≥ 0.

    Returns
    -------
    ``f_k(params, *args, **kwargs)`` for a pytree like params0, with the structure of the outputs of f.

    Raises
    ------
    TypeError
        As :func:`linearize`; also if f uses ``jax.custom_vjp`` and the degree is at least 2.
    ValueError
        If ``degree`` is not a non-negative integer.

    See docs/mathematics.md, M15.
    """
    if isinstance(degree, bool) or not hasattr(degree, "__index__") or operator.index(degree) < 0:
        raise ValueError(f"degree must be a non-negative integer, got {degree!r}")
    if degree == 1:
        return linearize(f, params0)
    params0 = _as_start(f, params0)

    def expansion(params: Any, *args: Any, **kwargs: Any) -> Any:
        needed = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(params0))
        with memory_for(f"the expansion of degree {degree}", needed, "pass fewer rows at a time", params, args) as done:
            return done(expand(_step_from(params0, params), args, kwargs))

    def expand(step: Any, args: Any, kwargs: Any) -> Any:
        # Degree by degree, d/dt of the term before along the straight line to params.
        term: Callable[[Any], Any] = lambda p: f(p, *args, **kwargs)  # noqa: E731
        total = term(params0)
        for order in range(1, degree + 1):
            term = partial(_derivative_along, term, step)
            total = jax.tree.map(partial(_add_term, math.factorial(order)), total, term(params0))
        return total

    return expansion


def _derivative_along(term: Callable[[Any], Any], step: Any, params: Any) -> Any:
    """The derivative of a term along the step; zero for integer outputs, which have none."""
    value, change = jax.jvp(term, (params,), (step,))
    return jax.tree.map(lambda v, c: jnp.zeros_like(v) if c.dtype == jax.dtypes.float0 else c, value, change)


def _add_term(divisor: int, total: Any, term: Any) -> Any:
    return total + term / divisor if jnp.issubdtype(total.dtype, jnp.inexact) else total


def _as_start(f: Callable[..., Any], params0: Any) -> Any:
    if not callable(f):
        raise TypeError(f"f must be a function f(params, ...), got {type(f).__name__}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(params0):
        if not jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.floating):
            kind = getattr(leaf, "dtype", type(leaf).__name__)
            raise TypeError(f"params0{jax.tree_util.keystr(path)} must be a real floating-point array, got {kind}")
    return jax.tree.map(jnp.asarray, params0)


def _step_from(params0: Any, params: Any) -> Any:
    """The difference params − params0 of two pytrees, checked to be alike."""
    structures: list[Any] = [jax.tree.structure(tree) for tree in (params, params0)]
    if structures[0] != structures[1]:
        raise ValueError(f"params must be a pytree like params0, {structures[1]}, got {structures[0]}")
    for (path, leaf0), leaf in zip(jax.tree_util.tree_leaves_with_path(params0), jax.tree.leaves(params), strict=True):
        if jnp.shape(leaf) != leaf0.shape:
            place = jax.tree_util.keystr(path)
            raise ValueError(f"params{place} must have params0's shape {leaf0.shape}, got {jnp.shape(leaf)}")
    # JAX takes tangents of the primal's dtype only.
    return jax.tree.map(lambda new, old: (new - old).astype(old.dtype), params, params0)


def value_and_change(f: Callable[[Any], Any], params: Any, direction: Any) -> tuple[Any, Any]:
    """f(params) and its directional derivative; if f has rules for the backward pass only, by transposing it.

    Raises
    ------
    TypeError
        If such a function returns more than one floating-point array.
    """
    if not uses_primitive(jax.make_jaxpr(f)(params).jaxpr, "custom_vjp"):
        return jax.jvp(f, (params,), (direction,))
    # The backward pass is linear in the cotangent, and its transpose is the Jacobian's product with a direction.
    value, pullback = jax.vjp(f, params)
    if not hasattr(value, "dtype") or not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(
            "f must return one floating-point array where it uses jax.custom_vjp, which has no forward derivative"
        )
    return value, jax.linear_transpose(pullback, value)((direction,))[0]
