"""Pricing: a search for gates whose dual constraint a residual violates.

The price of a gate is ‖Xᵀ D(g) R‖_* / λ, above 1 where the constraint is violated. Thousands of candidates are priced
as one product; a local search then moves the best of them, and the gates of the program, to half-spaces of a higher
price.

See docs/mathematics.md, M11.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from fixntk._compilation import jit_for_host
from fixntk._numerics import eps_of, matmul, tiny_of, with_dtype
from fixntk.convex import duality
from fixntk.convex.duality import Evaluation
from fixntk.convex.groups import with_masks
from fixntk.convex.penalties import Norm
from fixntk.convex.program import ConvexProgram, datafit_of, penalty_of, targets_of
from fixntk.gates.masks import activation_masks
from fixntk.gates.samplers import Sampler, around_gates, between_targets, gaussian, normalise
from fixntk.gram import masked_adjoint

DEFAULT_SAMPLERS: tuple[Sampler, ...] = (gaussian, between_targets)
"""The samplers whose gates :func:`fixntk.discover` prices, besides gates around those in use."""

# Number of candidates from which a local search starts, besides the gates of the program and in place of its padding.
_NUM_STARTS = 32
# Largest number of moves of each gate in a local search.
_MAX_MOVES = 10
# Number of rows whose hyperplane a gate may cross in a move.
_NUM_FLIPS = 4
# Distance past a hyperplane to which a gate is moved, as a sine.
_CROSSING = 1e-5
# Ridge of the least-squares half-spaces, as a share of the mean eigenvalue of XᵀX.
_RIDGE_SHARE = 1e-6
# A local search looks at this number of rows, drawn at random where there are more; prices are on all rows.
_MAX_SEARCH_ROWS = 2048


class Candidates(NamedTuple):
    """Gates that may be added, and their masks."""

    gates: Float[Array, "C d"]
    masks: Bool[Array, "n C"]


class Prices(NamedTuple):
    """Prices of gates, and the duality gap of the residual if the program had them all."""

    values: Float[Array, " C"]
    gap: Float[Array, ""]


@jit_for_host
def with_gates(program: ConvexProgram, gates: Array, num_gates: ArrayLike) -> ConvexProgram:
    """The program of the first ``num_gates`` gates; the others have empty masks."""
    masks = activation_masks(program.x, gates)
    return with_masks(program, masks & (jnp.arange(gates.shape[0]) < num_gates)[None, :])


@jit_for_host
def price(program: ConvexProgram, weights: Array, masks: Array) -> Prices:
    """The prices of masks with the residual of weights."""
    return _price(program, program.evaluate(weights), masks)


@partial(jit_for_host, static_argnames=("samplers", "num_candidates"))
def draw(
    key: Array,
    number: ArrayLike,
    program: ConvexProgram,
    gates: Array,
    num_gates: ArrayLike,
    *,
    samplers: tuple[Sampler, ...],
    num_candidates: int,
) -> Float[Array, "C d"]:
    """Gates from each sampler and from around the first ``num_gates`` gates, ``num_candidates`` in all.

    They are others for each ``number``.
    """
    keys = jax.random.split(jax.random.fold_in(key, number), len(samplers) + 2)
    # For several outputs, one random combination of them.
    combination = jax.random.normal(keys[0], (targets_of(program).shape[1],), program.x.dtype)
    targets = matmul(targets_of(program), combination)
    # Gates in place of their padding, around which nothing is worth looking at.
    centres = gates[jnp.arange(len(gates)) % num_gates]
    every: list[Sampler] = [*samplers, partial(around_gates, gates=centres)]
    counts = [(num_candidates + k) // len(every) for k in range(len(every))]
    drawn = []
    for each, count, sampler in zip(keys[1:], counts, every, strict=True):
        expected = max(count, 1), gates.shape[1]
        found = jnp.asarray(sampler(each, expected[0], program.x, targets))
        if found.shape != expected:
            raise ValueError(f"samplers must return the (num_gates, d) gates asked for, {expected}, got {found.shape}")
        drawn.append(found.astype(gates.dtype))
    return jnp.concatenate(drawn)


@partial(jit_for_host, optimised=True)
def search(
    key: Array,
    number: ArrayLike,
    program: ConvexProgram,
    weights: Array,
    gates: Array,
    num_gates: ArrayLike,
    candidates: Array,
) -> tuple[Candidates, Prices]:
    """Gates of a high price: the best of the candidates and the program's own, after a local search from each.

    Parameters
    ----------
    key, number
        For the rows at which the local search looks, where there are many; others for each number.
    program
        With the masks of ``gates``.
    weights
        (P, d, c), whose residual sets the prices.
    gates, num_gates
        (P, d), and how many of them are more than padding.
    candidates
        (C, d).
    """
    point = program.evaluate(weights)
    # A product with all candidates; all else is of few gates.
    duals = program.norm.duals(_correlations(program.x, point.residual, candidates))
    num_starts = _NUM_STARTS + len(gates)
    best = candidates[jnp.resize(jnp.argsort(duals, descending=True)[:num_starts], (num_starts,))]
    is_gate = (jnp.arange(len(gates)) < num_gates)[:, None]
    starts = jnp.concatenate([best[:_NUM_STARTS], jnp.where(is_gate, gates, best[_NUM_STARTS:])])
    rows = _search_rows(jax.random.fold_in(key, number), program.x, point.residual)
    found = climb(*rows, starts, program.norm).astype(program.x.dtype)
    masks = activation_masks(program.x, found)
    return Candidates(found, masks), _price(program, point, masks)


def _search_rows(key: Array, x: Array, residual: Array) -> tuple[Array, Array]:
    if x.shape[0] <= _MAX_SEARCH_ROWS:
        return x, residual
    rows = jax.random.choice(key, x.shape[0], (_MAX_SEARCH_ROWS,), replace=False)
    return x[rows], residual[rows]


def _price(program: ConvexProgram, point: Evaluation, masks: Array) -> Prices:
    further = masked_adjoint(masks, program.x, point.residual, masks.shape[1])
    # The further groups have weight zero: outputs and residual stay, only the scale of the dual point changes.
    weights = jnp.concatenate([point.weights, jnp.zeros_like(further)])
    correlations = jnp.concatenate([point.correlations, further])
    gap = duality.certify(datafit_of(program), penalty_of(program), weights, point.outputs, correlations).gap
    return Prices(program.norm.duals(further) / program.reg, gap)


def climb(x: Array, residual: Array, starts: Array, norm: Norm) -> Float[Array, "C d"]:
    """Gates moved uphill in ‖Xᵀ D(g) R‖_*, each from its start to the best of some half-spaces until none is better.

    In single precision: the result is a start for what is computed precisely.
    """
    # Lengths do not matter, and squares must not leave the range of single precision.
    x, residual = (array / jnp.max(jnp.abs(array), initial=tiny_of(array)) for array in (x, residual))
    x, residual, starts = with_dtype((x, residual, normalise(starts)), jnp.float32)
    # All half-spaces are least-squares fits on the same x, so that one factor serves every candidate and move.
    gram = matmul(x.T, x)
    ridge = _RIDGE_SHARE * jnp.trace(gram) / x.shape[1] + tiny_of(x)
    factor = jsl.cho_factor(gram + ridge * jnp.eye(x.shape[1], dtype=x.dtype))[0]
    fit = partial(_fit_half_spaces, x, factor)

    def is_unfinished(state: tuple[Array, Array, Array, Array]) -> Array:
        count, _, _, is_moving = state
        return (count < _MAX_MOVES) & jnp.any(is_moving)

    def move(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        count, gates, scores, _ = state
        # What each row would add to ‖Xᵀ D(g) R‖_* on the gate's open side: the best half-space separates these signs.
        gains, margins = _gains(x, residual, gates, norm)
        crossings = _cross_nearest(x, gates, margins, jnp.where(margins >= 0, -gains, gains))
        proposals = jnp.stack([fit(jnp.sign(gains)), fit(gains), *crossings])
        # Every proposal of every gate is priced in one product, and a gate moves only to a higher value.
        duals = norm.duals(_correlations(x, residual, proposals.reshape(-1, x.shape[1])))
        duals = jnp.nan_to_num(duals.reshape(proposals.shape[:2]))
        best = jnp.argmax(duals, axis=0)
        highest = jnp.max(duals, axis=0)
        proposal = jnp.take_along_axis(proposals, best[None, :, None], axis=0)[0]
        is_higher = highest > scores * (1 + 10 * eps_of(x))
        moved = jnp.where(is_higher[:, None], normalise(proposal), gates)
        return count + 1, moved, jnp.where(is_higher, highest, scores), is_higher

    scores = norm.duals(_correlations(x, residual, starts))
    start = jnp.zeros((), jnp.int32), starts, scores, jnp.ones(scores.shape, bool)
    return lax.while_loop(is_unfinished, move, start)[1]


def _correlations(x: Array, residual: Array, gates: Array) -> Float[Array, "C d c"]:
    return masked_adjoint(activation_masks(x, gates), x, residual, gates.shape[0])


def _gains(x: Array, residual: Array, gates: Array, norm: Norm) -> tuple[Float[Array, "n C"], Float[Array, "n C"]]:
    """What each row adds to ‖Xᵀ D(g) R‖_* to first order, and the rows' inner products with the gates.

    With G the norm's gradient at Xᵀ D(g) R, row i adds ⟨x_i r_iᵀ, G⟩. The norm is convex, so that the sum over the rows
    that enter, less that over those that leave, is a lower bound on the change.
    """
    margins = matmul(x, gates.T)
    correlations = masked_adjoint(margins >= 0, x, residual, gates.shape[0])
    directions = jax.grad(lambda values: jnp.sum(norm.duals(values)))(correlations)
    # Row i as the vector x_i r_iᵀ of d·c entries: the gains of all rows and gates are one matrix product.
    outer = (x[:, :, None] * residual[:, None, :]).reshape(x.shape[0], -1)
    return matmul(outer, directions.reshape(gates.shape[0], -1).T), margins


def _fit_half_spaces(x: Array, factor: Array, targets: Float[Array, "n C"]) -> Float[Array, "C d"]:
    """Gates whose inner products with the rows are the least-squares fit of targets."""
    return jsl.cho_solve((factor, False), matmul(x.T, targets)).T


def _cross_nearest(
    x: Array, gates: Array, margins: Float[Array, "n C"], flip_gains: Float[Array, "n C"]
) -> Float[Array, "F C d"]:
    """Gates moved just across the hyperplane of a row: of the nearest rows whose flip raises the price."""
    squares = jnp.sum(x**2, axis=1)
    lengths = jnp.sqrt(squares)
    distances = jnp.abs(margins) / jnp.where(lengths > 0, lengths, 1.0)[:, None]
    distances = jnp.where((flip_gains > 0) & (lengths > 0)[:, None], distances, jnp.inf)
    rows = lax.top_k(-distances.T, min(_NUM_FLIPS, x.shape[0]))[1].T

    def cross(row: Int[Array, " C"]) -> Array:
        margin = jnp.take_along_axis(margins, row[None, :], axis=0)[0]
        past = margin + jnp.where(margin >= 0, 1.0, -1.0) * _CROSSING * lengths[row]
        return gates - (past / jnp.where(squares > 0, squares, 1.0)[row])[:, None] * x[row]

    return jax.vmap(cross)(rows)
