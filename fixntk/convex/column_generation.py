"""Rounds of column generation: solve with some gates, search for gates that violate the dual, replace unused ones.

Programs are padded to few sizes with empty groups, which cost nothing, so that rounds after the first compile nothing.

See docs/mathematics.md, M11.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from fixntk._checks import to_device
from fixntk._tiling import memory_for
from fixntk.convex import pricing
from fixntk.convex.pricing import Candidates, Prices
from fixntk.convex.program import ConvexProgram
from fixntk.convex.solution import Solution
from fixntk.gates.arrangements import distinct_hyperplanes, enumerate_arrangements
from fixntk.gates.cover import cover_count
from fixntk.gates.samplers import Sampler
from fixntk.gram import TILE_BYTES

# Multiple of the dtype's resolution by which rounding error alone may violate a dual constraint.
_ROUNDING_MULTIPLE = 1e3
# Number of gates that the smallest program has room for.
_SMALLEST_SIZE = 32
# Number of rounds whose gates a program has room for at the start.
_ROUNDS_OF_ROOM = 2
# Number of rounds with the same candidates, which have other prices in each.
_ROUNDS_PER_DRAW = 5
# Relative gap of the first solution.
_FIRST_TOL = 1e-2
# Gap of later solutions, as a share of the estimated gap over all gates: the next round's gates change more than that.
_TOL_SHARE = 0.3
# Largest rank of X whose cells are enumerated.
_MAX_EXACT_RANK = 3
# Singular value of rows of length one that no rounding error explains.
_PLAIN_SINGULAR_VALUE = 1e-3
# Candidates looked at in a round, as a multiple of the gates that may be added: some have the same mask.
_CANDIDATES_PER_GATE = 8


class Engine(NamedTuple):
    """What stays the same from round to round.

    Attributes
    ----------
    program
        Data, loss and penalty; its own masks are not used.
    cells
        A gate for every mask, where these can be enumerated; None elsewhere, where the search is local.
    solve
        ``solve(program, init=weights, tol=…) -> Solution``.
    tol
        Relative gap of a solution that is returned.
    at_zero
        Objective of W = 0, by which relative gaps are measured.
    key
        Random key.
    samplers, num_candidates
        Where the candidates of a local search come from, and their number.
    per_round
        Largest number of gates added in a round.
    least_violation
        Gates that violate their constraint by less are not added.
    """

    program: ConvexProgram
    cells: Candidates | None
    solve: Callable[..., Solution]
    tol: float
    at_zero: float
    key: Array
    samplers: tuple[Sampler, ...]
    num_candidates: int
    per_round: int
    least_violation: float


class State(NamedTuple):
    """Where a round starts: gates, weights of the first of them, the size of the program, and the rounds so far.

    ``tol`` is the relative gap that is worth reaching in the round, and ``candidates`` are those of the round before,
    None where others are to be drawn. On the host, as a device would compile a program for each number of gates.
    """

    gates: Float[np.ndarray, "P d"]
    weights: Float[np.ndarray, "Q d c"]
    size: int
    rounds: int
    tol: float
    candidates: Float[Array, "C d"] | None = None


class FurtherGates(NamedTuple):
    """Gates that violate the dual and are not in the program.

    Attributes
    ----------
    gates, masks
        (k, d) and (n, k).
    """

    gates: Float[np.ndarray, "k d"]
    masks: Bool[np.ndarray, "n k"]


class Round(NamedTuple):
    """What a round found.

    Attributes
    ----------
    solution
        With the present gates.
    gates, masks
        (P, d) and (n, P), in the solution's order.
    padded
        The solution's weights and the gates with padding, for functions that are compiled for a size.
    violation
        Largest ‖Xᵀ D(g) R‖ / λ − 1 of any gate looked at.
    gap
        Duality gap of the solution in the program of all of these gates.
    further
        Gates that violate the dual and are not in the program, on the host.
    is_exact
        Whether every mask was looked at.
    is_rough
        Whether the solution's tolerance is larger than the engine's: it is solved further before it is returned.
    is_exhausted
        Whether neither a better solution nor other candidates can find a further gate.
    """

    solution: Solution
    gates: Float[np.ndarray, "P d"]
    masks: Bool[np.ndarray, "n P"]
    padded: tuple[Array, Array]
    violation: float
    gap: float
    further: FurtherGates
    is_exact: bool
    is_rough: bool
    is_exhausted: bool


def enumerate_cells(x: Array, max_cells: int) -> Candidates | None:
    """A gate for each mask that gates on no row's hyperplane make; None where these are too many to enumerate."""
    rows = np.asarray(x, np.float64)
    # Distinct hyperplanes take a look at every pair of rows, and a high rank is plain to see.
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    units = rows / np.where(lengths > 0, lengths, 1.0)
    if np.linalg.matrix_rank(units, tol=_PLAIN_SINGULAR_VALUE) > _MAX_EXACT_RANK:
        return None
    num_planes, rank = distinct_hyperplanes(rows).normals.shape
    if rank > _MAX_EXACT_RANK or cover_count(num_planes, rank) > max_cells:
        return None
    cells = enumerate_arrangements(x, max_cells=max_cells)
    return Candidates(cells.gates, cells.masks)


