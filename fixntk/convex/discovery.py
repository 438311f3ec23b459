"""Gates that the targets ask for: column generation on the convex program (M11)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float

from fixntk._checks import as_matrix, as_positive_int, is_traced
from fixntk._numerics import matmul
from fixntk._warnings import ConvergenceWarning
from fixntk.convex import duality
from fixntk.convex.duality import Evaluation
from fixntk.convex.losses import Loss
from fixntk.convex.penalties import group_norms
from fixntk.convex.program import ConvexProgram, with_masks
from fixntk.convex.solution import Solution
from fixntk.convex.solve import solve
from fixntk.gates.arrangements import cover_count, distinct_hyperplanes, enumerate_arrangements
from fixntk.gates.masks import activation_masks, sample_gates
from fixntk.gram import masked_adjoint

# Gates that rounding alone makes violate the dual, by so many times the dtype's resolution, are not worth a round.
_SLACK = 1e3


@dataclass(frozen=True, eq=False)
class Discovery:
    """What gate discovery found.

    Attributes
    ----------
    solution
        Solution of the convex program with the discovered gates; ``solution.predict(x, gates)``.
    gates, masks
        (P, d) and (n, P).
    violation
        Largest ‖Xᵀ D(g) R‖ / λ − 1 of any gate that the last search found, R the solution's residual and the norm the
        penalty's dual one; at most about 0 when none violates the dual.
    exact
        Whether that search went through every mask that a gate on no row's hyperplane can make. Then no gated network
        with such gates (which random ones and those of ReLU networks are) gets below ``lower_bound``, whatever its
        width.
    lower_bound
        Lower bound on the optimum over all gates when ``exact``, −∞ otherwise.
    rounds
        Number of rounds made.
    converged
        Whether the last search found no further gate that violates the dual, or the bound is within ``tol``.
    """

    solution: Solution
    gates: Float[Array, "P d"]
    masks: Bool[Array, "n P"]
    violation: float
    exact: bool
    lower_bound: float
    rounds: int
    converged: bool

    @property
    def gap(self) -> float:
        """How far the objective can be above the optimum over all gates; infinite where the search was not exact."""
        return float(self.solution.primal) - self.lower_bound

    @property
    def message(self) -> str:
        """One sentence that says what has been reached, and what is proved."""
        found = f"{self.gates.shape[0]} gates after {self.rounds} rounds"
        if not self.converged:
            return f"discovery stopped early with {found}: a gate violates the dual by {self.violation:.1e}"
        if self.exact:
            return f"{found}: within {self.gap:.1e} of the optimum over all gates"
        return f"{found}: a search from random gates found no other that violates the dual; nothing is proved"


def discover(
    x: ArrayLike,
    y: ArrayLike,
    reg: ArrayLike,
    loss: str | Loss = "squared",
    *,
    key: Array,
    sample_weight: ArrayLike | None = None,
    intercept: bool = False,
    norm: str = "frobenius",
    gates: ArrayLike | None = None,
    num_gates: int = 64,
    per_round: int = 32,
    num_candidates: int = 2048,
    max_rounds: int = 50,
    max_cells: int = 100_000,
    tol: float = 1e-6,
    method: str = "auto",
    callback: Callable[[Discovery], bool | None] | None = None,
) -> Discovery:
    """Solve the convex program over all gates: add those that violate the dual most, solve again, repeat (M11).

    Where X has rank 3 or less and at most ``max_cells`` cells, every mask is enumerated and the search is exact; the
    result is then, within its bound, the global optimum of the gated network's own training problem, over its gates
    as well. Elsewhere the search is local, from random gates: each is moved to the least-squares half-space of the rows
    that its group's residual would gain from, as long as that raises ‖Xᵀ D(g) R‖; nothing is proved then.

    Parameters
    ----------
    x, y, reg, loss, sample_weight, intercept, norm
        The program's data and penalty, as for :class:`fixntk.ConvexProgram`: (n, d) inputs, (n,) or (n, c) targets or
        labels, λ > 0.
    key
        Random key.
    gates
        (P, d) gates to start with; ``num_gates`` random ones when None.
    per_round
        Largest number of gates added in a round.
    num_candidates
        Random gates from which each search starts.
    max_rounds, max_cells
        The most rounds; for the cells see above.
    tol, method
        Of each solution, as for :func:`fixntk.solve`; also the share of the objective of W = 0 at which an exact bound
        is close enough.
    callback
        Called with what is known after each round; a true answer stops.

    Returns
    -------
    Discovery

    Raises
    ------
    ValueError
        As :class:`fixntk.ConvexProgram`; also if a number is not positive, or under ``jit`` and ``vmap``.

    Warns
    -----
    ConvergenceWarning
        If ``max_rounds`` are made and a gate violates the dual still.
    """
    if is_traced(x, y, reg, sample_weight, gates):
        raise ValueError("discover cannot be traced: the number of gates it finds depends on the data")
    numbers = {"num_gates": num_gates, "per_round": per_round, "num_candidates": num_candidates}
    numbers |= {"max_rounds": max_rounds, "max_cells": max_cells}
    for name, value in numbers.items():
        as_positive_int(name, value)
    x = as_matrix("x", x)
    key, first = jax.random.split(key)
    start = sample_gates(first, num_gates, x.shape[1], dtype=x.dtype) if gates is None else as_matrix("gates", gates)
    masks = activation_masks(x, start)
    program = ConvexProgram(x, y, masks, reg, loss, sample_weight=sample_weight, intercept=intercept, norm=norm)
    # Gates come and go on the host: a device would compile each number of them.
    chosen = np.asarray(start)
    planes = distinct_hyperplanes(np.asarray(x, np.float64))
    num_planes, rank = planes.normals.shape
    exact = rank <= 3 and cover_count(num_planes, rank) <= max_cells
    cells = enumerate_arrangements(x, max_cells=max_cells) if exact else None
    weights = np.zeros(program.group_shape, program.x.dtype)
    size = 32
    for number in range(1, max_rounds + 1):
        # Doubled when too small and never halved: few sizes are compiled, and none costs more than the largest needs.
        while size < len(chosen):
            size *= 2
        program = _of_gates(program, chosen, size)
        init = np.pad(weights, ((0, size - len(weights)), (0, 0), (0, 0)))
        solution = solve(program, method=method, tol=tol, init=init)
        point = program.evaluate(solution.weights)
        if cells is not None:
            candidates, masks = cells.gates, cells.masks
        else:
            key, search = jax.random.split(key)
            starts = sample_gates(search, num_candidates, x.shape[1], dtype=x.dtype)
            candidates = _searched(x, point.residual, jnp.concatenate([starts, _repeated(chosen, size)]))
            masks = activation_masks(x, candidates)
        gap, scores = map(np.asarray, _priced(program, point, masks))
        found = _found(program, solution, chosen, float(gap), scores, exact, number)
        fresh = _worst(scores, masks, program.masks, per_round)
        close = found.gap <= tol * float(program.primal_at_zero())
        found = replace(found, converged=close or fresh.size == 0)
        if callback is not None and callback(found):
            return found
        if found.converged or number == max_rounds:
            break
        weights = np.asarray(solution.weights)[: len(chosen)]
        keep = np.any(weights != 0, axis=(1, 2))
        # Gates that the solution does not use make room; the first round's are kept no longer than others.
        chosen, weights = np.concatenate([chosen[keep], np.asarray(candidates)[fresh]]), weights[keep]
    if not found.converged:
        warnings.warn(f"{found.message}; raise max_rounds", ConvergenceWarning, stacklevel=2)
    return found


def _found(
    program: ConvexProgram,
    solution: Solution,
    gates: np.ndarray,
    gap: float,
    scores: np.ndarray,
    exact: bool,
    rounds: int,
) -> Discovery:
    count = len(gates)
    violation = float(np.max(scores, initial=0.0)) - 1
    # Cut by NumPy: JAX would compile a slice for each number of gates.
    weights, kernel_weights = np.asarray(solution.weights)[:count], np.asarray(solution.kernel_weights)[:count]
    masks = np.asarray(program.masks)[:, :count]
    trimmed = replace(solution, weights=jnp.asarray(weights), kernel_weights=jnp.asarray(kernel_weights))
    bound = float(solution.primal) - gap if exact else -np.inf
    return Discovery(trimmed, jnp.asarray(gates), jnp.asarray(masks), violation, exact, bound, rounds, converged=False)


def _of_gates(program: ConvexProgram, gates: np.ndarray, size: int) -> ConvexProgram:
    """The program of these gates' masks and of empty ones, ``size`` in all."""
    masks = activation_masks(program.x, _repeated(gates, size))
    return with_masks(program, masks & (np.arange(size) < len(gates)))


