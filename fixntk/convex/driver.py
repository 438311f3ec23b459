"""The loop that all methods of ``solve`` share, from the host or under a JAX transformation.

From the host, steps are small compiled functions. Between two of them the loop looks at the gap and the clock, and
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

from fixntk._compilation import jit_for_host, seconds_compiling
from fixntk._numerics import blas_threads_for
from fixntk._tiling import memory_for
from fixntk.convex.checkpoints import Keeper, Trace, restore_trace, save_trace
from fixntk.convex.method import Method, Step, step_any
from fixntk.convex.processes import first_says, spans_processes
from fixntk.convex.program import ConvexProgram
from fixntk.convex.progress import Progress
from fixntk.convex.solution import History, is_active

# The loop stops at this share of the gap that is asked for, because the certificate is recomputed at the end.
GOAL_SHARE = 0.99
# Steps after which the host looks at the gap, where steps are short.
_STEPS_PER_LOOK = 25


class Outcome(NamedTuple):
    """Where a solver ended.

    Attributes
    ----------
    weights
        (P, d, c) group weights, in their unit.
    unit
        The unit of the weights, by which they are multiplied when they are certified.
    kernel_weights
        (P,) η of a method that works on them; None otherwise.
    failed
        Whether arithmetic broke down.
    iterations
        Number of steps made.
    history
        One entry for the start and for each step; padded with NaN under ``jit`` and ``vmap``.
    is_interrupted
        Whether Ctrl-C ended it.
    """

    weights: Float[Array, "P d c"]
    unit: Float[Array, ""]
    kernel_weights: Float[Array, " P"] | None
    failed: Array
    iterations: Array
    history: History
    is_interrupted: bool = False


def run_traced(
    program: ConvexProgram, method: Method, start: Array, epsilon: Array | None, tol: float, max_iter: int
) -> Outcome:
    """The whole loop as one traceable computation."""
    prepared, state, first, scale = _start(program, start, epsilon, tol, method=method)
    # There is room for one step at least, as an empty array cannot be written to even where no step is made.
    room = max(max_iter, 1)
    iterations, end, record = _advance(prepared, state, scale.goal, max_iter, method=method, step=None, room=room)
    record = jnp.concatenate([first[None], record[:max_iter]])
    history = _history(record, jnp.full(max_iter + 1, jnp.nan, program.x.dtype), scale.unit)
    return _outcome(method, end, scale.weights_unit, iterations, history)


def run_from_host(
    program: ConvexProgram,
    method: Method,
    start: Array,
    epsilon: Array | None,
    tol: float,
    max_iter: int,
    *,
    callback: Callable[[Progress], bool | None] | None = None,
    watch: Callable[[Progress], None] | None = None,
    keeper: Keeper | None = None,
    is_timed: bool = True,
    num_rows: int | None = None,
) -> Outcome:
    """The loop in compiled functions, between which the host looks at the gap and the clock.

    ``callback`` is called after each step, ``watch`` after each look, of which there are fewer where steps are short;
    with one of them Ctrl-C ends the loop as a true answer of the callback does. ``keeper`` writes checkpoints at looks,
    and one at the end, whatever ends the loop. Without ``is_timed`` the history has no seconds. ``num_rows`` is what an
    error says, where rows have been added.
    """
    what = f"method {method.name!r} on {num_rows or program.x.shape[0]} rows and {program.num_gates} gates"
    memory = memory_for(what, method.bytes_needed(program), method.memory_remedy, program, start)
    with memory, blas_threads_for(program.y.size):
        prepared, state, first, scale = _start(program, start, epsilon, tol, method=method)
        run = _runner(prepared, method)
        trace, is_interrupted = run_loop(
            run, state, first, scale, max_iter, callback=callback, watch=watch, keeper=keeper
        )
    history = history_of(trace, float(scale.unit), program.x.dtype, is_timed=is_timed)
    iterations = jax.device_put(np.asarray(len(trace.record) - 1))
    outcome = _outcome(method, trace.state, scale.weights_unit, iterations, history)
    return outcome._replace(is_interrupted=is_interrupted)


def run_loop(
    run: Callable[..., tuple[Any, Any, Any]],
    state: Any,
    first: Array | np.ndarray,
    scale: Scale,
    max_iter: int,
    *,
    callback: Callable[[Progress], bool | None] | None = None,
    watch: Callable[[Progress], None] | None = None,
    keeper: Keeper | None = None,
) -> tuple[Trace, bool]:
    """Steps from a state and its row of the record, and whether Ctrl-C ended them.

    ``run(state, goal, limit, step=…)`` makes at most ``limit`` steps of a kind; it returns their number, the state
    after them, and a row of the record for each. The other arguments are those of :func:`run_from_host`.
    """
    goal, at_zero, unit = float(scale.goal), float(scale.at_zero), float(scale.unit)
    # Whatever one process decides by itself, by its clock or a callback, the first decides for all of them.
    is_shared = spans_processes(state)
    logged = _Log.begin(state, first) if keeper is None else _Log.resume(keeper, state, first)
    is_interrupted = is_over = False
    try:
        while True:
            look = _Look(*logged.records[-1][-1].tolist())
            progress = _progress(logged.done, look, unit, at_zero, logged.seconds[-1])
            if watch is not None:
                watch(progress)
            if callback is not None and _is_stopped(callback, progress, is_shared=is_shared):
                break
            if logged.done >= max_iter or look.failed or look.gap <= goal:
                break
            if keeper is not None and keeper.is_due():
                save_trace(keeper, logged.trace())
            # A callback is called after every step; otherwise short steps run in batches between two looks.
            limit = 1 if callback is not None else min(max_iter - logged.done, _STEPS_PER_LOOK)
            began, compiling = time.perf_counter(), seconds_compiling()
            made, state, record = run(logged.state, scale.goal, limit, step=int(look.next_step))
            record = np.asarray(record)[: int(made)]
            # The history has the time of the steps; compiling would hide it in a first call.
            logged.add(state, record, time.perf_counter() - began - (seconds_compiling() - compiling))
        is_over = True
    except KeyboardInterrupt:
        if is_shared or (callback is None and watch is None):
            raise
        is_interrupted = True
    finally:
        # A checkpoint needs every process, and after an error one of them may be gone.
        if keeper is not None and (is_over or not is_shared):
            save_trace(keeper, logged.trace())
    return logged.trace(), is_interrupted


def _is_stopped(callback: Callable[[Progress], bool | None], progress: Progress, *, is_shared: bool) -> bool:
    answer = bool(callback(progress))
    return first_says(answer) if is_shared else answer


def history_of(trace: Trace, unit: float, dtype: Any, *, is_timed: bool = True) -> History:
    """The history of a solve whose record is in a unit; without ``is_timed`` it has no seconds."""
    times = trace.seconds if is_timed else np.full_like(trace.seconds, np.nan)
    history = _history(np.asarray(trace.record, dtype), np.asarray(times, dtype), unit)
    # Eager operations of JAX would each be compiled.
    return jax.device_put(history)


class _Log:
    """The last state of a solve, and what the loop has recorded of all of them.

    An interruption between two of its lines leaves rows of a step too many, which are not among the ``done``.
    """

    def __init__(self, trace: Trace) -> None:
        self.records, self.seconds = [trace.record], trace.seconds.tolist()
        self._reached = (len(trace.record) - 1, trace.state)

    @classmethod
    def begin(cls, state: Any, first: Array | np.ndarray) -> _Log:
        return cls(Trace(state, np.asarray(first)[None], np.zeros(1)))

    @classmethod
    def resume(cls, keeper: Keeper, state: Any, first: Array | np.ndarray) -> _Log:
        """From the newest checkpoint, if there is one."""
        trace = restore_trace(keeper, state)
        return cls.begin(state, first) if trace is None else cls(trace)

    @property
    def done(self) -> int:
        return self._reached[0]

    @property
    def state(self) -> Any:
        return self._reached[1]

    def add(self, state: Any, record: Float[np.ndarray, "k 6"], seconds: float) -> None:
        """Enter k steps and the seconds that they took together."""
        self.records.append(record)
        self.seconds.extend(self.seconds[-1] + np.linspace(0, max(seconds, 0.0), len(record) + 1)[1:])
        self._reached = (self.done + len(record), state)

    def trace(self) -> Trace:
        rows = self.done + 1
        return Trace(self.state, np.concatenate(self.records)[:rows], np.asarray(self.seconds[:rows]))


class _Look(NamedTuple):
    """A row of a record on the host."""

    primal: float
    gap: float
    num_active: float
    objective: float
    failed: float
    next_step: float


class Scale(NamedTuple):
    """The gap at which the loop stops and the objective of W = 0, in the prepared program's units, and these units."""

    goal: Float[Array, ""] | float
    at_zero: Float[Array, ""] | float
    unit: Float[Array, ""] | float = 1.0
    weights_unit: Float[Array, ""] | float = 1.0


