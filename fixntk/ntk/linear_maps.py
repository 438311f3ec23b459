"""Linear maps between a parameter and the products by which it enters a network: w/√n, a transpose, a slice, a mask.

Only maps are followed that keep the entries apart: each entry of the result is a multiple of at most one entry of the
parameter, and each entry of the parameter has at most one multiple in the result. Jacobians of the parameter then are
those of the result with entries moved and scaled. A sum with a constant counts as such a map, as its derivative is one.
A look-up that gives rows several times is the sum of maps that give each row once.

See docs/mathematics.md, M14.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from fixntk.ntk.structure import Path, aval, bind_equation, called_jaxpr, evaluate

# Equations whose result has the operand's entries in the same order, or reordered, but none twice.
_REARRANGEMENTS = ("reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim", "copy", "copy_p", "rev")
# Equations whose result has a part of the operand's entries, or entries of others beside them.
_PARTS = ("slice", "split", "dynamic_slice", "gather", "concatenate", "stack", "pad")
# Most times that a look-up of known rows may give a row.
_MAX_COPIES = 4
# Equations that act on each entry on its own.
_ENTRYWISE = ("convert_element_type", "neg", "add", "add_any", "sub", "mul", "div", "select_n")


class Step(NamedTuple):
    """An equation that is linear in one operand and keeps its entries apart.

    Attributes
    ----------
    path
        Place of the equation in the jaxpr.
    equation, operand, result
        The equation, and the numbers of the operand and of the result that are followed.
    varying
        Axes along which the entries' factors differ: none for a multiple, None for a map that only moves entries.
    indices
        The values of the operands behind the first, for a look-up and for a slice whose place is an operand.
    is_copy
        Whether this is one of several copies of a look-up's rows: negative indices then give no entries.
    """

    path: Path
    equation: JaxprEqn
    operand: int
    result: int
    varying: tuple[int, ...] | None
    indices: tuple[np.ndarray, ...] | None = None
    is_copy: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return aval(self.equation.outvars[self.result]).shape

    @property
    def adds_entries(self) -> bool:
        """Whether the result may have entries that are none of the operand's."""
        return self.equation.primitive.name in ("concatenate", "stack", "pad", "gather")


def steps_of(
    equation: JaxprEqn,
    operand: int,
    path: Path,
    constant_along: dict[Var, frozenset[int]],
    indices: tuple[np.ndarray, ...] | None = None,
) -> list[Step] | None:
    """Steps to the results of an equation, or None if it is no map that keeps the operand's entries apart.

    There is one for each result, but for look-ups that give rows several times, which have one for each copy.

    The other operands must not depend on the network's inputs. ``constant_along`` has the axes along which values are
    known to be constant, for those that have such axes. ``indices`` are the values of the operands behind the first, if
    they are known.
    """
    name, params = equation.primitive.name, equation.params
    inner, outer = aval(equation.invars[operand]), aval(equation.outvars[0])
    if not all(jnp.issubdtype(aval(v).dtype, jnp.floating) for v in (equation.invars[operand], *equation.outvars)):
        return None
    varying: tuple[int, ...] | None = None
    if name in _REARRANGEMENTS:
        # Operands beside the first would be sizes that are not known before the program runs.
        is_followed = len(equation.invars) == 1 and inner.size == outer.size and params.get("dimensions") is None
        is_followed |= name in ("squeeze", "expand_dims", "rev")
    elif name in _PARTS:
        is_followed = operand == 0 or name in ("concatenate", "stack")
        if name in ("dynamic_slice", "gather"):
            is_followed &= indices is not None
        if name == "gather" and is_followed:
            return _copies(Step(path, equation, operand, 0, None, indices))
        if name == "pad":
            is_followed &= all(
                low >= 0 and high >= 0 and between == 0 for low, high, between in params["padding_config"]
            )
    else:
        # If the operand were broadcast, an entry would be there several times.
        is_followed = name in _ENTRYWISE and inner.shape == outer.shape
        is_followed &= not (name == "div" and operand == 1) and not (name == "select_n" and operand == 0)
        varying = _axes_of_factors(equation, operand, constant_along)
    if not is_followed:
        return None
    return [Step(path, equation, operand, k, varying, indices) for k in range(len(equation.outvars))]


def _copies(step: Step) -> list[Step] | None:
    """A look-up as a sum of look-ups that give no entry twice, None if these would be many."""
    if _gives_no_entry_twice(step):
        return [step]
    params, (indices,) = step.equation.params, step.indices or (np.zeros((0, 1), int),)
    sizes = np.array(aval(step.equation.invars[0]).shape) - np.array(params["slice_sizes"])
    places = indices.reshape(-1, indices.shape[-1]).astype(int)
    if params["mode"] == lax.GatherScatterMode.CLIP:
        places = np.clip(places, 0, sizes[list(params["dimension_numbers"].start_index_map)])
    _, number, counts = np.unique(places, axis=0, return_inverse=True, return_counts=True)
    if counts.max() > _MAX_COPIES:
        return None
    # How often the same place has been given before: its rank among equal ones in a stable order.
    order = np.argsort(number.reshape(-1), kind="stable")
    earlier = np.empty(len(order), int)
    earlier[order] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    copies = []
    for copy in range(counts.max()):
        own = np.where((earlier == copy)[:, None], places, -1).reshape(indices.shape)
        copies.append(step._replace(indices=(own,), is_copy=True))
    return copies if all(map(_gives_no_entry_twice, copies)) else None