def _repeated(gates: np.ndarray, size: int) -> np.ndarray:
    return np.resize(gates, (size, gates.shape[1]))


def _worst(scores: np.ndarray, masks: Array, known: Array, most: int) -> Any:
    """The candidates that violate the dual most, each mask once and none that is known."""
    order = np.argsort(-scores, kind="stable")[: 8 * most]
    order = order[scores[order] > 1 + _SLACK * np.finfo(scores.dtype).eps]
    columns = np.packbits(np.asarray(masks)[:, order], axis=0)
    seen = {column.tobytes() for column in np.packbits(np.asarray(known), axis=0).T}
    fresh = []
    for position, column in zip(order, columns.T, strict=True):
        if column.tobytes() not in seen:
            seen.add(column.tobytes())
            fresh.append(position)
    return np.asarray(fresh[:most], int)


@jax.jit
def _priced(program: ConvexProgram, point: Evaluation, masks: Array) -> tuple[Array, Array]:
    """Gap of the point if the program had these masks too, and ‖Xᵀ D_p R‖ / λ for each of them (M7, M11)."""
    further = masked_adjoint(masks, program.x, point.residual, masks.shape[1])
    both = ((point.weights, jnp.zeros_like(further)), (point.correlations, further))
    of_both, correlations_of_both = map(jnp.concatenate, both)
    gap = duality.certify(program.datafit, program.penalty, of_both, point.outputs, correlations_of_both).gap
    return gap, program.norm.duals(further) / program.reg


