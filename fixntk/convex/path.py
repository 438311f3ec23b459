"""Solutions along a path of λ, from λ_max down, with warm starts, gap-safe screening and working sets.

See docs/mathematics.md, M9.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from fixntk._checks import is_traced, to_device
from fixntk._compilation import jit_for_host
from fixntk._numerics import ConvergenceWarning
from fixntk.convex import restriction, screening
from fixntk.convex.checkpoints import Keeper, open_checkpoints, restore_walk, save_walk
from fixntk.convex.groups import with_mask_numbers
from fixntk.convex.padding import with_padded_rows
from fixntk.convex.program import ConvexProgram, absorb_sample_weight, group_shape_of, targets_of
from fixntk.convex.progress import describe, keep_result, progress_bar
from fixntk.convex.results_by_reg import ResultsByReg
from fixntk.convex.solution import Solution
from fixntk.convex.solve import as_options, choose_warm_method, solve_from
from fixntk.convex.solvers import working_sets
from fixntk.convex.streamed.path import check_streamed_path, open_streamed_path
from fixntk.convex.streamed.program import StreamedProgram
from fixntk.convex.streamed.solve import memory_of_solve

# Largest extrapolation, in units of the last step in λ.
_MAX_EXTRAPOLATION = 2.0
# Below this number of multiplications in a product with all masks, n·P·d, a smaller program does not repay its
# compilation.
_WORTH_SCREENING = 1e7
# λ_max counts as zero below this many roundings of ‖X‖ ‖Y‖.
_ZERO_IN_EPS = 10


# The result for one λ, and the container of all results.
Item = TypeVar("Item")
Gathered = TypeVar("Gathered")


class Path(ResultsByReg[Solution]):
    """Solutions for several λ, a sequence.

    Attributes
    ----------
    regs
        (k,) λ of each.
    gaps
        (k,) relative gap of each.

    See docs/mathematics.md, M9.
    """

    _noun = "solutions"

    @property
    def gaps(self) -> Float[np.ndarray, " k"]:
        """Relative gap of each solution."""
        return np.array([float(solution.relative_gap) for solution in self])


def solve_path(
    program: ConvexProgram | StreamedProgram,
    regs: ArrayLike | Iterable[ArrayLike] | None = None,
    *,
    num_regs: int = 100,
    min_share: float = 1e-3,
    method: str = "auto",
    tol: float | None = None,
    max_iter: int | None = None,
    screen: bool = True,
    callback: Callable[[Solution], bool | None] | None = None,
    progress: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Path:
    """Solve the convex program for many λ, each from the solution before it.

    Parameters
    ----------
    program
        The problem; its own λ is not used. Of a :class:`~fixntk.StreamedProgram` all rows are read once at W = 0, and
        then once for each iteration of the solutions; each λ starts where the one before ended without reading any.
    regs
        λ in any order; solved from the largest down. When None, ``num_regs`` of them, evenly spaced in log λ from
        λ_max to ``min_share`` λ_max.
    num_regs, min_share
        See ``regs``.
    method, tol, max_iter
        As for :func:`fixntk.solve`, for each λ. IRLS and Anderson, whose weights are never zero, cannot go along a
        path. A StreamedProgram has one method.
    screen
        Solve for each λ on the groups that are active at its start or nearest to it, without those that the gap-safe
        rule proves to be zero, until the certificate holds on all groups; where the problem is large enough for that to
        pay. Not for a StreamedProgram, which is always solved on working sets.
    callback
        Called with each Solution as it is finished; a true answer stops the path there.
    progress
        Show a bar with the number of solutions, and λ, gap and active groups of the last.
    checkpoint
        Folder in which finished solutions are kept, needs safetensors: the same call goes on from there after whatever
        ended it, to the same path bit by bit, and calls ``callback`` for the other solutions only. As for
        :func:`fixntk.solve`, but every option must be as before. Rows on disk are read once to see that they are.

    Returns
    -------
    Path
        Solutions in the order of ``regs``, as far as the path went, each certified on all groups. Iterations and
        history are those on the groups that were solved for last, without seconds where these are not all.

    Raises
    ------
    TypeError
        As :func:`fixntk.solve`; also if ``regs`` holds what is not a number.
    ValueError
        As :func:`fixntk.solve`; also if ``regs`` is empty or not positive, if it is None and λ_max is zero, or under
        ``jit`` and ``vmap`` (where a ``vmap`` of ``solve`` over λ does it), or if ``method`` or ``screen`` is given for
        a StreamedProgram.
    OSError
        If a checkpoint cannot be written, as on a full disk. Those before stay.
    Interrupted
        A KeyboardInterrupt with the Path reached so far as ``result``, on Ctrl-C with ``callback`` or ``progress``.

    Warns
    -----
    ConvergenceWarning
        Once for the whole path, if the relative gap of a solution is above ``tol``.
    UserWarning
        If the newest checkpoint is damaged, so that the path goes on from the one before.

    References
    ----------
    Ndiaye, Fercoq, Gramfort and Salmon, "Gap Safe Screening Rules for Sparsity Enforcing Penalties", JMLR 2017.

    Examples
    --------
    >>> import jax, fixntk as fx
    >>> x = jax.random.normal(jax.random.key(0), (50, 3))
    >>> masks = fx.activation_masks(x, fx.sample_gates(jax.random.key(1), 20, 3))
    >>> program = fx.ConvexProgram(x, abs(x[:, 0]), masks, reg=1.0)
    >>> path = fx.solve_path(program, regs=[3.0, 1.0, 0.3], tol=1e-4)
    >>> path
    Path(3 solutions, λ 3 to 0.3, 3 converged)

    See docs/mathematics.md, M9.
    """
    regs = list(regs) if isinstance(regs, Iterator) else regs
    walking = _Walking(callback, progress)
    if isinstance(program, StreamedProgram):
        check_streamed_path(method, regs, screen=screen)
        spacing = (regs, num_regs, min_share)
        return _warn_once(_follow_streamed(program, spacing, tol, max_iter, checkpoint, walking))
    if not isinstance(program, ConvexProgram):
        raise TypeError(f"program must be a ConvexProgram or a StreamedProgram, got {type(program).__name__}")
    if is_traced(program, regs):
        raise ValueError("solve_path cannot be traced: jax.vmap solve over λ instead")
    given, whole = program, with_padded_rows(absorb_sample_weight(program))
    chosen = choose_warm_method(whole, method)
    values = as_regs(whole, regs, num_regs, min_share)
    tol, max_iter = as_options(whole, chosen, tol, max_iter)
    at_zero = to_device(np.zeros(group_shape_of(whole), whole.x.dtype))
    on_all = partial(solve_from, method=chosen, tol=tol, max_iter=max_iter)
    on_sets, walked = None, _Walk([], None)
    if screen and whole.x.size * whole.num_gates >= _WORTH_SCREENING:
        whole = _with_mask_numbers(whole)
        on_sets = restriction.Restriction(chosen, on_all, screening.group_sizes(whole), tol, max_iter)
        walked = _Walk([], screening.evaluate(whole, at_zero))
    options = {"regs": values, "method": chosen.name, "tol": tol, "max_iter": max_iter, "screen": screen}
    keeper = open_checkpoints(checkpoint, "path", given, **options)
    of_all = {"method": chosen.name, "tol": tol, "squeeze": whole.y.ndim == 1}
    from_largest = -np.sort(-values)

    def go_on(walked: _Walk, reg: float) -> _Walk:
        solutions, last = walked
        start = _predict_start(from_largest, solutions, reg) if solutions else at_zero
        if on_sets is None or last is None:
            solution = on_all(whole.with_reg(reg), start)
        else:
            solution, last = restriction.solve_on_sets(whole.with_reg(reg), on_sets, start, last)
        return _Walk([*solutions, solution], last)

    return _warn_once(_walk(values, go_on, walked, keeper, of_all, walking))


class _Walk(NamedTuple):
    """Solutions from the largest λ down, and what the next one needs of the last.

    That is its evaluation where the path is screened, and the solver's state where rows are streamed.
    """

    solutions: list[Solution]
    last: Any


class _Walking(NamedTuple):
    """How a path is watched."""

    callback: Callable[[Solution], bool | None] | None
    progress: bool


def _walk(
    values: Float[np.ndarray, " k"],
    go_on: Callable[[_Walk, float], _Walk],
    walked: _Walk,
    keeper: Keeper | None,
    of_all: Mapping[str, Any],
    walking: _Walking,
) -> Path:
    """The path, from its newest checkpoint if there is one: ``go_on`` adds the solution at the next λ.

    ``of_all`` are the fields that all solutions have alike, and that are no arrays.
    """
    if keeper is not None:
        walked = _Walk(*(restore_walk(keeper, walked.last, **of_all) or walked))

    def solve_at(reg: float) -> tuple[Solution, str]:
        nonlocal walked
        walked = go_on(walked, reg)
        if keeper is not None and keeper.is_due():
            save_walk(keeper, *walked)
        solution = walked.solutions[-1]
        num_active = int(np.asarray(solution.history.num_active)[-1])
        return solution, describe(float(solution.relative_gap), num_active)

    try:
        return follow_regs("solve_path", values, solve_at, Path, **walking._asdict(), earlier=walked.solutions)
    finally:
        if keeper is not None:
            save_walk(keeper, *walked)


def _follow_streamed(
    program: StreamedProgram,
    spacing: tuple[ArrayLike | Iterable[ArrayLike] | None, int, float],
    tol: float | None,
    max_iter: int | None,
    checkpoint: str | os.PathLike[str] | None,
    walking: _Walking,
) -> Path:
    """The path of a program whose rows are on disk; ``spacing`` are λ, or how many there are and where they end."""
    with memory_of_solve(program):
        steps = open_streamed_path(program, partial(_as_values, *spacing), tol, max_iter, checkpoint)

        def go_on(walked: _Walk, reg: float) -> _Walk:
            solution, last = steps.solve_at(reg, walked.last)
            return _Walk([*walked.solutions, solution], last)

        return _walk(steps.values, go_on, _Walk([], steps.start), steps.keeper, steps.of_all, walking)


def follow_regs(
    name: str,
    values: Float[np.ndarray, " k"],
    solve_at: Callable[[float], tuple[Item, str]],
    gather: Callable[[list[Item], Float[np.ndarray, " j"]], Gathered],
    *,
    callback: Callable[[Item], bool | None] | None,
    progress: bool,
    earlier: Sequence[Item] = (),
) -> Gathered:
    """Solve for one λ after the other, from the largest down: each solution is near the next one.

    Parameters
    ----------
    name
        For the bar.
    values
        λ in any order.
    solve_at
        From λ to its solution and what the bar says of it.
    gather
        From solutions and their λ, in the order of ``values`` as far as they were reached, to the result.
    callback, progress
        As for :func:`solve_path`.
    earlier
        Solutions that are there already, for the largest λ.

    Raises
    ------
    Interrupted
        On Ctrl-C with ``callback`` or ``progress``, with the result so far.
    """
    order = np.argsort(-values, kind="stable")
    found: dict[int, Item] = dict(zip(order.tolist(), earlier, strict=False))

    def reached() -> Gathered:
        positions = sorted(found)
        return gather([found[position] for position in positions], values[positions])

    kept = keep_result(reached, is_watched=progress or callback is not None)
    with progress_bar(name, total=values.size, unit="λ", shown=progress) as show, kept:
        show(len(found), "")
        for position in order[len(found) :]:
            reg = float(values[position])
            found[int(position)], line = solve_at(reg)
            show(len(found), f"λ {reg:.3g}, {line}")
            if callback is not None and callback(found[int(position)]):
                break
    return reached()


def _warn_once(path: Path) -> Path:
    early = [solution for solution in path if not bool(solution.converged)]
    if early:
        worst = max(early, key=lambda solution: float(solution.relative_gap))
        message = f"{len(early)} of {len(path)} solutions of the path stopped above tol={worst.tol:.1e}; the worst: "
        warnings.warn(message + worst.message, ConvergenceWarning, stacklevel=3)
    return path


def as_regs(
    program: ConvexProgram, regs: ArrayLike | Iterable[ArrayLike] | None, num_regs: int, min_share: float
) -> Float[np.ndarray, " k"]:
    """λ as given, or evenly spaced in log λ."""

    def limits() -> tuple[float, float]:
        scale = jnp.linalg.norm(program.x) * jnp.linalg.norm(targets_of(program))
        return float(program.max_reg()), float(scale)

    return _as_values(regs, num_regs, min_share, limits, program.x.dtype)


def _as_values(
    regs: ArrayLike | Iterable[ArrayLike] | None,
    num_regs: int,
    min_share: float,
    limits: Callable[[], tuple[float, float]],
    dtype: Any,
) -> Float[np.ndarray, " k"]:
    """λ as given, or spaced from λ_max down; ``limits`` computes λ_max and ‖X‖ ‖Y‖, by which its rounding is judged."""
    if regs is None:
        if not hasattr(num_regs, "__index__") or num_regs < 1 or not 0 < min_share < 1:
            raise ValueError(
                f"num_regs must be a positive integer and min_share between 0 and 1, got {num_regs!r} and {min_share!r}"
            )
        largest, scale = limits()
        if largest <= _ZERO_IN_EPS * float(jnp.finfo(dtype).eps) * scale:
            raise ValueError("W = 0 is the solution for every reg, so there is no path: is y zero or constant?")
        return largest * np.logspace(0, np.log10(min_share), num_regs)
    try:
        values = np.asarray(regs, float)
    except (TypeError, ValueError) as error:
        raise type(error)(f"regs must be a list of positive numbers, got {regs!r}") from None
    if values.ndim != 1 or values.size == 0 or not np.all((values > 0) & np.isfinite(values)):
        raise ValueError(f"regs must be a non-empty list of positive finite numbers, got {regs!r}")
    return values


def _predict_start(regs: Float[np.ndarray, " k"], solutions: Sequence[Solution], reg: float) -> Array:
    """The next solution as the last two predict it, since the path is piecewise smooth; the last one if it is alone.

    ``regs`` are those of the path, from the largest down.
    """
    start, count = solutions[-1].weights, len(solutions)
    if count < 2 or regs[count - 2] <= regs[count - 1]:
        return start
    share = (regs[count - 1] - reg) / (regs[count - 2] - regs[count - 1])
    # Python's number, since one of NumPy would make float64 of float32 weights.
    return _extrapolate(start, solutions[-2].weights, min(float(share), _MAX_EXTRAPOLATION))


_with_mask_numbers = jit_for_host(with_mask_numbers)


@jit_for_host
def _extrapolate(weights: Array, before: Array, share: Array) -> Array:
    """Where groups that were active twice go if they go on in λ as they did; zero where that is past zero."""
    were_active = working_sets.is_nonzero(weights) & working_sets.is_nonzero(before)
    ahead = weights + jnp.where(were_active[:, None, None], share * (weights - before), 0)
    return jnp.where(jnp.sum(ahead * weights, axis=(1, 2), keepdims=True) > 0, ahead, 0.0)
