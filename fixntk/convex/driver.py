"""The one loop that drives every solver, from the host or under a JAX transformation.

From the host, steps are made in small compiled pieces. Between two pieces the loop looks at the gap and the clock, and
picks the step that comes next, so that only steps that occur are compiled. Under ``jit`` and ``vmap`` the whole loop is
one program.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float

from fixntk.convex.method import Method, step_any
from fixntk.convex.program import ConvexProgram
from fixntk.convex.solution import History, is_active

# The loop stops at this share of the gap that is asked for, as the certificate is computed anew at the end.
_GOAL_SHARE = 0.99
# Steps of one compiled piece at most.
_STEPS_PER_LOOK = 25


class Progress(NamedTuple):
    """What a callback gets after each iteration; plain numbers.

    Attributes
    ----------
    iteration
        0 for the start.
    primal, gap, relative_gap
        Objective and its certificate.
    num_active
        Number of active groups.
    seconds
        Time since the start, compilation and callbacks not included.
    """

    iteration: int
    primal: float
    gap: float
    relative_gap: float
    num_active: int
    seconds: float


class Outcome(NamedTuple):
    """Where a solver ended, in the units of the program that was given.

    Attributes
    ----------
    weights
        (P, d, c) group weights.
    kernel_weights
        (P,) η of a method that works on them; None otherwise.
    failed
        Whether arithmetic broke down.
    iterations
        Number of steps made.
    history
        One entry for the start and for each step; padded with NaN under ``jit`` and ``vmap``.
    """

    weights: Float[Array, "P d c"]
    kernel_weights: Float[Array, " P"] | None
    failed: Array
    iterations: Array
    history: History


class _Record(NamedTuple):
    """The columns of a history, (k,) each, without the times."""

    primal: Array
    gap: Array
    num_active: Array
    objective: Array


def run_traced(
    program: ConvexProgram, method: Method, start: Array, epsilon: Array | None, tol: float, max_iter: int
) -> Outcome:
    """The whole loop as one traceable computation."""
    prepared, units, state, first = _start(program, start, epsilon, method=method)
    goal = _goal(prepared, tol)
    # There is room for one step at least, as an empty array cannot be written to even where no step is made.
    room = max(max_iter, 1)
    iterations, end, records = _advance(prepared, state, goal, max_iter, method=method, step=None, room=room)
    columns = [jnp.concatenate([one[None], column[:max_iter]]) for one, column in zip(first, records, strict=True)]
    record = _in_units(_Record(*columns), units.objective)
    seconds = jnp.full(max_iter + 1, jnp.nan, program.x.dtype)
    history = History(record.primal, record.gap, record.num_active, seconds, record.objective)
    return _outcome(method, end, units.weights, iterations, history)


def run_from_host(
    program: ConvexProgram,
    method: Method,
    start: Array,
    epsilon: Array | None,
    tol: float,
    max_iter: int,
    *,
    callback: Callable[[Progress], bool | None] | None = None,
    is_timed: bool = True,
) -> Outcome:
    """The loop in compiled pieces, between which the host looks at the gap and the clock, and calls back.

    Seconds without compilation take a run of no steps before the first one of each kind, which small programs feel;
    without ``is_timed`` there are none.
    """
    prepared, units, state, first = _start(program, start, epsilon, method=method)
    goal, at_zero = _goal_and_scale(prepared, tol)
    unit = float(units.objective)
    records, seconds = [[np.asarray(one)[None] for one in first]], [0.0]
    done, compiled = 0, set()
    while True:
        look = _Record(*(column[-1] for column in records[-1]))
        if callback is not None and callback(_progress(done, look, unit, float(at_zero), seconds[-1])):
            break
        if done >= max_iter or bool(state.failed) or look.gap <= goal:
            break
        step = int(getattr(state, "next_step", 0))
        run = partial(_advance, prepared, state, goal, method=method, step=step, room=_STEPS_PER_LOOK)
        if is_timed and step not in compiled:
            run(0)
            compiled.add(step)
        began = time.perf_counter()
        made, state, found = run(1 if callback is not None else min(max_iter - done, _STEPS_PER_LOOK))
        num_made = int(made)
        elapsed = time.perf_counter() - began
        records.append([np.asarray(column)[:num_made] for column in found])
        seconds.extend(seconds[-1] + np.linspace(0, elapsed, num_made + 1)[1:])
        done += num_made
    dtype = program.x.dtype
    columns = (jnp.asarray(np.concatenate(column), dtype) for column in zip(*records, strict=True))
    record = _in_units(_Record(*columns), units.objective)
    times = jnp.asarray(np.asarray(seconds if is_timed else np.full(done + 1, np.nan)), dtype)
    history = History(record.primal, record.gap, record.num_active, times, record.objective)
    return _outcome(method, state, units.weights, jnp.asarray(done), history)


def _outcome(method: Method, state: Any, unit: Array, iterations: Array, history: History) -> Outcome:
    kernel_weights = state.kernel_weights if method.reweights else None
    return Outcome(state.weights * unit, kernel_weights, state.failed, iterations, history)


@partial(jax.jit, static_argnames="method")
def _start(program: ConvexProgram, start: Array, epsilon: Array | None, *, method: Method) -> tuple[Any, ...]:
    prepared, units = method.prepare(program)
    state = method.init(prepared, start if method.reweights else start / units.weights, epsilon)
    return prepared, units, state, _record(state)


def _goal(program: ConvexProgram, tol: Array | float) -> Float[Array, ""]:
    return _GOAL_SHARE * tol * program.primal_at_zero()


@jax.jit
def _goal_and_scale(program: ConvexProgram, tol: Array | float) -> tuple[Array, Array]:
    return _goal(program, tol), program.primal_at_zero()


@partial(jax.jit, static_argnames=("method", "step", "room"))
def _advance(
    program: ConvexProgram, state: Any, goal: Array, limit: ArrayLike, *, method: Method, step: int | None, room: int
) -> tuple[Array, Any, _Record]:
    """Steps until the gap is reached, arithmetic fails, ``limit`` are made, or another kind of step comes next.

    With ``step`` None, steps of any kind. Also the number made, and their record, ``room`` long.
    """
    empty = jnp.full(room, jnp.nan, state.gap.dtype)
    make_step = partial(step_any, method) if step is None else method.steps(program)[step]

    def is_unfinished(carry: tuple[Array, Any, _Record]) -> Array:
        made, state, _ = carry
        is_wanted = (made < limit) & ~state.failed & ~(state.gap <= goal)
        has_kinds = step is not None and hasattr(state, "next_step")
        return is_wanted & (state.next_step == step) if has_kinds else is_wanted

    def advance(carry: tuple[Array, Any, _Record]) -> tuple[Array, Any, _Record]:
        made, state, records = carry
        state = make_step(program, state)
        written = zip(records, _record(state), strict=True)
        return made + 1, state, _Record(*(column.at[made].set(one) for column, one in written))

    return lax.while_loop(is_unfinished, advance, (jnp.asarray(0), state, _Record(empty, empty, empty, empty)))


def _record(state: Any) -> _Record:
    num_active = jnp.sum(is_active(state.weights)).astype(state.gap.dtype)
    return _Record(state.primal, state.gap, num_active, state.objective)


def _in_units(record: _Record, unit: Any) -> _Record:
    return record._replace(primal=record.primal * unit, gap=record.gap * unit, objective=record.objective * unit)


def _progress(iteration: int, look: _Record, unit: float, at_zero: float, seconds: float) -> Progress:
    return Progress(
        iteration=iteration,
        primal=float(look.primal) * unit,
        gap=float(look.gap) * unit,
        relative_gap=float(look.gap) / (at_zero or 1.0),
        num_active=int(look.num_active),
        seconds=seconds,
    )
