"""One entry to all solvers, and the one loop that drives them: history, stopping, certificate, callback (M7)."""

from __future__ import annotations

import operator
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from fixntk._checks import check_memory, is_traced
from fixntk._warnings import ConvergenceWarning
from fixntk.convex.penalties import group_norms
from fixntk.convex.program import ConvexProgram, Point
from fixntk.convex.solution import History, Solution, is_active
from fixntk.convex.solvers import anderson, fista, irls, newton, prox_newton


class Method(NamedTuple):
    """A solver: ``init(program, start, …) -> state``, ``step(program, state) -> state``, the default number of steps.

    A state is a pytree with ``weights``, ``primal``, ``gap``, ``objective`` and ``failed``; for methods that work on
    kernel weights also with ``kernel_weights``. Where there are phases, ``state.phase`` says which of them the next
    step is; each is compiled when it comes.
    """

    init: Callable[..., Any]
    step: Callable[[ConvexProgram, Any], Any]
    max_iter: int
    phases: tuple[Callable[[ConvexProgram, Any], Any], ...] = ()


METHODS = {
    "irls": Method(irls.init, irls.step, 300),
    "anderson": Method(anderson.init, anderson.step, 300),
    "fista": Method(fista.init, fista.step, 20_000),
    "newton": Method(newton.init, newton.step, 200, newton.PHASES),
}

# Methods that start at kernel weights.
REWEIGHTING = ("irls", "anderson")

# What "newton" is for losses other than the squared one.
_PROX_NEWTON = Method(prox_newton.init, prox_newton.step, 200)

# What "newton" is on the part of a program that a path works on: no first-order steps, and one size.
_REFINEMENT = "refinement"

# Steps made between two looks at the clock.
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


