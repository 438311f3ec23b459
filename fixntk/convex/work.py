"""Work of each method, counted from shapes alone: of one iteration, and of a typical solve.

Operations are additions and multiplications. They are kept apart by the kind of computation, as a machine does each
kind at a rate of its own (:mod:`fixntk.convex.rates`). Newton's own operations are the ones by which it chooses its
sizes (:func:`fixntk.convex.solvers.working_sets.newton_flops`).

Numbers of iterations are not a matter of shapes. The typical ones are those of Gaussian rows whose targets are a
network of five neurons with noise, at λ = 0.1 λ_max and the default tolerance, for 500 to 100,000 rows and 200 to 1000
gates. A smaller λ takes more.

See docs/mathematics.md, M6 and M8.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from fixntk._numerics import allow_float64
from fixntk.convex.losses import Loss, as_loss
from fixntk.convex.method import Method
from fixntk.convex.program import ConvexProgram, group_shape_of, is_quadratic
from fixntk.convex.solvers import anderson, fista, irls, newton, newton_system, prox_newton, working_sets
from fixntk.gram import computed_share

# Losses of labels −1 and 1.
_LOSSES_OF_ONE_OUTPUT = ("logistic", "squared_hinge")
# Typical number of active groups, in roots of the number of gates.
_ACTIVE_PER_ROOT_GATE = 3.2

# Pairs of numbers are for single and for double precision, whose tolerance is a hundred times smaller.

# Typical numbers of steps of FISTA.
_FISTA_STEPS = (400, 750)
# Typical numbers of steps of iterative reweighting.
_IRLS_STEPS = (150, 300)
# Typical numbers of steps of iterative reweighting with Anderson acceleration.
_ANDERSON_STEPS = (40, 110)
# Typical number of rounds of Newton's method on working sets, after the first.
_ROUNDS = 4
# Typical number of first-order steps of the first round.
_FIRST_ROUND_STEPS = 14
# Typical number of first-order steps of each of the other rounds.
_ROUND_STEPS = 53
# In double precision two more rounds follow: one of this number of first-order steps, and one that makes all the steps
# that it may, as the single precision of its steps does not reach the tolerance.
_LATE_ROUND_STEPS = 75
# Typical number of Newton steps where there are no rounds.
_NEWTON_STEPS = 8
# Typical numbers of steps of the proximal Newton method.
_PROX_STEPS = (5, 6)
# Typical number of Newton steps on the program of the squared loss in a step of the proximal Newton method.
_INNER_STEPS = 4


class Work(NamedTuple):
    """Operations by kind.

    Attributes
    ----------
    products
        Of products with all masks, which come as bools.
    set_products
        Of products with masks of a working set, which are numbers in single precision.
    squares
        Of products that make n×n matrices.
    factorisations
        Of Cholesky factorisations and solves with them, and of the linear systems of Newton's method.
    num_adjoints
        Number of arrays of correlations Xᵀ D_p R, (P, d, c), that are computed: with rows on several devices each is a
        sum over devices.
    set_values
        Numbers of correlations of working sets that are computed, which are such sums too.
    """

    products: float = 0.0
    set_products: float = 0.0
    squares: float = 0.0
    factorisations: float = 0.0
    num_adjoints: float = 0.0
    set_values: float = 0.0

    @property
    def flops(self) -> float:
        """Operations of all kinds."""
        return self.products + self.set_products + self.squares + self.factorisations

    def plus(self, other: Work) -> Work:
        """The work of both."""
        return Work(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, count: float) -> Work:
        """The work ``count`` times, which need not be whole."""
        return Work(*(count * a for a in self))


def program_of_shapes(
    num_rows: int, num_features: int, num_gates: int, num_outputs: int, loss: str | Loss, dtype: DTypeLike
) -> ConvexProgram:
    """A convex program of shapes and dtypes in place of arrays, on which estimates can be called.

    Raises
    ------
    ValueError
        If the loss is unknown, or not for this number of outputs.
    """
    loss = as_loss(loss)
    if loss.name == "softmax" and num_outputs < 2:
        raise ValueError(f"loss 'softmax' is for at least two outputs, got outputs={num_outputs}")
    if loss.name in _LOSSES_OF_ONE_OUTPUT and num_outputs > 1:
        raise ValueError(f"loss {loss.name!r} is for one output, got outputs={num_outputs}")
    y_shape = (num_rows,) if num_outputs == 1 else (num_rows, num_outputs)
    with allow_float64():
        shapes = (
            jax.ShapeDtypeStruct((num_rows, num_features), jnp.dtype(dtype)),
            jax.ShapeDtypeStruct(y_shape, jnp.dtype(dtype)),
            jax.ShapeDtypeStruct((num_rows, num_gates), np.dtype(bool)),
        )
        # The constructor's checks of shapes and losses hold here too.
        return jax.eval_shape(lambda x, y, masks: ConvexProgram(x, y, masks, 1.0, loss), *shapes)


def product_work(program: ConvexProgram, *, forward: int, adjoint: int) -> Work:
    """Products with all masks, Σ_p D_p X W_p and Xᵀ D_p R, of which each multiplies n×P by P×dc numbers."""
    return Work(
        products=2.0 * (forward + adjoint) * program.x.shape[0] * math.prod(group_shape_of(program)),
        num_adjoints=adjoint,
    )


def kernel_work(program: ConvexProgram) -> Work:
    """A masked Gram kernel, the Cholesky factorisation of it plus λI, and two solves and a product with it."""
    num_rows, (num_gates, num_features, num_outputs) = float(program.x.shape[0]), group_shape_of(program)
    return Work(
        squares=2 * computed_share(program.x.shape[0]) * num_rows**2 * (num_gates + num_features),
        factorisations=num_rows**3 / 3 + 6 * num_rows**2 * num_outputs,
    )


class _Solve(NamedTuple):
    """The iterations of a typical solve by a method.

    Attributes
    ----------
    step
        Work of one of them, the mean where they differ.
    num_steps
        Their number.
    num_starts
        Work of the start, in iterations.
    """

    step: Work
    num_steps: int
    num_starts: int = 1


def step_work(program: ConvexProgram, method: Method) -> Work:
    """Work of one iteration; for Newton's method the mean of those of a typical solve."""
    return _SOLVES[method](program).step


