"""The linear system of a Newton step: (H/σ)⁻¹ by the cheapest of four methods.

H/σ = I/σ + K(c) + Σ_p s_p q_p q_pᵀ over the active groups, a masked Gram kernel of n·c rows. In double precision a
factorisation in single, which takes half the time and the memory, preconditions conjugate gradients whose products
need no matrix. Inputs and targets are expected to be of size one, as :mod:`fixntk.convex.solvers.newton` makes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import jax.numpy as jnp
import jax.scipy.linalg as jsl
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int

from fixntk._numerics import einsum, eps_of, matmul, tiny_of, with_dtype
from fixntk.convex.program import ConvexProgram, datafit_of, group_shape_of, targets_of
from fixntk.gram import masked_adjoint, masked_apply

# A product with the masks costs this number of operations in addition to its arithmetic.
_PASS_OVERHEAD_FLOPS = 4e6
# Each entry of the masks costs the same as this number of additional features.
_FEATURES_PER_ENTRY = 15
# In double precision, an operation of such a product takes this factor more time than one of a square matrix product.
_PASS_SLOWNESS = 2.0
# A matrix of at most this number of rows is formed as a whole and factorised in its own precision: blocks and
# refinement would save milliseconds and compile for a second.
_MAX_SIMPLE_ROWS = 500
# A larger one is formed in this number of blocks.
_NUM_BLOCKS = 4
# A matrix of more entries is not formed.
_MAX_ENTRIES = 2**26
# The product of many rows with few features is done at a higher rate than others: its operations count this share.
_TALL_PRODUCT_SHARE = 0.6
# Each pass over the matrix costs about as much as this number of operations for each entry.
_FLOPS_PER_ENTRY = 30
# Number of products that conjugate gradients usually need.
_USUAL_PRODUCTS = 50
# Number of products at which conjugate gradients stop.
_MAX_PRODUCTS = 400
# Number of products that conjugate gradients usually need where the preconditioner is a factorisation in float32.
_USUAL_REFINEMENTS = 4
# Number of products at which conjugate gradients stop where the preconditioner is a factorisation in float32.
_MAX_REFINEMENTS = 50
# Relative residual at which conjugate gradients stop.
_CG_TOL = 1e-3
# Smallest multiple of I, in roundings of the largest diagonal entry, that makes a matrix definite in its dtype.
_SHIFT_IN_EPS = 100

# Applies an inverse to an array of right sides' shape.
Inverse = Callable[[Array], Array]


class _CGState(NamedTuple):
    """Conjugate gradients: number of products, solution, its residual, and the direction with the size rᵀ M⁻¹ r."""

    num_products: Int[Array, ""]
    solution: Float[Array, "n c"]
    residual: Float[Array, "n c"]
    direction: Float[Array, "n c"]
    size: Float[Array, ""]


class Active(NamedTuple):
    """The active groups, padded with nothing to a fixed number B.

    Attributes
    ----------
    masks
        (n, B) as numbers.
    kept, along
        (B,) derivatives of prox across U_p and along it: c_p and a_p.
    units
        (B, d, c) u_p = U_p / ‖U_p‖.
    rays
        (n, B, c) D_p X u_p.
    """

    masks: Float[Array, "n B"]
    kept: Float[Array, " B"]
    along: Float[Array, " B"]
    units: Float[Array, "B d c"]
    rays: Float[Array, "n B c"]


def cheapest_solver(program: ConvexProgram, size: int) -> Callable[[ConvexProgram, Array, Active], Inverse]:
    """The way to (H/σ)⁻¹ that takes the fewest operations for ``size`` groups.

    A way is a function of the program, σ and the active groups. Its result is NaN where rounding has made H indefinite.
    """
    return min(SOLVERS, key=lambda entry: entry[1](program, size))[0]


def flops(program: ConvexProgram, size: int) -> float:
    """Operations of the cheapest solver, applied once, in double precision where the program is."""
    return min(count(program, size) for _, count, _ in SOLVERS)


def bytes_needed(program: ConvexProgram, size: int) -> int | float:
    """Estimate of the memory for the linear system of ``size`` groups: their masks and rays, and its matrix."""
    # From shapes alone: outside of compiled functions an array of targets would have to be made.
    num_rows, num_outputs = program.x.shape[0], group_shape_of(program)[2]
    numbers = min(SOLVERS, key=lambda entry: entry[1](program, size))[2](program, size)
    return program.x.dtype.itemsize * (numbers + num_rows * size * (1 + num_outputs))


def is_matrix_free(program: ConvexProgram, size: int) -> bool:
    """Whether the cheapest solver for ``size`` groups makes products alone, no matrix and no factor."""
    return cheapest_solver(program, size) is _by_products


def derivative(kept: Array, along: Array, units: Array, change: Array) -> Array:
    """Derivative of prox at U, (P,) across U_p and along it, with U_p's (P, d, c) units, along a change of U."""
    projected = jnp.sum(units * change, axis=(1, 2), keepdims=True) * units
    return kept[:, None, None] * change + (along - kept)[:, None, None] * projected


