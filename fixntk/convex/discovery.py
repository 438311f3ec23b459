"""Gates chosen for the targets: column generation on the convex program.

Every gate g has a dual constraint ‖Xᵀ D(g) Θ‖ ≤ λ. A solution over some gates is optimal over all gates if its residual
R satisfies the constraints of all of them; a gate that violates its own lowers the objective when it is added. Each
round solves the program of the present gates, searches for gates of large ‖Xᵀ D(g) R‖ (pricing), and adds those that
violate their constraints most.

See docs/mathematics.md, M11.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float

from fixntk._checks import as_positive_int, is_traced
from fixntk._compilation import jit_for_host
from fixntk._numerics import default_tol, matmul
from fixntk._warnings import ConvergenceWarning
from fixntk.convex import duality, screening
from fixntk.convex.duality import Evaluation
from fixntk.convex.groups import check_gates, with_masks
from fixntk.convex.penalties import group_norms
from fixntk.convex.program import ConvexProgram, datafit_of, group_shape_of, penalty_of
from fixntk.convex.progress import Interrupted, progress_bar
from fixntk.convex.solution import Solution
from fixntk.convex.solve import choose_warm_method, solve
from fixntk.gates.arrangements import cover_count, distinct_hyperplanes, enumerate_arrangements
from fixntk.gates.masks import activation_masks, sample_gates
from fixntk.gram import masked_adjoint

# Multiple of the dtype's resolution by which rounding error alone may violate a dual constraint.
_ROUNDING_MULTIPLE = 1e3
# Count of gates that the smallest compiled program has room for.
_SMALLEST_SIZE = 32
# Largest rank of X whose cells are enumerated.
_MAX_EXACT_RANK = 3
# Count of uphill moves of each gate in a local search.
_CLIMBS = 20
# Ridge of the least-squares half-spaces, as a share of the mean eigenvalue of XᵀX.
_RIDGE_SHARE = 1e-6
# Candidates looked at in a round, as a multiple of the gates that may be added: some have the same mask.
_CANDIDATES_PER_GATE = 8


@dataclass(frozen=True, eq=False)
class Discovery:
    """The result of gate discovery.

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

    See docs/mathematics.md, M11.
    """

    solution: Solution
    gates: Float[Array, "P d"]
    masks: Bool[Array, "n P"]
    violation: float
    exact: bool
    lower_bound: float
    rounds: int
    converged: bool

    def __repr__(self) -> str:
        return f"Discovery({self.message}; objective {float(self.solution.primal):.4g})"

    @property
    def gap(self) -> float:
        """How far the objective can be above the optimum over all gates; infinite where the search was not exact."""
        return float(self.solution.primal) - self.lower_bound

    @property
    def message(self) -> str:
        """One sentence: the objective reached, and what is proved about it."""
        found = f"{self.gates.shape[0]} gates after {self.rounds} rounds"
        if not self.converged:
            return f"discovery stopped early with {found}: a gate violates the dual by {self.violation:.1e}"
        if self.exact:
            return f"{found}: within {self.gap:.1e} of the optimum over all gates"
        return f"{found}: a search from random gates found no other that violates the dual; nothing is proved"


class _Candidates(NamedTuple):
    """Gates that may be added, and their masks."""

    gates: Float[Array, "C d"]
    masks: Bool[Array, "n C"]


class _Round(NamedTuple):
    """Where a round starts: gates, weights of the first of them, the size to which they are padded, and a key."""

    gates: Float[np.ndarray, "P d"]
    weights: Float[np.ndarray, "Q d c"]
    size: int
    key: Array


def discover(
    program: ConvexProgram,
    gates: ArrayLike,
    *,
    key: Array,
    per_round: int = 32,
    num_candidates: int = 2048,
    max_rounds: int = 50,
    max_cells: int = 100_000,
    tol: float | None = None,
    method: str = "auto",
    callback: Callable[[Discovery], bool | None] | None = None,
    progress: bool = False,
) -> Discovery:
    """Solve the convex program over all gates: add those that violate the dual most, solve again, repeat.

    Where X has rank 3 or less and at most ``max_cells`` cells, every mask is enumerated and the search is exact; the
    result is then, within its bound, the global optimum of the gated network's own training problem, over its gates
    as well. Elsewhere the search is local, from random gates: each is moved to the least-squares half-space of the rows
    that its group's residual would gain from, as long as that raises ‖Xᵀ D(g) R‖; nothing is proved then.

    Parameters
    ----------
    program
        Data, loss and penalty, with the masks of the gates to start with. No penalty weights and no ridge.
    gates
        (P, d) gates that made the program's masks, random ones of :func:`fixntk.sample_gates` for example.
    key
        Random key.
    per_round
        Largest number of gates added in a round.
    num_candidates
        Number of random gates from which each local search starts.
    max_rounds
        Largest number of rounds.
    max_cells
        Largest number of cells that are enumerated.
    tol
        Relative gap of each solution, as for :func:`fixntk.solve`; also the share of the objective of W = 0 at which an
        exact bound is close enough. None is 1e-6 in float64 and 1e-4 in float32.
    method
        Of each solution, as for :func:`fixntk.solve`.
    callback
        Called with the present :class:`Discovery` after each round; a true answer stops.
    progress
        Show a bar with rounds, objective, number of gates, and how far one still violates the dual.

    Returns
    -------
    Discovery

    Raises
    ------
    ValueError
        If the gates do not give the program's masks, the program has penalty weights or a ridge, a number is not
        positive, or under ``jit`` and ``vmap``.
    Interrupted
        A KeyboardInterrupt with the Discovery of the last round as ``result``, on Ctrl-C after a first round with
        ``callback`` or ``progress``.

    Warns
    -----
    ConvergenceWarning
        If ``max_rounds`` are made and a gate still violates the dual.

    See docs/mathematics.md, M11.
    """
    state = _Round(_as_gates(program, gates), np.zeros(group_shape_of(program), program.x.dtype), _SMALLEST_SIZE, key)
    numbers = {"per_round": per_round, "num_candidates": num_candidates}
    for name, value in (numbers | {"max_rounds": max_rounds, "max_cells": max_cells}).items():
        as_positive_int(name, value)
    choose_warm_method(program, method)
    tol = default_tol(program.x.dtype) if tol is None else tol
    cells, found = _all_cells(program.x, max_cells), None
    run = partial(_run_round, program, cells, per_round, num_candidates, partial(solve, method=method, tol=tol))
    goal = tol * float(program.primal_at_zero())
    with progress_bar("discover", total=max_rounds, unit="round", shown=progress) as show:
        try:
            for rounds in range(1, max_rounds + 1):
                found, state, num_fresh = run(state, rounds)
                found = replace(found, converged=bool(found.gap <= goal or num_fresh == 0))
                line = f"objective {float(found.solution.primal):.4g}, {len(found.gates)} gates"
                show(rounds, f"{line}, violation {found.violation:.1e}")
                if (callback is not None and callback(found)) or found.converged:
                    return found
        except KeyboardInterrupt:
            if found is None or (callback is None and not progress):
                raise
            raise Interrupted(found) from None
    assert found is not None
    warnings.warn(f"{found.message}; raise max_rounds", ConvergenceWarning, stacklevel=2)
    return found


def _run_round(
    program: ConvexProgram,
    cells: _Candidates | None,
    per_round: int,
    num_candidates: int,
    solve: Callable[..., Solution],
    state: _Round,
    rounds: int,
) -> tuple[Discovery, _Round, int]:
    """Solve with the present gates; what was found, where the next round starts, and the number of fresh gates."""
    gates, size = state.gates, _padded_size(len(state.gates), state.size)
    padded = _with_gates(program, gates, size)
    # Empty groups cost nothing, and a program of this size is compiled already.
    init = np.pad(state.weights, ((0, size - len(state.weights)), (0, 0), (0, 0)))
    solution = solve(padded, init=init)
    point = screening.evaluate(padded, solution.weights)
    key, search_key = jax.random.split(state.key)
    # Every cell where they can be enumerated, which proves optimality over all gates; a local search otherwise.
    candidates = cells or _search(search_key, program.x, point.residual, gates, size, num_candidates)
    gap, prices = map(np.asarray, _price(padded, point, candidates.masks))
    fresh = _select_violating(prices, candidates.masks, padded.masks, per_round)
    found = Discovery(
        solution=_without_empty_groups(solution, len(gates)),
        gates=jnp.asarray(gates),
        masks=jnp.asarray(np.asarray(padded.masks)[:, : len(gates)]),
        violation=float(np.max(prices, initial=0.0)) - 1,
        exact=cells is not None,
        lower_bound=-np.inf if cells is None else float(solution.primal) - float(gap),
        rounds=rounds,
        converged=False,
    )
    weights = np.asarray(found.solution.weights)
    # Gates that the solution does not use make room for others.
    used = np.any(weights != 0, axis=(1, 2))
    following = np.concatenate([gates[used], np.asarray(candidates.gates)[fresh]])
    return found, _Round(following, weights[used], size, key), fresh.size


def _as_gates(program: ConvexProgram, gates: ArrayLike) -> np.ndarray:
    """Gates on the host: they come and go, and a device would compile each number of them."""
    if not isinstance(program, ConvexProgram):
        raise TypeError(f"program must be a ConvexProgram, got {type(program).__name__}")
    if is_traced(program, gates):
        raise ValueError("discover cannot be traced: the number of gates it finds depends on the data")
    if program.penalty_weights is not None:
        raise ValueError("program must have no penalty_weights: gates that are discovered have none")
    if program.ridge is not None:
        raise ValueError("program must have no ridge: with one, gates in use violate the dual as well")
    return np.asarray(check_gates(program, gates))


def _all_cells(x: Array, max_cells: int) -> _Candidates | None:
    """A gate for each mask that gates on no row's hyperplane make; None where these are too many to enumerate."""
    num_planes, rank = distinct_hyperplanes(np.asarray(x, np.float64)).normals.shape
    if rank > _MAX_EXACT_RANK or cover_count(num_planes, rank) > max_cells:
        return None
    cells = enumerate_arrangements(x, max_cells=max_cells)
    return _Candidates(cells.gates, cells.masks)


