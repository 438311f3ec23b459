"""Solutions along a path of λ, from λ_max down, with warm starts, gap-safe screening and working sets (M9)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float

from fixntk._checks import is_traced
from fixntk.convex.losses import Loss
from fixntk.convex.penalties import group_norms
from fixntk.convex.program import ConvexProgram, Point
from fixntk.convex.solution import Solution
from fixntk.convex.solve import REWEIGHTING, solve, solve_part
from fixntk.convex.solvers import working_sets
from fixntk.gram import masked_adjoint, select_masks

# The spectral norms of the groups need (n + P)·d² numbers; above so many, Frobenius norms stand in for them.
_MOST_NUMBERS = 2**25
# A path is continued in λ by at most so many of its last steps.
_FARTHEST = 2.0
# A product with all masks takes n·P·d multiplications; below so many a smaller program is not worth its compilation.
_WORTH_SCREENING = 1e7
# A working set has room for so many times the active groups and so many more, which is also the size of the smallest.
# At most so many are made for one λ, and none that would hold more than this share of all groups.
_ROOM, _SMALLEST_SET, _MOST_WORKING_SETS, _LARGEST_SHARE = 1.02, 16, 4, 0.7


def solve_path(
    x: ArrayLike,
    y: ArrayLike,
    masks: ArrayLike,
    regs: ArrayLike | Sequence[float] | None = None,
    *,
    num_regs: int = 100,
    min_share: float = 1e-3,
    num_gates: int | None = None,
    loss: str | Loss = "squared",
    sample_weight: ArrayLike | None = None,
    intercept: bool = False,
    penalty_weights: ArrayLike | None = None,
    ridge: ArrayLike = 0.0,
    norm: str = "frobenius",
    method: str = "auto",
    tol: float = 1e-6,
    max_iter: int | None = None,
    screen: bool = True,
    callback: Callable[[Solution], bool | None] | None = None,
) -> list[Solution]:
    """Solve the convex program for many λ, each from the solution before it (M9).

    Parameters
    ----------
    x, y, masks, loss, num_gates, sample_weight, intercept, penalty_weights, ridge, norm
        As for :class:`fixntk.ConvexProgram`.
    regs
        λ in any order; solved from the largest down. When None, ``num_regs`` of them, evenly spaced in log λ from
        λ_max to ``min_share`` λ_max.
    num_regs, min_share
        See ``regs``.
    method, tol, max_iter
        As for :func:`fixntk.solve`, for each λ. IRLS and Anderson, whose weights are never zero, cannot go along a
        path.
    screen
        Solve for each λ on the groups that are active at its start or nearest to it, without those that the gap-safe
        rule proves to be zero, until the certificate holds on all groups; where the problem is large enough for that to
        pay.
    callback
        Called with each Solution as it is finished; a true answer stops the path there.

    Returns
    -------
    Solutions in the order of ``regs``, as far as the path went, each certified on all groups. Iterations and history
    are those on the groups that were solved for last, where they are part of all without seconds.

    Raises
    ------
    ValueError
        As :class:`fixntk.ConvexProgram` and :func:`fixntk.solve`; also if ``regs`` is empty or not positive, if it is
        None and λ_max is zero, or under ``jit`` and ``vmap`` (where a ``vmap`` of ``solve`` over λ does it).

    References
    ----------
    Ndiaye, Fercoq, Gramfort and Salmon, "Gap Safe Screening Rules for Sparsity Enforcing Penalties", JMLR 2017;
    docs/mathematics.md, M9.

    Examples
    --------
    >>> import jax, fixntk as fx
    >>> x = jax.random.normal(jax.random.key(0), (50, 3))
    >>> masks = fx.activation_masks(x, fx.sample_gates(jax.random.key(1), 20, 3))
    >>> solutions = fx.solve_path(x, abs(x[:, 0]), masks, regs=[3.0, 1.0, 0.3], tol=1e-4)
    >>> len(solutions)
    3
    """
    if is_traced(x, y, masks, regs, sample_weight, penalty_weights, ridge):
        raise ValueError("solve_path cannot be traced: jax.vmap solve over λ instead")
    if method in REWEIGHTING:
        raise ValueError(f"method {method!r} starts at kernel weights, not at a solution: use 'newton' or 'fista'")
    program = ConvexProgram(
        x,
        y,
        masks,
        1.0,
        loss,
        num_gates=num_gates,
        sample_weight=sample_weight,
        intercept=intercept,
        penalty_weights=penalty_weights,
        ridge=ridge,
        norm=norm,
    ).canonical()
    values = _as_regs(program, regs, num_regs, min_share)
    worth = program.x.size * program.num_gates >= _WORTH_SCREENING
    start = jnp.zeros(program.group_shape, program.x.dtype)
    sizes = None
    if screen and worth:
        program = program.with_numbers()
        sizes = group_sizes(program)
        last = _point(program, start)
    solutions: dict[int, Solution] = {}
    known: list[tuple[float, Array]] = []
    for position in np.argsort(-values, kind="stable"):
        reg = float(values[position])
        if len(known) == 2 and known[0][0] > known[1][0]:
            share = (known[1][0] - reg) / (known[0][0] - known[1][0])
            start = _continued(start, known[0][1], min(share, _FARTHEST))
        if sizes is None:
            solution = solve(program.with_reg(reg), method=method, tol=tol, max_iter=max_iter, init=start)
        else:
            solution, last = _solve_on_sets(program.with_reg(reg), start, last, sizes, method, tol, max_iter)
        solutions[int(position)] = solution
        start = solution.weights
        known = [*known[-1:], (reg, start)]
        if callback is not None and callback(solution):
            break
    return [solutions[position] for position in sorted(solutions)]


def gap_safe(program: ConvexProgram, weights: ArrayLike, sizes: Array | None = None) -> Bool[Array, " P"]:
    """Groups that are proved to be zero at the optimum by the weights' duality gap (M9).

    ‖Xᵀ D_p Θ‖ + √(2 gap) ‖D_p X‖₂ < λ, with Θ the scaled residual of the weights.

    Parameters
    ----------
    program
        The problem.
    weights
        (P, d, c) group weights, or (P, d) for targets (n,).
    sizes
        (P,) from :func:`group_sizes`, computed when None.
    """
    sizes = group_sizes(program) if sizes is None else sizes
    return _screened(program, _point(program, program.as_group_weights(weights)), sizes)


def group_sizes(program: ConvexProgram) -> Float[Array, " P"]:
    """‖D_p X‖₂ of every group, or an upper bound on it, ‖D_p X‖_F, where (n + P)·d² numbers would be too many (M9)."""
    num_gates, num_features, _ = program.group_shape
    if (program.x.shape[0] + num_gates) * num_features**2 > _MOST_NUMBERS:
        squares = jnp.sum(program.x**2, axis=1, keepdims=True)
        return jnp.sqrt(_sums(program, squares)[:, 0])
    products = (program.x[:, :, None] * program.x[:, None, :]).reshape(-1, num_features**2)
    grams = _sums(program, products).reshape(num_gates, num_features, num_features)
    largest = jnp.linalg.eigvalsh(grams)[:, -1]
    # Rounding must not make a group smaller than it is.
    return jnp.sqrt(jnp.maximum(largest, 0)) * (1 + num_features * 10 * jnp.finfo(largest.dtype).eps)


def _sums(program: ConvexProgram, rows: Array) -> Array:
    """Σ over the rows that each mask keeps of (n, k) numbers, (P, k)."""
    return masked_adjoint(program.masks, jnp.ones_like(rows[:, :1]), rows, program.num_gates)[:, 0, :]


def _as_regs(
    program: ConvexProgram, regs: ArrayLike | Sequence[float] | None, num_regs: int, share: float
) -> np.ndarray:
    if regs is None:
        if not hasattr(num_regs, "__index__") or num_regs < 1 or not 0 < share < 1:
            raise ValueError(
                f"num_regs must be a positive integer and min_share between 0 and 1, got {num_regs!r} and {share!r}"
            )
        largest = float(program.max_reg())
        scale = float(jnp.linalg.norm(program.x) * jnp.linalg.norm(program.targets))
        if largest <= 10 * float(jnp.finfo(program.x.dtype).eps) * scale:
            raise ValueError("W = 0 is the solution for every reg, so there is no path: is y zero or constant?")
        return largest * np.logspace(0, np.log10(share), num_regs)
    values = np.asarray(regs, float)
    if values.ndim != 1 or values.size == 0 or not np.all((values > 0) & np.isfinite(values)):
        raise ValueError(f"regs must be a non-empty list of positive finite numbers, got {regs!r}")
    return values


def _solve_on_sets(
    program: ConvexProgram,
    start: Array,
    last: Point,
    sizes: Array,
    method: str,
    tol: float,
    max_iter: int | None,
) -> tuple[Solution, Point]:
    """Solve from a start, on the groups that are active there or nearest to it, until the certificate holds on all.

    Which are near, and which are zero, is what the last point says, the solution of the last λ.
    """
    for _ in range(_MOST_WORKING_SETS):
        nearest, num_active, num_left = _nearest(program, start, last, sizes)
        size = _set_size(min(int(num_left), int(_ROOM * num_active) + _SMALLEST_SET))
        if size > _LARGEST_SHARE * program.num_gates:
            break
        part, weights, chosen = _part(program, start, nearest, num_left, size)
        solution, last = solve_part(program, part, partial(_spread, start, chosen), method, tol, max_iter, weights)
        if bool(solution.converged):
            return solution, last
        start = solution.weights
        if bool(solution.failed):  # By rounding: other groups do not help.
            break
    solution = solve(program, method=method, tol=tol, max_iter=max_iter, init=start)
    return solution, _point(program, solution.weights)


@jax.jit
def _continued(weights: Array, before: Array, share: Array) -> Array:
    """Where groups that were active twice go if they go on in λ as they did; zero where that is past zero."""
    were_active = (group_norms(weights) > 0) & (group_norms(before) > 0)
    ahead = weights + share * were_active[:, None, None] * (weights - before)
    return jnp.where(jnp.sum(ahead * weights, axis=(1, 2), keepdims=True) > 0, ahead, 0.0)


def _set_size(wanted: int) -> int:
    """2ᵏ or 3·2ᵏ, so that few shapes are compiled; the next nearest groups fill up, empty ones where none are left."""
    size = 1 << max(_SMALLEST_SET - 1, wanted - 1).bit_length()
    return 3 * size // 4 if size > _SMALLEST_SET and wanted <= 3 * size // 4 else size


@jax.jit
def _nearest(program: ConvexProgram, start: Array, last: Point, sizes: Array) -> tuple[Array, Array, Array]:
    """Groups in the order in which to look at them, how many are active, and how many are not proved to be zero."""
    zero = _screened(program, last, sizes)
    near = jnp.where(zero, -1.0, working_sets.nearness(program, start, program.norm.duals(last.correlations)))
    return jnp.argsort(near, descending=True), jnp.sum(jnp.isinf(near)), jnp.sum(~zero)


@partial(jax.jit, static_argnames="size")
def _part(
    program: ConvexProgram, weights: Array, nearest: Array, num_left: Array, size: int
) -> tuple[ConvexProgram, Array, Array]:
    """The program of the nearest groups, their weights, and which they are; those past ``num_left`` get empty masks."""
    chosen = nearest[:size]
    present = jnp.arange(size) < num_left
    masks = select_masks(program.masks, chosen)
    part = program.with_masks(jnp.where(present, masks, jnp.zeros_like(masks)), chosen)
    return part, weights[chosen] * present[:, None, None], chosen


@jax.jit
def _spread(like: Array, chosen: Array, weights: Array) -> Array:
    return jnp.zeros_like(like).at[chosen].set(weights)


@jax.jit
def _point(program: ConvexProgram, weights: Array) -> Point:
    return program.point(weights)


@jax.jit
def _screened(program: ConvexProgram, point: Point, sizes: Array) -> Array:
    """Which groups are proved to be zero, from a point of this λ or another."""
    gap, scale = program.certificate(*point)
    residual = jnp.sqrt(jnp.sum(point.fit.residual**2))
    eps = 10 * jnp.finfo(sizes.dtype).eps
    # What rounding may have taken from the gap, and from the correlations.
    gap += eps * program.primal_of(point.weights, point.fit)
    heaviest = 1.0 if program.sample_weight is None else jnp.max(program.sample_weight)
    radius = jnp.sqrt(2 * program.loss.steepest * heaviest * gap) + eps * residual
    duals = program.norm.duals(point.correlations)
    return scale * duals + radius * sizes < program.thresholds * (1 - eps)