@partial(jax.jit, static_argnames="steps")
def _searched(x: Array, residual: Array, starts: Array, steps: int = 20) -> Array:
    """Gates moved uphill in ‖Xᵀ D(g) R‖, each from its start."""
    gram = matmul(x.T, x)
    ridge = gram + 1e-6 * jnp.trace(gram) / x.shape[1] * jnp.eye(x.shape[1], dtype=x.dtype)
    factor = jax.scipy.linalg.cho_factor(ridge)
    outer = (x[:, :, None] * residual[:, None, :]).reshape(x.shape[0], -1)

    def score(gates: Array) -> Array:
        return group_norms(masked_adjoint(activation_masks(x, gates), x, residual, gates.shape[0]))

    def climb(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        gates, values = carry
        groups = masked_adjoint(activation_masks(x, gates), x, residual, gates.shape[0])
        # What row i would add to ⟨Xᵀ D R, V⟩ at the present direction V: the half-space should hold the positive ones.
        gains = matmul(outer, groups.reshape(gates.shape[0], -1).T)
        targets = jax.scipy.linalg.cho_solve(factor, matmul(x.T, jnp.sign(gains))).T
        weighted = jax.scipy.linalg.cho_solve(factor, matmul(x.T, gains)).T
        tried = jnp.stack([targets, weighted])
        scores = jax.vmap(score)(tried)
        better = jnp.argmax(scores, axis=0)
        best = jnp.max(scores, axis=0)
        moved = jnp.take_along_axis(tried, better[None, :, None], axis=0)[0]
        improved = best > values
        return (jnp.where(improved[:, None], moved, gates), jnp.maximum(best, values)), None

    return lax.scan(climb, (starts, score(starts)), None, length=steps)[0][0]
