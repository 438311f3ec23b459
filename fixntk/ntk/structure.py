"""Where parameters enter a network: its jaxpr read for products whose Jacobian is an outer product.

A parameter that enters a network through a matrix product, a convolution or a table look-up has there the Jacobian
Σ_t a_t ⊗ δ_t over positions t: activations a and back-propagated signals δ. :func:`site_of` recognises such equations,
:func:`signals` evaluates a network with a zero added to their results, whose gradients are the signals.
:mod:`fixntk.ntk.sites` finds the sites of all parameters.

See docs/mathematics.md, M14.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun

# Modes of a look-up: the first moves indices out of bounds to the nearest row; the others give those no derivative.
_LOOKUP_MODES = (
    lax.GatherScatterMode.CLIP,
    lax.GatherScatterMode.FILL_OR_DROP,
    lax.GatherScatterMode.PROMISE_IN_BOUNDS,
)

# A place in a jaxpr: the indices of the calls around an equation, then the index of the equation.
Path = tuple[int, ...]


class Site(NamedTuple):
    """A place where a parameter enters a network, its equation y = product(a, operand) in canonical axes.

    The operand is the parameter, or follows from it by linear maps (:mod:`fixntk.ntk.linear_maps`). With G groups
    (batch axes of the product), T positions, I inputs and J outputs of the operand, it reads
    y[g, t, j] = Σ_i a[g, t, i] operand[g, i, j]; for a look-up, a[t] is a row's number and I the number of rows.
    """

    path: Path
    leaf: int
    equation: JaxprEqn
    operand: int
    groups: int
    positions: int
    inputs: int
    outputs: int

    @property
    def product(self) -> Any:
        """Shape and dtype of the equation's result."""
        return aval(self.equation.outvars[0])

    @property
    def is_lookup(self) -> bool:
        """Whether the operand is a table, in which the activations are row numbers."""
        return self.equation.primitive.name == "gather"


def aval(atom: Any) -> Any:
    """Shape and dtype of a value in a jaxpr."""
    return atom.aval


def called_jaxpr(equation: JaxprEqn) -> ClosedJaxpr | None:
    """Return the body of a jitted or checkpointed call, None for everything else."""
    if equation.primitive.name in ("jit", "pjit"):
        return equation.params["jaxpr"]
    if equation.primitive.name in ("checkpoint", "remat2"):
        return ClosedJaxpr(equation.params["jaxpr"], ())
    return None


