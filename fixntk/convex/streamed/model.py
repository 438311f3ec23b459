r"""A model of the objective from a sample of rows, and its minimum on working sets, without reading the other rows.

At base weights B, whose correlations :math:`C_p = X^⊤ D_p R` with the residual are known on all n rows, the squared
loss is exactly

.. math:: f(W) = f(B) - ⟨C, W - B⟩ + \tfrac12 \|Φ(W - B)\|^2, \qquad Φ(W) = \sum_p D_p X W_p .

The model has the rows of a sample S in the last term, each counted once for every row it stands for, and a damping
(μ/2)‖W − B‖². Its gradient at B is that of all rows, so that a fixed point of "minimise the model, take this as B" is
the optimum of all rows, whatever the sample is: the sample decides how many passes over the rows it takes.

See docs/mathematics.md, M9.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int

from fixntk._checks import to_device
from fixntk._compilation import jit_for_host
from fixntk._numerics import matmul
from fixntk.convex import duality
from fixntk.convex.groups import place_groups
from fixntk.convex.padding import next_power_of_two
from fixntk.convex.penalties import NORMS, Penalty, group_norms
from fixntk.convex.solvers.fista import FISTAPoint, accept, extrapolate, step_down
from fixntk.convex.solvers.working_sets import is_nonzero, nearness
from fixntk.convex.streamed.program import StreamedProgram
from fixntk.gates.masks import activation_masks
from fixntk.gram import TILE_BYTES, as_numbers, masked_adjoint, masked_apply, sum_over_tiles

# Largest array of the sample's rows, in bytes.
_SAMPLE_BYTES = 2**26
# Largest number of rows of a sample. With more, steps on a model would take more time than the passes that they save.
_MAX_SAMPLE_ROWS = 2**17
# Share of a sample that is taken by the longest rows.
_LONG_SHARE = 0.25
# Smallest number of groups of a working set.
_SMALLEST_SET = 64
# A working set has room for this multiple of the number of groups that must be in it.
_ROOM = 1.5
# Largest number of working sets on which a model is minimised.
_MAX_SETS = 12
# Largest number of steps on a working set.
_MAX_STEPS = 300
# A working set is left at this share of the gap that is predicted for all groups.
_SET_GAP_SHARE = 0.1
# Steps on a set go on to this share of the gap that is asked for on all groups.
_GOAL_SHARE = 0.5


class Sample(NamedTuple):
    """Rows that stand for all rows, in memory.

    Attributes
    ----------
    x
        (s, d) rows divided by the unit, each multiplied by √r where it stands for r rows.
    unit
        A power of two near the root mean square of the entries.
    is_whole
        Whether these are all of the rows.
    roots
        (s,) roots of the rows' weights, multiplied by √r; None where the program has no intercept.
    """

    x: Float[Array, "s d"]
    unit: float
    is_whole: bool
    roots: Float[Array, " s"] | None


def _sample_size(program: StreamedProgram) -> int:
    num_rows, num_features = program.x.shape
    row_bytes = num_features * program.group_shape[2] * program.dtype.itemsize
    return min(num_rows, _MAX_SAMPLE_ROWS, max(1, _SAMPLE_BYTES // row_bytes))


class SampleTaker:
    """Collects a sample from tiles that come in order: the longest rows, and a random one from each of equal blocks.

    A long row that is missing from the sample would be missing from the model's second derivatives.
    """

    def __init__(self, program: StreamedProgram) -> None:
        num_rows, num_features = program.x.shape
        size = _sample_size(program)
        # With an intercept the roots of the rows' weights are a last column.
        self._has_roots = program.intercept
        num_features += self._has_roots
        self._num_rows, self._num_long = num_rows, 0 if size == num_rows else int(_LONG_SHARE * size)
        count = size - self._num_long
        # The same rows in every call, so that a solve that goes on from a checkpoint makes the same steps.
        shifts = np.random.default_rng(0).random(count)
        self._rows = ((np.arange(count) + shifts) * (num_rows / count)).astype(np.int64)
        self._x = np.empty((count, num_features), program.dtype)
        self._long_rows, self._lengths = np.empty(0, np.int64), np.empty(0)
        self._long_x = np.empty((0, num_features), program.dtype)

    def look(self, begin: int, x: np.ndarray, roots: np.ndarray | None = None) -> None:
        """Take the rows of the sample that are in a tile."""
        x = x if roots is None else np.column_stack([x, roots])
        first, last = np.searchsorted(self._rows, (begin, begin + len(x)))
        self._x[first:last] = x[self._rows[first:last] - begin]
        if self._num_long:
            self._take_long(begin, x)

    def _take_long(self, begin: int, x: np.ndarray) -> None:
        lengths = np.concatenate([self._lengths, np.einsum("td,td->t", x, x, dtype=np.float64)])
        kept = np.arange(len(lengths))
        if len(kept) > self._num_long:
            kept = np.sort(np.argpartition(-lengths, self._num_long - 1)[: self._num_long])
        old, new = kept[kept < len(self._lengths)], kept[kept >= len(self._lengths)] - len(self._lengths)
        self._long_rows = np.concatenate([self._long_rows[old], begin + new])
        self._long_x = np.concatenate([self._long_x[old], x[new]])
        self._lengths = lengths[kept]

    def sample(self) -> Sample:
        """The sample, once all tiles have been seen."""
        others = self._x[~np.isin(self._rows, self._long_rows)]
        share = (self._num_rows - self._num_long) / max(len(others), 1)
        x = np.concatenate([self._long_x, np.sqrt(share, dtype=others.dtype) * others])
        x, roots = (x[:, :-1], to_device(x[:, -1])) if self._has_roots else (x, None)
        unit = _power_of_two(float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))))
        return Sample(to_device(x / x.dtype.type(unit)), unit, len(self._x) == self._num_rows, roots)


def _power_of_two(size: float) -> float:
    """The power of two nearest to a size, by which numbers are divided without rounding; 1 for zero."""
    return 2.0 ** round(math.log2(size)) if size > 0 else 1.0


class Point(NamedTuple):
    """Weights with their correlations and loss on all rows, in float64."""

    weights: Float[np.ndarray, "P d c"]
    correlations: Float[np.ndarray, "P d c"]
    loss: Float[np.ndarray, ""]


class _Quadratic(NamedTuple):
    """The model's terms that need no rows, on all groups or some, in the program's dtype.

    Attributes
    ----------
    base, correlations, loss
        B, C and f(B).
    damping, reg
        μ and λ.
    """

    base: Float[Array, "k d c"]
    correlations: Float[Array, "k d c"]
    loss: Float[Array, ""]
    damping: Float[Array, ""]
    reg: Float[Array, ""]

    def at(self, weights: Array, curved: Array) -> FISTAPoint:
        """Weights with their correlations, from Φ_Sᵀ Φ_S(W − B); their outputs are left empty."""
        moved = weights - self.base
        predicted = self.correlations - curved - self.damping * moved
        return FISTAPoint(weights, jnp.zeros((0, weights.shape[2]), weights.dtype), predicted)

    def gap(self, point: FISTAPoint) -> Float[Array, ""]:
        """The duality gap that would hold if the model were the loss."""
        # A quadratic whose gradients at both ends of a line are known is known along it.
        fall = 0.5 * jnp.sum((self.correlations + point.correlations) * (point.weights - self.base))

        def divergence(scale: Array) -> Array:
            return (1 - scale) ** 2 * (self.loss - fall)

        return duality.certify_groups(self.penalty, point.weights, point.correlations, divergence).gap

    @property
    def penalty(self) -> Penalty:
        """λ Σ_p ‖W_p‖."""
        return Penalty(NORMS["frobenius"], self.reg, None)


class _Model(NamedTuple):
    """The model on the groups of a working set."""

    x: Float[Array, "s d"]
    roots: Float[Array, " s"] | None
    masks: Array
    quadratic: _Quadratic

    def outputs(self, weights: Array) -> Float[Array, "s c"]:
        """Φ_S of the set's weights, at the best intercept: projected against the column of the roots."""
        outputs = masked_apply(self.masks, self.x, weights)
        if self.roots is None:
            return outputs
        squares = jnp.sum(self.roots**2)
        share = matmul(self.roots, outputs) / jnp.where(squares > 0, squares, 1.0)
        return outputs - self.roots[:, None] * share