def _padded_size(num_gates: int, size: int) -> int:
    """Twice the size until the gates fit: few sizes are compiled, and none costs more than the largest needs."""
    while size < num_gates:
        size *= 2
    return size


def _with_gates(program: ConvexProgram, gates: np.ndarray, size: int) -> ConvexProgram:
    """The program of these gates' masks and of empty ones, ``size`` in all."""
    return _restrict(program, np.resize(gates, (size, gates.shape[1])), len(gates))


@jit_for_host
def _restrict(program: ConvexProgram, gates: Array, num_gates: ArrayLike) -> ConvexProgram:
    masks = activation_masks(program.x, gates)
    return with_masks(program, masks & (jnp.arange(gates.shape[0]) < num_gates))


def _without_empty_groups(solution: Solution, count: int) -> Solution:
    """The solution without the empty groups. Cut by NumPy, as JAX would compile a slice for each number of gates."""
    weights, kernel_weights = np.asarray(solution.weights)[:count], np.asarray(solution.kernel_weights)[:count]
    return replace(solution, weights=jnp.asarray(weights), kernel_weights=jnp.asarray(kernel_weights))


@jit_for_host
def _price(program: ConvexProgram, point: Evaluation, masks: Array) -> tuple[Array, Array]:
    """Gap of the point if the program had these masks too, and ‖Xᵀ D_p R‖ / λ for each of them.

    The further groups have weight zero, so that outputs and residual stay; only the scale of the dual point changes.
    """
    further = masked_adjoint(masks, program.x, point.residual, masks.shape[1])
    weights = jnp.concatenate([point.weights, jnp.zeros_like(further)])
    correlations = jnp.concatenate([point.correlations, further])
    gap = duality.certify(datafit_of(program), penalty_of(program), weights, point.outputs, correlations).gap
    return gap, program.norm.duals(further) / program.reg


