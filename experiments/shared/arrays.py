"""Splits of classification tables as float32 JAX arrays."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from experiments.data.tables import Split
from fixntk.estimators.preprocessing import as_signs

# The number of columns is rounded up to a multiple of this.
_COLUMN_MULTIPLE = 8


class SplitArrays(NamedTuple):
    """A split of a table in float32.

    Attributes
    ----------
    x, x_test
        (n, d) and (n_test, d), padded by columns of zeros.
    y
        (n, 1) signs of two classes, (n, c) of more.
    """

    x: Float[Array, "n d"]
    x_test: Float[Array, "m d"]
    y: Float[Array, "n c"]


def split_arrays(split: Split) -> SplitArrays:
    """The inputs of both parts, and the training labels as signs."""
    signs = as_signs(split.y_train, split.classes.size)
    return SplitArrays(pad_columns(split.x_train), pad_columns(split.x_test), jnp.asarray(signs, jnp.float32))


def pad_columns(x: np.ndarray) -> Float[Array, "n d"]:
    """Add columns of zeros, which change neither masks nor kernels, so that splits of a table share one compilation."""
    return jnp.asarray(np.pad(x, ((0, 0), (0, -x.shape[1] % _COLUMN_MULTIPLE))), jnp.float32)
