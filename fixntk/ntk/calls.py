"""Functions of a batch made from others: with keyword arguments, other batch axes, one of several outputs or all.

They are frozen dataclasses and not closures, because two that are made of the same parts are equal, so that JAX finds
the compiled kernel again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


@dataclass(frozen=True)
class WithKeywords:
    """``f(params, x, **kwargs)`` as a function of params and x.

    Attributes
    ----------
    f
        The function.
    items
        Names and values of the keyword arguments.
    """

    f: Callable[..., Any]
    items: tuple[tuple[str, Any], ...]

    def __call__(self, params: Any, x: Any) -> Any:
        """Call the function with its keyword arguments."""
        return self.f(params, x, **dict(self.items))


@dataclass(frozen=True)
class WithBatchFirst:
    """A function whose examples lie along other axes than the first, as one with examples along the first axes.

    Attributes
    ----------
    f
        The function.
    in_axis, out_axis
        The axis of the examples in every array of the inputs, and in every array of the outputs.
    """

    f: Callable[..., Any]
    in_axis: int
    out_axis: int

    def __call__(self, params: Any, x: Any) -> Any:
        """Move the axes to where the function wants them, and those of its outputs back."""
        outputs = self.f(params, jax.tree.map(lambda array: jnp.moveaxis(array, 0, self.in_axis), x))
        return move_to_front(outputs, self.out_axis)


@dataclass(frozen=True)
class OneOutput:
    """One array of the outputs.

    Attributes
    ----------
    f
        The function.
    number
        Which leaf of the pytree that it returns.
    """

    f: Callable[..., Any]
    number: int

    def __call__(self, params: Any, x: Any) -> Array:
        """Call the function and take the array."""
        return jax.tree.leaves(self.f(params, x))[self.number]


@dataclass(frozen=True)
class JoinedOutputs:
    """All arrays of the outputs in one of shape (n, m), one after another in the order of the pytree's leaves.

    Attributes
    ----------
    f
        The function, which returns a pytree of floating-point arrays.
    """

    f: Callable[..., Any]

    def __call__(self, params: Any, x: Any) -> Array:
        """Call the function, make rows of its arrays and join them."""
        rows = [array.reshape(array.shape[0], -1) for array in jax.tree.leaves(self.f(params, x))]
        dtype = max((array.dtype for array in rows), key=lambda dtype: jnp.finfo(dtype).bits)
        return jnp.concatenate([array.astype(dtype) for array in rows], axis=1)


def move_to_front(tree: Any, axis: int) -> Any:
    """Every array of a pytree with an axis moved to the front."""
    return jax.tree.map(lambda array: jnp.moveaxis(array, axis, 0), tree)