def solve(
    program: ConvexProgram,
    *,
    method: str = "auto",
    tol: float = 1e-6,
    max_iter: int | None = None,
    init: ArrayLike | Solution | None = None,
    epsilon: float | None = None,
    callback: Callable[[Progress], bool | None] | None = None,
) -> Solution:
    """Solve the convex program to a certified relative gap (M5–M7).

    Works under ``jit`` and ``vmap``: a grid over λ, folds and seeds of one shape is one call,
    ``jax.vmap(lambda reg: solve(ConvexProgram(x, y, masks, reg), method="irls"))(regs)``. There the history is padded
    with NaN, seconds are not measured, and nothing warns: look at ``converged``. Forward derivatives (``jax.jvp``) go
    through FISTA and IRLS; reverse ones do not, for the number of iterations is open.

    Parameters
    ----------
    program
        The problem.
    method
        ``"irls"``: the paper's Algorithm 1 from the NTK's weights, a masked Gram kernel and a Cholesky factorisation a
        step; the path from the NTK to the optimum, sublinear near its end. ``"anderson"``: the same with Anderson
        acceleration and ε shrinking to its last value, two such steps in one. ``"fista"``: accelerated proximal
        gradient with restart, two products with the masks a step. ``"newton"``: first-order steps on working sets, then
        semismooth Newton on the dual augmented Lagrangian, where a step costs a masked Gram kernel of the active groups
        and a Cholesky factorisation, or conjugate gradients where that is cheaper; for other losses than the squared
        one proximal Newton, each step of which solves a program of the squared loss so. ``"auto"``: Newton; FISTA for
        the nuclear norm and the softmax, and under ``jit`` and ``vmap``, where Newton's sizes cannot follow the number
        of active groups.
    tol
        Relative gap to reach, as a share of the objective of W = 0, ½‖Y‖² for the squared loss. In float32, rounding of
        the certificate itself is 1e-6 to 1e-5.
    max_iter
        Largest number of iterations; 300 for IRLS and Anderson, 20,000 for FISTA, 200 for Newton when None.
    init
        Where to start. IRLS, Anderson: (P,) kernel weights, the NTK's; 1/P each when None, which they are for sampled
        gates. FISTA and Newton: (P, d, c) group weights; zero when None. A Solution for any.
    epsilon
        IRLS's ε in sqrt(‖W_p‖² + ε), in squared units of W; when None such that it costs a tenth of ``tol``.
    callback
        Called with a :class:`Progress` at the start and after each iteration; a true answer stops. Costs a trip to the
        host each time. Not under ``jit`` and ``vmap``.

    Returns
    -------
    Solution
        With the certificate, computed anew from its weights. Where λ is at or above λ_max, W = 0 at once from any
        method's own start; the message says so.

    Raises
    ------
    ValueError
        If the method is unknown or not for this loss or norm, ``tol`` is below what the dtype can reach, ``init`` does
        not fit, an option does not belong to the method, or IRLS's matrices not into memory. LinAlgError, a ValueError,
        if the first kernel matrix cannot be factorised.

    Warns
    -----
    ConvergenceWarning
        If the relative gap is above ``tol`` at the end.

    Examples
    --------
    >>> import jax, fixntk as fx
    >>> x = jax.random.normal(jax.random.key(0), (50, 3))
    >>> masks = fx.activation_masks(x, fx.sample_gates(jax.random.key(1), 20, 3))
    >>> program = fx.ConvexProgram(x, abs(x[:, 0]), masks, reg=0.1)
    >>> solution = fx.solve(program, tol=1e-4)
    >>> bool(solution.converged), bool(solution.dual <= solution.primal)
    (True, True)
    """
    if not isinstance(program, ConvexProgram):
        raise TypeError(f"program must be a ConvexProgram, got {type(program).__name__}")
    traced = is_traced(program, init)
    program = program.canonical()
    # The softmax's second derivatives are a matrix for each row, which proximal Newton only bounds.
    is_first_order = traced or program.norm.name == "nuclear" or program.loss.name == "softmax"
    name = ("fista" if is_first_order else "newton") if method == "auto" else method
    tol, max_iter = _as_options(program, name, tol, max_iter, epsilon)
    _check_supported(program, name)
    if traced and callback is not None:
        raise ValueError("callback cannot be called under jit or vmap")
    start = _starting_point(program, name, init)
    if name in REWEIGHTING and not traced and bool(_is_zero_optimal(program)):
        # FISTA starts at W = 0 and sees it there.
        return replace(solve(program, method="fista", tol=tol, callback=callback), method=name)
    extra = (_epsilon(program, epsilon, tol),) if name in REWEIGHTING else ()
    state, history = _start(program, start, extra, name, max_iter if traced else _room(max_iter))
    if traced:
        iterations, state, history = _advance(program, jnp.asarray(0), state, history, max_iter, name=name, tol=tol)
        return _certify(program, state, iterations, history, name, tol)[0]
    if bool(state.failed) and name in REWEIGHTING:
        raise np.linalg.LinAlgError(
            f"the kernel matrix of the start is not positive definite in {program.x.dtype} even with jitter: "
            f"raise reg (λ = {float(program.reg):.3g}), rescale x, or use float64"
        )
    iterations, state, history = _drive(program, state, history, name, max_iter, tol, callback)
    solution = _trimmed(_certify(program, state, iterations, history, name, tol)[0])
    if not bool(solution.converged):
        warnings.warn(solution.message, ConvergenceWarning, stacklevel=2)
    return solution


def solve_part(
    program: ConvexProgram,
    part: ConvexProgram,
    whole: Callable[[Array], Array],
    method: str,
    tol: float,
    max_iter: int | None,
    start: Array,
) -> tuple[Solution, Point]:
    """:func:`solve` on a part of a program's groups most of which are active, certified on all; it does not warn.

    ``whole`` makes weights of the program from those of the part. With the squared loss it compiles much less. Also
    the point that the certificate is of.
    """
    if method not in ("auto", "newton") or not part.is_quadratic or part.norm.name != "frobenius":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            solution = solve(part, method=method, tol=tol, max_iter=max_iter, init=start)
        iterations, state, history, method = solution.iterations, solution, solution.history, solution.method
    else:
        method = "newton"
        tol, max_iter = _as_options(part, method, tol, max_iter, None)
        state, history = _start(part, start, (), _REFINEMENT, _room(max_iter))
        iterations, state, history = _drive(part, state, history, _REFINEMENT, max_iter, tol, is_timed=False)
    found = _Found(whole(state.weights), state.failed)
    solution, point = _certify(program, found, iterations, history, method, tol)
    return _trimmed(solution), point


@jax.jit
def _is_zero_optimal(program: ConvexProgram) -> Array:
    return program.reg >= program.max_reg()


class _Found(NamedTuple):
    """What a certificate needs of a state."""

    weights: Array
    failed: Array


def _method(program: ConvexProgram, name: str) -> Method:
    if name == _REFINEMENT:
        return METHODS["newton"]._replace(phases=newton.REFINEMENT)
    return _PROX_NEWTON if name == "newton" and not program.is_quadratic else METHODS[name]


