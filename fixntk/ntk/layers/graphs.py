"""Sums over the neighbours of a node, in a graph that belongs to the input, and means over the nodes that it has.

See docs/mathematics.md, M13.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from fixntk._numerics import matmul
from fixntk.ntk.covariances import Covariances, from_moments
from fixntk.ntk.layers.layer import Layer, check_positions


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Aggregate(Layer):
    """At each node the sum over its neighbours, by the pattern that each input has: a graph network.

    The nodes are the positions. Patterns are passed to :func:`fixntk.network_kernel` and to ``apply`` of a network:
    ``pattern[n, u, v]`` is the weight with which node u of input n is added at node v. A one on the diagonal keeps the
    node itself. Zeros take nodes out, so that inputs may have different numbers of nodes. With a mask in place of a
    pattern, (n, positions …) and boolean, the layer sets the other positions to zero: before a convolution these are
    then as its own padding.

    References
    ----------
    Du et al., "Graph Neural Tangent Kernel", NeurIPS 2019.

    See docs/mathematics.md, M13.
    """

    mixes_positions: ClassVar[bool] = True
    takes_pattern: ClassVar[bool] = True

    def __call__(self, covariances: Covariances) -> Covariances:
        """Covariances of the sums."""
        patterns = patterns_of(covariances, "Aggregate", "graphs", "nodes")
        size = math.prod(covariances.positions)
        sums = {1: patterns[0][:, None], 2: patterns[1][None]}

        def aggregate(array: Array, side1: int, side2: int) -> Array:
            # A fixed linear map of the positions of each input, which has no weights: Σ and Θ both become Pᵀ · P.
            flat = array.reshape(*array.shape[:2], size, size)
            return matmul(matmul(jnp.swapaxes(sums[side1], -1, -2), flat), sums[side2]).reshape(array.shape)

        return from_moments(covariances, aggregate, lambda ntk, _, side1, side2: aggregate(ntk, side1, side2))

    def output_shape(self, params: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the input."""
        del params
        return shape

    def apply(self, params: Any, x: Array, *, key: Array | None = None, pattern: Array | None = None) -> Array:
        """Sums (n, positions …, channels), by patterns (n, positions …, positions …)."""
        del params, key
        flat, graphs = flatten_nodes(x, pattern, "Aggregate", "graphs")
        return matmul(jnp.swapaxes(graphs, 1, 2), flat).reshape(x.shape)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MaskedAveragePool(Layer):
    """The mean over the positions that an input has, channel by channel.

    These are the positions that are true in its mask, or have an entry on the diagonal of its pattern. Masks and
    patterns are passed to :func:`fixntk.network_kernel` and to ``apply`` of a network, as for :class:`Aggregate`. The
    mean of an input without positions is zero.

    See docs/mathematics.md, M13.
    """

    mixes_positions: ClassVar[bool] = True
    takes_pattern: ClassVar[bool] = True

    def __call__(self, covariances: Covariances) -> Covariances:
        """Covariances of the means."""
        patterns = patterns_of(covariances, "MaskedAveragePool", "masks", "positions to average over")
        size = math.prod(covariances.positions)
        weights = {1: _weights_of_mean(patterns[0])[:, None], 2: _weights_of_mean(patterns[1])[None]}

        def average(array: Array, side1: int, side2: int) -> Array:
            flat = array.reshape(*array.shape[:2], size, size)
            return matmul(matmul(weights[side1][..., None, :], flat), weights[side2][..., None])[..., 0, 0]

        return from_moments(covariances, average, lambda ntk, _, side1, side2: average(ntk, side1, side2))

    def output_shape(self, params: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The channels."""
        del params
        return shape[-1:]

    def apply(self, params: Any, x: Array, *, key: Array | None = None, pattern: Array | None = None) -> Array:
        """Means (n, channels), by masks (n, positions …) or patterns (n, positions …, positions …)."""
        del params, key
        flat, graphs = flatten_nodes(x, pattern, "MaskedAveragePool", "masks")
        return matmul(_weights_of_mean(graphs)[:, None], flat)[:, 0]


def flat_pattern(pattern: Array, x: Array) -> Array:
    """Patterns (n, positions …, positions …), or masks (n, positions …) of inputs x, as (n, S, S) of their dtype."""
    if is_mask(pattern, x):
        mask = pattern.reshape(pattern.shape[0], -1).astype(x.dtype)
        return mask[:, :, None] * jnp.eye(mask.shape[1], dtype=x.dtype)
    size = math.prod(pattern.shape[1 : 1 + (pattern.ndim - 1) // 2])
    return pattern.reshape(pattern.shape[0], size, size).astype(x.dtype)


def is_mask(pattern: Any, x: Array) -> bool:
    """Whether an array says which positions the inputs have: it is boolean and has no axis of neighbours."""
    return pattern.dtype == bool and pattern.ndim == x.ndim - 1


def has_nodes(patterns: Array) -> Array:
    """(n, S) which nodes are there: those on the diagonals of patterns (n, S, S)."""
    return jnp.diagonal(patterns, axis1=1, axis2=2) != 0


def _weights_of_mean(patterns: Array) -> Array:
    """Weights (n, S) of the mean over the nodes on the diagonals of patterns (n, S, S)."""
    is_there = has_nodes(patterns)
    return is_there / jnp.maximum(jnp.sum(is_there, axis=1, keepdims=True), 1).astype(patterns.dtype)


def patterns_of(covariances: Covariances, name: str, noun: str, places: str) -> tuple[Array, Array]:
    """The patterns of both sides' inputs, (n, S, S) each, or the layer's error that there are none."""
    check_positions(covariances, name)
    if not covariances.has_all_positions:
        raise ValueError(f"{name} after a Flatten has no {places}")
    if covariances.patterns is None:
        raise ValueError(f"{name} needs the {noun} of the inputs: pass pattern1 to network_kernel")
    _check_size(name, covariances.patterns[0].shape[1], covariances.positions)
    return covariances.patterns


def flatten_nodes(x: Array, pattern: Array | None, name: str, noun: str) -> tuple[Array, Array]:
    """Inputs (n, S, channels) and their patterns (n, S, S), or the layer's error that there are none."""
    if pattern is None:
        raise ValueError(f"{name} needs the {noun} of the inputs: pass pattern to apply")
    graphs = flat_pattern(jnp.asarray(pattern), x)
    _check_size(name, graphs.shape[1], x.shape[1:-1])
    return x.reshape(x.shape[0], -1, x.shape[-1]), graphs


def _check_size(name: str, nodes: int, positions: tuple[int, ...]) -> None:
    if nodes != math.prod(positions):
        raise ValueError(
            f"patterns are between {nodes} nodes, but the inputs of {name} have {math.prod(positions)}, axes of"
            f" positions {positions}: layers before it must keep the number of positions"
        )