def _runner(program: ConvexProgram, method: Method) -> Callable[..., tuple[Any, Any, Any]]:
    """A function of (state, goal, limit, step) that makes steps of one kind from the host.

    It returns the number made, at most ``limit``, the state after them, and a row of the record for each. The step of a
    method whose steps are long is strung together by the host, one at a time.
    """
    if not method.steps_from_host(program):
        return partial(_advance, program, method=method, room=_STEPS_PER_LOOK)
    return partial(_make_one, program, method.steps(program))


def _make_one(
    program: ConvexProgram, steps: tuple[Step, ...], state: Any, *_: Any, step: int
) -> tuple[int, Any, Float[np.ndarray, "1 6"]]:
    """One step, whatever the goal and the limit are."""
    state = steps[step](program, state)
    return 1, state, np.asarray(_record_row(state))[None]


def _history(record: Any, seconds: Any, unit: Array | float) -> History:
    """A history of JAX or of NumPy arrays."""
    primal, gap, num_active, objective, *_ = record.T
    return History(primal * unit, gap * unit, num_active, seconds, objective * unit)


def _outcome(method: Method, state: Any, unit: Array, iterations: Array, history: History) -> Outcome:
    kernel_weights = state.kernel_weights if method.reweights else None
    return Outcome(state.weights, unit, kernel_weights, state.failed, iterations, history)