def _check_supported(program: ConvexProgram, name: str) -> None:
    if name in REWEIGHTING and not program.is_quadratic:
        raise ValueError(
            f"method {name!r} is for the squared loss, not for {program.loss.name}: use 'newton' or 'fista'"
        )
    if name != "fista" and program.norm.name != "frobenius":
        raise ValueError(f"method {name!r} is for norm 'frobenius', not for {program.norm.name!r}: use 'fista'")
    if name in REWEIGHTING:
        rows = program.x.shape[0]
        # The kernel, shifted, and its factor.
        needed = 3 * rows**2 * program.x.dtype.itemsize
        check_memory(f"method {name!r} with its {rows}×{rows} matrices needs", needed, "use 'newton' or 'fista'")


def _as_options(program: ConvexProgram, name: str, tol: Any, max_iter: Any, epsilon: Any) -> tuple[float, int]:
    """Check the options; return the tolerance and the largest number of iterations as plain numbers."""
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(f"method must be one of auto, {', '.join(METHODS)}, got {name!r}")
    tol = _as_number("tol", tol)
    reachable = 4 * float(jnp.finfo(program.x.dtype).eps)
    if not reachable <= tol < float("inf"):
        raise ValueError(f"tol={tol} is not finite or below what {program.x.dtype} can reach, {reachable:.1e}")
    if max_iter is None:
        max_iter = METHODS[name].max_iter
    elif not hasattr(max_iter, "__index__"):
        raise TypeError(f"max_iter must be an integer, got {type(max_iter).__name__}")
    if (max_iter := operator.index(max_iter)) < 0:
        raise ValueError(f"max_iter must not be negative, got {max_iter}")
    if epsilon is not None:
        if name not in REWEIGHTING:
            raise ValueError(f"epsilon belongs to methods 'irls' and 'anderson', not to {name!r}")
        if not 0 < _as_number("epsilon", epsilon) < float("inf"):
            raise ValueError(f"epsilon must be positive and finite, got {epsilon}")
    return tol, max_iter


def _as_number(name: str, value: Any) -> float:
    if isinstance(value, str) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    return float(value)


def _epsilon(program: ConvexProgram, epsilon: float | None, tol: float) -> Array:
    return irls.default_epsilon(program, tol) if epsilon is None else jnp.asarray(epsilon, program.x.dtype)


def _starting_point(program: ConvexProgram, name: str, init: ArrayLike | Solution | None) -> Array:
    if name in REWEIGHTING:
        if init is None:
            return jnp.full(program.num_gates, 1 / program.num_gates, program.x.dtype)
        return program.as_kernel_weights(init.kernel_weights if isinstance(init, Solution) else init)
    if init is None:
        return jnp.zeros(program.group_shape, program.x.dtype)
    return program.as_group_weights(init.weights if isinstance(init, Solution) else init)


def _room(max_iter: int) -> int:
    """Iterations that the history has room for: a power of two, so that few lengths are compiled."""
    return max(64, 1 << (max_iter - 1).bit_length())


@partial(jax.jit, static_argnames=("name", "room"))
def _start(program: ConvexProgram, start: Array, extra: tuple[Array, ...], name: str, room: int) -> tuple[Any, History]:
    state = _method(program, name).init(program, start, *extra)
    empty = jnp.full(room + 1, jnp.nan, program.x.dtype)
    return state, _record(History(empty, empty, empty, empty, empty), state, jnp.asarray(0))


def _record(history: History, state: Any, iteration: Array) -> History:
    return history._replace(
        primal=history.primal.at[iteration].set(state.primal),
        gap=history.gap.at[iteration].set(state.gap),
        num_active=history.num_active.at[iteration].set(jnp.sum(is_active(state.weights)).astype(state.gap.dtype)),
        objective=history.objective.at[iteration].set(state.objective),
    )


@jax.jit
def _goal(program: ConvexProgram, tol: float) -> Array:
    # A little below the tolerance, as the certificate is computed anew from the weights at the end.
    return 0.99 * tol * program.primal_at_zero()


