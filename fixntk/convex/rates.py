"""Rates of this machine: operations a second for each kind of work, measured in about a second.

See docs/mathematics.md, M2.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fixntk._numerics import allow_float64
from fixntk.convex.program import ConvexProgram, group_shape_of
from fixntk.convex.work import Work, kernel_work, newton_size, product_work, program_of_shapes
from fixntk.gram import masked_adjoint, masked_apply, masked_gram

# Largest number of entries of the masks that are multiplied, so that a product takes a tenth of a second.
_MASK_ENTRIES = 2**21
# A first-order step takes this multiple of the time of its products. The rest of it goes entry by entry.
_STEP_SLOWNESS = 1.6
# Largest number of gates of the masks that are multiplied.
_MASK_GATES = 1024
# Largest number of rows of the matrix that is made and factorised.
_MATRIX_ROWS = 1000
# Seconds for which each kind is repeated. The median counts: where other programs use the machine too, a solve is
# slowed down as the median is.
_SECONDS_EACH = 0.1
# Least number of repeats of each kind.
_LEAST_REPEATS = 5


class Rates(NamedTuple):
    """Operations a second of each kind of :class:`~fixntk.convex.work.Work`.

    Attributes
    ----------
    products, set_products, squares, factorisations
        Operations a second of one device.
    bandwidth
        Bytes a second that each of several devices sends, and receives; infinite where the exchange is not counted.
    """

    products: float
    set_products: float
    squares: float
    factorisations: float
    bandwidth: float = math.inf

    def seconds(self, work: Work) -> float:
        """Seconds of work on one device, without what it exchanges."""
        kinds = ("products", "set_products", "squares", "factorisations")
        return sum(getattr(work, kind) / getattr(self, kind) for kind in kinds)


def measure_rates(program: ConvexProgram) -> Rates:
    """Measure the rates on the default device, on random data of a program's shapes cut to a size that is quick.

    Parameters
    ----------
    program
        Of arrays or, from :func:`~fixntk.convex.work.program_of_shapes`, of shapes.
    """
    num_rows, dtype, size = program.x.shape[0], np.dtype(program.x.dtype), newton_size(program)
    num_gates, num_features, num_outputs = group_shape_of(program)
    is_double = dtype == np.float64
    with allow_float64() if is_double else contextlib.nullcontext():
        gates = min(num_gates, _MASK_GATES)
        all_gates = _part(min(num_rows, _MASK_ENTRIES // gates), num_features, gates, num_outputs, dtype)
        of_set = _part(min(num_rows, _MASK_ENTRIES // size), num_features, size, num_outputs, np.dtype(np.float32))
        square = _part(min(num_rows, _MATRIX_ROWS), num_features, gates, 1, dtype)
        counted = program_of_shapes(square.x.shape[0], num_features, gates, 1, "squared", dtype)
        kernel = masked_gram(jnp.ones(gates, dtype), square.masks, square.x)
        kernel = kernel + gates * jnp.eye(len(kernel), dtype=dtype)
        work = kernel_work(counted)
        return Rates(
            products=_product_rate(all_gates),
            set_products=_product_rate(of_set._replace(masks=of_set.masks.astype(np.float32))) / _STEP_SLOWNESS,
            squares=work.squares / _seconds(masked_gram, jnp.ones(gates, dtype), square.masks, square.x),
            factorisations=work.factorisations / _seconds(_factorise, kernel),
        )


class _Part(NamedTuple):
    """Random data of some shapes."""

    x: Array
    masks: Array
    residual: Array
    weights: Array


def _part(num_rows: int, num_features: int, num_gates: int, num_outputs: int, dtype: np.dtype) -> _Part:
    rng = np.random.default_rng(0)
    shapes = (num_rows, num_features), (num_rows, num_outputs), (num_gates, num_features, num_outputs)
    x, residual, weights = (jnp.asarray(rng.random(shape, np.float32).astype(dtype)) for shape in shapes)
    return _Part(x, jnp.asarray(rng.integers(0, 2, (num_rows, num_gates), np.uint8).astype(bool)), residual, weights)


def _product_rate(part: _Part) -> float:
    """Operations a second of a product with the masks each way."""
    num_gates, num_features, num_outputs = part.weights.shape
    program = program_of_shapes(part.x.shape[0], num_features, num_gates, num_outputs, "squared", part.x.dtype)
    work = product_work(program, forward=1, adjoint=1)

    def both(part: _Part) -> tuple[Array, Array]:
        applied = masked_apply(part.masks, part.x, part.weights)
        return applied, masked_adjoint(part.masks, part.x, part.residual, num_gates)

    return work.flops / _seconds(both, part)


@jax.jit
def _factorise(kernel: Array) -> Array:
    return jnp.linalg.cholesky(kernel, symmetrize_input=False)


def _seconds(function: Callable[..., Any], *operands: Any) -> float:
    """Median seconds of a call, compiled before."""
    jax.block_until_ready(function(*operands))
    seconds: list[float] = []
    while len(seconds) < _LEAST_REPEATS or sum(seconds) < _SECONDS_EACH:
        start = time.perf_counter()
        jax.block_until_ready(function(*operands))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
