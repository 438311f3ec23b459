"""Solving a program whose rows are on disk, in few passes over them: by models from a sample of the rows.

Each step minimises a model in memory, evaluates the weights found in one pass over all rows, with their certificate,
and goes from the base of the model towards them as far as the objective falls. Along lines between points that are
known it is known exactly, as the squared loss is a quadratic whose gradients at both ends are known.

See docs/mathematics.md, M7 and M9.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from fixntk._checks import is_tracing, to_device
from fixntk._compilation import jit_for_host
from fixntk._numerics import allow_float64
from fixntk._tiling import memory_for
from fixntk.convex import arguments, duality
from fixntk.convex.checkpoints import Keeper, Trace, open_keeper
from fixntk.convex.driver import GOAL_SHARE, Scale, history_of, run_loop
from fixntk.convex.penalties import NORMS, Penalty, group_norms
from fixntk.convex.progress import Interrupted, Progress, describe, progress_bar
from fixntk.convex.solution import Solution, is_active
from fixntk.convex.streamed.model import Point, Sample, SampleTaker, bytes_of_model, minimise_model
from fixntk.convex.streamed.program import StreamedProgram, Sums, bytes_of_tiles, sum_over_rows

# Largest number of passes over all rows, unless the caller gives one.
_MAX_PASSES = 100
# A model is minimised to a gap of at most this share of the one that is asked for.
_MODEL_GAP_SHARE = 0.3
# A model from a sample is minimised to no smaller gap than this share of the gap at its base.
_BASE_GAP_SHARE = 0.01
# Least damping of a model from a sample, in units of the mean second derivative.
_LEAST_DAMPING = 0.01
# A step is short below this length, in units of the step to the minimum of the model.
_SHORT_STEP = 0.3
# The damping is multiplied by this factor after a short step, and divided by it after a longer one.
_DAMPING_FACTOR = 4.0
# Longest step along the line to the minimum of a model, in units of the step to that minimum.
_LONGEST_STEP = 4.0
# Number of halvings of an interval that find the best step on the line.
_NUM_HALVINGS = 60
# The solve ends after this number of passes in a row that lower neither the objective, beyond rounding, nor the gap.
_MAX_IDLE = 4
# The gap counts as lower if it falls by this share.
_LEAST_GAIN = 0.01


class StreamedState(NamedTuple):
    """Where a streamed solve is, in NumPy arrays.

    Attributes
    ----------
    base
        Base of the next model: weights, correlations and loss in float64.
    last
        Base of the model before.
    weights
        (P, d, c) the weights with the smallest gap that a pass has evaluated, in the program's dtype.
    correlations, loss
        Those of these weights, in float64.
    intercept
        (c,) the best intercept at these weights; zeros where the program has none.
    primal, gap
        Objective and duality gap of these weights.
    objective
        Objective at the base.
    damping
        Damping of the next model, in units of the mean second derivative.
    num_idle
        Number of passes in a row, up to the last one, that lowered neither the objective nor the gap.
    """

    base: Point
    last: Point
    weights: Float[np.ndarray, "P d c"]
    correlations: Float[np.ndarray, "P d c"]
    loss: Float[np.ndarray, ""]
    intercept: Float[np.ndarray, " c"]
    primal: Float[np.ndarray, ""]
    gap: Float[np.ndarray, ""]
    objective: Float[np.ndarray, ""]
    damping: Float[np.ndarray, ""]
    num_idle: Int[np.ndarray, ""]


def solve_streamed(
    program: StreamedProgram,
    *,
    tol: float | None,
    max_iter: int | None,
    init: ArrayLike | Solution | None,
    callback: Callable[[Progress], bool | None] | None,
    progress: bool,
    checkpoint: str | os.PathLike[str] | None,
) -> Solution:
    """The certified solution; arguments and errors are those of :func:`fixntk.solve`, an iteration is a pass."""
    tol, max_iter = as_streamed_stopping(program, tol, max_iter)
    start = _starting_weights(program, init)
    with memory_of_solve(program), progress_bar("solve (streamed)", shown=progress) as show:
        read = read_rows(program, start, is_kept=checkpoint is not None)
        keeper = open_streamed_checkpoints(program, checkpoint, "streamed solve", read, reg=program.reg, init=start)

        def watch(seen: Progress) -> None:
            show(seen.iteration, describe(seen.relative_gap, seen.num_active))

        state = first_state(program, start, read.sums)
        watching = watch if progress else None
        trace, is_interrupted = _run(
            program, read, state, tol, max_iter, callback=callback, watch=watching, keeper=keeper
        )
    solution = _as_solution(program, trace, read.sums.loss_at_zero, tol)
    if is_interrupted:
        raise Interrupted(solution)
    return solution


def solve_from_state(
    program: StreamedProgram, read: FirstPass, state: StreamedState, tol: float, max_iter: int
) -> tuple[Solution, StreamedState]:
    """The certified solution from where another solve of the same rows has come, and where this one ends."""
    trace, _ = _run(program, read, state, tol, max_iter)
    return _as_solution(program, trace, read.sums.loss_at_zero, tol), trace.state


def check_streamed_call(method: str, *values: Any) -> None:
    """Raise ValueError for any method but "auto", and under ``jit`` and ``vmap``, where a value is traced or not."""
    if method != "auto":
        raise ValueError(f"method must be 'auto' for a StreamedProgram, which has one method, got {method!r}")
    if is_tracing(*values):
        raise ValueError("a StreamedProgram reads files on the host: not under jit or vmap")


def as_streamed_stopping(program: StreamedProgram, tol: float | None, max_iter: int | None) -> tuple[float, int]:
    """The tolerance and the largest number of passes, with defaults for None."""
    return arguments.as_stopping(tol, max_iter, program.dtype, _MAX_PASSES)


def memory_of_solve(program: StreamedProgram) -> AbstractContextManager[Any]:
    """Where a solve runs, so that it is known how much memory it needs."""
    needed = bytes_of_tiles(program) + bytes_of_model(program)
    return memory_for(f"the solve of {program!r}", needed, "pass a smaller tile_rows, or take fewer gates")


def _run(
    program: StreamedProgram, read: FirstPass, state: StreamedState, tol: float, max_iter: int, **options: Any
) -> tuple[Trace, bool]:
    """Passes until the tolerance is reached; ``options`` are those of the loop that all methods share."""

    def run(state: StreamedState, goal: float, *_: Any, step: int) -> tuple[int, StreamedState, np.ndarray]:  # noqa: ARG001
        state = _step(program, read.sample, read.sums.columns, state, goal)
        return 1, state, _record_row(state)[None]

    at_zero = read.sums.loss_at_zero
    return run_loop(run, state, _record_row(state), Scale(GOAL_SHARE * tol * at_zero, at_zero), max_iter, **options)


def _starting_weights(program: StreamedProgram, init: ArrayLike | Solution | None) -> Float[np.ndarray, "P d c"]:
    if init is None:
        return np.zeros(program.group_shape, program.dtype)
    weights = init.weights if isinstance(init, Solution) else init
    groups = arguments.as_groups("init", weights, program.group_shape, is_vector=program.is_vector)
    return np.asarray(groups, program.dtype)


class FirstPass(NamedTuple):
    """What the first pass over the rows gives, which serves for every λ.

    Attributes
    ----------
    sums
        Those at the weights of the start.
    sample
        Rows of the models.
    digests
        Of x and y, where checkpoints need them.
    """

    sums: Sums
    sample: Sample
    digests: dict[str, str]


def read_rows(program: StreamedProgram, start: np.ndarray, *, is_kept: bool) -> FirstPass:
    """The first pass, with digests if ``is_kept``."""
    taker = SampleTaker(program)
    hashes = {name: hashlib.sha256() for name in ("x", "y")}

    def look(begin: int, x: np.ndarray, y: np.ndarray, roots: np.ndarray | None) -> None:
        taker.look(begin, x, roots)
        if is_kept:
            hashes["x"].update(x.data)
            hashes["y"].update(y.data)

    sums = sum_over_rows(program, start, look=look)
    return FirstPass(sums, taker.sample(), {name: found.hexdigest() for name, found in hashes.items()})


def open_streamed_checkpoints(
    program: StreamedProgram, folder: str | os.PathLike[str] | None, of: str, read: FirstPass, **options: Any
) -> Keeper | None:
    """The keeper of a computation on a program, as :func:`~fixntk.convex.checkpoints.open_checkpoints` for others."""
    if folder is None:
        return None
    # Digests are kept as numbers, because texts cannot be leaves of the pytrees that are compared.
    data = {name: np.frombuffer(bytes.fromhex(text), np.uint8) for name, text in read.digests.items()}
    shapes = {"x": program.x.shape, "y": program.y.shape}
    named = {name: (data[name], *shapes[name]) for name in data}
    numbers = {name: np.asarray(value) for name, value in {"intercept": program.intercept, **options}.items()}
    return open_keeper(folder, of, {**named, "gates": program.gates, **numbers})


def first_state(program: StreamedProgram, start: np.ndarray, sums: Sums) -> StreamedState:
    """Where a solve starts, from the sums at its first weights."""
    base = Point(start.astype(np.float64), sums.correlations, np.asarray(sums.loss))
    primal, gap = _certificate(base, program.reg)
    damping, intercept = np.asarray(_LEAST_DAMPING), _intercept_of(sums)
    return StreamedState(base, base, start, *base[1:], intercept, primal, gap, primal, damping, np.asarray(0))


def state_at_reg(program: StreamedProgram, state: StreamedState) -> StreamedState:
    """Where the solve at the program's λ starts after one at another λ has ended: at its weights, without a pass.

    Neither the correlations of weights nor their loss depend on λ.
    """
    base = Point(state.weights.astype(np.float64), state.correlations, state.loss)
    primal, gap = _certificate(base, program.reg)
    return state._replace(base=base, last=base, primal=primal, gap=gap, objective=primal, num_idle=np.asarray(0))


def _intercept_of(sums: Sums) -> Float[np.ndarray, " c"]:
    return np.zeros(sums.correlations.shape[2]) if sums.intercept is None else sums.intercept


def _step(
    program: StreamedProgram, sample: Sample, columns: np.ndarray | None, state: StreamedState, goal: float
) -> StreamedState:
    """Minimise a model, evaluate the weights found in a pass, and go towards them."""
    wanted, damping = _MODEL_GAP_SHARE * goal, 0.0
    # A sample of all rows makes the model exact.
    if not sample.is_whole:
        _, base_gap = _certificate(state.base, program.reg)
        wanted, damping = max(wanted, _BASE_GAP_SHARE * float(base_gap)), float(state.damping)
    weights = minimise_model(program, sample, state.base, damping, wanted)
    sums = sum_over_rows(program, weights, columns=columns)
    found = Point(weights.astype(np.float64), sums.correlations, np.asarray(sums.loss))
    primal, gap = _certificate(found, program.reg)
    middle, length = _best_between(state.base, found, program.reg)
    # A second line, through the base before, makes this the method of parallel tangents (Shah, Buehler and Kempthorne
    # 1964), which has conjugate directions on a quadratic: it helps where the sample is small.
    base, _ = _best_between(state.last, middle, program.reg)
    factor = _DAMPING_FACTOR if length < _SHORT_STEP else 1 / _DAMPING_FACTOR
    next_damping = np.asarray(max(_LEAST_DAMPING, factor * float(state.damping)))
    objective, _ = _certificate(base, program.reg)
    rounding = float(jnp.finfo(program.dtype).eps) * sums.loss_at_zero
    is_gain = objective < state.objective - rounding or gap < (1 - _LEAST_GAIN) * state.gap
    num_idle = np.asarray(0 if is_gain else state.num_idle + 1)
    best = (weights, *found[1:], _intercept_of(sums), primal, gap)
    if gap >= state.gap:
        best = (state.weights, state.correlations, state.loss, state.intercept, state.primal, state.gap)
    return StreamedState(base, state.base, *best, objective, next_damping, num_idle)


def _best_between(base: Point, found: Point, reg: float) -> tuple[Point, float]:
    """The point of the least objective on the line from the base through another, and the length of the step to it."""
    step = found.weights - base.weights
    slope = -np.sum(base.correlations * step)
    curvature = np.sum((base.correlations - found.correlations) * step)
    # Squared norms along the line are a + 2bt + ct².
    pairs = ((base.weights, base.weights), (base.weights, step), (step, step))
    a, b, c = (np.sum(one * other, axis=(1, 2)) for one, other in pairs)

    def derivative(length: float) -> float:
        norms = np.sqrt(np.maximum(a + length * (2 * b + length * c), 0))
        safe = np.where(norms > 0, norms, 1.0)
        return slope + length * curvature + reg * np.sum(np.where(norms > 0, (b + length * c) / safe, 0.0))

    low, high = 0.0, _LONGEST_STEP
    for _ in range(_NUM_HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if derivative(middle) > 0 else (middle, high)
    length = 0.5 * (low + high)
    best = Point(
        base.weights + length * step,
        base.correlations + length * (found.correlations - base.correlations),
        np.asarray(base.loss + length * slope + 0.5 * length**2 * curvature),
    )
    return best, length


def _certificate(point: Point, reg: float) -> tuple[Float[np.ndarray, ""], Float[np.ndarray, ""]]:
    """Objective and duality gap, in float64."""
    with allow_float64():
        found = _certify(*(to_device(np.asarray(value, np.float64)) for value in (*point, reg)))
        return np.asarray(found[0]), np.asarray(found[1])


@jit_for_host
def _certify(weights: Array, correlations: Array, loss: Array, reg: Array) -> tuple[Array, Array]:
    penalty = Penalty(NORMS["frobenius"], reg, None)
    # The divergence of the squared loss is (1 − s)² times the loss.
    found = duality.certify_groups(penalty, weights, correlations, lambda scale: (1 - scale) ** 2 * loss)
    return loss + penalty.value(weights), found.gap


def _record_row(state: StreamedState) -> Float[np.ndarray, " 6"]:
    """A row of the loop's record: primal, gap, active groups, objective, whether rounding ended it, kind of step."""
    num_active = np.sum(np.asarray(is_active(to_device(state.weights))))
    return np.asarray(
        [state.primal, state.gap, num_active, state.objective, state.num_idle >= _MAX_IDLE, 0], np.float64
    )


def _as_solution(program: StreamedProgram, trace: Any, at_zero: float, tol: float) -> Solution:
    state: StreamedState = trace.state
    relative_gap = float(state.gap) / (at_zero or 1.0)
    weights = to_device(np.asarray(state.weights))

    def number(value: Any) -> Array:
        return jax.device_put(np.asarray(value, program.dtype))

    return Solution(
        weights=weights,
        intercept=number(state.intercept) if program.intercept else None,
        kernel_weights=group_norms(weights),
        primal=number(state.primal),
        dual=number(state.primal - state.gap),
        gap=number(state.gap),
        relative_gap=number(relative_gap),
        iterations=jax.device_put(np.asarray(len(trace.record) - 1)),
        converged=jax.device_put(np.asarray(relative_gap <= tol)),
        failed=jax.device_put(np.asarray(state.num_idle >= _MAX_IDLE)),
        history=history_of(trace, 1.0, program.dtype),
        method="streamed",
        tol=tol,
        squeeze=program.is_vector,
    )
