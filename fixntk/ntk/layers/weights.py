"""Layers with random weights: fully connected, convolutions, transposed and local convolutions.

See docs/mathematics.md, M13.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from fixntk._checks import as_positive_int, check_scalar
from fixntk._numerics import einsum, matmul
from fixntk.ntk.covariances import Covariances, Pairs, add_pairs, average_pairs
from fixntk.ntk.layers.layer import DEFAULT_WIDTH, STATIC, Layer, check_numbers, draw_normal
from fixntk.ntk.layers.windows import check_axes, check_num_axes, check_windows, pad_positions

# Values of the argument parameterization.
_PARAMETERIZATIONS = ("ntk", "standard")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Dense(Layer):
    """A fully connected layer W h · w_std/√N + b_std b, on the last axis of its inputs.

    Attributes
    ----------
    w_std
        Standard deviation of the weights before the division by √N.
    b_std
        Standard deviation of the biases; 0 or None for a layer without biases.
    width
        Number of outputs of the layer of finite width; None leaves it to ``init``.
    parameterization
        "ntk": weights and biases of variance 1, multiplied by w_std/√N and b_std. "standard": weights of variance
        w_std²/N and biases of variance b_std², multiplied by nothing; the kernels at initialisation are the same, the
        NTK is not and needs the number N of channels of the inputs, so ``width`` of the layer before.

    See docs/mathematics.md, M13.
    """

    w_std: Any = 1.0
    b_std: Any = 0.0
    width: int | None = field(default=None, metadata=STATIC)
    parameterization: str = field(default="ntk", metadata=STATIC)

    def __post_init__(self) -> None:
        _check_weights(self)

    def __call__(self, covariances: Covariances) -> Covariances:
        """Covariances after the layer."""
        return apply_random_weights(self, covariances, covariances, 1)

    def init(self, key: Array, shape: tuple[int, ...], width: int = DEFAULT_WIDTH) -> dict[str, Array]:
        """Weights (inputs, outputs) and biases (outputs,)."""
        outputs = self.width or width
        return _draw(self, key, (shape[-1], outputs), (outputs,), shape[-1])

    def apply(self, params: dict[str, Array], x: Array, *, key: Array | None = None) -> Array:
        """Outputs (n, …, outputs)."""
        del key
        return _affine(self, params, matmul(*_as_one_dtype(x, params["weights"])), x.shape[-1])


@dataclass(frozen=True)
class _Windows(Layer):
    """What the three kinds of convolution share; the attributes are described there."""

    filter_shape: tuple[int, ...] = field(metadata=STATIC)
    strides: tuple[int, ...] | None = field(default=None, metadata=STATIC)
    padding: str = field(default="SAME", metadata=STATIC)
    w_std: Any = 1.0
    b_std: Any = 0.0
    width: int | None = field(default=None, metadata=STATIC)
    parameterization: str = field(default="ntk", metadata=STATIC)

    def __post_init__(self) -> None:
        _check_weights(self)
        check_windows(self, "filter_shape")

    def __call__(self, covariances: Covariances) -> Covariances:
        """Covariances after the layer."""
        check_axes(covariances, "filter_shape", self.filter_shape)
        sides = covariances.sides
        # Weights at different entries of the filter are independent. So only inputs under the same entry count, which
        # are both positions shifted alike.
        averaged = covariances.map(lambda pairs: average_pairs(pairs, self._window_mean, sides))
        return apply_random_weights(self, covariances, averaged, math.prod(self.filter_shape))

    def init(self, key: Array, shape: tuple[int, ...], width: int = DEFAULT_WIDTH) -> dict[str, Array]:
        """Weights (filter …, channels, outputs) and biases (outputs,)."""
        check_num_axes(len(shape) - 1, "filter_shape", self.filter_shape)
        outputs, fan_in = self.width or width, shape[-1] * math.prod(self.filter_shape)
        return _draw(self, key, (*self.filter_shape, shape[-1], outputs), (outputs,), fan_in)

    def apply(self, params: dict[str, Array], x: Array, *, key: Array | None = None) -> Array:
        """Outputs (n, positions …, outputs)."""
        del key
        num_axes = len(self.filter_shape)
        axes = tuple(range(1, 1 + num_axes))
        # JAX lists the axes of examples or filters, of channels, and of positions.
        spec, filters = (0, 1 + num_axes, *axes), (1 + num_axes, num_axes, *range(num_axes))
        x, weights = _as_one_dtype(x, params["weights"])
        outputs = lax.conv_general_dilated(
            self._pad(x, axes),
            weights,
            self._steps,
            "VALID",
            dimension_numbers=lax.ConvDimensionNumbers(spec, filters, spec),
            precision=lax.Precision.HIGHEST,
        )
        return _affine(self, params, outputs, x.shape[-1] * math.prod(self.filter_shape))

    @property
    def _steps(self) -> tuple[int, ...]:
        """Steps between windows."""
        return self.strides or (1,) * len(self.filter_shape)

    def _pad(self, array: Array, *sides: tuple[int, ...]) -> Array:
        """Pad the axes of positions of every side, as the padding of the layer asks."""
        return pad_positions(array, sides, self.filter_shape, self._steps, self.padding)

    def _shifts(self, array: Array, *sides: tuple[int, ...]) -> Iterator[Array]:
        """For each entry of the filter, the inputs that it multiplies at every output position, on all sides."""
        padded = self._pad(array, *sides)
        # Number of windows along each axis, the positions of the outputs.
        counts = [
            (padded.shape[axis] - size) // step + 1
            for axis, size, step in zip(sides[0], self.filter_shape, self._steps, strict=True)
        ]
        if min(counts) < 1:
            lengths = tuple(array.shape[axis] for axis in sides[0])
            raise ValueError(f"filter_shape {self.filter_shape} is larger than the image, {lengths}")
        for offsets in itertools.product(*map(range, self.filter_shape)):
            # The filter's entry at these offsets multiplies every step-th input from there on, one for each window.
            where = [slice(None)] * array.ndim
            for axes in sides:
                for axis, offset, count, step in zip(axes, offsets, counts, self._steps, strict=True):
                    where[axis] = slice(offset, offset + step * (count - 1) + 1, step)
            yield padded[tuple(where)]

    def _window_mean(self, array: Array, *sides: tuple[int, ...]) -> Array:
        """Mean over the filter's window, moved along the axes of all sides together."""
        # All shifts in one pass: a sum for each axis in turn has fewer terms, but writes and reads once more.
        return reduce(operator.add, self._shifts(array, *sides)) / math.prod(self.filter_shape)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Conv(_Windows):
    """A convolution, its weights divided by √(channels × size of the filter).

    Attributes
    ----------
    filter_shape
        One size per axis of positions.
    strides
        One per axis, 1 by default.
    padding
        "SAME" and "VALID" with zeros as in JAX, or "CIRCULAR" (SAME, wrapped around).
    w_std, b_std, width, parameterization
        As in :class:`Dense`.

    See docs/mathematics.md, M13.
    """


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ConvTranspose(_Windows):
    """A transposed convolution, which spreads positions ``strides`` apart, as ``jax.lax.conv_transpose``.

    Attributes
    ----------
    filter_shape, strides, padding, w_std, b_std, width, parameterization
        As in :class:`Conv`.

    See docs/mathematics.md, M13.
    """

    @property
    def _steps(self) -> tuple[int, ...]:
        return (1,) * len(self.filter_shape)

    def _pad(self, array: Array, *sides: tuple[int, ...]) -> Array:
        # The layer is a convolution in steps of 1 on inputs that are spread − 1 zeros apart. The triples of lax.pad are
        # the zeros before the first input, after the last, and between two.
        config, wraps = [(0, 0, 0)] * array.ndim, [(0, 0)] * array.ndim
        spreads = self.strides or (1,) * len(self.filter_shape)
        for axes in sides:
            for axis, size, spread in zip(axes, self.filter_shape, spreads, strict=True):
                surplus = max(size - spread, 0)
                if self.padding == "CIRCULAR":
                    # Zeros after the last input too make a whole period, which is then wrapped by size − 1 positions,
                    # so that stride × positions windows fit.
                    config[axis], cut = (0, spread - 1, spread - 1), surplus // 2
                    wraps[axis] = (size - 1 - cut, cut)
                else:
                    # As in JAX's conv_transpose: "SAME" gives stride × positions, "VALID" all positions that any input
                    # reaches; the zeros of "SAME" are more before the first input than after the last.
                    total = size + spread - 2 + (surplus if self.padding == "VALID" else 0)
                    is_wide = self.padding == "VALID" or spread > size - 1
                    low = size - 1 if is_wide else math.ceil(total / 2)
                    config[axis] = (low, total - low, spread - 1)
        spread_out = lax.pad(array, jnp.zeros((), array.dtype), config)
        return jnp.pad(spread_out, wraps, mode="wrap") if self.padding == "CIRCULAR" else spread_out


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ConvLocal(_Windows):
    """A convolution with other weights and biases at every position: a locally connected layer.

    Attributes
    ----------
    filter_shape, strides, padding, w_std, b_std, width, parameterization
        As in :class:`Conv`.

    See docs/mathematics.md, M13.
    """

    def __call__(self, covariances: Covariances) -> Covariances:
        """Covariances after the layer: none between different positions."""
        shared = super().__call__(covariances)
        # Pairs of equal positions have the same weights, whether these are shared or not.
        if not shared.has_all_positions:
            return shared
        size = math.prod(shared.positions)
        is_same = jnp.eye(size, dtype=bool).reshape(shared.positions * 2)

        def separate(pairs: Pairs) -> Pairs:
            # Outputs at different positions have independent weights: they are uncorrelated, at a right angle, and so
            # are the gradients of earlier weights, which come through them.
            covariance, ntk = (jnp.where(is_same, array, 0.0) for array in (pairs.covariance, pairs.ntk))
            haversine, havercosine = (jnp.where(is_same, h, 0.5) for h in (pairs.haversine, pairs.havercosine))
            return Pairs(pairs.variance1, pairs.variance2, covariance, haversine, havercosine, ntk)

        return shared.map(separate)

    def init(self, key: Array, shape: tuple[int, ...], width: int = DEFAULT_WIDTH) -> dict[str, Array]:
        """Weights (positions …, filter, channels, outputs) and biases (positions …, outputs)."""
        check_num_axes(len(shape) - 1, "filter_shape", self.filter_shape)
        outputs, size = self.width or width, math.prod(self.filter_shape)
        axes = tuple(range(1, 1 + len(self.filter_shape)))
        # One entry of the filter meets one input for each position of the outputs.
        windows = jax.eval_shape(lambda x: next(self._shifts(x, axes)), jax.ShapeDtypeStruct((1, *shape), jnp.float32))
        positions = windows.shape[1:-1]
        weights = (*positions, size, shape[-1], outputs)
        return _draw(self, key, weights, (*positions, outputs), shape[-1] * size)

    def apply(self, params: dict[str, Array], x: Array, *, key: Array | None = None) -> Array:
        """Outputs (n, positions …, outputs)."""
        del key
        axes = tuple(range(1, 1 + len(self.filter_shape)))
        x, weights = _as_one_dtype(x, params["weights"])
        windows = jnp.stack(list(self._shifts(x, axes)), axis=-2)
        # Every position has its own weights, so that the positions are batch axes of the product.
        outputs = einsum("n...kc,...kco->n...o", windows, weights)
        return _affine(self, params, outputs, x.shape[-1] * math.prod(self.filter_shape))