@partial(jax.jit, static_argnames=("name", "phase"))
def _advance(
    program: ConvexProgram,
    iteration: Array,
    state: Any,
    history: History,
    until: int,
    *,
    name: str,
    tol: float,
    phase: int | None = None,
) -> tuple[Array, Any, History]:
    """Step until the gap is reached, arithmetic fails, ``until`` iterations are made in all, or the phase ends."""
    method = _method(program, name)
    step = method.step if phase is None else method.phases[phase]

    def unfinished(carry: tuple[Array, Any, History]) -> Array:
        iteration, state, _ = carry
        going_on = (iteration < until) & ~state.failed & ~(state.gap <= _goal(program, tol))
        return going_on if phase is None else going_on & (state.phase == phase)

    def stepped(carry: tuple[Array, Any, History]) -> tuple[Array, Any, History]:
        iteration, state, history = carry
        state = step(program, state)
        return iteration + 1, state, _record(history, state, iteration + 1)

    return lax.while_loop(unfinished, stepped, (iteration, state, history))


def _drive(
    program: ConvexProgram,
    state: Any,
    history: History,
    name: str,
    max_iter: int,
    tol: float,
    callback: Callable[[Progress], bool | None] | None = None,
    *,
    is_timed: bool = True,
) -> tuple[Array, Any, History]:
    """Run the loop in pieces, from the host, to see the clock and to call back.

    Seconds without compilation take a run of no steps first, which small programs feel.
    """
    has_phases = bool(_method(program, name).phases)
    goal = float(_goal(program, tol))
    iteration = jnp.asarray(0)
    seconds = [0.0]
    compiled: set[int | None] = set()
    while True:
        done = int(iteration)
        if callback is not None and callback(_progress(program, done, history, seconds[done])):
            break
        if done >= max_iter or bool(state.failed) or float(state.gap) <= goal:
            break
        phase = int(state.phase) if has_phases else None
        run = partial(_advance, name=name, tol=tol, phase=phase)
        if is_timed and phase not in compiled:
            run(program, iteration, state, history, 0)
            compiled.add(phase)
        began = time.perf_counter()
        until = min(max_iter, done + (1 if callback is not None else _STEPS_PER_LOOK))
        iteration, state, history = run(program, iteration, state, history, until)
        made = int(iteration) - done
        elapsed = time.perf_counter() - began
        seconds.extend(seconds[-1] + np.linspace(0, elapsed, made + 1)[1:])
    if not is_timed:
        return iteration, state, history
    times = np.full(history.seconds.shape, np.nan, history.seconds.dtype)
    times[: len(seconds)] = seconds
    return iteration, state, history._replace(seconds=jnp.asarray(times))


def _progress(program: ConvexProgram, iteration: int, history: History, seconds: float) -> Progress:
    gap = float(history.gap[iteration])
    return Progress(
        iteration=iteration,
        primal=float(history.primal[iteration]),
        gap=gap,
        relative_gap=gap / (float(program.primal_at_zero()) or 1.0),
        num_active=int(history.num_active[iteration]),
        seconds=seconds,
    )


def _certify(
    program: ConvexProgram, state: Any, iterations: Array, history: History, name: str, tol: float
) -> tuple[Solution, Point]:
    solution, point = _certified_at(program, state, iterations, history, name, tol)
    # The tolerance is part of a Solution's structure, so that inside it would compile anew for each.
    return replace(solution, tol=tol), point


@partial(jax.jit, static_argnames="name")
def _certified_at(
    program: ConvexProgram, state: Any, iterations: Array, history: History, name: str, tol: float
) -> tuple[Solution, Point]:
    """The Solution of a state, its certificate from the weights alone, whatever the solver believed.

    A λ ≤ 0 that came in traced, where it could not be refused, has no certificate.
    """
    point = program.point(state.weights)
    weights, fit, _ = point
    gap = program.certificate(*point).gap
    gap = jnp.where(program.reg > 0, gap, jnp.nan)
    primal = program.primal_of(weights, fit)
    at_zero = program.primal_at_zero()
    relative_gap = gap / jnp.where(at_zero > 0, at_zero, 1.0)
    solution = Solution(
        weights=weights,
        intercept=None if program.column is None else fit.intercept,
        kernel_weights=state.kernel_weights if name in REWEIGHTING else program.kernel_weights_of(group_norms(weights)),
        primal=primal,
        dual=primal - gap,
        gap=gap,
        relative_gap=relative_gap,
        iterations=iterations,
        converged=relative_gap <= tol,
        failed=state.failed | ~(program.reg > 0),
        history=history,
        method=name,
        tol=float("nan"),
        squeeze=program.y.ndim == 1,
    )
    return solution, point


def _trimmed(solution: Solution) -> Solution:
    # Cut by NumPy: JAX would compile a slice for each length.
    length = int(solution.iterations) + 1
    return replace(solution, history=History(*(jnp.asarray(np.asarray(v)[:length]) for v in solution.history)))
