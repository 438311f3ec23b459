"""Products of the empirical NTK with vectors, without the matrix.

See docs/mathematics.md, M14.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from fixntk._checks import as_real_array
from fixntk._numerics import full_precision
from fixntk._tiling import num_rows
from fixntk.ntk.inputs import as_hashable, as_operands, check_batch_size, check_rows_are_independent
from fixntk.ntk.kernel_functions import take_rows
from fixntk.ntk.linearize import value_and_change
from fixntk.ntk.selection import Select, selected_leaves


@full_precision()
def ntk_vector_product(
    f: Callable[[Any, Any], Array],
    params: Any,
    vector: ArrayLike,
    x1: Any,
    x2: Any = None,
    *,
    select: Select | None = None,
    batch_size: int | None = None,
) -> Array:
    """Product of the empirical NTK with a vector, without the matrix: a backward pass at x2, a forward pass at x1.

    In full precision, as :func:`empirical_ntk`.

    Parameters
    ----------
    f, params, x1, x2, select
        As in :func:`empirical_ntk`.
    vector
        (n2, …), of the shape of ``f(params, x2)``.
    batch_size
        Examples that go through the network at once; all of them when None.

    Returns
    -------
    Σ_jq Θ[i, j, o, q] vector[j, q], of the shape of ``f(params, x1)``.

    Raises
    ------
    TypeError, ValueError
        As in :func:`empirical_ntk`; also if ``vector`` does not have the shape of ``f(params, x2)``.

    See docs/mathematics.md, M14.
    """
    params, x1, x2 = as_operands(f, params, x1, x2)
    is_concrete = check_rows_are_independent(f, params, x1, x2)
    check_batch_size(batch_size)
    x2 = x1 if x2 is None else x2
    vector = as_real_array("vector", vector)
    expected = jax.eval_shape(f, params, x2)
    if vector.shape != expected.shape:
        raise ValueError(f"vector must have the shape of f(params, x2), {expected.shape}, got {vector.shape}")
    return product(f, selected_leaves(params, select), batch_size, is_concrete)(
        params, vector.astype(expected.dtype), x1, x2
    )


def product(
    f: Callable[..., Any], selected: tuple[bool, ...], batch_size: int | None, is_concrete: bool
) -> Callable[[Any, Array, Any, Any], Array]:
    """The product as a function of (params, vector, x1, x2), whose arguments are not checked.

    ``selected`` says of each leaf whether it counts; concrete arrays go through compiled functions.
    """
    f = as_hashable(f)
    # Traced arrays are differentiated inside the caller's program; concrete ones by two programs that JAX keeps for the
    # next call.
    pull_back, push_forward = _pull_back, _push_forward
    if is_concrete:
        pull_back, push_forward = _compiled_pull_back, _compiled_push_forward

    def apply(params: Any, vector: Array, x1: Any, x2: Any) -> Array:
        step = batch_size or max(num_rows(x1), num_rows(x2))
        # Θ v = J₁ (J₂ᵀ v). J₂ᵀ v is a sum over the rows of x2, so that batches of them are added up.
        batches2, batches1 = ([slice(begin, begin + step) for begin in range(0, num_rows(x), step)] for x in (x2, x1))
        directions = [pull_back(f, selected, params, take_rows(x2, rows), vector[rows]) for rows in batches2]
        direction = jax.tree.map(lambda *parts: sum(parts), *directions)
        # J₁ times this direction has a row for each row of x1, so that batches of them are concatenated.
        return jnp.concatenate([push_forward(f, selected, params, take_rows(x1, rows), direction) for rows in batches1])

    return apply


def restrict(
    f: Callable[..., Any], selected: tuple[bool, ...], params: Any
) -> tuple[Callable[[Sequence[Array], Any], Any], list[Array]]:
    """The network as a function of its selected leaves and inputs, and these leaves."""
    leaves, treedef = jax.tree.flatten(params)

    def apply(chosen: Sequence[Array], x: Any) -> Any:
        # Leaves that are not selected are constants of the closure, so that nothing is computed for their derivatives.
        rest = iter(chosen)
        merged = [next(rest) if is_chosen else leaf for leaf, is_chosen in zip(leaves, selected, strict=True)]
        return f(jax.tree.unflatten(treedef, merged), x)

    return apply, [leaf for leaf, is_chosen in zip(leaves, selected, strict=True) if is_chosen]


def _pull_back(f: Callable[..., Any], selected: tuple[bool, ...], params: Any, x: Any, cotangent: Array) -> list[Array]:
    apply, chosen = restrict(f, selected, params)
    return jax.vjp(lambda c: apply(c, x), chosen)[1](cotangent)[0]


def _push_forward(
    f: Callable[..., Any], selected: tuple[bool, ...], params: Any, x: Any, direction: list[Array]
) -> Array:
    apply, chosen = restrict(f, selected, params)
    # Not jax.jvp, which fails where f has rules for the backward pass only.
    return value_and_change(lambda c: apply(c, x), chosen, direction)[1]


_compiled_pull_back = jax.jit(_pull_back, static_argnums=(0, 1))
_compiled_push_forward = jax.jit(_push_forward, static_argnums=(0, 1))