Weighted = Dense | _Windows


def apply_random_weights(layer: Weighted, before: Covariances, averaged: Covariances, window: int) -> Covariances:
    """Covariances after random weights and biases: Σ ← w² Σ + b² and Θ ← Σ + w² Θ.

    ``averaged`` are the covariances ``before`` the layer, averaged over a window of that many positions.
    """
    fan_in = 1
    if layer.parameterization == "standard":
        if before.num_channels is None:
            raise ValueError(
                "parameterization='standard' needs the number of channels of its inputs: give width to the layer before"
            )
        fan_in = before.num_channels * window
    weighted = averaged.map(partial(_apply_weights_to_pairs, layer, fan_in=fan_in))
    return replace(
        weighted,
        is_gaussian=True,
        has_weights=True,
        num_channels=layer.width,
        centred=(True,) * len(before.centred),
    )


def _apply_weights_to_pairs(layer: Weighted, pairs: Pairs, fan_in: int) -> Pairs:
    if layer.w_std is None:
        raise TypeError("w_std must be a number, got None")
    # All second moments have the same factor, which leaves the angle as it is.
    scale = layer.w_std**2
    weighted = replace(
        pairs,
        variance1=scale * pairs.variance1,
        variance2=scale * pairs.variance2,
        covariance=scale * pairs.covariance,
    )
    if layer.b_std is not None:
        # A bias is one more independent summand, equal at both inputs: its angle is zero. Its gradient is added below.
        bias = jnp.full((), layer.b_std**2, pairs.ntk.dtype)
        one, nothing = jnp.ones_like(bias), jnp.zeros_like(bias)
        weighted = add_pairs(weighted, Pairs(bias, bias, bias, nothing, one, nothing))
    # The gradients in the layer's own parameters, which are not scaled in the standard parameterization.
    own = weighted.covariance
    if layer.parameterization == "standard":
        own = fan_in * pairs.covariance + (0 if layer.b_std is None else 1)
    return replace(weighted, ntk=own + scale * pairs.ntk)


