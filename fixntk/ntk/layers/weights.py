"""Layers of infinitely wide networks, each a map of the covariances between pairs of inputs.

A layer is a small pytree that maps the :class:`Covariances` of its inputs to the covariances of its outputs. Networks
are built from layers and passed to :func:`fixntk.network_kernel`.

See docs/mathematics.md, M13.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from fixntk._checks import as_positive_int, check_scalar
from fixntk._numerics import safe_sqrt
from fixntk.ntk.activations import as_activation
from fixntk.ntk.covariances import Covariances, Pairs, add_pairs, average_pairs, haversines_from_moments
from fixntk.ntk.gaussians import Gaussians

# Values of the argument padding of Conv.
_PADDINGS = ("SAME", "VALID", "CIRCULAR")

# A layer maps the covariances of its inputs to those of its outputs.
Layer = Callable[[Covariances], Covariances]

# Metadata of fields that belong to the structure of a pytree, not to its leaves.
_STATIC = {"static": True}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Dense:
    """A fully connected layer W h · w_std/√N + b_std b, on the last axis of its inputs.

    Attributes
    ----------
    w_std
        Standard deviation of the weights before the division by √N.
    b_std
        Standard deviation of the biases; 0 or None for a layer without biases.
    """

    w_std: Any = 1.0
    b_std: Any = 0.0

    def __post_init__(self) -> None:
        _check_stds(self)

    def __call__(self, covariances: Covariances) -> Covariances:
        """Covariances after the layer."""
        return covariances.map(partial(_after_weights, self), is_gaussian=True)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Conv:
    """A convolution, its weights divided by √(channels × size of the filter).

    Attributes
    ----------
    filter_shape
        One size per axis of positions.
    strides
        One per axis, 1 by default.
    padding
        "SAME" and "VALID" with zeros as in JAX, or "CIRCULAR" (SAME, wrapped around).
    w_std, b_std
        As in :class:`Dense`.
    """

    filter_shape: tuple[int, ...] = field(metadata=_STATIC)
    strides: tuple[int, ...] | None = field(default=None, metadata=_STATIC)
    padding: str = field(default="SAME", metadata=_STATIC)
    w_std: Any = 1.0
    b_std: Any = 0.0

    def __post_init__(self) -> None:
        _check_stds(self)
        for name in ("filter_shape", "strides"):
            sizes = getattr(self, name)
            if sizes is None:
                continue
            if not isinstance(sizes, Sequence):
                raise TypeError(f"{name} must be a tuple, one number for each axis of positions, got {sizes!r}")
            object.__setattr__(self, name, tuple(as_positive_int(name, size) for size in sizes))
        if not self.filter_shape or (self.strides is not None and len(self.strides) != len(self.filter_shape)):
            raise ValueError(
                "filter_shape and strides must have one number for each axis of positions, "
                f"got {self.filter_shape} and {self.strides}"
            )
        if self.padding not in _PADDINGS:
            raise ValueError(f"padding must be one of {', '.join(_PADDINGS)}, got {self.padding!r}")

    def __call__(self, covariances: Covariances) -> Covariances:
        """Covariances after the layer."""
        if covariances.num_positions != len(self.filter_shape):
            raise ValueError(
                f"filter_shape {self.filter_shape} does not fit inputs with {covariances.num_positions} axes of "
                "positions between the first (examples) and the last (channels)"
            )
        sides = covariances.sides
        return covariances.map(
            lambda pairs: _after_weights(self, average_pairs(pairs, self._window_mean, sides)), is_gaussian=True
        )

    def _window_mean(self, array: Array, *sides: tuple[int, ...]) -> Array:
        """Mean over the filter's window, moved along the axes of all sides together."""
        strides = self.strides or (1,) * len(self.filter_shape)
        kind = "VALID" if self.padding == "VALID" else "SAME"
        lengths = tuple(array.shape[axis] for axis in sides[0])
        pads = lax.padtype_to_pads(lengths, self.filter_shape, strides, kind)
        counts = [
            (length + sum(pad) - size) // stride + 1
            for length, pad, size, stride in zip(lengths, pads, self.filter_shape, strides, strict=True)
        ]
        if min(counts) < 1:
            raise ValueError(f"filter_shape {self.filter_shape} is larger than the image, {lengths}")
        widths = [(0, 0)] * array.ndim
        for axes in sides:
            for axis, pad in zip(axes, pads, strict=True):
                widths[axis] = pad
        padded = jnp.pad(array, widths, mode="wrap" if self.padding == "CIRCULAR" else "constant")

        def shift(offsets: tuple[int, ...]) -> Array:
            where = [slice(None)] * array.ndim
            for axes in sides:
                for axis, offset, count, stride in zip(axes, offsets, counts, strides, strict=True):
                    where[axis] = slice(offset, offset + stride * (count - 1) + 1, stride)
            return padded[tuple(where)]

        # All shifts in one pass: a sum for each axis in turn has fewer terms, but writes and reads once more.
        windows = itertools.product(*map(range, self.filter_shape))
        return reduce(operator.add, map(shift, windows)) / math.prod(self.filter_shape)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Activate:
    """An elementwise activation; a layer with random weights must precede it.

    Attributes
    ----------
    activation
        A name, an activation of :mod:`fixntk.ntk.activations`, or a function (by quadrature unless it is a known one).
    """

    activation: Any = field(default="relu", metadata=_STATIC)

    def __post_init__(self) -> None:
        object.__setattr__(self, "activation", as_activation(self.activation))

    def __call__(self, covariances: Covariances) -> Covariances:
        """Covariances after the activation."""
        _check_gaussian(covariances, f"Activate({self.activation.name!r})")
        return covariances.map(self._after_activation, is_gaussian=False)

    def _after_activation(self, pairs: Pairs) -> Pairs:
        gaussians = pairs.gaussians()
        covariance, derivatives = self.activation.moments(gaussians)
        variance1, variance2 = (self._variance(variance) for variance in (pairs.variance1, pairs.variance2))
        if self.activation.haversines is None:
            haversines = haversines_from_moments(variance1, variance2, covariance)
        else:
            haversines = self.activation.haversines(gaussians)
        return Pairs(variance1, variance2, covariance, *haversines, pairs.ntk * derivatives)

    def _variance(self, variance: Array) -> Array:
        std = safe_sqrt(variance)
        return self.activation.moments(Gaussians(std, std, variance, jnp.zeros_like(std), jnp.ones_like(std)))[0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerNorm:
    """Layer normalisation over the channels, without trained scale or offset; random weights must precede it.

    Attributes
    ----------
    eps
        Added to the variance under the root. Zeros stay zeros when it is 0.
    """

    eps: Any = 1e-12

    def __post_init__(self) -> None:
        check_scalar("eps", self.eps)

    def __call__(self, covariances: Covariances) -> Covariances:
        """Covariances after the normalisation."""
        _check_gaussian(covariances, "LayerNorm")
        return covariances.map(self._after_normalisation)

    def _after_normalisation(self, pairs: Pairs) -> Pairs:
        sums = (variance + self.eps for variance in (pairs.variance1, pairs.variance2))
        factor1, factor2 = (jnp.where(total > 0, 1 / jnp.where(total > 0, total, 1.0), 0.0) for total in sums)
        factor = jnp.sqrt(factor1) * jnp.sqrt(factor2)
        return replace(
            pairs,
            variance1=pairs.variance1 * factor1,
            variance2=pairs.variance2 * factor2,
            covariance=pairs.covariance * factor,
            ntk=pairs.ntk * factor,
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Flatten:
    """All positions and channels as one axis of features."""

    def __call__(self, covariances: Covariances) -> Covariances:
        """Covariances after the layer."""
        _check_positions(covariances, "Flatten")
        pairs = average_pairs(covariances.pairs, _mean_over_positions, covariances.sides)
        # Features of several positions differ in their variances, so that they are not one Gaussian's values.
        return Covariances(pairs, None, None, 0, is_gaussian=False)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GlobalAveragePool:
    """The mean over all positions, channel by channel."""

    def __call__(self, covariances: Covariances) -> Covariances:
        """Covariances after the layer."""
        _check_positions(covariances, "GlobalAveragePool")
        axes = tuple(range(2, covariances.pairs.covariance.ndim))
        own1, own2 = covariances.own1, covariances.own2
        if own1 is None or own2 is None:
            raise ValueError("GlobalAveragePool after a Flatten has no positions to average over")
        pairs = covariances.pairs
        variance1, variance2 = (jnp.mean(own.covariance, axis=axes) for own in (own1, own2))
        covariance = jnp.mean(pairs.covariance, axis=axes)
        haversines = haversines_from_moments(variance1, variance2, covariance)
        pooled = Pairs(variance1, variance2, covariance, *haversines, jnp.mean(pairs.ntk, axis=axes))
        return Covariances(pooled, None, None, 0, covariances.is_gaussian)


class Serial(tuple):
    """Layers one after the other."""

    def __new__(cls, *layers: Layer) -> Serial:
        """Put layers together."""
        for layer in layers:
            if isinstance(layer, type) or not callable(layer):
                raise TypeError(f"Serial takes layers such as Dense(), got {layer!r}")
        return super().__new__(cls, layers)

    def __call__(self, covariances: Covariances) -> Covariances:
        """Covariances after the last layer."""
        for layer in self:
            covariances = layer(covariances)
        return covariances


jax.tree_util.register_pytree_node(
    Serial, lambda serial: (tuple(serial), None), lambda _, layers: tuple.__new__(Serial, layers)
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Residual:
    """The sum of a branch, which ends with random weights, and a shortcut.

    Attributes
    ----------
    branch
        A layer, such as a :class:`Serial`.
    shortcut
        A layer; the inputs themselves when it is an empty Serial.
    """

    branch: Any
    shortcut: Any = field(default_factory=Serial)

    def __call__(self, covariances: Covariances) -> Covariances:
        """Covariances of the sum."""
        branch, shortcut = self.branch(covariances), self.shortcut(covariances)
        if not branch.is_gaussian:
            raise ValueError(
                "the branch of a Residual must end with Dense or Conv: its sum with the shortcut has no "
                "closed form otherwise"
            )
        shapes = branch.pairs.covariance.shape, shortcut.pairs.covariance.shape
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"the branch and the shortcut of a Residual differ in their positions: {shapes[0][2:]} "
                f"and {shapes[1][2:]}"
            )
        own1, own2 = (
            None if own is None or other is None else add_pairs(own, other)
            for own, other in ((branch.own1, shortcut.own1), (branch.own2, shortcut.own2))
        )
        return Covariances(
            add_pairs(branch.pairs, shortcut.pairs), own1, own2, branch.num_positions, shortcut.is_gaussian
        )


def mlp(depth: int, activation: Any = "relu", w_std: Any = 1.0, b_std: Any = 0.0) -> Serial:
    """A fully connected network: ``depth`` hidden layers, each Dense and activation, and a Dense readout.

    Raises
    ------
    ValueError, TypeError
        If ``depth`` is not a positive integer, or another argument is not what its layer takes.
    """
    dense = Dense(w_std, b_std)
    hidden: list[Layer] = [dense, Activate(activation)]
    return Serial(*hidden * as_positive_int("depth", depth), dense)


def layers_of(kind: type, network: Any) -> list[Any]:
    """All layers of one class in a network."""
    leaves = jax.tree.leaves(network, is_leaf=lambda layer: isinstance(layer, kind))
    return [leaf for leaf in leaves if isinstance(leaf, kind)]


def as_scalars(network: Layer, input_scale: Any, dtype: Any) -> tuple[Layer, Array]:
    """Convert every number that the kernels depend on to the dtype of the inputs."""

    def as_scalar(path: tuple[Any, ...], value: Any) -> Array:
        array = jnp.asarray(value, dtype)
        if array.ndim:
            name = getattr(path[-1], "name", "input_scale")
            raise ValueError(f"{name} must be a single number, got an array of shape {array.shape}")
        return array

    return jax.tree_util.tree_map_with_path(as_scalar, (network, input_scale))


def _mean_over_positions(array: Array, *sides: tuple[int, ...]) -> Array:
    """Mean over positions; for two sides over the pairs of equal positions."""
    if len(sides) == 1:
        return jnp.mean(array, axis=tuple(range(2, array.ndim)))
    size = math.prod(array.shape[axis] for axis in sides[0])
    return jnp.mean(jnp.diagonal(array.reshape(*array.shape[:2], size, size), axis1=2, axis2=3), axis=2)


def _after_weights(layer: Dense | Conv, pairs: Pairs) -> Pairs:
    """Random weights and biases on top: Σ ← w² Σ + b² and Θ ← Σ + w² Θ."""
    if layer.w_std is None:
        raise TypeError("w_std must be a number, got None")
    scale = layer.w_std**2
    weighted = replace(
        pairs,
        variance1=scale * pairs.variance1,
        variance2=scale * pairs.variance2,
        covariance=scale * pairs.covariance,
    )
    if layer.b_std is not None:
        bias = jnp.full((), layer.b_std**2, pairs.ntk.dtype)
        one, nothing = jnp.ones_like(bias), jnp.zeros_like(bias)
        weighted = add_pairs(weighted, Pairs(bias, bias, bias, nothing, one, nothing))
    return replace(weighted, ntk=weighted.covariance + scale * pairs.ntk)


def _check_stds(layer: Dense | Conv) -> None:
    """Check both standard deviations, and store None for biases of standard deviation zero."""
    check_scalar("w_std", layer.w_std)
    if layer.b_std is not None:
        check_scalar("b_std", layer.b_std)
        if isinstance(layer.b_std, int | float | np.number) and layer.b_std == 0:
            object.__setattr__(layer, "b_std", None)


def _check_gaussian(covariances: Covariances, name: str) -> None:
    if not covariances.is_gaussian:
        raise ValueError(f"{name} needs Gaussian inputs: put Dense or Conv before it")


def _check_positions(covariances: Covariances, name: str) -> None:
    if covariances.num_positions == 0:
        raise ValueError(f"{name} needs inputs with positions, (n, …, channels) with more than two axes")