def pass_flops(program: ConvexProgram, size: int) -> float:
    """Operations of two products with the masks of ``size`` groups, X W and its adjoint."""
    return 4.0 * program.y.size * size * (program.x.shape[1] + _FEATURES_PER_ENTRY) + _PASS_OVERHEAD_FLOPS


def largest_sigma(program: ConvexProgram, kept: Array) -> Array:
    """σ beyond which I + σ K(c) cannot be factorised in this dtype."""
    return 1 / _least_shift(jnp.sum(program.x**2) * jnp.sum(kept) / program.x.shape[0])


def _least_shift(diagonal: Array) -> Array:
    """The smallest multiple of I that makes a matrix with this largest diagonal entry definite in its dtype."""
    return _SHIFT_IN_EPS * eps_of(diagonal) * jnp.maximum(diagonal, tiny_of(diagonal))


def _by_rows(program: ConvexProgram, sigma: Array, active: Active) -> Inverse:
    """A Cholesky factorisation of n c rows."""
    return _inverse_of(jnp.linalg.cholesky(_shift(_matrix(program, active), 1 / sigma), symmetrize_input=False))


def _by_single_rows(program: ConvexProgram, sigma: Array, active: Active) -> Inverse:
    """The same in single precision, refined."""
    precondition = _inverse_in_single(_matrix(*with_dtype((program, active), jnp.float32)), 1 / sigma)
    return partial(_conjugate_gradients, partial(_product, program, sigma, active), precondition, _MAX_REFINEMENTS)


def _matrix(program: ConvexProgram, active: Active) -> Array:
    """H/σ − I/σ, of which only the lower triangle counts.

    In blocks of rows up to the diagonal, for cache locality, and so that little is computed twice.
    """
    num_rows, num_outputs = targets_of(program).shape
    if program.column is not None:
        matrix = _matrix_block(program, active, slice(0, num_rows))

        def project_rows(matrix: Array) -> Array:
            return datafit_of(program).remove_intercept(matrix.reshape(num_rows, -1)).reshape(matrix.shape)

        return project_rows(project_rows(matrix).T)
    edges = np.linspace(0, num_rows, 1 + (_NUM_BLOCKS if num_rows > _MAX_SIMPLE_ROWS else 1)).astype(int)
    blocks = [_matrix_block(program, active, slice(start, end)) for start, end in pairwise(edges.tolist())]
    size = num_rows * num_outputs
    return jnp.concatenate([jnp.pad(block, ((0, 0), (0, size - block.shape[1]))) for block in blocks])


def _matrix_block(program: ConvexProgram, active: Active, rows: slice) -> Array:
    """Some rows of the matrix, up to its diagonal."""
    masks, x, rays = active.masks[: rows.stop], program.x[: rows.stop], active.rays[: rows.stop]
    num_outputs = rays.shape[2]

    def flat(rays: Array) -> Array:
        return rays.swapaxes(1, 2).reshape(rays.shape[0] * num_outputs, -1)

    kernel = einsum("np,mp->nm", masks[rows] * active.kept[None, :], masks) * einsum("nd,md->nm", x[rows], x)
    block = jnp.kron(kernel, jnp.eye(num_outputs, dtype=kernel.dtype)) if num_outputs > 1 else kernel
    return block + einsum("ip,jp->ij", flat(rays[rows]) * (active.along - active.kept)[None, :], flat(rays))


