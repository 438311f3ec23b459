"""The entry to all solvers: options, choice of the method, and the certificate of the result."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from fixntk._checks import is_tracing, to_device
from fixntk._compilation import jit_for_host
from fixntk._numerics import ConvergenceWarning, ignore_convergence_warnings
from fixntk.convex import arguments, driver
from fixntk.convex.checkpoints import open_checkpoints
from fixntk.convex.driver import Outcome
from fixntk.convex.duality import Evaluation
from fixntk.convex.kernel_form import as_kernel_weights, weights_of_norms
from fixntk.convex.method import Method
from fixntk.convex.padding import with_padded_rows
from fixntk.convex.penalties import group_norms
from fixntk.convex.processes import check_same_call, explain_lost_process, spans_processes, to_this_process
from fixntk.convex.program import ConvexProgram, absorb_sample_weight, as_group_weights, group_shape_of, is_quadratic
from fixntk.convex.progress import Interrupted, Progress, describe, progress_bar
from fixntk.convex.solution import Solution
from fixntk.convex.solvers import anderson, fista, irls, newton, prox_newton
from fixntk.convex.streamed.program import StreamedProgram
from fixntk.convex.streamed.solve import check_streamed_call, solve_streamed

# In the order in which they are offered. Newton for other losses than the squared one is proximal Newton.
METHODS = {method.name: method for method in (irls.METHOD, anderson.METHOD, fista.METHOD, newton.METHOD)}


def solve(
    program: ConvexProgram | StreamedProgram,
    *,
    method: str = "auto",
    tol: float | None = None,
    max_iter: int | None = None,
    init: ArrayLike | Solution | None = None,
    epsilon: float | None = None,
    callback: Callable[[Progress], bool | None] | None = None,
    progress: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Solution:
    """Solve the convex program to a certified relative gap.

    Works under ``jit`` and ``vmap``: a grid over λ, folds and seeds of one shape is one call,
    ``jax.vmap(lambda reg: solve(ConvexProgram(x, y, masks, reg), method="irls"))(regs)``. There the history is padded
    with NaN, seconds are not measured, and nothing warns: look at ``converged``. Forward derivatives (``jax.jvp``) go
    through FISTA and IRLS; reverse ones do not, for the number of iterations is open.

    Parameters
    ----------
    program
        The problem. A :class:`~fixntk.StreamedProgram` is solved by a method of its own: an iteration minimises a model
        of a sample of the rows in memory, and evaluates the result in one pass over all rows.
    method
        ``"irls"``: the paper's Algorithm 1 from the NTK's weights, a masked Gram kernel and a Cholesky factorisation a
        step; the path from the NTK to the optimum, sublinear near its end. ``"anderson"``: the same with Anderson
        acceleration and ε shrinking to its last value, two such steps in one. ``"fista"``: accelerated proximal
        gradient with restart, two products with the masks a step. ``"newton"``: first-order steps on working sets, then
        semismooth Newton on the dual augmented Lagrangian, where a step costs a masked Gram kernel of the active groups
        and a Cholesky factorisation, or conjugate gradients where that is cheaper; for other losses than the squared
        one proximal Newton, each step of which solves a program of the squared loss so. ``"auto"``: Newton; FISTA for
        the nuclear norm, the softmax where rows times squared classes are above 4,000, over several processes, and
        under ``jit`` and ``vmap``, where Newton's sizes cannot follow the number of active groups.
    tol
        Relative gap to reach, as a share of the objective of W = 0, ½‖Y‖² for the squared loss. 1e-6 in float64 and
        1e-4 in float32 when None; rounding of the certificate itself is 1e-6 to 1e-5 in float32.
    max_iter
        Largest number of iterations; 300 for IRLS and Anderson, 20,000 for FISTA, 200 for Newton, 100
        passes for a StreamedProgram when None.
    init
        Where to start. IRLS, Anderson: (P,) kernel weights, the NTK's; 1/P each when None, which they are for sampled
        gates. FISTA and Newton: (P, d, c) group weights; zero when None. A Solution for any.
    epsilon
        IRLS's ε in sqrt(‖W_p‖² + ε), in squared units of W; when None such that it costs a tenth of ``tol``.
    callback
        Called with a :class:`Progress` at the start and after each iteration; a true answer stops. Costs a trip to the
        host each time. Not under ``jit`` and ``vmap``. An error that it raises ends the solve.
    progress
        Show a bar with iterations, gap and active groups, which also says when something compiles. Not under ``jit``
        and ``vmap``.
    checkpoint
        Folder in which the solver's state is kept, needs safetensors: the same call goes on from there after whatever
        ended it, to the same weights and history (but for the seconds), bit by bit. Only ``tol`` and ``max_iter`` may
        be others than before; IRLS's and Anderson's ε follows from ``tol``. Written every five seconds or more seldom,
        a twentieth of the time at most, and when the call ends, by Ctrl-C or an error too. Not under ``jit`` and
        ``vmap``.

    Returns
    -------
    Solution
        With the certificate, recomputed from its weights. Where λ is at or above λ_max, W = 0 at once from any
        method's own start, and the message says so; under ``jit`` only from that of FISTA and Newton.

    Raises
    ------
    TypeError
        If ``program`` is neither a ConvexProgram nor a StreamedProgram, ``tol`` or ``epsilon`` no number, ``max_iter``
        no integer, or ``checkpoint`` no path.
    ValueError
        If the method is unknown or not for this loss or norm, ``tol`` is below what the dtype can reach, ``init`` does
        not fit, an option does not belong to the method, IRLS's matrices not into memory, or the checkpoint is of
        another solve. LinAlgError, a ValueError, if the first kernel matrix cannot be factorised.
    OSError
        If a checkpoint cannot be written, as on a full disk. Those before stay.
    Interrupted
        A KeyboardInterrupt with the Solution reached so far as ``result``, on Ctrl-C with ``callback`` or ``progress``.
    ConnectionError
        If another of the processes that have rows of the program ended; see :func:`~fixntk.distribute_rows`.

    Warns
    -----
    ConvergenceWarning
        If the relative gap is above ``tol`` at the end.
    UserWarning
        If the newest checkpoint is damaged, so that the solve goes on from the one before.

    Examples
    --------
    >>> import jax, fixntk as fx
    >>> x = jax.random.normal(jax.random.key(0), (50, 3))
    >>> masks = fx.activation_masks(x, fx.sample_gates(jax.random.key(1), 20, 3))
    >>> program = fx.ConvexProgram(x, abs(x[:, 0]), masks, reg=0.1)
    >>> solution = fx.solve(program, tol=1e-4)
    >>> bool(solution.converged), bool(solution.dual <= solution.primal)
    (True, True)

    See docs/mathematics.md, M5 to M8.
    """
    if isinstance(program, StreamedProgram):
        _check_streamed(method, epsilon)
        solution = solve_streamed(
            program,
            tol=tol,
            max_iter=max_iter,
            init=init,
            callback=callback,
            progress=progress,
            checkpoint=checkpoint,
        )
        return _warn_unless_converged(solution)
    if not isinstance(program, ConvexProgram):
        raise TypeError(f"program must be a ConvexProgram or a StreamedProgram, got {type(program).__name__}")
    # A concrete program that a traced function closes over is solved in that function.
    traced = is_tracing(program, init)
    if traced and (callback is not None or progress or checkpoint is not None):
        raise ValueError("callback, progress and checkpoint need the host: not under jit or vmap")
    if spans_processes(program):
        has = {"callback": callback is not None, "checkpoint": checkpoint is not None}
        check_same_call("solve", program, method=method, tol=tol, max_iter=max_iter, init=init, epsilon=epsilon, **has)
    given, program = program, absorb_sample_weight(program)
    program = program if traced else with_padded_rows(program)
    chosen = choose_method(program, method, traced=traced)
    tol, max_iter = as_options(program, chosen, tol, max_iter, epsilon)
    start = _starting_point(program, chosen, init)
    smoothing = _as_epsilon(program, epsilon, tol) if chosen.reweights else None
    if traced:
        outcome = driver.run_traced(program, chosen, start, smoothing, tol, max_iter)
        return certify(program, outcome, chosen, tol)[0]
    options = {"reg": given.reg, "method": chosen.name, "init": start, "epsilon": smoothing}
    with explain_lost_process("solve", "" if checkpoint is None else f", to go on from checkpoint {checkpoint}"):
        keeper = open_checkpoints(checkpoint, "solve", given, **options)
        running = chosen
        if chosen.reweights and bool(_is_zero_optimal(program)):
            # Positive kernel weights do not reach W = 0: it is certified as the start of a method for group weights.
            running, max_iter = fista.METHOD, 0
            start, smoothing = _starting_point(program, running, None), None
        with progress_bar(f"solve ({chosen.name})", shown=progress and _is_shown_here(program)) as show:
            watch = partial(_show, show) if progress else None
            of_loop = program, running, start, smoothing, tol, max_iter
            outcome = driver.run_from_host(
                *of_loop, callback=callback, watch=watch, keeper=keeper, num_rows=given.x.shape[0]
            )
        solution = _certify_from_host(program, outcome, running, chosen, tol)
    if outcome.is_interrupted:
        raise Interrupted(solution)
    return _warn_unless_converged(solution)


def _is_shown_here(program: ConvexProgram) -> bool:
    """Whether this process shows the bar: of several that solve a program together, the first does."""
    return jax.process_index() == 0 or not spans_processes(program)


def _show(show: Callable[[int, str], None], seen: Progress) -> None:
    show(seen.iteration, describe(seen.relative_gap, seen.num_active))


def _certify_from_host(
    program: ConvexProgram, outcome: driver.Outcome, running: Method, chosen: Method, tol: float
) -> Solution:
    """The certified solution, whole on this process.

    Raises
    ------
    LinAlgError
        If reweighting could not take its first step.
    """
    if running.reweights and bool(outcome.failed) and int(outcome.iterations) == 0:
        raise np.linalg.LinAlgError(
            f"the kernel matrix of the start is not positive definite in {program.x.dtype} even with jitter: "
            f"raise reg (λ = {float(program.reg):.3g}), rescale x, or use float64"
        )
    solution, _ = certify(program, outcome, chosen, tol)
    return to_this_process(solution) if spans_processes(program) else solution


def _check_streamed(method: str, epsilon: float | None) -> None:
    check_streamed_call(method)
    if epsilon is not None:
        raise ValueError("epsilon belongs to reweighting, not to the method for a StreamedProgram: leave it out")


def _warn_unless_converged(solution: Solution) -> Solution:
    if not bool(solution.converged):
        warnings.warn(solution.message, ConvergenceWarning, stacklevel=3)
    return solution


def solve_quietly(program: ConvexProgram, **options: Any) -> Solution:
    """:func:`solve` without the warning where it stops early, for callers that look at ``converged`` themselves."""
    with ignore_convergence_warnings():
        return solve(program, **options)


def solve_from(program: ConvexProgram, start: Array, *, method: Method, tol: float, max_iter: int) -> Solution:
    """The certified solution of a chosen method from group weights, with options that are checked already."""
    outcome = driver.run_from_host(program, method, start, None, tol, max_iter)
    return certify(program, outcome, method, tol)[0]


def choose_method(program: ConvexProgram, name: str, *, traced: bool = False) -> Method:
    """The method of a name for a program.

    Raises
    ------
    ValueError
        If there is no method of that name, or it cannot solve the program.
    """
    if name == "auto":
        method = newton.METHOD if reason_for_first_order(program, traced=traced) is None else fista.METHOD
    elif not isinstance(name, str) or name not in METHODS:
        raise ValueError(f"method must be one of auto, {', '.join(METHODS)}, got {name!r}")
    else:
        method = METHODS[name]
    if method is newton.METHOD and not is_quadratic(program):
        method = prox_newton.METHOD
    method.supports(program)
    return method


def reason_for_first_order(program: ConvexProgram, *, traced: bool = False) -> str | None:
    """Why ``method="auto"`` takes FISTA for a program, in words; None where it takes Newton."""
    if traced:
        return "under jit and vmap Newton's sizes cannot follow the number of active groups"
    if spans_processes(program):
        return "over several processes Newton's linear systems are whole in each, and more travels between them"
    if program.norm.name == "nuclear":
        return "Newton is for the Frobenius norm"
    if not prox_newton.has_own_hessian(program):
        return "of many rows and classes proximal Newton only bounds the softmax's Hessian, a matrix for each row"
    return None


def choose_warm_method(program: ConvexProgram, name: str) -> Method:
    """The method of a name, for callers that go from one solution to the next.

    Raises
    ------
    ValueError
        As :func:`choose_method`, and if the method starts at kernel weights.
    """
    method = choose_method(program, name)
    if method.reweights:
        warm = " or ".join(repr(name) for name, other in METHODS.items() if not other.reweights)
        raise ValueError(f"method {name!r} starts at kernel weights, not at a solution: use {warm}")
    return method


def certify(program: ConvexProgram, outcome: Outcome, method: Method, tol: float) -> tuple[Solution, Evaluation]:
    """The Solution of an outcome, certified from its weights alone, independently of the solver's state."""
    found, judged = _certify(program, outcome.weights, outcome.unit, outcome.failed, tol)
    kernel_weights = judged.kernel_weights if outcome.kernel_weights is None else outcome.kernel_weights
    solution = Solution(
        weights=found.weights,
        intercept=None if program.column is None else found.intercept,
        kernel_weights=kernel_weights,
        primal=found.primal,
        dual=judged.dual,
        gap=judged.gap,
        relative_gap=judged.relative_gap,
        iterations=outcome.iterations,
        converged=judged.converged,
        failed=judged.failed,
        history=outcome.history,
        method=method.name,
        tol=tol,
        squeeze=program.y.ndim == 1,
    )
    return solution, found