def _select_violating(prices: np.ndarray, masks: Array, known: Array, most: int) -> np.ndarray:
    """Positions of the candidates that violate the dual most, each mask once and none that is known."""
    order = np.argsort(-prices, kind="stable")[: _CANDIDATES_PER_GATE * most]
    order = order[prices[order] > 1 + _ROUNDING_MULTIPLE * np.finfo(prices.dtype).eps]
    # Masks are compared as bytes, eight rows in each.
    columns = np.packbits(np.asarray(masks)[:, order], axis=0)
    seen = {column.tobytes() for column in np.packbits(np.asarray(known), axis=0).T}
    fresh = []
    for position, column in zip(order, columns.T, strict=True):
        if column.tobytes() not in seen:
            seen.add(column.tobytes())
            fresh.append(position)
    return np.asarray(fresh[:most], int)


def _search(key: Array, x: Array, residual: Array, gates: np.ndarray, size: int, num_candidates: int) -> _Candidates:
    """Local maxima of ‖Xᵀ D(g) R‖ near random gates and near the present ones."""
    random = sample_gates(key, num_candidates, x.shape[1], dtype=x.dtype)
    starts = jnp.concatenate([random, np.resize(gates, (size, gates.shape[1]))])
    found = _climb(x, residual, starts)
    return _Candidates(found, activation_masks(x, found))


