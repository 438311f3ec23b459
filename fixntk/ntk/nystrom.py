"""Nyström approximation of a kernel from landmark rows, which are chosen until the trace of the rest is small.

Landmarks are drawn in proportion to the diagonal of what the ones before leave of the kernel, a randomly pivoted
Cholesky factorisation in blocks. The kernel is evaluated between all rows and the landmarks alone, in tiles of rows,
and on its diagonal.

Chen, Epperly, Tropp and Webber, "Randomly pivoted Cholesky", 2023; Epperly, Tropp and Webber, "Embrace rejection",
2024, for blocks.

See docs/mathematics.md, M15.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int
from scipy.linalg import lapack

from fixntk._checks import as_positive_int, is_tracing
from fixntk._numerics import ConvergenceWarning, matmul
from fixntk._tiling import memory_for, num_rows
from fixntk.ntk.kernel_functions import (
    Diagonal,
    Kernel,
    as_rows,
    diagonal_at,
    diagonal_from_blocks,
    evaluate,
    take_rows,
)

# Largest number of landmarks if none is given.
_MAX_RANK = 2048
# Number of landmarks that are drawn at first. Each further draw doubles their number.
_FIRST_BLOCK = 32
# Largest number of landmarks that are drawn at a time.
_LARGEST_BLOCK = 512
# Rows of a tile if no batch size is given.
_TILE_ROWS = 4096
# A row whose residual is below this many roundings of the largest diagonal entry is no landmark.
_LEAST_PIVOT_IN_EPS = 10


@dataclass(frozen=True, eq=False)
class Nystrom:
    """An approximation K̃ = F Fᵀ of rank r of a kernel K, with K − K̃ positive semidefinite.

    Made by :func:`nystrom`.

    Attributes
    ----------
    kernel, diagonal_of
        The kernel as a function of two sets of rows, and its diagonal as a function of one.
    landmarks
        (r, …) the landmark rows, in the order in which they were chosen.
    indices
        (r,) their places among the rows.
    factor
        (n, r) F.
    triangle
        (r, r) F on the landmarks, lower triangular.
    diagonal
        (n,) that of K.
    residual
        (n,) the diagonal of K − K̃, not below what rounding can hide.
    converged
        Whether the trace of K − K̃ is within the tolerance.
    batch_size
        Rows of a tile.

    See docs/mathematics.md, M15.
    """

    kernel: Kernel
    diagonal_of: Diagonal
    landmarks: Any
    indices: Int[np.ndarray, " r"]
    factor: Float[Array, "n r"]
    triangle: Float[Array, "r r"]
    diagonal: Float[Array, " n"]
    residual: Float[Array, " n"]
    converged: bool
    batch_size: int

    def __repr__(self) -> str:
        share = self.trace_bound / (float(np.sum(np.asarray(self.diagonal))) or 1.0)
        return f"Nystrom({self.factor.shape[0]} rows, rank {self.rank}, {share:.2g} of the trace left)"

    @property
    def rank(self) -> int:
        """Number of landmarks."""
        return self.factor.shape[1]

    @property
    def trace_bound(self) -> float:
        """Trace of K − K̃: an upper bound on its spectral norm and on its Frobenius norm, in the kernel's unit."""
        # By NumPy, as a caller may be outside the context in which JAX had float64.
        return float(np.sum(np.asarray(self.residual)))

    def features(self, x: Any) -> Float[Array, "m r"]:
        """Features φ of rows with K̃(x, x') = φ(x)·φ(x'); those of the rows that K̃ was made of are ``factor``.

        Parameters
        ----------
        x
            (m, …) rows, as those that K̃ was made of.

        Raises
        ------
        TypeError, ValueError
            If they are not arrays with the same number of rows, or the kernel is not finite there.

        See docs/mathematics.md, M15.
        """
        return _features(self.triangle, self.columns(x))

    def columns(self, x: Any) -> Float[Array, "m r"]:
        """The kernel between rows and the landmarks, in tiles of rows.

        Raises
        ------
        TypeError, ValueError
            As :meth:`features`.
        """
        return evaluate(self.kernel, as_rows(x), self.landmarks, self.batch_size, self.factor.dtype)

    def residual_at(self, x: Any, features: Float[Array, "m r"] | None = None) -> Float[Array, " m"]:
        """The diagonal of K − K̃ at new rows, whose features may be given.

        Raises
        ------
        TypeError, ValueError
            As :meth:`features`.

        See docs/mathematics.md, M15.
        """
        features = self.features(x) if features is None else features
        diagonal = diagonal_at(self.diagonal_of, as_rows(x), features.dtype)
        return jnp.maximum(diagonal - jnp.sum(features**2, axis=1), _rounding(diagonal, self.rank))