@partial(jit_for_host, static_argnames=("method",))
def _start(
    program: ConvexProgram, start: Array, epsilon: Array | None, tol: Array | float, *, method: Method
) -> tuple[ConvexProgram, Any, Array, Scale]:
    """The program that the loop works on, the first state, a row of the record, and the scale."""
    # Units are changed here, once a solve: the loop sees data of order one.
    prepared, units = method.prepare(program)
    state = method.init(prepared, start if method.reweights else start / units.weights, epsilon)
    at_zero = prepared.primal_at_zero()
    return (
        prepared,
        state,
        _record_row(state),
        Scale(GOAL_SHARE * tol * at_zero, at_zero, units.objective, units.weights),
    )


@partial(jit_for_host, static_argnames=("method", "step", "room"), optimised=True)
def _advance(
    program: ConvexProgram, state: Any, goal: Array, limit: ArrayLike, *, method: Method, step: int | None, room: int
) -> tuple[Array, Any, Array]:
    """Steps until the gap is reached, arithmetic fails, ``limit`` are made, or another kind of step comes next.

    With ``step`` None, steps of any kind. Also the number made, and their record, ``room`` rows.
    """
    make_step = partial(step_any, method) if step is None else method.steps(program)[step]

    def is_unfinished(carry: tuple[Array, Any, Array]) -> Array:
        made, state, _ = carry
        is_wanted = (made < limit) & ~state.failed & ~(state.gap <= goal)
        return is_wanted if step is None else is_wanted & (_next_step(state) == step)

    def advance(carry: tuple[Array, Any, Array]) -> tuple[Array, Any, Array]:
        made, state, record = carry
        state = make_step(program, state)
        return made + 1, state, record.at[made].set(_record_row(state))

    # Rows of steps that are not made are NaN where they cannot be cut off, as under jit. Elsewhere zeros keep
    # jax_debug_nans from taking them for errors.
    empty = jnp.full((room, len(_Look._fields)), jnp.nan if step is None else 0.0, state.gap.dtype)
    return lax.while_loop(is_unfinished, advance, (jnp.asarray(0), state, empty))


def _next_step(state: Any) -> Array | int:
    return getattr(state, "next_step", 0)


@jit_for_host
def _record_row(state: Any) -> Float[Array, " 6"]:
    """A row of the record, in the order of :class:`_Look`."""
    num_active = jnp.sum(is_active(state.weights))
    seen = (state.primal, state.gap, num_active, state.objective, state.failed, _next_step(state))
    return jnp.stack([jnp.asarray(value, state.gap.dtype) for value in seen])


def _progress(iteration: int, look: _Look, unit: float, at_zero: float, seconds: float) -> Progress:
    return Progress(
        iteration=iteration,
        primal=look.primal * unit,
        gap=look.gap * unit,
        relative_gap=look.gap / (at_zero or 1.0),
        num_active=int(look.num_active),
        seconds=seconds,
    )
