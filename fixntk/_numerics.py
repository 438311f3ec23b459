"""Numerically careful arithmetic that several parts of the library share."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import jax
import jax.experimental
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float
from threadpoolctl import ThreadpoolController

# Largest number of jitters to try until a kernel matrix can be factorised; each is ten times the one before.
_MAX_JITTERS = 6
# Largest number of rows whose factorisations are left to a single thread of the BLAS library.
_MAX_ROWS_OF_ONE_THREAD = 4096


class ConvergenceWarning(UserWarning):
    """A solver stopped before the relative gap reached the tolerance; the Solution says where and why."""


@contextmanager
def ignore_convergence_warnings() -> Iterator[None]:
    """Without warnings of solvers that stop early, for callers that look at ``converged`` themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


# Held by the context that limits the threads: those inside it, in this and in other threads, have nothing to do.
_blas_limit = threading.Lock()


@cache
def _blas_libraries() -> ThreadpoolController:
    # Looking for the libraries that are loaded takes milliseconds; JAX's factorisations are in SciPy's.
    return ThreadpoolController()


def blas_threads_for(num_rows: int) -> AbstractContextManager[None]:
    """Context for factorising matrices of ``num_rows`` rows, in a single thread of BLAS where that number is small."""
    return one_blas_thread() if num_rows <= _MAX_ROWS_OF_ONE_THREAD else nullcontext()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Context for many small factorisations.

    BLAS's and XLA's threads wait for one another busily: with two of each on two cores, many small factorisations took
    up to a hundred times as long as in one thread. BLAS has one limit for the whole process: the first context sets it
    and, when it ends, takes it back, also from those that other threads have entered since.
    """
    if not _blas_limit.acquire(blocking=False):
        yield
        return
    try:
        with _blas_libraries().limit(limits=1, user_api="blas"):
            yield
    finally:
        _blas_limit.release()


def matmul(a: Array, b: Array) -> Array:
    """Matrix product in full precision: a GPU's TF32 would spoil certificates, masks near a boundary and angles."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def einsum(subscripts: str, *operands: Array) -> Array:
    """Sum of products in full precision, as :func:`matmul`."""
    return jnp.einsum(subscripts, *operands, precision=lax.Precision.HIGHEST)


@contextmanager
def full_precision() -> Iterator[None]:
    """Trace products in full precision inside the block, including products in functions that a user passes.

    A precision that the user has set, by ``jax.default_matmul_precision`` or the option of that name, is kept.
    """
    with jax.default_matmul_precision(default_precision() or "highest"):
        yield


def default_precision() -> str | None:
    """Default precision of matrix products; None if JAX chooses it."""
    return jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]  # JAX adds its options at run time.


@jax.custom_jvp
def safe_sqrt(squares: Array) -> Array:
    """Square root, zero with derivative zero where the argument is not positive."""
    return jnp.sqrt(jnp.maximum(squares, 0))


@safe_sqrt.defjvp
def _differentiate_safe_sqrt(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    root = safe_sqrt(primals[0])
    is_positive = root > 0
    return root, jnp.where(is_positive, tangents[0] / (2 * jnp.where(is_positive, root, 1.0)), 0.0)


def at_least_float32(dtype: DTypeLike) -> jnp.dtype:
    """A floating-point dtype, or float32 if that is wider; without promotion, which JAX may be configured to refuse."""
    return max(jnp.dtype(dtype), jnp.dtype(jnp.float32), key=lambda one: jnp.finfo(one).bits)


def default_tol(dtype: DTypeLike) -> float:
    """Default tolerance for the relative gap of a solver: 1e-6 in float64, 1e-4 in float32."""
    return 1e-6 if jnp.dtype(dtype) == jnp.float64 else 1e-4


def allow_float64() -> AbstractContextManager[Any]:
    """Context in which JAX has float64, in this thread only, for host-driven solvers that need its precision."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    return jax.experimental.enable_x64(True)  # type: ignore[attr-defined]  # JAX below 0.8


def eps_of(array: Array) -> float:
    """Resolution of an array's dtype, as Python's float, which leaves the dtypes of arrays as they are.

    NumPy below 2 makes float64 of its scalars of float32 in products with Python's numbers.
    """
    return float(jnp.finfo(array.dtype).eps)


def tiny_of(array: Array) -> float:
    """Smallest positive normal number of an array's dtype, as :func:`eps_of`."""
    return float(jnp.finfo(array.dtype).tiny)


def with_dtype(tree: Any, dtype: Any) -> Any:
    """A pytree with its floating-point arrays in another dtype."""

    def convert(leaf: Array) -> Array:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(convert, tree)


def solve_kernel_ridge(kernel: Array, reg: Array, targets: Array) -> Float[Array, "n c"]:
    """Solve (K + λI) A = Y by Cholesky, with growing jitter where rounding leaves K + λI indefinite.

    One step of iterative refinement against the matrix without jitter removes most of the effect of the jitter. The
    result is NaN if no jitter makes the factorisation succeed; callers check for it.
    """
    shifted = kernel + reg * jnp.eye(kernel.shape[0], dtype=kernel.dtype)
    scale = jnp.mean(jnp.diagonal(shifted))
    smallest = 10 * eps_of(kernel) * scale

    def factor(jitter: Array) -> Array:
        return jnp.linalg.cholesky(shifted + jitter * jnp.eye(kernel.shape[0], dtype=kernel.dtype))

    def needs_jitter(state: tuple[Array, Array, Array]) -> Array:
        tries, _, lower = state
        return (tries < _MAX_JITTERS) & ~jnp.all(jnp.isfinite(lower))

    def retry(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        tries, jitter, _ = state
        return tries + 1, 10 * jitter, factor(jitter)

    # A factor that rounding has made impossible is NaN. Each further try has ten times the jitter of the one before.
    _, _, lower = lax.while_loop(needs_jitter, retry, (jnp.asarray(0), smallest, factor(jnp.zeros_like(smallest))))
    solution = jsl.cho_solve((lower, True), targets)
    # The remainder is that of the matrix without jitter: what the jitter has changed is solved for once more.
    remainder = targets - matmul(shifted, solution)
    return solution + jsl.cho_solve((lower, True), remainder)