class _Set(NamedTuple):
    """Weights that were found on a working set, and Φ_S(W − B) there."""

    weights: Float[Array, "k d c"]
    change: Float[Array, "s c"]


def bytes_of_model(program: StreamedProgram) -> int:
    """Estimate of the memory that a sample and a model take."""
    size, (num_gates, num_features, num_outputs) = _sample_size(program), program.group_shape
    itemsize = program.dtype.itemsize
    rows = size * (num_features + 2 * num_features * num_outputs) * itemsize
    # Masks as numbers, and inner products or a copy where that is converted in tiles.
    return rows + 2 * min(TILE_BYTES, size * num_gates * itemsize)


def minimise_model(
    program: StreamedProgram, sample: Sample, base: Point, damping: float, goal: float
) -> Float[np.ndarray, "P d c"]:
    """Weights, of the program's dtype, at which the model predicts a gap of at most ``goal``, or near that.

    Parameters
    ----------
    program
        The problem.
    sample
        Rows of the model.
    base
        B.
    damping
        μ, in units of the mean diagonal entry of the loss's second derivatives.
    goal
        Duality gap to reach, as it would be if the model were the loss.
    """
    gates = program.gates
    # In units of the data a model has numbers near one, whose squares stay within the range of single precision.
    unit = _power_of_two(math.sqrt(2 * max(float(base.loss), 0.0) / math.prod(program.y.shape)))
    unit_of_weights, unit_of_reg, unit_of_loss = unit / sample.unit, unit * sample.unit, unit**2
    mean_curvature = 0.5 * float(np.mean(np.square(sample.x))) * len(sample.x)
    point = (base.weights / unit_of_weights, base.correlations / unit_of_reg, base.loss / unit_of_loss)
    values = (*point, damping * mean_curvature, program.reg / unit_of_reg)
    goal /= unit_of_loss
    whole = _Quadratic(*(to_device(np.asarray(value, program.dtype)) for value in values))
    found, change = whole.base, to_device(np.zeros((len(sample.x), program.group_shape[2]), program.dtype))
    size = 0
    for _ in range(_MAX_SETS):
        near, gap, num_needed = _predict(sample.x, gates, whole, found, change, tile=program.tile_rows)
        if size and float(gap) <= goal:
            break
        size = max(size, _set_size(int(num_needed), len(gates)))
        # A stable sort, so that ties go to the groups of lower index with every version of NumPy.
        chosen = to_device(np.argsort(-np.asarray(near), kind="stable")[:size].astype(np.int32))
        set_goal = np.asarray(max(_SET_GAP_SHARE * float(gap), _GOAL_SHARE * goal), program.dtype)
        model, start = _restrict(sample.x, sample.roots, gates, whole, found, chosen)
        weights, change = _descend(model, start, set_goal)
        found = place_groups(found, chosen, weights)
    return np.asarray(found) * program.dtype.type(unit_of_weights)


