"""Checks of the kernel matrices, times and numbers that gradient flow and kernel regression take."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from fixntk._checks import as_float_array, as_real_array, is_traced
from fixntk._numerics import at_least_float32, eps_of

_EPS_OF_FLOAT32 = float(np.finfo(np.float32).eps)


class KernelMatrix(NamedTuple):
    """A kernel as a matrix, with the shape in which it was passed.

    Attributes
    ----------
    matrix
        (n1·c…, n2·c…): one row for each example and output where the kernel has output axes, else (n1, n2).
    rows
        n1.
    full
        Whether it has output axes.
    shape
        (n1, n2) or (n1, n2, c, c, …).
    """

    matrix: Array
    rows: int
    full: bool
    shape: tuple[int, ...]


def as_symmetric_kernel(name: str, value: ArrayLike, y: Array | None) -> KernelMatrix:
    """Check a kernel of points with themselves, of the shape that fits targets y where they are known."""
    ndim = (2, 4, 6, 8) if y is None else tuple(sorted({2, 2 * y.ndim}))
    kernel = as_float_array(name, value, ndim)
    resolution = eps_of(kernel)
    kernel = kernel.astype(at_least_float32(kernel.dtype))
    shape = kernel.shape
    outputs = shape[2::2] if y is None else y.shape[1:]
    # Axes alternate between the two sides, (n1, n2, c, c, …): the first, third, … belong to one side, the others to the
    # other.
    if shape[::2] != shape[1::2] or (kernel.ndim > 2 and shape[2::2] != outputs):
        pairs = ", (n, n, " + ", ".join(f"{c}, {c}" for c in outputs) + ")" if outputs else ""
        raise ValueError(f"{name} must have shape (n, n){' or' + pairs[1:] if pairs else ''}, got shape {shape}")
    matrix = flatten_kernel(kernel)
    if not is_traced(matrix):
        # A known matrix that a traced function closes over is checked as well, by operations outside of the trace.
        with jax.ensure_compile_time_eval():
            largest, difference = map(float, _asymmetry(matrix))
        # Rounding errors of a few epsilon are far below this bound, and rows in a wrong order far above it. A kernel in
        # float64 may have been computed in float32.
        if difference > math.sqrt(max(resolution, _EPS_OF_FLOAT32)) * largest:
            raise ValueError(
                f"{name} must be symmetric, but it differs from its transpose by up to {difference:.3g} (largest entry"
                f" {largest:.3g}): was it computed between two sets of points, or with the rows of one set in another"
                " order?"
            )
    return KernelMatrix(matrix, shape[0], kernel.ndim > 2, shape)


def as_training_kernel(value: ArrayLike, y: Array) -> KernelMatrix:
    """Check the argument ``kernel_train``, a kernel of the training points whose targets are y."""
    kernel = as_symmetric_kernel("kernel_train", value, y)
    if kernel.rows != y.shape[0]:
        raise ValueError(
            f"kernel_train and y must have the same number of rows, got shapes {kernel.shape} and {y.shape}"
        )
    return kernel


@jax.jit
def _asymmetry(matrix: Array) -> tuple[Array, Array]:
    return jnp.max(jnp.abs(matrix)), jnp.max(jnp.abs(matrix - matrix.T))


def as_kernel_between(name: str, value: ArrayLike, y: Array, full: bool) -> KernelMatrix:
    """Check a kernel between other points and the training points with targets y, ``full`` with output axes."""
    kernel = as_float_array(name, value, (2 * y.ndim if full else 2,)).astype(y.dtype)
    shape, outputs = kernel.shape, y.shape[1:] if full else ()
    if shape[1::2] != (y.shape[0], *outputs) or shape[2::2] != outputs:
        expected = ", ".join(["n_test", str(y.shape[0]), *(f"{c}, {c}" for c in outputs)])
        raise ValueError(f"{name} must have shape ({expected}), other points × training points, got shape {shape}")
    return KernelMatrix(flatten_kernel(kernel), shape[0], full, shape)


def flatten_kernel(kernel: Array) -> Array:
    """A kernel (n1, n2, c, c, …) as the matrix of n1·c… rows and n2·c… columns; (n1, n2) as it is."""
    shape = kernel.shape
    if kernel.ndim == 2:
        return kernel
    # All axes of the rows' side first, then those of the columns' side.
    order = (*range(0, kernel.ndim, 2), *range(1, kernel.ndim, 2))
    return kernel.transpose(order).reshape(math.prod(shape[::2]), math.prod(shape[1::2]))


def kernel_member(name: str, kernels: Any, member: str, mode: str) -> Any:
    """The attribute ``member`` of kernels, or in mode "nngp" the array that is passed instead."""
    kernel = getattr(kernels, member, kernels if mode == "nngp" else None)
    if kernel is None:
        raise TypeError(
            f"{name} must have attributes nngp and ntk, both arrays; got {type(kernels).__name__} without {member}"
        )
    return kernel


def as_times(t: ArrayLike | None, dtype: jnp.dtype) -> Array:
    """Check times; None is infinity."""
    if t is None:
        return jnp.array(jnp.inf, dtype)
    times = as_real_array("t", t)
    if not is_traced(times):
        # Written so that NaN is refused too.
        bad = np.count_nonzero(~(np.asarray(times) >= 0))
        if bad:
            raise ValueError(f"t must be at least 0, got {bad} negative or NaN value(s) in shape {times.shape}")
    return times.astype(dtype)


def as_scalar(name: str, value: ArrayLike, dtype: jnp.dtype, positive: bool = False) -> Array:
    """Check a number that is not negative, or that is positive."""
    scalar = as_float_array(name, value, (0,))
    if not is_traced(scalar):
        number = float(scalar)
        if number < 0 or (positive and number == 0):
            raise ValueError(f"{name} must be {'positive' if positive else 'at least 0'}, got {number}")
    return scalar.astype(dtype)


def as_momentum(value: ArrayLike, dtype: jnp.dtype) -> Array:
    """Check the momentum of the heavy ball, at least 0 and below 1."""
    momentum = as_scalar("momentum", value, dtype)
    if not is_traced(momentum) and float(momentum) >= 1:
        raise ValueError(f"momentum must be below 1, got {float(momentum)}")
    return momentum


def as_initial_outputs(name: str, value: ArrayLike | None, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Check outputs at t = 0, a scalar or of this shape; 0 when None."""
    outputs = as_float_array(name, 0.0 if value is None else value, (0, len(shape)))
    if outputs.shape not in ((), shape):
        raise ValueError(f"{name} must be a scalar or have shape {shape}, got shape {outputs.shape}")
    return outputs.astype(dtype)