def nystrom(
    kernel: Kernel,
    x: Any,
    *,
    key: Array,
    tol: float = 1e-3,
    max_rank: int | None = None,
    diagonal: Diagonal | None = None,
    batch_size: int | None = None,
) -> Nystrom:
    r"""Approximate a kernel by landmark rows, until the trace of what is left is below a share of the kernel's.

    .. math:: \tilde K = K_{\cdot S} K_{SS}^{-1} K_{S \cdot}, \qquad
        \|K - \tilde K\|_2 \le \mathrm{tr}(K - \tilde K) = \sum_i \bigl(K_{ii} - \tilde K_{ii}\bigr)

    The trace is exact, as it needs the kernel's diagonal alone. The rank doubles until the trace is within the
    tolerance: n r evaluations of the kernel, O(n r²) operations, and a factor of n×r numbers. Not under ``jit``.

    Parameters
    ----------
    kernel
        ``kernel(x1, x2) -> (n1, n2)``, positive semidefinite, such as :func:`fixntk.gated_relu_ntk`, ``lambda a, b:
        mlp_kernel(a, b, depth=3).ntk`` or :func:`fixntk.masked_gram` of pairs of masks and rows.
    x
        (n, …) rows: an array, or a pytree of arrays with a row for each example.
    key
        For the landmarks.
    tol
        Largest share of the trace that is left, between 0 and 1.
    max_rank
        Largest number of landmarks; 2048 when None.
    diagonal
        ``diagonal(x) -> (n,)``, the kernel of each row with itself; from blocks of the kernel when None.
    batch_size
        Rows of a tile; 4096 when None.

    Returns
    -------
    Nystrom

    Raises
    ------
    TypeError
        If x is not made of arrays, the kernel no function, or a size not an integer.
    ValueError
        If the rows do not match, the kernel has another shape or is not finite, its diagonal is negative, or an option
        is out of its range. OutOfMemoryError, a ValueError too, if memory does not suffice for the factor.

    Warns
    -----
    ConvergenceWarning
        If more than ``tol`` of the trace is left at the largest rank.

    References
    ----------
    Chen, Epperly, Tropp and Webber, "Randomly pivoted Cholesky: practical approximation of a kernel matrix with few
    entry evaluations", 2023.

    Examples
    --------
    >>> import jax, fixntk as fx
    >>> x = jax.random.normal(jax.random.key(0), (500, 3))
    >>> found = fx.nystrom(fx.gated_relu_ntk, x, key=jax.random.key(1), tol=0.05)
    >>> found.converged, found.rank < 500
    (True, True)

    See docs/mathematics.md, M15.
    """
    if not callable(kernel):
        raise TypeError(f"kernel must be a function of two sets of rows, got {type(kernel).__name__}")
    if is_tracing(x):
        raise ValueError("nystrom needs the host, which chooses the landmarks: not under jit or vmap")
    if not isinstance(tol, int | float | np.number):
        raise TypeError(f"tol must be a number, got {type(tol).__name__}")
    if not 0 < tol < 1:
        raise ValueError(f"tol must be between 0 and 1, got {tol}")
    rows = as_rows(x)
    limit = min(as_positive_int("max_rank", _MAX_RANK if max_rank is None else max_rank), num_rows(rows))
    tile = as_positive_int("batch_size", _TILE_ROWS if batch_size is None else batch_size)
    diagonal_of = partial(diagonal_from_blocks, kernel) if diagonal is None else diagonal
    first = diagonal_at(diagonal_of, rows, None)
    growing = _Growing(kernel, rows, first, tile)
    # Each block of landmarks is as large as all before it, so that few products are large ones; it is drawn by what the
    # blocks before it leave of the diagonal.
    while growing.rank < limit and growing.left > tol * growing.total:
        key, drawn = jax.random.split(key)
        size = min(max(growing.rank, _FIRST_BLOCK), _LARGEST_BLOCK, limit - growing.rank)
        if not growing.add(drawn, size, limit):
            break
    indices = np.concatenate(growing.indices) if growing.indices else np.zeros(0, int)
    factor = growing.factor[:, : growing.rank]
    # What is left of an entry of the diagonal is known up to rounding, and a bound must not be below the truth.
    residual = jnp.maximum(growing.residual, _rounding(first, growing.rank))
    converged = growing.left <= tol * growing.total
    if not converged:
        end = f"max_rank={limit}" if growing.rank == limit else f"rank {growing.rank}, which rounding allows,"
        share = growing.left / growing.total
        message = f"nystrom stopped at {end} with {share:.2g} of the trace left, above tol={tol:.1e}"
        warnings.warn(message, ConvergenceWarning, stacklevel=2)
    landmarks = take_rows(rows, indices)
    triangle = jnp.tril(factor[indices])
    return Nystrom(kernel, diagonal_of, landmarks, indices, factor, triangle, first, residual, converged, tile)