def _set_size(num_needed: int, num_gates: int) -> int:
    """Number of groups of a working set, a power of two or all of them, so that few sizes are compiled."""
    wanted = max(_SMALLEST_SET, int(_ROOM * num_needed))
    return min(num_gates, next_power_of_two(wanted))


@partial(jit_for_host, static_argnames=("tile",), optimised=True)
def _predict(
    x: Array, gates: Array, whole: _Quadratic, weights: Array, change: Array, *, tile: int
) -> tuple[Float[Array, " P"], Float[Array, ""], Int[Array, ""]]:
    """How near each group is to being active, the gap that the model predicts, and how many must be in a set."""
    size = min(tile, len(x))

    def term(begin: Array, is_new: Array) -> Array:
        rows, changes = (lax.dynamic_slice_in_dim(array, begin, size) for array in (x, change))
        return masked_adjoint(activation_masks(rows, gates), rows, is_new[:, None] * changes, gates.shape[0])

    point = whole.at(weights, sum_over_tiles(term, len(x), size))
    near = nearness(weights, group_norms(point.correlations), whole.reg)
    # Groups of the base stay in every set, as those that have become zero have moved too.
    near = jnp.where(is_nonzero(whole.base), jnp.inf, near)
    return near, whole.gap(point), jnp.sum(jnp.isinf(near))