def _by_features(program: ConvexProgram, sigma: Array, active: Active) -> Inverse:
    """A Cholesky factorisation with one row for each feature of each active group (Woodbury).

    Refined once, because cancellation loses digits.
    """
    features = _features(program, active)
    matrix = _shift(einsum("if,ig->fg", features, features), 1 / sigma)
    inner = _inverse_of(jnp.linalg.cholesky(matrix, symmetrize_input=False))

    # (I/σ + V Vᵀ)⁻¹ = σ (I − V (I/σ + VᵀV)⁻¹ Vᵀ). Where V Vᵀ is large against I/σ the difference cancels digits.
    def solve(right: Array) -> Array:
        return sigma * (right - einsum("if,f->i", features, inner(einsum("if,i->f", features, right))))

    def apply(right: Array) -> Array:
        flat = right.reshape(-1)
        first = solve(flat)
        remainder = flat - first / sigma - einsum("if,jf,j->i", features, features, first)
        return (first + solve(remainder)).reshape(right.shape)

    return apply


def _features(program: ConvexProgram, active: Active) -> Array:
    """V with H/σ = I/σ + V Vᵀ: the blocks D_p X (√c_p I + (√a_p − √c_p) u_p u_pᵀ)."""
    num_rows, num_outputs = targets_of(program).shape
    root, rest = jnp.sqrt(active.kept), jnp.sqrt(active.along) - jnp.sqrt(active.kept)
    features = einsum(
        "np,nd,ck->ncpdk", active.masks * root[None, :], program.x, jnp.eye(num_outputs, dtype=root.dtype)
    )
    features += einsum("npc,pdk->ncpdk", active.rays * rest[None, :, None], active.units)
    return datafit_of(program).remove_intercept(features).reshape(num_rows * num_outputs, -1)


def _by_products(program: ConvexProgram, sigma: Array, active: Active) -> Inverse:
    """Conjugate gradients, to a tenth of a per cent.

    Half of every mask is common to all: Σ_p c_p D_p X Xᵀ D_p is near a X Xᵀ, with a the sum of c_p times the squared
    share of ones. That part, which has the largest eigenvalues, and a multiple of I precondition.
    """
    kept = active.kept
    # A mask is its share of ones plus a rest of mean zero. The shares give a X Xᵀ; of the rests, taken as independent,
    # the trace is spread over the rows as a multiple of I.
    shares = jnp.mean(active.masks, axis=0)
    common = jnp.sum(kept * shares**2)
    rest = jnp.sum(kept * shares * (1 - shares)) * jnp.sum(program.x**2) / program.x.shape[0] ** 2
    shift = 1 / sigma + rest * program.x.shape[1]
    ridge = shift / jnp.where(common > 0, common, 1.0)
    # (s I + a X Xᵀ)⁻¹ = (I − X (XᵀX + s/a I)⁻¹ Xᵀ) / s, a system of the d features (Woodbury).
    inner = einsum("nd,ne->de", program.x, program.x) + jnp.eye(program.x.shape[1], dtype=ridge.dtype) * ridge
    factor = jsl.cho_factor(inner)

    def precondition(right: Array) -> Array:
        explained = matmul(program.x, jsl.cho_solve(factor, matmul(program.x.T, right)))
        return datafit_of(program).remove_intercept(right - explained) / shift

    return partial(_conjugate_gradients, partial(_product, program, sigma, active), precondition, _MAX_PRODUCTS)


def _conjugate_gradients(
    product: Callable[[Array], Array], precondition: Callable[[Array], Array], max_products: int, right: Array
) -> Array:
    """Preconditioned conjugate gradients from zero, to a relative residual of 10⁻³.

    ``jax.scipy.sparse.linalg.cg`` has the product twice and the preconditioner three times in its program, which takes
    twice as long to compile.
    """
    goal = _CG_TOL**2 * jnp.sum(right**2)

    def is_unfinished(state: _CGState) -> Array:
        return (state.num_products < max_products) & (jnp.sum(state.residual**2) > goal)

    def advance(state: _CGState) -> _CGState:
        preconditioned = precondition(state.residual)
        size = jnp.sum(state.residual * preconditioned)
        # Zero in the first step, as the size before it is infinite.
        direction = preconditioned + size / state.size * state.direction
        image = product(direction)
        length = size / jnp.sum(direction * image)
        return _CGState(
            state.num_products + 1,
            state.solution + length * direction,
            state.residual - length * image,
            direction,
            size,
        )

    zero = jnp.zeros_like(right)
    start = _CGState(jnp.asarray(0), zero, right, zero, jnp.asarray(jnp.inf, right.dtype))
    return lax.while_loop(is_unfinished, advance, start).solution


