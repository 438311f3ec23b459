"""What users pass to empirical kernels: a function or a module, any batch axes, keyword arguments, several outputs.

See docs/mathematics.md, M14.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax

from fixntk.ntk.calls import JoinedOutputs, OneOutput, WithBatchFirst, WithKeywords, move_to_front
from fixntk.ntk.inputs import as_arguments, check_output
from fixntk.ntk.modules import check_is_bound, is_model, split_model


def canonical(
    f: Any,
    params: Any,
    inputs: Mapping[str, Any],
    batch_axes: tuple[int, int],
    kwargs: Mapping[str, Any] | None,
    caller: str,
) -> tuple[Callable[..., Any], Any, Any, Any]:
    """A function f(params, x) with examples along the first axes, its parameters, and the checked inputs x1 and x2.

    Parameters
    ----------
    f, params, batch_axes, kwargs
        The user's, as for :func:`fixntk.empirical_ntk`: a module that takes the place of f and params moves the inputs
        one place to the left.
    inputs
        The user's x1 and x2, or x alone, for which x2 is then None, by their names in the function that was called.
    caller
        Name of the function that the user called, for messages.

    Raises
    ------
    TypeError, ValueError
        As :func:`fixntk.empirical_ntk` says, but for the function's output, which is not checked.
    """
    f, params, inputs = without_model(f, params, inputs, caller)
    first = next(iter(inputs))
    if inputs[first] is None:
        raise TypeError(f"{first} is missing: {caller}(f, params, {first}), or {caller}(model, {first}) for a module")
    x1, x2 = (*inputs.values(), None)[:2]
    if kwargs:
        f = WithKeywords(f, tuple(sorted(kwargs.items())))
    try:
        in_axis, out_axis = map(operator.index, batch_axes)
    except (TypeError, ValueError):
        raise TypeError(f"batch_axes must be two integers, of the inputs and the outputs, got {batch_axes!r}") from None
    if (in_axis, out_axis) != (0, 0):
        try:
            x1, x2 = (None if x is None else move_to_front(x, in_axis) for x in (x1, x2))
        except ValueError as error:
            raise ValueError(f"batch_axes has axis {in_axis}, which an array of the inputs lacks: {error}") from None
        f = WithBatchFirst(f, in_axis, out_axis)
    return f, *as_arguments(f, params, x1, x2, name=first)


def without_model(f: Any, params: Any, inputs: Mapping[str, Any], caller: str) -> tuple[Any, Any, Mapping[str, Any]]:
    """The function and parameters of a module that takes the place of f and params, and the inputs by their names.

    The other arguments are then one place to the left. What is no module is returned as it is.
    """
    check_is_bound(f)
    if not is_model(f):
        return f, params, inputs
    names = list(inputs)
    if inputs[names[-1]] is not None:
        raise TypeError(f"a model takes the place of f and params: {caller}(model, {', '.join(names)})")
    moved = [params, *inputs.values()][:-1]
    return *split_model(f), dict(zip(names, moved, strict=True))


def split_outputs(f: Callable[..., Any], params: Any, x: Any) -> tuple[Any, list[Callable[..., Any]]]:
    """The structure of the pytree that f returns, and for each array of it a function that returns it alone.

    Each array is checked. Where f returns one array, the function is f itself.
    """
    kinds: Any = jax.tree.structure(jax.eval_shape(f, params, x))
    # An output without arrays goes the way of a single array, to the check that says what is wrong with it.
    are_several = kinds.num_leaves > 0 and not jax.tree_util.treedef_is_leaf(kinds)
    functions: list[Callable[..., Any]] = [f]
    if are_several:
        functions = [OneOutput(f, number) for number in range(kinds.num_leaves)]
    for function in functions:
        check_output(function, params, x)
    return kinds, functions


def for_each_output(compute: Callable[[Callable[..., Any]], Any], f: Callable[..., Any], params: Any, x: Any) -> Any:
    """``compute(f)``, or a pytree of results, one for each array of the pytree that f returns."""
    kinds, functions = split_outputs(f, params, x)
    return jax.tree.unflatten(kinds, list(map(compute, functions)))


def with_one_output(f: Callable[..., Any], params: Any, x: Any) -> Callable[..., Any]:
    """F if it returns one array; otherwise a function that returns the arrays of its pytree joined, (n, m).

    The arrays are checked.
    """
    _, functions = split_outputs(f, params, x)
    return f if functions[0] is f else JoinedOutputs(f)