def absolute_reg(matrix: Array, diag_reg: ArrayLike, absolute: bool) -> Array:
    """Ridge in the unit of the kernel, from one in units of the mean of its diagonal unless that is ``absolute``."""
    reg = as_scalar("diag_reg", diag_reg, matrix.dtype)
    return reg if absolute else reg * jnp.trace(matrix) / len(matrix)


def check_positive_semidefinite(name: str, eigenvalues: Array, reg: Array) -> None:
    """Raise ValueError if a kernel plus ``reg`` on its diagonal has an eigenvalue below zero beyond rounding."""
    if is_traced(eigenvalues, reg):
        return
    smallest, largest, eps = float(eigenvalues[0]), float(eigenvalues[-1]), float(jnp.finfo(eigenvalues.dtype).eps)
    # Ten times the usual bound for the error of an eigenvalue, size · epsilon · largest; small matrices are treated
    # like one of ten rows.
    allowed = 10 * max(10, eigenvalues.size) * eps * max(abs(smallest), abs(largest))
    if smallest < -allowed:
        raise ValueError(
            f"{name} is not positive semidefinite: its smallest eigenvalue is {smallest - float(reg):.3g}, its largest"
            f" {largest - float(reg):.3g}, and rounding in {eigenvalues.dtype} explains no less than {-allowed:.2g}."
            " Likely causes: it was computed in a lower precision (compute it in float64, with jax_enable_x64), its"
            " rows and columns are not in the same order, or it is not a kernel. If an error of this size is"
            f" acceptable, add a ridge: diag_reg={2 * (float(reg) - smallest):.2g} with diag_reg_absolute_scale=True"
        )