def _product(program: ConvexProgram, sigma: Array, active: Active, vector: Array) -> Array:
    """(H/σ) v without the matrix."""
    masks = active.masks
    correlations = masked_adjoint(masks, program.x, vector, masks.shape[1])
    groups = derivative(active.kept, active.along, active.units, correlations)
    return vector / sigma + datafit_of(program).remove_intercept(masked_apply(masks, program.x, groups))


def _shift(matrix: Array, shift: Array) -> Array:
    diagonal = jnp.arange(matrix.shape[0])
    return matrix.at[diagonal, diagonal].add(shift)


def _inverse_of(lower: Array) -> Inverse:
    """(L Lᵀ)⁻¹ for arrays whose number of entries is that of its rows.

    NaN where L is, as rounding had made the matrix that was factorised indefinite.
    """
    return lambda right: jsl.cho_solve((lower, True), right.reshape(-1)).reshape(right.shape)


def _inverse_in_single(matrix: Array, shift: Array) -> Inverse:
    """About (matrix + shift I)⁻¹ for arrays in double precision, from a matrix in single.

    A shift that is too small for single precision is raised to the smallest that keeps the matrix definite.
    """
    shift = jnp.maximum(shift.astype(matrix.dtype), _least_shift(jnp.max(jnp.diagonal(matrix))))
    solve = _inverse_of(jnp.linalg.cholesky(_shift(matrix, shift), symmetrize_input=False))

    def apply(right: Array) -> Array:
        scale = jnp.maximum(jnp.max(jnp.abs(right)), tiny_of(right))
        return scale * solve((right / scale).astype(matrix.dtype)).astype(right.dtype)

    return apply


def _row_flops(program: ConvexProgram, size: int) -> float:
    """Operations of :func:`_by_rows`; an entry of the matrix is passed over some thirty times."""
    rows = float(program.y.size)
    return rows**3 / 3 + rows**2 * (4 * size + _FLOPS_PER_ENTRY) if rows**2 <= _MAX_ENTRIES else float("inf")


def _feature_flops(program: ConvexProgram, size: int) -> float:
    """Operations of :func:`_by_features`."""
    rows, features = float(program.y.size), float(size * group_shape_of(program)[1] * group_shape_of(program)[2])
    if max(rows, features) * features > _MAX_ENTRIES:
        return float("inf")
    return _TALL_PRODUCT_SHARE * 2 * rows * features**2 + features**3 / 3 + _FLOPS_PER_ENTRY * rows * features


def _product_flops(program: ConvexProgram, size: int) -> float:
    """Operations of :func:`_by_products` with the number of products typical of the middle of a solve."""
    return _PASS_SLOWNESS * _USUAL_PRODUCTS * pass_flops(program, size)


def _single_row_flops(program: ConvexProgram, size: int) -> float:
    """Operations of :func:`_by_single_rows`, of which two count as one, and of its refinement."""
    if program.x.dtype != jnp.float64 or program.y.size <= _MAX_SIMPLE_ROWS:
        return float("inf")
    return 0.5 * _row_flops(program, size) + _PASS_SLOWNESS * _USUAL_REFINEMENTS * pass_flops(program, size)


def _row_numbers(program: ConvexProgram, _: int) -> int | float:
    """Numbers in the matrix of :func:`_by_rows`, its blocks and its factor."""
    return 4.0 * program.y.size**2


def _single_row_numbers(program: ConvexProgram, size: int) -> int | float:
    """The same in single precision, as numbers of the program's."""
    return 0.5 * _row_numbers(program, size)


def _feature_numbers(program: ConvexProgram, size: int) -> int | float:
    """Numbers in the features of :func:`_by_features`, while they are made, and in their matrix and its factor."""
    features = size * math.prod(group_shape_of(program)[1:])
    return 3.0 * features**2 + 2.0 * program.y.size * features


# Ways to the inverse, their operations, and the numbers that they keep in memory.
SOLVERS: tuple[
    tuple[Callable[..., Inverse], Callable[[ConvexProgram, int], float], Callable[[ConvexProgram, int], float]], ...
] = (
    (_by_rows, _row_flops, _row_numbers),
    (_by_single_rows, _single_row_flops, _single_row_numbers),
    (_by_features, _feature_flops, _feature_numbers),
    (_by_products, _product_flops, lambda *_: 0.0),
)
