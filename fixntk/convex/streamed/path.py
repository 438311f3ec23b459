"""What a path of λ needs where rows are on disk: one pass at W = 0, which serves for every λ.

See docs/mathematics.md, M9.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from fixntk.convex.checkpoints import Keeper
from fixntk.convex.solution import Solution
from fixntk.convex.streamed.program import StreamedProgram
from fixntk.convex.streamed.solve import (
    FirstPass,
    StreamedState,
    as_streamed_stopping,
    check_streamed_call,
    first_state,
    open_streamed_checkpoints,
    read_rows,
    solve_from_state,
    state_at_reg,
)


class StreamedSteps(NamedTuple):
    """The steps of a path, one for each λ.

    Attributes
    ----------
    values
        (k,) λ in the order in which they were asked for.
    keeper
        Of its checkpoints; None without them.
    of_all
        Fields that all solutions have alike, and that are no arrays.
    start
        The solver's state at W = 0.
    solve_at
        From λ and the state after the solution before to the solution and the state after it.
    """

    values: Float[np.ndarray, " k"]
    keeper: Keeper | None
    of_all: dict[str, Any]
    start: StreamedState
    solve_at: Callable[[float, StreamedState], tuple[Solution, StreamedState]]


def check_streamed_path(method: str, regs: Any, *, screen: bool) -> None:
    """Raise ValueError for options that do not belong to a StreamedProgram, and under ``jit`` and ``vmap``."""
    check_streamed_call(method, regs)
    if not screen:
        raise ValueError(
            "screen=False belongs to a ConvexProgram, not to a StreamedProgram, which is always solved on working sets:"
            " leave it out"
        )


def open_streamed_path(
    program: StreamedProgram,
    as_values: Callable[[Callable[[], tuple[float, float]], Any], Float[np.ndarray, " k"]],
    tol: float | None,
    max_iter: int | None,
    checkpoint: str | os.PathLike[str] | None,
) -> StreamedSteps:
    """Check the options and read all rows once; ``as_values`` makes λ, for which it may ask for λ_max and its scale."""
    tol, max_iter = as_streamed_stopping(program, tol, max_iter)
    at_zero = np.zeros(program.group_shape, program.dtype)

    @cache
    def first_pass() -> FirstPass:
        return read_rows(program, at_zero, is_kept=checkpoint is not None)

    # Wrong λ are refused before the rows are read.
    values = as_values(lambda: _largest_reg(first_pass()), program.dtype)
    read = first_pass()
    options = {"regs": values, "tol": tol, "max_iter": max_iter}
    keeper = open_streamed_checkpoints(program, checkpoint, "streamed path", read, **options)

    def solve_at(reg: float, state: StreamedState) -> tuple[Solution, StreamedState]:
        at_reg = program.with_reg(reg)
        return solve_from_state(at_reg, read, state_at_reg(at_reg, state), tol, max_iter)

    of_all = {"method": "streamed", "tol": tol, "squeeze": program.is_vector}
    return StreamedSteps(values, keeper, of_all, first_state(program, at_zero, read.sums), solve_at)


def _largest_reg(read: FirstPass) -> tuple[float, float]:
    """λ_max, and about ‖X‖ ‖Y‖."""
    sums, sample = read.sums, read.sample
    squares = 2 * sums.loss_at_zero
    if sums.intercept is not None and sample.roots is not None:
        # Targets are rounded before their mean is taken from them.
        squares += float(jnp.sum(sample.roots**2)) * float(np.sum(sums.intercept**2))
    return sums.largest_norm(), sample.unit * float(jnp.linalg.norm(sample.x)) * math.sqrt(squares)