def start_at(engine: Engine, gates: Float[np.ndarray, "P d"], weights: Float[np.ndarray, "P d c"]) -> State:
    """The start from given gates and weights."""
    room = _ROUNDS_OF_ROOM * min(engine.per_round, _num_candidates(engine) + len(gates))
    size = _grow(_SMALLEST_SIZE, len(gates) + room)
    return State(gates, weights, size, 0, max(engine.tol, _FIRST_TOL))


def memory_for_rounds(engine: Engine, start: State) -> AbstractContextManager[Any]:
    """The memory for rounds that begin at a start."""
    (num_rows, num_features), num_candidates = engine.program.x.shape, _num_candidates(engine)
    itemsize = start.gates.dtype.itemsize
    # Masks of the program and of the candidates, and both kinds of gates.
    needed = (start.size + num_candidates) * (num_rows + num_features * itemsize)
    # Masks of the candidates as numbers, in tiles.
    needed += min(num_rows * num_candidates * itemsize, TILE_BYTES)
    what = f"discover with {start.size} gates and {num_candidates} candidates on {num_rows} rows"
    return memory_for(what, needed, "lower num_candidates or per_round", engine.program.x)


def _num_candidates(engine: Engine) -> int:
    return engine.num_candidates if engine.cells is None else engine.cells.masks.shape[1]


def run_round(engine: Engine, state: State) -> tuple[Round, State]:
    """Solve with the present gates, search for others, and where the next round starts."""
    # Gates are padded to a size that recurs, with empty masks, so that other numbers of gates compile nothing.
    num_gates, size = len(state.gates), state.size
    gates = to_device(np.pad(state.gates, ((0, size - num_gates), (0, 0))))
    program = pricing.with_gates(engine.program, gates, num_gates)
    init = np.pad(state.weights, ((0, size - len(state.weights)), (0, 0), (0, 0)))
    solution = engine.solve(program, init=init, tol=state.tol)
    # A candidate's price is its share of the dual constraint ‖Xᵀ D(g) R‖ ≤ λ: above 1 the gate lowers the objective.
    drawn = _draw(engine, gates, state)
    candidates, prices = _find_candidates(engine, program, solution, gates, state, drawn)
    values, masks = np.asarray(prices.values), np.asarray(program.masks)
    fresh = _select_violating(values, candidates.masks, masks, engine.least_violation, engine.per_round)
    further = FurtherGates(np.asarray(candidates.gates)[fresh], np.asarray(candidates.masks)[:, fresh])
    kept = _without_empty_groups(solution, num_gates)
    is_rough = state.tol > engine.tol
    found = Round(
        solution=kept,
        gates=state.gates,
        masks=masks[:, :num_gates],
        padded=(gates, solution.weights),
        violation=float(np.max(values, initial=0.0)) - 1,
        gap=float(prices.gap),
        further=further,
        is_exact=engine.cells is not None,
        is_rough=is_rough,
        is_exhausted=not (fresh.size or is_rough or state.candidates is not None),
    )
    # Gates that stay inactive leave, and those that violate the dual most enter.
    weights = np.asarray(kept.weights)
    used = gates_that_stay(weights, further)
    size = _grow(size, int(used.sum()) + fresh.size)
    following = np.concatenate([state.gates[used], further.gates])
    # Without other gates what is left is the solution's own gap.
    share = _TOL_SHARE * found.gap / engine.at_zero if fresh.size else 0.0
    tol = min(max(engine.tol, share), state.tol)
    rounds = state.rounds + 1
    are_kept = fresh.size and rounds % _ROUNDS_PER_DRAW
    return found, State(following, weights[used], size, rounds, tol, drawn if are_kept else None)


