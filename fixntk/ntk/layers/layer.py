"""What a layer is: a map of covariances, and the same layer of finite width.

See docs/mathematics.md, M13.
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fixntk._tiling import memory_for
from fixntk.ntk.covariances import Covariances

# Channels of a layer with weights in a finite network, unless the layer or the caller says otherwise.
DEFAULT_WIDTH = 256

# Metadata of fields that belong to the structure of a pytree, not to its leaves.
STATIC = {"static": True}


class Layer:
    """A layer of a network, which is described once and has infinite or finite width.

    Called with the :class:`Covariances` of its inputs it gives those of its outputs in the limit of infinite width.
    ``init`` and ``apply`` are the network of finite width.

    See docs/mathematics.md, M13.
    """

    # Whether outputs at one position depend on several positions through the same weights, so that covariances between
    # different positions are needed.
    mixes_positions: ClassVar[bool] = False
    # Whether ``apply`` has an argument ``pattern``: the graphs of the inputs, for Aggregate and layers that hold it.
    takes_pattern: ClassVar[bool] = False

    def __call__(self, covariances: Covariances) -> Covariances:
        """Covariances after the layer."""
        raise NotImplementedError(f"{type(self).__name__} has no covariances")

    def init(self, key: Array, shape: tuple[int, ...], width: int = DEFAULT_WIDTH) -> Any:
        """Random parameters of the network of finite width.

        Parameters
        ----------
        key
            Key for the random numbers.
        shape
            Shape of one example: (d,), or (positions …, channels).
        width
            Number of output channels of every layer with weights that has no ``width`` of its own.

        Returns
        -------
        Pytree of arrays, for ``apply``. Empty for a layer without weights.
        """
        del key, shape, width
        return ()

    def apply(self, params: Any, x: Array, *, key: Array | None = None) -> Array:
        """Outputs (n, …) of the network of finite width, in full for each example.

        Parameters
        ----------
        params
            As ``init`` returns them.
        x
            (n, …) inputs.
        key
            Key for dropout; without one nothing is dropped.
        """
        raise NotImplementedError(f"{type(self).__name__} has no network of finite width")

    def output_shape(self, params: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the output for one example of a shape."""
        # The outputs' shape does not depend on the dtype, so that any floating-point one will do.
        example = jax.ShapeDtypeStruct((1, *shape), jnp.result_type(float))
        return jax.eval_shape(self.apply, params, example).shape[1:]


def layers_of(kind: type, network: Any) -> list[Any]:
    """All layers of one class in a network."""
    # A layer without numbers, such as Activate, has no leaves of its own: it is found only where the tree is cut off at
    # it.
    leaves = jax.tree.leaves(network, is_leaf=lambda layer: isinstance(layer, kind))
    return [leaf for leaf in leaves if isinstance(leaf, kind)]


def needs_all_positions(network: Any) -> bool:
    """Whether a layer of the network needs the covariances between different positions."""

    def mixes(layer: Any) -> bool:
        return getattr(layer, "mixes_positions", False)

    # The tree is cut off at layers that mix; its other leaves are numbers, which do not.
    return any(mixes(layer) for layer in jax.tree.leaves(network, is_leaf=mixes))


def as_scalars(network: Any, input_scale: Any, dtype: Any) -> tuple[Any, Array]:
    """Convert every number that the kernels depend on, and matrices ``rhs``, to the dtype of the inputs."""

    def as_scalar(path: tuple[Any, ...], value: Any) -> Array:
        array = jnp.asarray(value, dtype)
        if array.ndim and getattr(path[-1], "name", "") != "rhs":
            name = getattr(path[-1], "name", "input_scale")
            raise ValueError(f"{name} must be a single number, got an array of shape {array.shape}")
        return array

    return jax.tree_util.tree_map_with_path(as_scalar, (network, input_scale))


def check_numbers(layer: Layer) -> None:
    """Raise ValueError if a number of a layer, such as ``w_std``, is an array with axes.

    The constructor lets these pass, for a layer whose leaves ``jax.vmap`` maps over.
    """
    for attribute in fields(layer):  # type: ignore[arg-type]
        value = getattr(layer, attribute.name)
        if isinstance(value, Array | np.ndarray) and value.ndim:
            raise ValueError(f"{attribute.name} must be a single number, got an array of shape {value.shape}")


def draw_normal(layer: Layer, key: Array, shapes: dict[str, tuple[int, ...]]) -> dict[str, Array]:
    """Arrays of numbers from N(0, 1).

    Raises
    ------
    OutOfMemoryError
        If memory does not suffice.
    """
    counts = [math.prod(shape) for shape in shapes.values()]
    # Each array takes as much again while it is drawn.
    needed = (sum(counts) + max(counts)) * jnp.result_type(float).itemsize
    sizes = " and ".join("×".join(map(str, shape)) for shape in shapes.values())
    with memory_for(f"{type(layer).__name__} with parameters of {sizes}", needed, "take a smaller width", key) as done:
        keys = jax.random.split(key, len(shapes))
        return done(
            {name: jax.random.normal(one, shape) for one, (name, shape) in zip(keys, shapes.items(), strict=True)}
        )


def check_gaussian(covariances: Covariances, name: str) -> None:
    """Raise ValueError unless the values are Gaussian."""
    if not covariances.is_gaussian:
        raise ValueError(f"{name} needs Gaussian inputs: put Dense or Conv before it")


def check_positions(covariances: Covariances, name: str) -> None:
    """Raise ValueError unless inputs have positions."""
    if covariances.num_positions == 0:
        raise ValueError(f"{name} needs inputs with positions, (n, …, channels) with more than two axes")
