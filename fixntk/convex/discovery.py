"""Gates chosen for the targets: column generation on the convex program.

Every gate g has a dual constraint ‖Xᵀ D(g) Θ‖ ≤ λ. A solution over some gates is optimal over all gates if its residual
R satisfies the constraints of all of them; a gate that violates its own lowers the objective when it is added. Each
round solves the program of the present gates, searches for gates of large ‖Xᵀ D(g) R‖ (pricing), and adds those that
violate their constraints most.

See docs/mathematics.md, M11.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from fixntk._checks import as_positive_int, to_device
from fixntk._compilation import jit_for_host
from fixntk._numerics import ConvergenceWarning, default_tol, ignore_convergence_warnings
from fixntk.convex import column_generation
from fixntk.convex.column_generation import Engine, Round, State
from fixntk.convex.discovery_arguments import (
    Limits,
    as_gates,
    as_held_out,
    as_limits,
    as_positive,
    as_samplers,
    mean_held_out_loss,
)
from fixntk.convex.discovery_results import BOUND, BUDGETS, HELD_OUT, NO_VIOLATION, Discovery, DiscoveryPath, Position
from fixntk.convex.groups import with_masks
from fixntk.convex.method import Method
from fixntk.convex.padding import with_padded_rows
from fixntk.convex.path import as_regs, follow_regs
from fixntk.convex.pricing import DEFAULT_SAMPLERS
from fixntk.convex.program import ConvexProgram, absorb_sample_weight
from fixntk.convex.progress import keep_result, progress_bar
from fixntk.convex.solution import Solution
from fixntk.convex.solve import as_starting_weights, choose_warm_method, solve_from
from fixntk.gates.samplers import Sampler


def discover(
    program: ConvexProgram,
    gates: ArrayLike,
    *,
    key: Array,
    init: Solution | ArrayLike | None = None,
    samplers: Sequence[Sampler] = DEFAULT_SAMPLERS,
    per_round: int = 32,
    num_candidates: int = 2048,
    least_violation: float = 0.05,
    held_out: tuple[ArrayLike, ArrayLike] | None = None,
    patience: int = 3,
    max_rounds: int = 50,
    max_gates: int | None = None,
    max_seconds: float | None = None,
    max_cells: int = 100_000,
    tol: float | None = None,
    method: str = "auto",
    callback: Callable[[Discovery], bool | None] | None = None,
    progress: bool = False,
) -> Discovery:
    """Solve the convex program over all gates: add those that violate the dual most, solve again, repeat.

    Where X has rank 3 or less and at most ``max_cells`` cells, every mask is enumerated and the search is exact; the
    result is then, within its bound, the global optimum of the gated network's own training problem, over its gates
    as well. Elsewhere the search is local: ``num_candidates`` gates are priced as one product, then the best of them
    and those in use are moved as long as that raises ‖Xᵀ D(g) R‖, to the least-squares half-space of the rows that the
    group's residual would gain from, or across the hyperplane of one row. Nothing is proved then.

    Parameters
    ----------
    program
        Data, loss and penalty, with the masks of the gates to start with. No penalty weights and no ridge.
    gates
        (P, d) gates that made the program's masks, random ones of :func:`fixntk.sample_gates` for example.
    key
        Random key.
    init
        Solution or (P, d, c) group weights to start from; zero when None.
    samplers
        Functions ``(key, num_gates, x, y) -> (num_gates, d)`` that draw the candidates of a local search, such as
        those of :mod:`fixntk.gates.samplers`; they are compiled. Each draws an equal share, and so does one that draws
        around the gates in use. For several outputs y is a random combination of them.
    per_round
        Largest number of gates added in a round.
    num_candidates
        Number of candidates of each local search.
    least_violation
        In a local search, gates that violate the dual by less than this share of λ are not added.
    held_out
        (x, y): rows on which the mean loss is computed after each round. It ends when this loss has not fallen for
        ``patience`` rounds, with the round where it was least.
    patience
        See ``held_out``.
    max_rounds, max_gates, max_seconds
        Budgets: the largest number of rounds, the largest number of gates that a round starts with, and a number of
        seconds after which no round begins.
    max_cells
        Largest number of cells that are enumerated.
    tol
        Relative gap of each solution, as for :func:`fixntk.solve`; also the share of the objective of W = 0 at which an
        exact bound is close enough. None is 1e-6 in float64 and 1e-4 in float32.
    method
        Of each solution, as for :func:`fixntk.solve`.
    callback
        Called with the present :class:`Discovery` after each round, whose solution has a larger tolerance than the last
        one's; a true answer stops.
    progress
        Show a bar with rounds, objective, number of gates, and how far one still violates the dual.

    Returns
    -------
    Discovery

    Raises
    ------
    TypeError
        If ``program`` is not a ConvexProgram, or ``samplers`` not a list of functions.
    ValueError
        If the gates do not give the program's masks, the program has penalty weights or a ridge, a number is not
        positive, the held-out rows do not fit the program, a sampler returns gates of another shape, or under ``jit``
        and ``vmap``.
    Interrupted
        A KeyboardInterrupt with the Discovery of the last round as ``result``, on Ctrl-C after a first round with
        ``callback`` or ``progress``.

    Warns
    -----
    ConvergenceWarning
        If a budget ends it while a gate still violates the dual, or the solution is above its tolerance.

    See docs/mathematics.md, M11.
    """
    gates = np.asarray(as_gates(program, gates))
    solver = choose_warm_method(program, method)
    least_violation = as_positive("least_violation", least_violation)
    cells = column_generation.enumerate_cells(program.x, as_positive_int("max_cells", max_cells))
    init = np.asarray(as_starting_weights(program, init))
    # Nothing is compiled for the number of gates to start with.
    program = with_masks(program, to_device(np.zeros((program.x.shape[0], 1), bool)))
    engine = Engine(
        program=program,
        cells=cells,
        solve=partial(_solve_active, solver.on_active_groups or solver),
        tol=default_tol(program.x.dtype) if tol is None else tol,
        at_zero=float(_primal_at_zero(program)),
        key=key,
        samplers=as_samplers(samplers),
        num_candidates=as_positive_int("num_candidates", num_candidates),
        per_round=as_positive_int("per_round", per_round),
        least_violation=least_violation if cells is None else 0.0,
    )
    start = column_generation.start_at(engine, gates, init)
    held_out_rows = None if held_out is None else as_held_out(program, held_out, patience)
    limits = as_limits(engine.tol * engine.at_zero, held_out_rows, callback, max_rounds, max_gates, max_seconds)
    # A round that was interrupted is lost; the result is that of the last complete one.
    found, is_ended = None, False
    bar = progress_bar("discover", total=limits.max_rounds, unit="round", shown=progress)
    kept = keep_result(lambda: found, is_watched=progress or callback is not None)
    with column_generation.memory_for_rounds(engine, start), bar as show, kept:
        for end_of_round in _run_rounds(engine, start, limits):
            found, is_ended = end_of_round
            line = f"objective {float(found.solution.primal):.4g}, {len(found.gates)} gates"
            show(found.rounds, f"{line}, violation {found.violation:.1e}")
    assert found is not None
    _warn(found, is_ended)
    return found


def _warn(found: Discovery, is_ended: bool) -> None:
    """Warn of a budget that ended a discovery, unless the callback did, and of a solution above its tolerance."""
    if found.stopped in BUDGETS and not is_ended:
        warnings.warn(f"{found.message}; raise {found.stopped}", ConvergenceWarning, stacklevel=3)
    if not bool(found.solution.converged):
        warnings.warn(found.solution.message, ConvergenceWarning, stacklevel=3)


def discover_quietly(program: ConvexProgram, gates: ArrayLike, **options: Any) -> Discovery:
    """:func:`discover` without the warning where a budget ends it, for callers that look at ``stopped`` themselves."""
    with ignore_convergence_warnings():
        return discover(program, gates, **options)


def discover_path(
    program: ConvexProgram,
    gates: ArrayLike,
    regs: ArrayLike | None = None,
    *,
    key: Array,
    num_regs: int = 20,
    min_share: float = 1e-2,
    callback: Callable[[Discovery], bool | None] | None = None,
    progress: bool = False,
    **options: Any,
) -> DiscoveryPath:
    """Discover gates for many λ, from the largest down.

    Each λ starts from the gates in use at the one before, and from those that violated the dual there at last.

    Parameters
    ----------
    program, gates, key
        As for :func:`discover`; the program's own λ is not used.
    regs
        λ in any order. When None, ``num_regs`` of them, evenly spaced in log λ from λ_max of the program's gates to
        ``min_share`` λ_max.
    num_regs, min_share
        See ``regs``.
    callback
        Called with the Discovery of each λ; a true answer ends the path there.
    progress
        Show a bar with the number of λ, and the objective and gates of the last.
    **options
        As for :func:`discover`, for each λ.

    Returns
    -------
    DiscoveryPath
        In the order of ``regs``, as far as the path went.

    Raises
    ------
    ValueError
        As :func:`discover` and :func:`fixntk.solve_path`.
    Interrupted
        A KeyboardInterrupt with the DiscoveryPath reached so far as ``result``, on Ctrl-C with ``callback`` or
        ``progress``.

    Warns
    -----
    ConvergenceWarning
        For each λ, as :func:`discover`.

    See docs/mathematics.md, M11.
    """
    position = Position(program, as_gates(program, gates))
    values = as_regs(program, regs, num_regs, min_share)

    def discover_at(reg: float) -> tuple[Discovery, str]:
        nonlocal position
        found, position = discover_next(position, reg, key=key, **options)
        return found, f"{len(found.gates)} gates"

    return follow_regs("discover_path", values, discover_at, DiscoveryPath, callback=callback, progress=progress)


def discover_next(position: Position, reg: float, *, key: Array, **options: Any) -> tuple[Discovery, Position]:
    """The discovery at the next λ of a path, and where the one after it starts.

    It starts from the gates that are in use, and with those that violated the dual last but are in no program yet. The
    candidates are others for each λ.
    """
    at_reg = position.program.with_reg(reg)
    key = jax.random.fold_in(key, position.number)
    found = discover(at_reg, position.gates, key=key, init=position.init, **options)
    # By NumPy, as JAX would compile for each number of gates.
    weights, further = np.asarray(found.solution.weights), found.further
    used = column_generation.gates_that_stay(weights, further)
    gates = np.concatenate([np.asarray(found.gates)[used], further.gates])
    masks = np.concatenate([np.asarray(found.masks)[:, used], further.masks], axis=1)
    init = np.pad(weights[used], ((0, len(further.gates)), (0, 0), (0, 0)))
    at_next = with_masks(at_reg, to_device(masks))
    return found, Position(at_next, to_device(gates), to_device(init), found, position.number + 1)


def _run_rounds(engine: Engine, start: State, limits: Limits) -> Iterator[tuple[Discovery, bool]]:
    """The discovery after each round, and whether the callback ended it there; the last one says why it is the last."""
    began = time.monotonic()
    losses: list[float] = []
    best: Round | None = None
    while True:
        found, state = column_generation.run_round(engine, start)
        if limits.held_out is not None:
            losses.append(mean_held_out_loss(engine.program.loss, limits.held_out, found))
        stopped = _reason_to_stop(limits, found, state, losses, time.monotonic() - began)
        # With held-out rows the result is the round of the least loss, which may not be the last.
        if best is None or limits.held_out is None or losses[-1] == min(losses):
            best = found
        # Rounds are solved roughly, so that the gates to add are found early; the result is solved to the tolerance.
        if stopped:
            found = column_generation.finish(engine, best)
        present = _as_discovery(state.rounds, found, losses, stopped)
        is_ended = bool(limits.callback is not None and limits.callback(present))
        yield present, is_ended
        if stopped or is_ended:
            return
        start = state


def _reason_to_stop(limits: Limits, found: Round, state: State, losses: list[float], seconds: float) -> str:
    """Why this round is the last; empty where it is not."""
    if found.is_exact and found.gap <= limits.goal:
        return BOUND
    if found.is_exhausted:
        return NO_VIOLATION
    if limits.held_out is not None and len(losses) - int(np.argmin(losses)) > limits.held_out.patience:
        return HELD_OUT
    spent = {
        "max_rounds": state.rounds >= limits.max_rounds,
        "max_gates": limits.max_gates is not None and len(state.gates) > limits.max_gates,
        "max_seconds": limits.max_seconds is not None and seconds >= limits.max_seconds,
    }
    return next((name for name, is_spent in spent.items() if is_spent), "")


def _as_discovery(rounds: int, found: Round, losses: list[float], stopped: str) -> Discovery:
    return Discovery(
        solution=found.solution,
        gates=to_device(found.gates),
        masks=to_device(found.masks),
        violation=found.violation,
        exact=found.is_exact,
        # A local search may miss the gate that violates the dual most, so that its gap bounds nothing.
        lower_bound=float(found.solution.primal) - found.gap if found.is_exact else -np.inf,
        rounds=rounds,
        stopped=stopped,
        held_out_losses=np.asarray(losses, float),
        further=found.further,
    )


def _solve_active(solver: Method, program: ConvexProgram, init: ArrayLike, tol: float) -> Solution:
    """The solution of a program most of whose groups are active."""
    program = with_padded_rows(absorb_sample_weight(program))
    return solve_from(program, as_starting_weights(program, init), method=solver, tol=tol, max_iter=solver.max_iter)


@jit_for_host
def _primal_at_zero(program: ConvexProgram) -> Array:
    return program.primal_at_zero()