@jit_for_host
def _restrict(
    x: Array, roots: Array | None, gates: Array, whole: _Quadratic, weights: Array, chosen: Array
) -> tuple[_Model, Array]:
    masks = activation_masks(x, gates[chosen])
    if masks.size * x.dtype.itemsize <= TILE_BYTES:
        masks = as_numbers(masks, masks.shape[1], x.dtype)
    part = whole._replace(base=whole.base[chosen], correlations=whole.correlations[chosen])
    return _Model(x, roots, masks, part), weights[chosen]


class _Descent(NamedTuple):
    """Accelerated proximal gradient steps on the model: as for FISTA, with Φ_S(W − B) as the outputs."""

    point: FISTAPoint
    extrapolated: FISTAPoint
    momentum: Float[Array, ""]
    lipschitz: Float[Array, ""]
    gap: Float[Array, ""]
    num_steps: Int[Array, ""]


@partial(jit_for_host, optimised=True)
def _descend(model: _Model, start: Array, goal: Array) -> _Set:
    """Steps from weights until the gap that the model predicts for its groups is at most ``goal``, or steps run out."""
    point = _evaluate(model, start)
    # The curvature along the first gradient is a lower bound on the largest, which steps raise where they see more.
    lipschitz = _curvature(model, model.outputs(point.correlations), point.correlations)
    one = jnp.ones((), model.x.dtype)
    first = _Descent(point, point, one, lipschitz, model.quadratic.gap(point), jnp.asarray(0))

    def is_unfinished(state: _Descent) -> Array:
        return (state.num_steps < _MAX_STEPS) & (state.gap > goal)

    last = lax.while_loop(is_unfinished, partial(_descend_once, model), first)
    return _Set(last.point.weights, last.point.fitted)


def _descend_once(model: _Model, state: _Descent) -> _Descent:
    base, lipschitz = state.extrapolated, state.lipschitz
    point = _evaluate(model, step_down(model.quadratic.penalty, base, lipschitz))
    curvature = _curvature(model, point.fitted - base.fitted, point.weights - base.weights)
    extrapolated, momentum = extrapolate(state.point, base, point, state.momentum)
    count = state.num_steps + 1
    taken = _Descent(point, extrapolated, momentum, lipschitz, model.quadratic.gap(point), count)
    return accept(state._replace(num_steps=count), taken, curvature)


def _curvature(model: _Model, outputs: Array, weights: Array) -> Float[Array, ""]:
    """The model's second derivative along weights whose outputs on the sample are given; 1 for a linear model."""
    length = jnp.sum(weights**2)
    curvature = jnp.sum(outputs**2) / jnp.where(length > 0, length, 1.0) + model.quadratic.damping
    return jnp.where(curvature > 0, curvature, 1.0)


def _evaluate(model: _Model, weights: Array) -> FISTAPoint:
    """The weights with Φ_S(W − B), and with the correlations that the model predicts."""
    change = model.outputs(weights - model.quadratic.base)
    curved = masked_adjoint(model.masks, model.x, change, weights.shape[0])
    return model.quadratic.at(weights, curved)._replace(fitted=change)