def gates_that_stay(weights: Float[np.ndarray, "P d c"], further: FurtherGates) -> Bool[np.ndarray, " P"]:
    """Which gates stay: others make room for further ones. All do where there would be none."""
    used = np.any(weights != 0, axis=(1, 2))
    return used if used.any() or len(further.gates) else np.ones_like(used)


def finish(engine: Engine, found: Round) -> Round:
    """A round with its solution brought to the engine's tolerance."""
    if not found.is_rough:
        return found
    gates, weights = found.padded
    num_gates = len(found.gates)
    solution = engine.solve(pricing.with_gates(engine.program, gates, num_gates), init=weights, tol=engine.tol)
    solved = found._replace(padded=(gates, solution.weights), is_rough=False)
    return solved._replace(solution=_without_empty_groups(solution, num_gates))


def _draw(engine: Engine, gates: Array, state: State) -> Array | None:
    """The candidates of a local search; none where every cell is looked at."""
    if engine.cells is not None or state.candidates is not None:
        return state.candidates
    options = {"samplers": engine.samplers, "num_candidates": engine.num_candidates}
    drawn = pricing.draw(engine.key, state.rounds, engine.program, gates, len(state.gates), **options)
    if not np.isfinite(drawn).all():
        raise ValueError("samplers must return finite gates, got NaN or infinite entries")
    return drawn


def _find_candidates(
    engine: Engine, program: ConvexProgram, solution: Solution, gates: Array, state: State, drawn: Array | None
) -> tuple[Candidates, Prices]:
    """Every cell where they can be enumerated, which proves optimality over all gates; a local search otherwise."""
    if engine.cells is not None:
        return engine.cells, pricing.price(program, solution.weights, engine.cells.masks)
    return pricing.search(engine.key, state.rounds, program, solution.weights, gates, len(state.gates), drawn)


def _grow(size: int, num_gates: int) -> int:
    """Twice the size until the gates fit: few sizes are compiled, and none costs more than the largest needs."""
    while size < num_gates:
        size *= 2
    return size


def _without_empty_groups(solution: Solution, count: int) -> Solution:
    """The solution without the empty groups. Cut by NumPy, as JAX would compile a slice for each number of gates."""
    weights, kernel_weights = np.asarray(solution.weights)[:count], np.asarray(solution.kernel_weights)[:count]
    return replace(solution, weights=to_device(weights), kernel_weights=to_device(kernel_weights))


def _select_violating(
    prices: np.ndarray, masks: Array, known: np.ndarray, least_violation: float, most: int
) -> np.ndarray:
    """Positions of the candidates that violate the dual most, each mask once and none that is known."""
    order = np.argsort(-prices, kind="stable")[: _CANDIDATES_PER_GATE * most]
    least = max(least_violation, _ROUNDING_MULTIPLE * np.finfo(prices.dtype).eps)
    order = order[prices[order] > 1 + least]
    # Masks are compared as bytes, eight rows in each.
    columns = np.packbits(np.asarray(masks)[:, order], axis=0)
    seen = {column.tobytes() for column in np.packbits(known, axis=0).T}
    fresh = []
    for position, column in zip(order, columns.T, strict=True):
        if column.tobytes() not in seen:
            seen.add(column.tobytes())
            fresh.append(position)
    return np.asarray(fresh[:most], int)