def site_of(equation: JaxprEqn, operand: int, leaf: int, path: Path) -> Site | None:
    """The site of a leaf that arrives at an operand of an equation, None if that is no product."""
    name, params = equation.primitive.name, equation.params
    if any(jnp.issubdtype(aval(atom).dtype, jnp.complexfloating) for atom in (*equation.invars, *equation.outvars)):
        return None  # A real parameter's derivative is then the real part of a product of two complex numbers.
    shape = aval(equation.invars[operand]).shape
    out_shape = aval(equation.outvars[0]).shape
    if name == "dot_general":
        # The parameter's axes are batch axes (groups), contracted ones (inputs) and the rest (outputs).
        contracted, batch = params["dimension_numbers"]
        groups = math.prod(shape[k] for k in batch[operand])
        inputs = math.prod(shape[k] for k in contracted[operand])
        if 0 in shape:
            return None
        outputs = math.prod(shape) // (groups * inputs)
        return Site(path, leaf, equation, operand, groups, math.prod(out_shape) // (groups * outputs), inputs, outputs)
    # A filter, not an image: each output position is a product with the patch of inputs that it sees.
    if name == "conv_general_dilated" and operand == 1 and params["batch_group_count"] == 1 and 0 not in shape:
        groups = params["feature_group_count"]
        outputs = shape[params["dimension_numbers"].rhs_spec[0]] // groups
        inputs = math.prod(shape) // (groups * outputs)
        return Site(path, leaf, equation, 1, groups, math.prod(out_shape) // (groups * outputs), inputs, outputs)
    if name == "gather" and operand == 0 and _looks_rows_up(equation):
        outputs = math.prod(shape[1:])
        return Site(path, leaf, equation, 0, 1, math.prod(out_shape) // max(outputs, 1), shape[0], outputs)
    return None


def _looks_rows_up(equation: JaxprEqn) -> bool:
    # Row numbers index the first axis alone, and each slice is one whole row.
    numbers, shape = equation.params["dimension_numbers"], aval(equation.invars[0]).shape
    return (
        tuple(numbers.collapsed_slice_dims) == (0,)
        and tuple(numbers.start_index_map) == (0,)
        and not numbers.operand_batching_dims
        and tuple(equation.params["slice_sizes"]) == (1, *shape[1:])
        and equation.params["mode"] in _LOOKUP_MODES
    )


def signals(
    closed: ClosedJaxpr, arguments: Sequence[Array], sites: Sequence[Site], zeros: Sequence[Array]
) -> tuple[list[Array], list[Array]]:
    """Evaluate a jaxpr with ``zeros[k]`` added to the product of ``sites[k]``.

    Returns the outputs, and each site's activations in canonical axes: (G, T, I), (T,) for a look-up.
    """
    activations: dict[Site, Array] = {}
    paths = {site.path for site in sites}

    def outputs_of(jaxpr: Jaxpr, equation: JaxprEqn, here: Path, operands: list[Any]) -> list[Any]:
        inner = called_jaxpr(equation)
        # Only calls with a site inside are opened up; others stay one equation, with the derivative rules they have.
        if inner is not None and any(path[: len(here)] == here for path in paths):
            return evaluate(inner.jaxpr, inner.consts, operands, outputs_of, here)
        outputs = bind_equation(jaxpr, equation, operands)
        # Two parameters that are multiplied with each other have their sites at one equation.
        for site, zero in zip(sites, zeros, strict=True):
            if site.path == here:
                activations[site] = _canonical_activations(site, operands)
                outputs = [outputs[0] + zero]
        return outputs

    outputs = evaluate(closed.jaxpr, closed.consts, arguments, outputs_of)
    return outputs, [activations[site] for site in sites]


def evaluate(
    jaxpr: Jaxpr,
    consts: Sequence[Any],
    arguments: Sequence[Any],
    outputs_of: Callable[[Jaxpr, JaxprEqn, Path, list[Any]], Sequence[Any]],
    path: Path = (),
) -> list[Any]:
    """Outputs of a jaxpr, whose equations ``outputs_of(jaxpr, equation, path, operands)`` evaluates in their order.

    ``path`` is the jaxpr's own, for one that is called.
    """
    values: dict[Var, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for index, equation in enumerate(jaxpr.eqns):
        outputs = outputs_of(jaxpr, equation, (*path, index), [read(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def bind_equation(jaxpr: Jaxpr, equation: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """Evaluate one equation, as a jaxpr of its own: how a primitive is bound is not public and changes with JAX."""
    named = {
        atom: value for atom, value in zip(equation.invars, operands, strict=True) if not isinstance(atom, Literal)
    }
    alone = jaxpr.replace(constvars=[], invars=list(named), outvars=list(equation.outvars), eqns=[equation])
    return jaxpr_as_fun(ClosedJaxpr(alone, ()))(*named.values())


def _canonical_activations(site: Site, operands: Sequence[Array]) -> Array:
    other, params = operands[1 - site.operand], site.equation.params
    if not site.is_lookup and other.dtype != operands[site.operand].dtype:
        # A product of integers with parameters has the parameters' precision, and so have products of its Jacobians.
        other = other.astype(site.product.dtype)
    if site.equation.primitive.name == "dot_general":
        contracted, batch = params["dimension_numbers"]
        # The axes of the other operand correspond to the parameter's axes: batch axes are groups, contracted axes are
        # inputs, and free axes are positions.
        summed, grouped = contracted[1 - site.operand], batch[1 - site.operand]
        free = [k for k in range(other.ndim) if k not in (*summed, *grouped)]
        ordered = jnp.transpose(other, (*grouped, *free, *summed))
        return ordered.reshape(site.groups, site.positions, site.inputs)
    if site.is_lookup:
        rows = other.reshape(site.positions)
        if params["mode"] == lax.GatherScatterMode.CLIP:
            # This mode reads, and so has a derivative in, the nearest row.
            return jnp.clip(rows, 0, site.inputs - 1)
        return rows
    return _patches(other, operands[1].shape, params, site)


def canonical_operand(site: Site, operand: Any) -> Any:
    """Return an array with the axes of a site's operand, of NumPy or JAX, as (G, I, J)."""
    params = site.equation.params
    if site.equation.primitive.name == "dot_general":
        contracted, batch = params["dimension_numbers"]
        first = (*batch[site.operand], *contracted[site.operand])
        operand = operand.transpose((*first, *(k for k in range(operand.ndim) if k not in first)))
    elif not site.is_lookup:
        # Inputs run over offsets in the filter's window, then over the channels of a group.
        outputs, channels, *space = params["dimension_numbers"].rhs_spec
        ordered = operand.transpose((*space, channels, outputs)).reshape(site.inputs, site.groups, site.outputs)
        return ordered.swapaxes(0, 1)
    return operand.reshape(site.groups, site.inputs, site.outputs)


def canonical_signals(site: Site, signal: Array) -> Array:
    """Return (O, …) signals, with the axes of the equation's result, as (O, G, T, J)."""
    out, params = signal.shape[0], site.equation.params
    if site.equation.primitive.name == "dot_general":
        # The result's axes are the batch axes, then the free ones of the left operand, then those of the right one.
        if site.operand == 1:
            return signal.reshape(out, site.groups, site.positions, site.outputs)
        return signal.reshape(out, site.groups, site.outputs, site.positions).swapaxes(2, 3)
    if site.is_lookup:
        # Offset axes run within a row, all others over positions; the axes of signals start with the outputs.
        offsets = [k + 1 for k in params["dimension_numbers"].offset_dims]
        rows = [k for k in range(1, signal.ndim) if k not in offsets]
        return jnp.transpose(signal, (0, *rows, *offsets)).reshape(out, 1, site.positions, site.outputs)
    # Channels are ordered by group, so that they split into groups and outputs of a group.
    examples, channels, *space = params["dimension_numbers"].out_spec
    ordered = jnp.transpose(signal, (0, channels + 1, examples + 1, *(k + 1 for k in space)))
    return ordered.reshape(out, site.groups, site.outputs, site.positions).swapaxes(2, 3)


def _patches(images: Array, filter_shape: tuple[int, ...], params: dict[str, Any], site: Site) -> Array:
    """Inputs that each output position of a convolution sees, (G, T, I), I running over offsets, then channels.

    Shifted slices instead of a convolution with an identity filter, which is several times slower on a CPU.
    """
    numbers = params["dimension_numbers"]
    examples, channels, *space = numbers.lhs_spec
    images = jnp.transpose(images, (examples, *space, channels))
    # Dilating the images puts step − 1 zeros between entries, which is the interior padding of lax.pad.
    padding = [
        (low, high, step - 1) for (low, high), step in zip(params["padding"], params["lhs_dilation"], strict=True)
    ]
    padded = lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), *padding, (0, 0, 0)])
    sizes = [site.product.shape[k] for k in numbers.out_spec[2:]]
    window = [filter_shape[k] for k in numbers.rhs_spec[2:]]
    strides = params["window_strides"]
    slices = []
    # One strided slice for each offset inside the filter's window.
    for offset in np.ndindex(*window):
        first = [o * dilation for o, dilation in zip(offset, params["rhs_dilation"], strict=True)]
        last = [f + (size - 1) * stride + 1 for f, size, stride in zip(first, sizes, strides, strict=True)]
        part = lax.slice(padded, (0, *first, 0), (padded.shape[0], *last, padded.shape[-1]), (1, *strides, 1))
        slices.append(part.reshape(site.positions, site.groups, -1))
    return jnp.moveaxis(jnp.concatenate(slices, axis=-1), 1, 0)


def count_flops(jaxpr: Jaxpr) -> float:
    """Floating-point operations of one evaluation: exact for products, one an entry elsewhere, loops included."""
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        size = float(sum(math.prod(aval(v).shape) for v in equation.outvars))
        if name == "dot_general":
            # Each entry is a sum over the contracted axes, with a product and an addition for each term.
            (contracted, _), _ = params["dimension_numbers"]
            total += 2 * size * math.prod(aval(equation.invars[0]).shape[k] for k in contracted)
        elif name == "conv_general_dilated":
            # Each entry is a sum over the part of the filter that belongs to one output channel.
            shape = aval(equation.invars[1]).shape
            total += 2 * size * math.prod(shape) / shape[params["dimension_numbers"].rhs_spec[0]]
        else:
            inner = [count_flops(sub) for sub in inner_jaxprs(equation)]
            # One branch of a conditional runs; how often a while loop does is unknown.
            times = params.get("length", 1) if name == "scan" else 1
            total += times * (max(inner) if name == "cond" else sum(inner)) if inner else size
    return total


def uses_primitive(jaxpr: Jaxpr, prefix: str) -> bool:
    """Whether a primitive whose name starts with ``prefix`` is bound anywhere in it."""
    return any(
        equation.primitive.name.startswith(prefix) or any(uses_primitive(sub, prefix) for sub in inner_jaxprs(equation))
        for equation in jaxpr.eqns
    )


def inner_jaxprs(equation: JaxprEqn) -> list[Jaxpr]:
    """Jaxprs among the equation's parameters."""
    found = jax.tree.leaves(
        list(equation.params.values()), is_leaf=lambda value: isinstance(value, Jaxpr | ClosedJaxpr)
    )
    return [
        value.jaxpr if isinstance(value, ClosedJaxpr) else value
        for value in found
        if isinstance(value, Jaxpr | ClosedJaxpr)
    ]


def count_entries(jaxpr: Jaxpr) -> tuple[int, int]:
    """Number of entries of all intermediate values, which a backward pass keeps, and of the largest value."""
    total, largest = 0, 1
    for equation in jaxpr.eqns:
        sizes = [math.prod(v.aval.shape) for v in equation.outvars if hasattr(v.aval, "shape")]
        for sub in inner_jaxprs(equation):
            inner_total, inner_largest = count_entries(sub)
            total += inner_total * equation.params.get("length", 1)
            largest = max(largest, inner_largest)
        total += sum(sizes)
        largest = max([largest, *sizes])
    return total, largest