class _Judgement(NamedTuple):
    """Fields of a Solution that follow from the evaluation of its weights."""

    dual: Array
    gap: Array
    relative_gap: Array
    converged: Array
    failed: Array
    kernel_weights: Array


@jit_for_host
def _certify(
    program: ConvexProgram, weights: Array, unit: Array, failed: Array, tol: ArrayLike
) -> tuple[Evaluation, _Judgement]:
    found = program.evaluate(weights * unit)
    # A λ ≤ 0 that came in traced, where it could not be refused, has no certificate.
    gap = jnp.where(program.reg > 0, found.gap, jnp.nan)
    at_zero = program.primal_at_zero()
    relative_gap = gap / jnp.where(at_zero > 0, at_zero, 1.0)
    judged = _Judgement(
        dual=found.primal - gap,
        gap=gap,
        relative_gap=relative_gap,
        converged=relative_gap <= tol,
        failed=failed | ~(program.reg > 0),
        kernel_weights=weights_of_norms(group_norms(found.weights), program.penalty_weights),
    )
    return found, judged


@jit_for_host
def _is_zero_optimal(program: ConvexProgram) -> Array:
    return program.reg >= program.max_reg()


def as_options(
    program: ConvexProgram, method: Method, tol: Any, max_iter: Any, epsilon: Any = None
) -> tuple[float, int]:
    """Check the options; return the tolerance and the largest number of iterations as plain numbers."""
    tol, max_iter = arguments.as_stopping(tol, max_iter, program.x.dtype, method.max_iter)
    if epsilon is not None:
        if not method.reweights:
            smoothed = " and ".join(repr(name) for name, other in METHODS.items() if other.reweights)
            raise ValueError(f"epsilon belongs to methods {smoothed}, not to {method.name!r}")
        if not 0 < arguments.as_number("epsilon", epsilon) < float("inf"):
            raise ValueError(f"epsilon must be positive and finite, got {epsilon}")
    return tol, max_iter


def _as_epsilon(program: ConvexProgram, epsilon: float | None, tol: float) -> Array:
    return irls.default_epsilon(program, tol) if epsilon is None else jnp.asarray(epsilon, program.x.dtype)


def _starting_point(program: ConvexProgram, method: Method, init: ArrayLike | Solution | None) -> Array:
    if method.reweights:
        if init is None:
            return to_device(np.full(program.num_gates, 1 / program.num_gates, program.x.dtype))
        weights = init.kernel_weights if isinstance(init, Solution) else init
        return as_kernel_weights(weights, program.num_gates, program.x.dtype)
    return as_starting_weights(program, init)


def as_starting_weights(program: ConvexProgram, init: ArrayLike | Solution | None) -> Array:
    """Group weights of a program to start from; zero when None."""
    if init is None:
        return to_device(np.zeros(group_shape_of(program), program.x.dtype))
    return as_group_weights(program, init.weights if isinstance(init, Solution) else init)
