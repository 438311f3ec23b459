"""The NTKs of the estimators: of gated-ReLU networks with one hidden layer, and of deeper ReLU networks.

See docs/mathematics.md, M3 and M13.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from fixntk._checks import as_positive_int
from fixntk.estimators.gaussian_process import Kernel
from fixntk.ntk import gated_relu_ntk, mlp_kernel

# What ``depth`` and ``bias_scale`` may be besides numbers: the least leave-one-out loss chooses among the default ones.
AUTO = "auto"
# Numbers of hidden layers to choose from by default.
DEFAULT_DEPTHS = (1, 2, 3, 5)
# Values of the bias column, in units of the standard deviation of the others.
DEFAULT_BIAS_SCALES = (0.3, 1.0, 3.0, 10.0)
# Largest depth; with more layers the kernel of all rows is almost the same.
MAX_DEPTH = 100


def check_depths(depth: Any) -> tuple[int, ...]:
    """Depths to choose from: one number, the default ones for "auto", or those of a sequence.

    Raises
    ------
    TypeError
        If one is not an integer.
    ValueError
        If one is not between 1 and 100, or there is none.
    """
    depths = tuple(as_positive_int("depth", each) for each in _as_candidates("depth", depth, DEFAULT_DEPTHS))
    if max(depths) > MAX_DEPTH:
        raise ValueError(f"depth must be at most {MAX_DEPTH}, got {max(depths)}")
    return depths


def check_bias_scales(bias_scale: Any) -> tuple[float, ...]:
    """Values of the bias column to choose from: one number, the default ones for "auto", or those of a sequence.

    Raises
    ------
    ValueError
        If one is not a positive finite number, or there is none.
    """
    scales = _as_candidates("bias_scale", bias_scale, DEFAULT_BIAS_SCALES)
    for scale in scales:
        if not isinstance(scale, int | float | np.number) or not 0 < float(scale) < np.inf:
            raise _refuse("bias_scale", bias_scale)
    return tuple(map(float, scales))


def _as_candidates(name: str, given: Any, default: tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(given, str):
        if given != AUTO:
            raise _refuse(name, given)
        return default
    candidates = tuple(dict.fromkeys(given)) if isinstance(given, Iterable) else (given,)
    if not candidates:
        raise ValueError(f"{name} must hold at least one number")
    return candidates


def _refuse(name: str, given: Any) -> ValueError:
    return ValueError(f"{name} must be a positive number, a sequence of them or {AUTO!r}, got {given!r}")


@functools.cache
def ntk_of_depth(depth: int) -> Kernel:
    """The NTK of a network with ``depth`` hidden layers, as a function of rows.

    For one hidden layer it is that of the gated-ReLU network, whose hidden layer alone is trained; for more, that of
    the fully connected ReLU network with all layers trained. A constant column of the inputs is the bias.
    """
    if depth == 1:
        return gated_relu_ntk

    def ntk(x1: ArrayLike, x2: ArrayLike | None = None) -> Array:
        # Inner products are not divided by the number of columns, as padding would change that.
        return mlp_kernel(x1, x2, depth=depth, input_scale=1.0).ntk

    return ntk


def ntk_gradients(
    depth: int, rows: Float[np.ndarray, "n w"], others: Float[np.ndarray, "k w"], dual_coef: Float[np.ndarray, "k c"]
) -> Float[np.ndarray, "n w c"]:
    """Derivatives of the outputs K(rows, others) @ dual_coef by the rows' entries, by automatic differentiation."""
    gradients = _gradients_of_outputs(depth)
    columns = [gradients(jnp.asarray(rows), jnp.asarray(others), jnp.asarray(column)) for column in dual_coef.T]
    return np.stack([np.asarray(column) for column in columns], axis=2)


@functools.cache
def _gradients_of_outputs(depth: int) -> Any:
    kernel = ntk_of_depth(depth)
    # The output of a row depends on this row alone, so that the gradient of the sum has all gradients.
    return jax.jit(jax.grad(lambda rows, others, coefficients: jnp.sum(kernel(rows, others) @ coefficients)))