@partial(jit_for_host, optimised=True)
def _climb(x: Array, residual: Array, starts: Array) -> Float[Array, "C d"]:
    """Gates moved uphill in ‖Xᵀ D(g) R‖, each from its start."""
    # All half-spaces are least-squares fits on the same x, so that one factor serves every candidate and step.
    gram = matmul(x.T, x)
    ridge = _RIDGE_SHARE * jnp.trace(gram) / x.shape[1]
    factor = jsl.cho_factor(gram + ridge * jnp.eye(x.shape[1], dtype=x.dtype))

    def move(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        gates, scores = state
        proposals = _half_spaces(x, residual, gates, factor[0])
        proposed_scores = jax.vmap(partial(_score, x, residual))(proposals)
        best = jnp.argmax(proposed_scores, axis=0)
        proposal = jnp.take_along_axis(proposals, best[None, :, None], axis=0)[0]
        highest = jnp.max(proposed_scores, axis=0)
        is_higher = (highest > scores)[:, None]
        return (jnp.where(is_higher, proposal, gates), jnp.maximum(highest, scores)), None

    return lax.scan(move, (starts, _score(x, residual, starts)), None, length=_CLIMBS)[0][0]


def _score(x: Array, residual: Array, gates: Array) -> Float[Array, " C"]:
    """‖Xᵀ D(g) R‖ of each gate."""
    return group_norms(_correlations(x, residual, gates))


def _correlations(x: Array, residual: Array, gates: Array) -> Float[Array, "C d c"]:
    return masked_adjoint(activation_masks(x, gates), x, residual, gates.shape[0])


def _half_spaces(x: Array, residual: Array, gates: Array, factor: Array) -> Float[Array, "2 C d"]:
    """Two gates near each: least-squares fits of the rows that raise ‖Xᵀ D(g) R‖ in its present direction.

    With V = Xᵀ D(g) R, row i adds ⟨x_i r_iᵀ, V⟩ to ⟨Xᵀ D R, V⟩, so the best half-space in the direction V holds the
    rows where this gain is positive. One gate fits the signs of the gains, the other the gains themselves.
    """
    # Row i as the vector x_i r_iᵀ of d·c entries: the gains of all rows and candidates are one matrix product.
    outer = (x[:, :, None] * residual[:, None, :]).reshape(x.shape[0], -1)
    directions = _correlations(x, residual, gates).reshape(gates.shape[0], -1)
    gains = matmul(outer, directions.T)

    def fit(targets: Array) -> Array:
        return jsl.cho_solve((factor, False), matmul(x.T, targets)).T

    return jnp.stack([fit(jnp.sign(gains)), fit(gains)])
