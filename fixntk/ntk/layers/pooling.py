"""Layers that combine or select positions with fixed factors: pooling, resizing, slices, flattening.

See docs/mathematics.md, M13.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from fixntk._checks import as_positive_int, as_real_array
from fixntk._numerics import matmul
from fixntk.ntk.covariances import Covariances, Pairs, average_pairs, from_moments
from fixntk.ntk.layers.layer import STATIC, Layer, check_positions
from fixntk.ntk.layers.windows import check_axes, check_windows, pad_positions

# Values of the argument method of Resize.
_RESIZE_METHODS = ("nearest", "linear", "cubic", "lanczos3", "lanczos5")


class _Mixture(Layer):
    """A linear map of the positions, the same for every channel."""

    mixes_positions: ClassVar[bool] = True

    def _mix(self, array: Array, axes: tuple[int, ...]) -> Array:
        """Apply the map along some axes of an array."""
        raise NotImplementedError

    def _check(self, covariances: Covariances) -> None:
        """Check that the map fits the positions of the inputs."""

    def __call__(self, covariances: Covariances) -> Covariances:
        """Covariances after the layer: the map on the positions of both inputs."""
        name = type(self).__name__
        check_positions(covariances, name)
        if not covariances.has_all_positions:
            raise ValueError(f"{name} after a Flatten has no positions to average over")
        self._check(covariances)
        num_axes = covariances.num_positions

        def mix_both(array: Array, side1: int, side2: int) -> Array:
            del side1, side2
            # The second first: the map may drop the axes of the first.
            mixed = self._mix(array, tuple(range(2 + num_axes, 2 + 2 * num_axes)))
            return self._mix(mixed, tuple(range(2, 2 + num_axes)))

        # A fixed linear map A has no weights of its own: Σ and Θ both become A · Aᵀ. Positions at different angles are
        # mixed, so that new angles are known from the second moments only.
        return from_moments(covariances, mix_both, lambda ntk, _, side1, side2: mix_both(ntk, side1, side2))

    def apply(self, params: Any, x: Array, *, key: Array | None = None) -> Array:
        """Outputs (n, …, channels)."""
        del params, key
        return self._mix(x, tuple(range(1, x.ndim - 1)))


@dataclass(frozen=True)
class _WindowPool(_Mixture):
    window_shape: tuple[int, ...] = field(metadata=STATIC)
    strides: tuple[int, ...] | None = field(default=None, metadata=STATIC)
    padding: str = field(default="VALID", metadata=STATIC)

    def __post_init__(self) -> None:
        check_windows(self, "window_shape")

    def _check(self, covariances: Covariances) -> None:
        check_axes(covariances, "window_shape", self.window_shape)
        if self.padding == "VALID" and any(
            size > length for size, length in zip(self.window_shape, covariances.positions, strict=True)
        ):
            raise ValueError(f"window_shape {self.window_shape} is larger than the image, {covariances.positions}")

    def _sum(self, array: Array, axes: tuple[int, ...]) -> Array:
        # reduce_window pads with zeros only, so that the padding is made first.
        steps = self.strides or (1,) * len(self.window_shape)
        padded = pad_positions(array, (axes,), self.window_shape, steps, self.padding)
        windows, strides = [1] * array.ndim, [1] * array.ndim
        for axis, size, step in zip(axes, self.window_shape, steps, strict=True):
            windows[axis], strides[axis] = size, step
        # A zero that JAX sees as one: only then does it know the derivative.
        return lax.reduce_window(padded, np.zeros((), array.dtype), lax.add, windows, strides, "VALID")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SumPool(_WindowPool):
    """The sum over a moving window, channel by channel.

    Attributes
    ----------
    window_shape
        One size per axis of positions.
    strides
        One per axis, 1 by default.
    padding
        As in :class:`Conv`, "VALID" by default.

    See docs/mathematics.md, M13.
    """

    def _mix(self, array: Array, axes: tuple[int, ...]) -> Array:
        return self._sum(array, axes)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AveragePool(_WindowPool):
    """The mean over a moving window, channel by channel.

    Attributes
    ----------
    window_shape, strides, padding
        As in :class:`SumPool`.
    count_include_pad
        Whether zeros beyond the edges count in the number that is divided by, as in Flax.

    See docs/mathematics.md, M13.
    """

    count_include_pad: bool = field(default=True, metadata=STATIC)

    def _mix(self, array: Array, axes: tuple[int, ...]) -> Array:
        if self.count_include_pad or self.padding == "CIRCULAR":
            return self._sum(array, axes) / math.prod(self.window_shape)
        # The same sum over ones is the number of true positions under each window.
        shape = [length if axis in axes else 1 for axis, length in enumerate(array.shape)]
        return self._sum(array, axes) / self._sum(jnp.ones(shape, array.dtype), axes)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GlobalAveragePool(_Mixture):
    """The mean over all positions, channel by channel.

    See docs/mathematics.md, M13.
    """

    def _mix(self, array: Array, axes: tuple[int, ...]) -> Array:
        return jnp.mean(array, axis=axes)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GlobalSumPool(_Mixture):
    """The sum over all positions, channel by channel.

    See docs/mathematics.md, M13.
    """

    def _mix(self, array: Array, axes: tuple[int, ...]) -> Array:
        return jnp.sum(array, axis=axes)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Resize(_Mixture):
    """Images of another size by interpolation, as ``jax.image.resize``.

    Attributes
    ----------
    shape
        The new size of each axis of positions.
    method
        "nearest", "linear", "cubic", "lanczos3" or "lanczos5".
    antialias
        Whether a smaller image is smoothed first.

    See docs/mathematics.md, M13.
    """

    shape: tuple[int, ...] = field(metadata=STATIC)
    method: str = field(default="linear", metadata=STATIC)
    antialias: bool = field(default=True, metadata=STATIC)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(as_positive_int("shape", size) for size in self.shape))
        if not isinstance(self.method, str) or self.method not in _RESIZE_METHODS:
            raise ValueError(f"method must be one of {', '.join(_RESIZE_METHODS)}, got {self.method!r}")

    def _check(self, covariances: Covariances) -> None:
        check_axes(covariances, "shape", self.shape)

    def _mix(self, array: Array, axes: tuple[int, ...]) -> Array:
        shape = list(array.shape)
        for axis, size in zip(axes, self.shape, strict=True):
            shape[axis] = size
        return jax.image.resize(array, shape, self.method, self.antialias)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DotGeneral(_Mixture):
    """Products with a fixed matrix along an axis of positions: y[n, …, j, …, c] = Σ_i x[n, …, i, …, c] rhs[i, j].

    Attributes
    ----------
    rhs
        (inputs, outputs), no trained weights. A diagonal matrix gives each position a factor.
    axis
        The axis of positions, counted from 0 for the first.

    See docs/mathematics.md, M13.
    """

    rhs: Any
    axis: int = field(default=0, metadata=STATIC)

    def __post_init__(self) -> None:
        if isinstance(self.rhs, list | tuple | Array | np.ndarray):
            object.__setattr__(self, "rhs", as_real_array("rhs", self.rhs))
        elif isinstance(self.rhs, str | int | float | complex):
            raise TypeError(f"rhs must be a matrix, got {self.rhs!r}")
        object.__setattr__(self, "axis", operator.index(self.axis))

    def _mix(self, array: Array, axes: tuple[int, ...]) -> Array:
        if not 0 <= self.axis < len(axes):
            raise ValueError(f"axis {self.axis} is none of the {len(axes)} axes of positions")
        rhs, axis = jnp.asarray(self.rhs, array.dtype), axes[self.axis]
        if rhs.ndim != 2 or rhs.shape[0] != array.shape[axis]:
            raise ValueError(
                f"rhs must be a matrix with a row for each of the {array.shape[axis]} positions, got shape {rhs.shape}"
            )
        return jnp.moveaxis(matmul(jnp.moveaxis(array, axis, -1), rhs), -1, axis)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Flatten(Layer):
    """All positions and channels as one axis of features.

    See docs/mathematics.md, M13.
    """

    def __call__(self, covariances: Covariances) -> Covariances:
        """Covariances after the layer."""
        check_positions(covariances, "Flatten")
        # The covariance is the mean over features, which are the channels at all positions: pairs of different
        # positions have no part in it.
        pairs = average_pairs(covariances.pairs, _mean_over_positions, covariances.sides)
        channels = covariances.num_channels
        # Features of several positions differ in their variances, so that they are not one Gaussian's values.
        return replace(
            covariances,
            pairs=pairs,
            own1=None,
            own2=None,
            num_positions=0,
            is_gaussian=False,
            num_channels=None if channels is None else channels * math.prod(covariances.positions),
        )

    def apply(self, params: Any, x: Array, *, key: Array | None = None) -> Array:
        """Outputs (n, positions · channels)."""
        del params, key
        return x.reshape(x.shape[0], -1)


def _mean_over_positions(array: Array, *sides: tuple[int, ...]) -> Array:
    """Mean over positions; for two sides over the pairs of equal positions."""
    if len(sides) == 1:
        return jnp.mean(array, axis=tuple(range(2, array.ndim)))
    size = math.prod(array.shape[axis] for axis in sides[0])
    return jnp.mean(jnp.diagonal(array.reshape(*array.shape[:2], size, size), axis1=2, axis2=3), axis=2)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Index(Layer):
    """Some of the positions, by integers and slices: ``Index((slice(4), 0))`` is ``x[:, :4, 0]``.

    Attributes
    ----------
    indices
        An integer, which drops the axis, or a slice for each axis of positions from the first on; axes without one are
        kept. Slices are stored as tuples (start, stop, step).

    See docs/mathematics.md, M13.
    """

    indices: tuple[Any, ...] = field(metadata=STATIC)

    def __post_init__(self) -> None:
        indices = self.indices if isinstance(self.indices, tuple) else (self.indices,)
        object.__setattr__(self, "indices", tuple(map(_as_static, indices)))

    def __call__(self, covariances: Covariances) -> Covariances:
        """Covariances of the positions that are selected."""
        num_axes, given = covariances.num_positions, len(self.indices)
        if given > num_axes:
            raise ValueError(f"indices {self.indices} are {given}, inputs have {num_axes} axes of positions")
        where = [_as_index(index) for index in self.indices] + [slice(None)] * (num_axes - given)
        for index, length in zip(where, covariances.positions, strict=True):
            is_inside = -length <= index < length if isinstance(index, int) else len(range(length)[index])
            if not is_inside:
                raise ValueError(f"indices {self.indices} select nothing from positions {covariances.positions}")
        # An array that does not depend on the positions of one of the inputs has axes of size one there.
        single = [0 if isinstance(index, int) else slice(None) for index in where]
        has_all = covariances.has_all_positions
        keep = (slice(None), slice(None))

        def select(pairs: Pairs) -> Pairs:
            one, two, both = (
                (*keep, *first, *(second if has_all else ()))
                for first, second in ((where, single), (single if has_all else where, where), (where, where))
            )
            arrays = (pairs.covariance, pairs.haversine, pairs.havercosine, pairs.ntk)
            return Pairs(pairs.variance1[one], pairs.variance2[two], *(array[both] for array in arrays))

        left = num_axes - sum(isinstance(index, int) for index in where)
        # Without axes of positions there are no pairs of different positions left.
        selected = covariances.map(select, num_positions=left)
        return selected if left else replace(selected, own1=None, own2=None)

    def apply(self, params: Any, x: Array, *, key: Array | None = None) -> Array:
        """Outputs (n, …, channels)."""
        del params, key
        return x[(slice(None), *map(_as_index, self.indices))]


def _as_static(index: Any) -> Any:
    """A slice as a tuple, which can be hashed in every version of Python, or an integer.

    Raises
    ------
    TypeError
        If it is neither.
    ValueError
        If the step of a slice is zero.
    """
    # JAX builds a layer again from the tuples that it stores.
    bounds = (index.start, index.stop, index.step) if isinstance(index, slice) else index
    try:
        if not isinstance(bounds, tuple):
            return operator.index(bounds)
        start, stop, step = (None if bound is None else operator.index(bound) for bound in bounds)
    except (TypeError, ValueError):
        raise TypeError(f"indices must be integers and slices of integers, got {index!r}") from None
    if step == 0:
        raise ValueError(f"indices must be slices with a step that is not zero, got {index!r}")
    return start, stop, step


def _as_index(index: Any) -> Any:
    return slice(*index) if isinstance(index, tuple) else index
