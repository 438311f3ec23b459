"""Tangent kernels of several functions of one set of parameters, each with a batch of its own.

See docs/mathematics.md, M14.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from fixntk._checks import as_float_array, is_traced
from fixntk._numerics import at_least_float32, default_precision, full_precision
from fixntk._tiling import Grid, OutOfMemoryError, memory_for, num_rows
from fixntk.ntk.empirical import empirical_ntk
from fixntk.ntk.inputs import as_hashable, as_operands, check_batch_size, check_rows_are_independent
from fixntk.ntk.plan import Plan, Request, as_shapes, cached_plan, split_request
from fixntk.ntk.selection import selected_leaves
from fixntk.ntk.tiles import compiled_features

# Functions and batches, by name or in order.
Operators = Mapping[str, Callable[..., Any]] | Sequence[Callable[..., Any]]
Batches = Mapping[str, Any] | Sequence[Any]


@full_precision()
def operator_ntk(
    operators: Operators,
    params: Any,
    batches: Batches,
    *,
    select: str | Sequence[str] | Callable[[str, Any], Any] | None = None,
    batch_size: int | None = None,
) -> Any:
    r"""Empirical NTK of several functions of the same parameters, in blocks: of a physics-informed network's residuals.

    .. math:: K_{ab}[i, j] = ⟨∂f_a(x_i)/∂θ, ∂f_b(x'_j)/∂θ⟩

    Each operator has a batch of its own: the residual of a differential equation at points inside a domain, boundary
    values at points of the boundary, measurements. Under gradient flow on ½ Σ_a λ_a ‖r_a‖² the residuals follow
    dr_a/dt = −Σ_b λ_b K_ab r_b. Diagonal blocks are those of :func:`empirical_ntk`. A block between two operators is
    made from their Jacobians, a tile of examples of each at a time. In full precision, as there; works under ``jit``.

    Parameters
    ----------
    operators
        Functions ``f(params, x)`` of a **batch**, by name in a dictionary, or in a list. Each gives (n_a, …), a row for
        each example, which depends on that example alone; it may take derivatives in x.
    params
        Pytree of floating-point arrays.
    batches
        The inputs of each operator, (n_a, …) or pytrees of such, with the names or in the order of the operators.
    select
        The parameters that count, as in :func:`empirical_ntk`.
    batch_size
        Number of examples of each operator in a tile; by default what fits into 256 MiB.

    Returns
    -------
    ``kernels[a][b]``, a dictionary of dictionaries or a tuple of tuples: (n_a, n_b), or (n_a, n_b, …, …) with the
    output axes of a and then those of b. ``kernels[b][a]`` is the transpose of ``kernels[a][b]``.

    Raises
    ------
    TypeError
        As :func:`empirical_ntk`; also if operators and batches are not both dictionaries or both sequences.
    ValueError
        As :func:`empirical_ntk`, so if the rows of an operator depend on one another, naming the operator; also if the
        names or numbers of operators and batches differ.
    OutOfMemoryError
        If memory does not suffice; a ValueError too.

    References
    ----------
    Wang, Yu and Perdikaris, "When and why PINNs fail to train: A neural tangent kernel perspective", J. Comput. Phys.
    449, 2022.

    Examples
    --------
    The derivative and the value at zero of u(x) = a + bx + cx²:

    >>> import jax, jax.numpy as jnp, fixntk as fx
    >>> u = lambda p, x: p[0] + p[1] * x + p[2] * x**2
    >>> slope = lambda p, x: jax.vmap(jax.grad(u, argnums=1), in_axes=(None, 0))(p, x)
    >>> batches = {"slope": jnp.array([0.0, 1.0]), "value": jnp.zeros(1)}
    >>> kernels = fx.operator_ntk({"slope": slope, "value": u}, jnp.ones(3), batches)
    >>> kernels["slope"]["slope"]
    Array([[1., 1.],
           [1., 5.]], dtype=float32)
    >>> kernels["value"]["slope"]
    Array([[0., 0.]], dtype=float32)

    See docs/mathematics.md, M14.
    """
    names, functions, inputs, is_concrete = _check_operators(operators, params, batches)
    check_batch_size(batch_size)
    params = as_operands(functions[0], params, inputs[0], None)[0]
    groups = tuple(0 if is_selected else -1 for is_selected in selected_leaves(params, select))
    requests = [Request(as_hashable(f), (), (), groups, "jacobian", batch_size, default_precision()) for f in functions]
    blocks: dict[tuple[int, int], Array] = {}
    for a, f in enumerate(functions):
        own = empirical_ntk(f, params, inputs[a], select=select, batch_size=batch_size)
        # The two copies of an output axis stand side by side there.
        blocks[a, a] = own.transpose(0, 1, *range(2, own.ndim, 2), *range(3, own.ndim, 2))
        for b in range(a):
            pair = (requests[a], requests[b]), params, (inputs[a], inputs[b])
            blocks[a, b] = _block_between(*pair, is_concrete)
            blocks[b, a] = _exchange(blocks[a, b], jax.eval_shape(f, params, inputs[a]).ndim - 1)
    rows = [[blocks[a, b] for b in range(len(names))] for a in range(len(names))]
    return _pack(operators, [_pack(operators, row) for row in rows])


@full_precision()
def operator_ntk_traces(
    operators: Operators,
    params: Any,
    batches: Batches,
    *,
    select: str | Sequence[str] | Callable[[str, Any], Any] | None = None,
    batch_size: int | None = None,
) -> Any:
    """Traces of the diagonal blocks of :func:`operator_ntk`, without any block: sums of squared gradients.

    Parameters
    ----------
    operators, params, batches, select, batch_size
        As for :func:`operator_ntk`, which also describes the errors.

    Returns
    -------
    The trace of K_aa for each operator, in a dictionary or a tuple.

    Examples
    --------
    >>> import jax.numpy as jnp, fixntk as fx
    >>> x = jnp.array([[3.0, 0.0], [0.0, 1.0]])
    >>> fx.operator_ntk_traces({"value": lambda w, x: x @ w}, jnp.zeros(2), {"value": x})
    {'value': Array(10., dtype=float32)}

    See docs/mathematics.md, M14.
    """
    _, functions, inputs, _ = _check_operators(operators, params, batches)
    traces = []
    for f, x in zip(functions, inputs, strict=True):
        axes = range(jax.eval_shape(f, params, x).ndim)
        diagonal = empirical_ntk(f, params, x, diagonal_axes=axes, select=select, batch_size=batch_size)
        traces.append(jnp.sum(diagonal))
    return _pack(operators, traces)


def balancing_weights(traces: Mapping[str, ArrayLike] | Sequence[ArrayLike]) -> Any:
    """Weights λ_a = Σ_b tr K_bb / tr K_aa of several losses, which give the weighted blocks λ_a K_aa equal traces.

    They are for losses ½ Σ_a λ_a ‖r_a‖² that are sums over rows. For losses that are means over the n_a rows of each
    batch pass the traces divided by n_a. Works under ``jit``.

    Parameters
    ----------
    traces
        The traces of :func:`operator_ntk_traces`, a dictionary or a sequence.

    Returns
    -------
    The weights, in a dictionary or a tuple. All of them may be divided by one number, as the learning rate is.

    Raises
    ------
    ValueError
        If there are no traces, or one is not positive and finite.

    References
    ----------
    Wang, Yu and Perdikaris, "When and why PINNs fail to train: A neural tangent kernel perspective", J. Comput. Phys.
    449, 2022, Algorithm 1.

    Examples
    --------
    >>> import fixntk as fx
    >>> fx.balancing_weights({"residual": 30.0, "boundary": 10.0})
    {'residual': Array(1.3333334, dtype=float32), 'boundary': Array(4., dtype=float32)}

    See docs/mathematics.md, M14.
    """
    names = _names_of("traces", traces)
    given: Any = traces
    values = [as_float_array(f"traces[{name!r}]", given[name], (0,)) for name in names]
    for name, value in zip(names, values, strict=True):
        if not is_traced(value) and not float(value) > 0:
            raise ValueError(f"traces[{name!r}] must be positive, got {float(value):g}: do no parameters enter?")
    total = sum(values[1:], start=values[0])
    return _pack(traces, [total / value for value in values])


def _names_of(what: str, items: Any) -> list[Any]:
    """Keys of a dictionary, or indices of a sequence."""
    if not isinstance(items, Mapping) and (isinstance(items, str) or not isinstance(items, Sequence)):
        raise TypeError(f"{what} must be a dictionary or a sequence, got {type(items).__name__}")
    if not len(items):
        raise ValueError(f"{what} is empty")
    return list(items) if isinstance(items, Mapping) else list(range(len(items)))


def _pack(like: Any, values: list[Any]) -> Any:
    """Values in a dictionary with the keys of another one, or in a tuple."""
    return dict(zip(like, values, strict=True)) if isinstance(like, Mapping) else tuple(values)


def _check_operators(
    operators: Operators, params: Any, batches: Batches
) -> tuple[list[Any], list[Callable[..., Any]], list[Any], bool]:
    """Names, functions and inputs of the operators, and whether all values are known."""
    names = _names_of("operators", operators)
    if isinstance(operators, Mapping) != isinstance(batches, Mapping):
        raise TypeError(
            f"operators and batches must both be dictionaries or both be sequences, got {type(operators).__name__} and"
            f" {type(batches).__name__}"
        )
    others = _names_of("batches", batches)
    if set(names) != set(others):
        raise ValueError(f"operators and batches must have the same names, got {names} and {others}")
    by_name: tuple[Any, Any] = operators, batches
    functions, inputs, is_concrete = [], [], True
    for name in names:
        f, x = (items[name] for items in by_name)
        with _name_operator_in_errors(name):
            params, x, _ = as_operands(f, params, x, None, name="x")
            is_concrete &= check_rows_are_independent(f, params, x)
        functions.append(f)
        inputs.append(x)
    return names, functions, inputs, is_concrete


@contextmanager
def _name_operator_in_errors(name: Any) -> Iterator[None]:
    """Name the operator in errors of its checks."""
    try:
        yield
    except OutOfMemoryError:
        raise
    except (TypeError, ValueError) as error:
        # Errors of JAX have types of their own, which take other arguments than a text.
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"operators[{name!r}]: {error}") from error


def _exchange(block: Array, num_axes: int) -> Array:
    """The block of operators b and a from that of a and b; ``num_axes`` is the number of output axes of a."""
    first = range(2, 2 + num_axes)
    return block.transpose(1, 0, *range(2 + num_axes, block.ndim), *first)


def _block_between(requests: tuple[Request, Request], params: Any, inputs: tuple[Any, Any], is_concrete: bool) -> Array:
    """The kernel of two operators, (n1, n2, *outputs1, *outputs2)."""
    total: Any = 0
    # Jacobians too large for memory are computed for some leaves at a time, whose shares add up. Those of the operator
    # with more outputs are the larger ones.
    outputs = [jax.eval_shape(r.f, params, x).size / num_rows(x) for r, x in zip(requests, inputs, strict=True)]
    larger = int(outputs[1] > outputs[0])
    for part, _ in split_request(requests[larger], params, inputs[larger], None):
        pair = tuple(request._replace(groups=part.groups) for request in requests)
        total = total + _block_of_leaves(pair, params, inputs, is_concrete)
    return total


def _block_of_leaves(requests: tuple[Request, ...], params: Any, inputs: tuple[Any, Any], is_concrete: bool) -> Array:
    """The share of the leaves of group 0 in the kernel of two operators."""
    shapes = [as_shapes((params, x, None)) for x in inputs]
    plans = [cached_plan(*each) for each in zip(requests, shapes, strict=True)]
    leaves = jax.tree.leaves(params)
    grid = Grid(*inputs, min(plan.tile for plan in plans))
    shape = (*plans[0].network.axes.sizes, *plans[1].network.axes.sizes)
    dtype = at_least_float32(jnp.result_type(*(plan.network.kernel_dtype for plan in plans)))
    # Leaves that enter both operators, each by its place among those that enter the one.
    places = [{share.leaf: k for k, share in enumerate(plan.method.shares)} for plan in plans]
    common = tuple((places[0][leaf], places[1][leaf]) for leaf in places[0] if leaf in places[1])
    if not is_concrete:
        features = [partial(plan.features, leaves) for plan in plans]
        padded = (jnp.zeros((*grid.padded_shape, *shape), dtype),)
        return grid.fill(padded, features[0], partial(_tile, common, shape, dtype), features[1])[0]
    needed = grid.bytes_needed(shape, (dtype,)) + _bytes_of_features(grid, plans)
    what = f"the kernel of two operators on {num_rows(inputs[0])} and {num_rows(inputs[1])} examples"
    with memory_for(what, needed, "pass fewer examples, or lower batch_size", params, inputs) as done:
        found = grid.fill_from_host(
            shape,
            (dtype,),
            lambda side, k: compiled_features(
                requests[side], shapes[side], leaves, grid.column(k) if side else grid.row(k)
            ),
            partial(_compiled_tile, common, shape, dtype),
            True,
        )
        return done(found[0])


def _bytes_of_features(grid: Grid, plans: list[Plan]) -> int:
    """The features of a tile of each operator, and of the next one of the second."""
    return grid.height * plans[0].method.example_bytes + 2 * grid.width * plans[1].method.example_bytes


def _tile(
    common: tuple[tuple[int, int], ...], shape: tuple[int, ...], dtype: Any, features1: Any, features2: Any
) -> tuple[tuple[Array], tuple[()]]:
    """The kernel of two tiles from the Jacobians (b, *outputs, size) of the leaves that enter both operators."""
    # The method of Jacobians has no factors, the first of its features.
    jacobians = features1[1], features2[1]
    flat = [[jac.reshape(jac.shape[0], -1, jac.shape[-1]) for jac in side] for side in jacobians]
    counts = [side[0].shape[0] for side in flat]
    total = jnp.zeros((*counts, *(side[0].shape[1] for side in flat)), dtype)
    for k, j in common:
        total += jnp.einsum(
            "iop,jqp->ijoq", flat[0][k], flat[1][j], precision=jax.lax.Precision.HIGHEST, preferred_element_type=dtype
        )
    return (total.reshape(*counts, *shape),), ()


_compiled_tile = partial(jax.jit, static_argnums=(0, 1, 2))(_tile)