def _draw(
    layer: Weighted, key: Array, weights: tuple[int, ...], biases: tuple[int, ...], fan_in: int
) -> dict[str, Array]:
    check_numbers(layer)
    shapes = {"weights": weights} if layer.b_std is None else {"weights": weights, "biases": biases}
    params = draw_normal(layer, key, shapes)
    if layer.parameterization == "standard":
        # Here the factors are part of the parameters, which ``_affine`` then multiplies by nothing.
        scales = {"weights": layer.w_std / math.sqrt(fan_in), "biases": layer.b_std}
        params = {name: scales[name] * array for name, array in params.items()}
    return params


def _as_one_dtype(x: Array, weights: Array) -> tuple[Array, Array]:
    dtype = jnp.promote_types(x.dtype, weights.dtype)
    return jnp.asarray(x, dtype), weights.astype(dtype)


def _affine(layer: Weighted, params: dict[str, Array], products: Array, fan_in: int) -> Array:
    outputs = products if layer.parameterization == "standard" else (layer.w_std / math.sqrt(fan_in)) * products
    if "biases" not in params:
        return outputs
    biases = params["biases"] if layer.parameterization == "standard" else layer.b_std * params["biases"]
    # Biases of a local convolution have the positions' axes as well, so that the number of axes to add varies.
    return outputs + jnp.expand_dims(biases, tuple(range(outputs.ndim - biases.ndim)))


def _check_weights(layer: Weighted) -> None:
    """Check the attributes of a layer with weights, and store None for biases of standard deviation zero."""
    check_scalar("w_std", layer.w_std)
    if layer.width is not None:
        object.__setattr__(layer, "width", as_positive_int("width", layer.width))
    if layer.parameterization not in _PARAMETERIZATIONS:
        names = " or ".join(map(repr, _PARAMETERIZATIONS))
        raise ValueError(f"parameterization must be {names}, got {layer.parameterization!r}")
    if layer.b_std is not None:
        check_scalar("b_std", layer.b_std)
        # A layer without biases has no gradient in them, which matters in the standard parameterization. The value of a
        # JAX scalar may be unknown here, so that it counts as a bias.
        if isinstance(layer.b_std, int | float | np.number) and layer.b_std == 0:
            object.__setattr__(layer, "b_std", None)
