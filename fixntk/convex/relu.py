r"""The convex program of the ReLU network, a group lasso with cones, solved along its central path.

.. math:: \min_{v, u, b} ℓ\bigl(1 b + \sum_p D_p X (v_p − u_p); y\bigr) + λ \sum_p (\|v_p\| + \|u_p\|)
    \quad\text{s.t.}\quad (2D_p − I) X v_p ≥ 0,\; (2D_p − I) X u_p ≥ 0

Over all arrangements its optimum is that of the weight-decayed ReLU network, for some of them an upper bound on it.
With the pair (v, u), the logarithmic barriers B of the cones and of the norms, and a weight t, the central path is the
set of minimisers of

.. math:: F_t(v, u) = ℓ(v, u) + B_t(v, u),

whose barrier costs 1/t. A Newton step costs a weighted masked Gram kernel, Σ_p D_p X C_p Xᵀ D_p with small matrices
C_p, and a Cholesky factorisation.

See docs/mathematics.md, M10.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Float

from fixntk._checks import as_positive_int, is_traced
from fixntk._numerics import ConvergenceWarning, allow_float64, blas_threads_for, default_tol, with_dtype
from fixntk._tiling import memory_for
from fixntk.convex import relu_step
from fixntk.convex.checkpoints import Trace
from fixntk.convex.driver import GOAL_SHARE, Scale, run_loop
from fixntk.convex.groups import check_gates, with_masks
from fixntk.convex.program import (
    ConvexProgram,
    absorb_sample_weight,
    is_quadratic,
    targets_of,
)
from fixntk.convex.progress import Interrupted, Progress, describe, progress_bar
from fixntk.gates.masks import activation_masks
from fixntk.networks.cones import make_cones
from fixntk.networks.convert import from_signed_cones
from fixntk.networks.models import ReLUNetwork

# A point of the central path, and the best certified point so far.
_State = tuple[relu_step.CentralPoint, relu_step.CertifiedPair]


@dataclass(frozen=True, eq=False)
class ReLUSolution:
    """A solution of the ReLU network's convex program with its certificate.

    Attributes
    ----------
    positive, negative
        (P, d) v and u, each exactly in its cone (up to rounding).
    intercept
        (1,) b; None for a program without one.
    primal, dual
        Objective of v and u, and a lower bound on the optimum.
    gap, relative_gap
        primal − dual, and its share of the objective of zero.
    iterations
        Number of iterations made.
    converged
        Whether the relative gap is at most the tolerance.
    history
        (k, 3) seconds, primal and gap at each look at the certificate.
    tol
        Tolerance of the relative gap.
    squeeze
        Whether predictions have shape (n,).

    See docs/mathematics.md, M10.
    """

    positive: Float[Array, "P d"]
    negative: Float[Array, "P d"]
    intercept: Float[Array, " 1"] | None
    primal: float
    dual: float
    gap: float
    relative_gap: float
    iterations: int
    converged: bool
    history: Float[np.ndarray, "k 3"]
    tol: float
    squeeze: bool

    def __repr__(self) -> str:
        num_active = int(np.sum(np.any(np.asarray(self.positive) != 0, 1) | np.any(np.asarray(self.negative) != 0, 1)))
        return f"ReLUSolution({self.message}; {num_active} of {self.positive.shape[0]} gates active)"

    @property
    def message(self) -> str:
        """One sentence that says why the solver stopped."""
        state = f"relative gap {self.relative_gap:.2e} after {self.iterations} iterations"
        if self.converged:
            return f"converged: {state}, within tol={self.tol:.1e}"
        return f"stopped early: {state}, above tol={self.tol:.1e}; raise max_iter or tol"

    def to_network(self) -> ReLUNetwork:
        """The ReLU network with this objective; it needs no gates."""
        return from_signed_cones(self.positive, self.negative, self.intercept, squeeze=self.squeeze)


def solve_relu(
    program: ConvexProgram,
    gates: ArrayLike,
    *,
    tol: float | None = None,
    max_iter: int = 200,
    callback: Callable[[Progress], bool | None] | None = None,
    progress: bool = False,
) -> ReLUSolution:
    """Solve the ReLU network's convex program for the masks and λ of a gated one, to a certified relative gap.

    Computes in float64 whatever the dtype of x, in which the result comes back: near the boundary of a cone the
    matrices of a Newton step have condition numbers that float32 cannot hold.

    Parameters
    ----------
    program
        The gated program: one output, the squared loss, no ridge.
    gates
        (P, d) gates that give its masks; no row of x may lie on the boundary of one.
    tol
        Relative gap to reach, as a share of the objective of zero. None is 1e-6 in float64 and 1e-4 in float32.
    max_iter
        Largest number of Newton steps; 30 to 60 are usual.
    callback
        Called with a :class:`Progress` at the start and after each step; a true answer stops.
    progress
        Show a bar with steps, gap and active groups.

    Raises
    ------
    ValueError
        If the gates do not give the program's masks, one has a row on its boundary, or the program is not of the kind
        above.
    Interrupted
        A KeyboardInterrupt with the ReLUSolution reached so far as ``result``, on Ctrl-C with ``callback`` or
        ``progress``.

    Warns
    -----
    ConvergenceWarning
        If the relative gap is above ``tol`` at the end.

    Notes
    -----
    The dual asks for ‖Π_C(±Xᵀ D_p Θ)‖ ≤ λ, with the projection onto the cone, and any μ ≥ 0 bounds it:
    ‖Π_C(z)‖ ≤ ‖z + Gᵀμ‖. The gap is evaluated for the barrier's own μ.

    See docs/mathematics.md, M10.
    """
    program, gates = _as_single_output(program, gates)
    dtype, max_iter = program.x.dtype, as_positive_int("max_iter", max_iter)
    tol = default_tol(dtype) if tol is None else float(tol)
    with allow_float64(), blas_threads_for(program.y.size), progress_bar("solve_relu", shown=progress) as show:

        def watch(seen: Progress) -> None:
            show(seen.iteration, describe(seen.relative_gap, seen.num_active))

        # Square roots of the sample weights become factors of the rows, so that the steps know no weights.
        wide, wide_gates = with_dtype((absorb_sample_weight(program), gates), jnp.float64)
        num_rows, num_gates = wide.x.shape[0], wide.num_gates
        what = f"solve_relu on {num_rows} rows and {num_gates} gates"
        with memory_for(what, relu_step.bytes_needed(wide), "take fewer gates, or rows", program, gates):
            watching = watch if progress else None
            trace, at_zero, is_interrupted = _follow_path(wide, wide_gates, tol, max_iter, callback, watching)
        solution = _as_solution(wide, trace, at_zero, tol, dtype)
    if is_interrupted:
        raise Interrupted(solution)
    if not solution.converged:
        warnings.warn(f"solve_relu {solution.message}", ConvergenceWarning, stacklevel=2)
    return solution


def _follow_path(
    program: ConvexProgram,
    gates: Array,
    tol: float,
    max_iter: int,
    callback: Callable[[Progress], bool | None] | None,
    watch: Callable[[Progress], None] | None,
) -> tuple[Trace, float, bool]:
    """The last point and the record, the objective of zero, and whether Ctrl-C ended the path."""
    cones = make_cones(program.x, gates, program.masks)
    # Targets of zero have the objective zero at zero, which is then the optimum.
    at_zero = float(program.primal_at_zero()) or 1.0
    # Below this gap a step may drop small groups, even if that makes the gap larger again.
    goal = GOAL_SHARE * tol * at_zero

    def run(state: _State, goal: float, *_: Any, step: int) -> tuple[int, _State, Float[np.ndarray, "1 6"]]:  # noqa: ARG001
        state = relu_step.step(program, cones, *state, goal)
        return 1, state, _record_row(state)[None]

    point = relu_step.start(program, cones)
    # Multipliers of zero give a valid bound, though a weak one: ‖Π_C(z)‖ ≤ ‖z‖.
    first = point, relu_step.certify(program, cones, point.pair, jnp.zeros_like(cones.apply(point.pair)))
    scale = Scale(goal, at_zero)
    trace, is_interrupted = run_loop(run, first, _record_row(first), scale, max_iter, callback=callback, watch=watch)
    return trace, at_zero, is_interrupted


def _record_row(state: _State) -> Float[np.ndarray, " 6"]:
    """A row of the record: primal, gap, number of active vectors, objective, whether it failed, and the next step."""
    _, best = state
    num_active = np.count_nonzero(np.any(np.asarray(best.pair) != 0, axis=2))
    primal = float(best.primal)
    return np.array([primal, float(best.gap), num_active, primal, 0.0, 0.0])


def _as_solution(program: ConvexProgram, trace: Trace, at_zero: float, tol: float, dtype: DTypeLike) -> ReLUSolution:
    """The best point with its vectors in a dtype."""
    _, best = trace.state
    # Objective and gap are numbers of Python and stay those of the float64 vectors, before these are rounded.
    primal, gap, intercept = float(best.primal), float(best.gap), None if program.column is None else best.intercept
    positive, negative, intercept = with_dtype((*best.pair, intercept), dtype)
    return ReLUSolution(
        positive=positive,
        negative=negative,
        intercept=intercept,
        primal=primal,
        dual=primal - gap,
        gap=gap,
        relative_gap=gap / at_zero,
        iterations=len(trace.record) - 1,
        converged=gap / at_zero <= tol,
        history=np.column_stack([trace.seconds, trace.record[:, :2]]),
        tol=tol,
        squeeze=program.y.ndim == 1,
    )


def check_relu_program(program: ConvexProgram) -> None:
    """Raise ValueError unless a program is one that the ReLU network has too."""
    if not is_quadratic(program) or program.ridge is not None or targets_of(program).shape[1] != 1:
        raise ValueError(
            "program must have one output, the squared loss and no ridge for the ReLU network, got "
            f"{targets_of(program).shape[1]} output(s), loss {program.loss.name!r}"
            f"{'' if program.ridge is None else ', a ridge'}"
        )


def _as_single_output(program: ConvexProgram, gates: ArrayLike) -> tuple[ConvexProgram, Array]:
    """The program with bool masks, and its gates, checked."""
    if is_traced(program, gates):
        raise ValueError("solve_relu cannot be traced by jit, vmap or grad: the number of its steps is open")
    check_relu_program(program)
    gates = check_gates(program, gates)
    # The same masks, as the gates have been checked to give them, but bools where the program's are packed.
    return with_masks(program, activation_masks(program.x, gates)), gates
