"""Layers of infinitely wide networks, each a map of the covariances between pairs of inputs (M13).

A layer is a small pytree that is called with :class:`Covariances` and returns those of its outputs. Networks are built
from them and handed to :func:`fixntk.network_kernel`.
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
from fixntk.ntk.activations import Gaussians, as_activation

# Rounding of a mean, in units of the dtype's epsilon: what is below it says nothing about an angle.
_ROUNDING = 32

_PADDINGS = ("SAME", "VALID", "CIRCULAR")

Layer = Callable[["Covariances"], "Covariances"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pairs:
    """Pairs of inputs as they are after some layers: one hidden unit's two values, over the random weights.

    The arrays broadcast to (n1, n2, positions …), where positions are none, those of an image that both inputs share
    (each position of the first with the same one of the second), or all pairs of positions: first the first input's,
    then the second's.

    Attributes
    ----------
    variance1, variance2
        Variances of the two values.
    covariance
        Their covariance Σ, the kernel of the network as a Gaussian process (NNGP).
    haversine, havercosine
        sin²(θ/2) and cos²(θ/2) of the angle θ with cos θ = their correlation.
    ntk
        The NTK Θ so far.
    """

    variance1: Array
    variance2: Array
    covariance: Array
    haversine: Array
    havercosine: Array
    ntk: Array

    def gaussians(self) -> Gaussians:
        """The two values as Gaussian variables."""
        std1, std2 = safe_sqrt(self.variance1), safe_sqrt(self.variance2)
        return Gaussians(std1, std2, self.covariance, self.haversine, self.havercosine)


@dataclass(frozen=True)
class Covariances:
    """All that a layer needs to know about pairs of inputs.

    Attributes
    ----------
    pairs
        Each of the first inputs with each of the second.
    own1, own2
        Each first input with itself, (n1, 1, …), and each second, (1, n2, …), at all pairs of positions; None where
        a position only meets itself.
    num_positions
        How many axes of positions an input has.
    is_gaussian
        Whether the values are Gaussian: sums over random weights.
    """

    pairs: Pairs
    own1: Pairs | None
    own2: Pairs | None
    num_positions: int
    is_gaussian: bool

    @property
    def has_all_positions(self) -> bool:
        """Whether pairs of different positions are known as well."""
        return self.own1 is not None

    def map(self, change: Callable[[Pairs], Pairs], **flags: Any) -> Covariances:
        """Change every set of pairs in the same way."""
        own1, own2 = (None if own is None else change(own) for own in (self.own1, self.own2))
        return replace(self, pairs=change(self.pairs), own1=own1, own2=own2, **flags)

    @property
    def sides(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Axes of the positions of the first and of the second inputs; the same ones where both share them."""
        first = tuple(range(2, 2 + self.num_positions))
        second = tuple(axis + self.num_positions for axis in first)
        return first, second if self.has_all_positions else first


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
        Standard deviation of the biases; 0 or None is a layer without.
    """

    w_std: Any = 1.0
    b_std: Any = 0.0

    def __post_init__(self) -> None:
        _check_stds(self)

    def __call__(self, covariances: Covariances) -> Covariances:
        """Covariances after the layer."""
        return covariances.map(partial(_weighted, self), is_gaussian=True)


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
        As of :class:`Dense`.
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
            lambda pairs: _weighted(self, _summed(pairs, self._window_mean, sides)), is_gaussian=True
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

        def shifted(offsets: tuple[int, ...]) -> Array:
            where = [slice(None)] * array.ndim
            for axes in sides:
                for axis, offset, count, stride in zip(axes, offsets, counts, strides, strict=True):
                    where[axis] = slice(offset, offset + stride * (count - 1) + 1, stride)
            return padded[tuple(where)]

        # All shifts in one pass: a sum for each axis in turn has fewer terms, but writes and reads once more.
        windows = itertools.product(*map(range, self.filter_shape))
        return reduce(operator.add, map(shifted, windows)) / math.prod(self.filter_shape)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Activate:
    """An activation, entry by entry; after a layer with random weights.

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
        return covariances.map(self._activated, is_gaussian=False)

    def _activated(self, pairs: Pairs) -> Pairs:
        gaussians = pairs.gaussians()
        covariance, derivatives = self.activation.moments(gaussians)
        variance1, variance2 = (self._variance(variance) for variance in (pairs.variance1, pairs.variance2))
        if self.activation.haversines is None:
            haversines = _haversines(variance1, variance2, covariance)
        else:
            haversines = self.activation.haversines(gaussians)
        return Pairs(variance1, variance2, covariance, *haversines, pairs.ntk * derivatives)

    def _variance(self, variance: Array) -> Array:
        std = safe_sqrt(variance)
        return self.activation.moments(Gaussians(std, std, variance, jnp.zeros_like(std), jnp.ones_like(std)))[0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerNorm:
    """Layer normalisation over the channels, without trained scale or offset; after a layer with random weights.

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
        return covariances.map(self._normalised)

    def _normalised(self, pairs: Pairs) -> Pairs:
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
        pairs = _summed(covariances.pairs, _mean_over_positions, covariances.sides)
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
        haversines = _haversines(variance1, variance2, covariance)
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
            None if own is None or other is None else _added(own, other)
            for own, other in ((branch.own1, shortcut.own1), (branch.own2, shortcut.own2))
        )
        return Covariances(_added(branch.pairs, shortcut.pairs), own1, own2, branch.num_positions, shortcut.is_gaussian)


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


def _mean_over_positions(array: Array, *sides: tuple[int, ...]) -> Array:
    """Mean over positions, of two sides over each position with itself."""
    if len(sides) == 1:
        return jnp.mean(array, axis=tuple(range(2, array.ndim)))
    size = math.prod(array.shape[axis] for axis in sides[0])
    return jnp.mean(jnp.diagonal(array.reshape(*array.shape[:2], size, size), axis1=2, axis2=3), axis=2)


def _weighted(layer: Dense | Conv, pairs: Pairs) -> Pairs:
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
        weighted = _added(weighted, Pairs(bias, bias, bias, nothing, one, nothing))
    return replace(weighted, ntk=weighted.covariance + scale * pairs.ntk)


def _added(pairs1: Pairs, pairs2: Pairs) -> Pairs:
    """Sums of independent values; the angle without cancellation at small angles."""
    first, second = pairs1.gaussians(), pairs2.gaussians()
    variance1, variance2 = pairs1.variance1 + pairs2.variance1, pairs1.variance2 + pairs2.variance2
    product1, product2 = first.std1 * first.std2, second.std1 * second.std2
    lengths = product1 + product2
    # Lagrange's identity: what √(variance1 variance2) exceeds the sum of the lengths' products by.
    product3, product4 = first.std1 * second.std2, second.std1 * first.std2
    crossed, rounding = product3 - product4, 4 * jnp.finfo(lengths.dtype).eps * product3
    total = safe_sqrt(variance1) * safe_sqrt(variance2) + lengths
    excess = jnp.where(jnp.abs(crossed) > rounding, crossed**2 / jnp.where(total > 0, total, 1.0), 0.0)
    haversines = _haversines_of_shares(
        excess + 2 * (product1 * pairs1.haversine + product2 * pairs2.haversine),
        excess + 2 * (product1 * pairs1.havercosine + product2 * pairs2.havercosine),
    )
    return Pairs(variance1, variance2, pairs1.covariance + pairs2.covariance, *haversines, pairs1.ntk + pairs2.ntk)


def _summed(pairs: Pairs, mean: Callable[..., Array], sides: tuple[tuple[int, ...], tuple[int, ...]]) -> Pairs:
    """Means over aligned positions; ``mean`` takes an array and the axes of positions that it really has."""
    both = (sides[0],) if sides[0] == sides[1] else sides
    gaussians = pairs.gaussians()
    variance1, variance2 = mean(pairs.variance1, sides[0]), mean(pairs.variance2, sides[1])
    lengths = gaussians.std1 * gaussians.std2
    sin_share = mean(2 * lengths * pairs.haversine, *both)
    cos_share = mean(2 * lengths * pairs.havercosine, *both)
    total = safe_sqrt(variance1) * safe_sqrt(variance2)
    excess = total - (sin_share + cos_share) / 2
    excess = jnp.where(excess > _ROUNDING * jnp.finfo(total.dtype).eps * total, excess, 0.0)
    haversines = _haversines_of_shares(sin_share + excess, cos_share + excess)
    # One sum less than by the covariances, which are lengths · (cos² − sin²).
    return Pairs(variance1, variance2, (cos_share - sin_share) / 2, *haversines, mean(pairs.ntk, *both))


def _haversines(variance1: Array, variance2: Array, covariance: Array) -> tuple[Array, Array]:
    """Haversine and havercosine from second moments alone, zero where they cannot tell them from zero."""
    total = safe_sqrt(variance1) * safe_sqrt(variance2)
    rounding = _ROUNDING * jnp.finfo(total.dtype).eps * total
    shares = (jnp.where(share > rounding, share, 0.0) for share in (total - covariance, total + covariance))
    return _haversines_of_shares(*shares)


def _haversines_of_shares(sin_share: Array, cos_share: Array) -> tuple[Array, Array]:
    """Haversine and havercosine from two numbers in their ratio; a right angle if both are 0."""
    total = sin_share + cos_share
    known = total > 0
    scale = 1 / jnp.where(known, total, 1.0)
    return jnp.where(known, sin_share * scale, 0.5), jnp.where(known, cos_share * scale, 0.5)


def _check_stds(layer: Dense | Conv) -> None:
    """Check both standard deviations, and note that zero biases are none."""
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