def typical_iterations(program: ConvexProgram, method: Method) -> int:
    """Iterations of a typical solve."""
    return min(method.max_iter, _SOLVES[method](program).num_steps)


def typical_work(program: ConvexProgram, method: Method) -> Work:
    """Work of a typical solve, the start and the certificate of the result included."""
    found = _SOLVES[method](program)
    work = found.step.times(typical_iterations(program, method) + found.num_starts)
    return work.plus(product_work(program, forward=1, adjoint=1))


def _fista_solve(program: ConvexProgram) -> _Solve:
    step = product_work(program, forward=1, adjoint=1 if is_quadratic(program) else 2)
    return _Solve(step, _FISTA_STEPS[_is_double(program)])


def _reweighting_work(program: ConvexProgram) -> Work:
    """The kernel ridge solution, and the certificate of its weights."""
    return kernel_work(program).plus(product_work(program, forward=1, adjoint=2))


def _irls_solve(program: ConvexProgram) -> _Solve:
    return _Solve(_reweighting_work(program), _IRLS_STEPS[_is_double(program)])


def _anderson_solve(program: ConvexProgram) -> _Solve:
    return _Solve(_reweighting_work(program).times(2), _ANDERSON_STEPS[_is_double(program)])


def _newton_solve(program: ConvexProgram) -> _Solve:
    work, count = _newton_work(program)
    return _Solve(work.times(1 / count), count, num_starts=0)


def _prox_newton_solve(program: ConvexProgram) -> _Solve:
    count = _PROX_STEPS[_is_double(program)]
    inner = _newton_step_work(program, newton_size(program)).times(_INNER_STEPS)
    # The line search takes a product with the masks each way.
    work = inner.plus(product_work(program, forward=1, adjoint=1)).times(count)
    work = work.plus(_rounds_work(program, _round_sizes(program)[:1], [_ROUND_STEPS] * 2))
    return _Solve(work.times(1 / count), count, num_starts=0)


def typical_active(program: ConvexProgram) -> int:
    """Number of active groups of a typical solution."""
    return min(program.num_gates, math.ceil(_ACTIVE_PER_ROOT_GATE * math.sqrt(program.num_gates)))


def newton_size(program: ConvexProgram) -> int:
    """Size of the Newton steps on the active groups of a typical solution."""
    sizes = working_sets.schedule_of(program).newton_sizes
    return sizes[bisect_left(sizes, typical_active(program))]


def _newton_work(program: ConvexProgram) -> tuple[Work, int]:
    """Work and iterations of Newton's method."""
    sizes = _round_sizes(program)
    if not sizes:
        return _newton_step_work(program, newton_size(program)).times(_NEWTON_STEPS), _NEWTON_STEPS
    steps = [_ROUND_STEPS] * _ROUNDS
    if _is_double(program):
        steps += [_LATE_ROUND_STEPS, working_sets.max_round_steps(program, sizes[0])]
    work = _rounds_work(program, sizes[:1], steps)
    first = _rounds_work(program, working_sets.schedule_of(program).round_sizes[:1], [_FIRST_ROUND_STEPS])
    return work.plus(first), len(steps) + 1


def _round_sizes(program: ConvexProgram) -> list[int]:
    """Sizes of working sets that hold the active groups of a typical solution."""
    wanted = working_sets.ROOM * typical_active(program)
    return [size for size in working_sets.schedule_of(program).round_sizes if size >= wanted]


def _rounds_work(program: ConvexProgram, sizes: list[int] | tuple[int, ...], steps: list[int]) -> Work:
    """Rounds of first-order steps on a working set, if there is one, each with a certificate on all gates."""
    total = Work()
    for size in sizes:
        num_values = float(size * math.prod(group_shape_of(program)[1:]))
        # Before the steps of a round there is a start of three products.
        passes = sum(steps) + 1.5 * len(steps)
        total = total.plus(
            Work(set_products=4 * passes * program.x.shape[0] * num_values, set_values=passes * num_values)
        ).plus(product_work(program, forward=1, adjoint=1).times(len(steps)))
    return total


def _newton_step_work(program: ConvexProgram, size: int) -> Work:
    products = product_work(program, forward=2, adjoint=2)
    # The time of a step that is not arithmetic counts as operations there.
    rest = working_sets.newton_flops(program, size) - products.flops - working_sets.NEWTON_OVERHEAD_FLOPS
    if newton_system.is_matrix_free(program, size):
        return products.plus(Work(set_products=rest))
    return products.plus(Work(factorisations=rest))


def _is_double(program: ConvexProgram) -> bool:
    return program.x.dtype == np.float64


_SOLVES = {
    newton.METHOD: _newton_solve,
    prox_newton.METHOD: _prox_newton_solve,
    fista.METHOD: _fista_solve,
    irls.METHOD: _irls_solve,
    anderson.METHOD: _anderson_solve,
}