def _gives_no_entry_twice(step: Step) -> bool:
    operand = aval(step.equation.invars[0])
    numbers = _move(step, np.arange(operand.size).reshape(operand.shape), -1, np)
    return bool(np.bincount(numbers[numbers >= 0], minlength=1).max() <= 1)


def _axes_of_factors(
    equation: JaxprEqn, operand: int, constant_along: dict[Var, frozenset[int]]
) -> tuple[int, ...] | None:
    name = equation.primitive.name
    if name == "neg" or (name == "sub" and operand == 1):
        return ()
    if name not in ("mul", "div", "select_n"):
        return None
    factor = equation.invars[0 if name == "select_n" else 1 - operand]
    constant = frozenset() if isinstance(factor, Literal) else constant_along.get(factor, frozenset())
    return tuple(k for k, size in enumerate(aval(factor).shape) if size > 1 and k not in constant)


def constant_axes(equation: JaxprEqn) -> frozenset[int]:
    """Axes along which the result of an equation repeats its operand."""
    if equation.primitive.name != "broadcast_in_dim":
        return frozenset()
    sizes = aval(equation.invars[0]).shape
    varying = {k for k, size in zip(equation.params["broadcast_dimensions"], sizes, strict=True) if size > 1}
    return frozenset(range(aval(equation.outvars[0]).ndim)) - varying


def move_entries(steps: Iterable[Step], array: Any, fill: float, xp: Any) -> Any:
    """Move an array's entries as steps move those of their operand, with ``fill`` where these have other entries.

    ``xp`` is ``numpy`` or ``jax.numpy``.
    """
    for step in steps:
        array = _move(step, array, fill, xp)
    return array


def _move(step: Step, array: Any, fill: float, xp: Any) -> Any:
    name, params = step.equation.primitive.name, step.equation.params
    if name == "transpose":
        return array.transpose(params["permutation"])
    if name == "rev":
        return xp.flip(array, axis=tuple(params["dimensions"]))
    if name == "slice":
        strides = params["strides"] or (1,) * array.ndim
        starts, limits = params["start_indices"], params["limit_indices"]
        return array[tuple(map(slice, starts, limits, strides))]
    if name == "split":
        start = sum(params["sizes"][: step.result])
        return array[(slice(None),) * params["axis"] + (slice(start, start + params["sizes"][step.result]),)]
    if name == "dynamic_slice":
        # A slice that would reach over the end is moved back.
        sizes = params["slice_sizes"]
        last = [size - part for size, part in zip(array.shape, sizes, strict=True)]
        starts = [min(max(int(start), 0), k) for start, k in zip(step.indices or (), last, strict=True)]
        return array[tuple(slice(k, k + size) for k, size in zip(starts, sizes, strict=True))]
    if name == "gather":
        return _look_up(step, array, fill) if xp is jnp else np.asarray(_look_up_now(step, array, fill))
    if name in ("concatenate", "stack"):
        shapes = [aval(atom).shape for atom in step.equation.invars]
        parts = [array if k == step.operand else xp.full(shapes[k], fill, array.dtype) for k in range(len(shapes))]
        return xp.stack(parts, params["axis"]) if name == "stack" else xp.concatenate(parts, params["dimension"])
    if name == "pad":
        return xp.pad(array, [(low, high) for low, high, _ in params["padding_config"]], constant_values=fill)
    return array.reshape(step.shape)


def _look_up(step: Step, array: Any, fill: float) -> Array:
    params, (indices,) = step.equation.params, step.indices or (None,)
    return lax.gather(
        jnp.asarray(array),
        jnp.asarray(indices),
        params["dimension_numbers"],
        params["slice_sizes"],
        mode=lax.GatherScatterMode.FILL_OR_DROP if step.is_copy else params["mode"],
        fill_value=fill,
    )


def _look_up_now(step: Step, array: Any, fill: float) -> Array:
    # A network may be traced inside of another program.
    with jax.ensure_compile_time_eval():
        return _look_up(step, array, fill)


def factor_of(step: Step, operands: Sequence[Any]) -> Any:
    """The factors of a step's entries: a number, or an array that is broadcast against the step's result."""
    name = step.equation.primitive.name
    if name == "mul":
        return operands[1 - step.operand]
    if name == "div":
        return 1 / operands[1]
    if name == "select_n":
        return (operands[0].astype(int) == step.operand - 1).astype(aval(step.equation.outvars[0]).dtype)
    return jnp.array(-1, aval(step.equation.outvars[0]).dtype)


def values_at(closed: ClosedJaxpr, leaves: Sequence[Any], paths: Container[Path]) -> dict[Path, list[Any]]:
    """Operands of the equations at ``paths`` of a jaxpr, which begins with the leaves.

    Values that depend on other inputs are not known, and are None.
    """
    found: dict[Path, list[Any]] = {}
    others = [None] * (len(closed.jaxpr.invars) - len(leaves))

    def outputs_of(jaxpr: Jaxpr, equation: JaxprEqn, here: Path, operands: list[Any]) -> list[Any]:
        if here in paths:
            found[here] = operands
        inner = called_jaxpr(equation)
        if inner is not None:
            return evaluate(inner.jaxpr, inner.consts, operands, outputs_of, here)
        if any(operand is None for operand in operands):
            return [None] * len(equation.outvars)
        return bind_equation(jaxpr, equation, operands)

    evaluate(closed.jaxpr, closed.consts, [*leaves, *others], outputs_of)
    return found