class _Growing:
    """The factor as it grows: its columns up to the rank, behind which there are zeros."""

    def __init__(self, kernel: Kernel, rows: Any, diagonal: Array, tile: int) -> None:
        self.kernel, self.rows, self.tile = kernel, rows, tile
        self.factor = jnp.zeros((diagonal.size, 0), diagonal.dtype)
        self.residual = diagonal
        self.total, largest = float(jnp.sum(diagonal)), float(jnp.max(diagonal))
        self.least_pivot = _LEAST_PIVOT_IN_EPS * float(jnp.finfo(diagonal.dtype).eps) * largest
        self.indices: list[np.ndarray] = []
        self.rank = 0

    @property
    def left(self) -> float:
        """Trace of the kernel less its approximation."""
        return float(jnp.sum(self.residual))

    def add(self, key: Array, size: int, limit: int) -> bool:
        """Draw ``size`` rows and add those that are not explained by others; whether there are any."""
        self._make_room(size, limit)
        drawn = np.asarray(_draw(key, self.residual, size))
        columns = evaluate(self.kernel, self.rows, take_rows(self.rows, drawn), self.tile, self.factor.dtype)
        rest = _subtract(self.factor, columns, drawn, self.residual)
        order, lower, count = _factorise(np.asarray(rest[drawn]), self.least_pivot)
        if not count:
            return False
        kept = np.arange(size) < count
        self.factor, self.residual = _append(self.factor, self.residual, rest[:, order], lower, kept, self.rank)
        chosen = drawn[order[:count]]
        self.residual = self.residual.at[chosen].set(0.0)
        self.indices.append(chosen)
        self.rank += count
        return True

    def _make_room(self, size: int, limit: int) -> None:
        """Columns for as many landmarks again, where the next do not fit."""
        height, capacity = self.factor.shape
        if self.rank + size <= capacity:
            return
        larger = max(self.rank + size, min(2 * capacity, limit))
        # The old factor and the new one, and the columns of a block, which are copied twice.
        needed = height * (capacity + larger + 3 * size) * self.factor.dtype.itemsize
        what = f"the Nyström factor of {height} rows and rank {larger}"
        with memory_for(what, needed, "give a smaller max_rank, or a larger tol", self.factor):
            self.factor = jnp.pad(self.factor, ((0, 0), (0, larger - capacity)))


@partial(jax.jit, static_argnums=2)
def _draw(key: Array, residual: Array, size: int) -> Int[Array, " b"]:
    """Different rows, each drawn in proportion to its residual."""
    noise = jax.random.gumbel(key, residual.shape, residual.dtype)
    # The largest of log p plus Gumbel noise are a sample without replacement.
    return lax.top_k(jnp.log(residual) + noise, size)[1]


@jax.jit
def _subtract(factor: Array, columns: Array, drawn: Array, residual: Array) -> Float[Array, "n b"]:
    """Columns of K − F Fᵀ, zero in rows that are explained."""
    return jnp.where(residual[:, None] > 0, columns - matmul(factor, factor[drawn].T), 0.0)


def _factorise(matrix: np.ndarray, least_pivot: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Pivoted Cholesky of the residual kernel of the drawn rows: their order, the factor, and how many are kept.

    The factor is an identity where rows are dropped, as others explain them.
    """
    factorise = lapack.dpstrf if matrix.dtype == np.float64 else lapack.spstrf
    found, order, count, _ = factorise((matrix + matrix.T) / 2, tol=least_pivot, lower=1)
    lower = np.eye(len(matrix), dtype=matrix.dtype)
    # LAPACK does not look at the first pivot.
    count = int(count) if found[0, 0] ** 2 > least_pivot else 0
    lower[:count, :count] = np.tril(found[:count, :count])
    return order - 1, lower, count


@jax.jit
def _append(
    factor: Array, residual: Array, rest: Array, lower: Array, kept: Array, rank: Array | int
) -> tuple[Array, Array]:
    """Write new columns behind the first ``rank`` ones."""
    columns = jsl.solve_triangular(lower, jnp.where(kept[None, :], rest, 0.0).T, lower=True).T
    residual = jnp.maximum(residual - jnp.sum(columns**2, axis=1), 0.0)
    return lax.dynamic_update_slice_in_dim(factor, columns, rank, axis=1), residual


@jax.jit
def _features(triangle: Array, columns: Array) -> Array:
    return jsl.solve_triangular(triangle, columns.T, lower=True).T


def _rounding(diagonal: Array, rank: int) -> Array:
    """What rounding can hide in a residual after this number of subtractions."""
    return rank * jnp.finfo(diagonal.dtype).eps * diagonal
