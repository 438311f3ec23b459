"""Sums over the neighbours of a node, in a graph that belongs to the input.

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
    node itself. Zeros take nodes out, so that inputs may have different numbers of nodes.

    References
    ----------
    Du et al., "Graph Neural Tangent Kernel", NeurIPS 2019.

    See docs/mathematics.md, M13.
    """

    mixes_positions: ClassVar[bool] = True
    takes_pattern: ClassVar[bool] = True

    def __call__(self, covariances: Covariances) -> Covariances:
        """Covariances of the sums."""
        check_positions(covariances, "Aggregate")
        if not covariances.has_all_positions:
            raise ValueError("Aggregate after a Flatten has no nodes")
        patterns, positions = covariances.patterns, covariances.positions
        if patterns is None:
            raise ValueError("Aggregate needs the graphs of the inputs: pass pattern1 to network_kernel")
        size = math.prod(positions)
        _check_size(patterns[0].shape[1], positions)
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
        if pattern is None:
            raise ValueError("Aggregate needs the graphs of the inputs: pass pattern to apply")
        flat = x.reshape(x.shape[0], -1, x.shape[-1])
        graphs = flat_pattern(jnp.asarray(pattern, x.dtype))
        _check_size(graphs.shape[1], x.shape[1:-1])
        return matmul(jnp.swapaxes(graphs, 1, 2), flat).reshape(x.shape)


def flat_pattern(pattern: Array) -> Array:
    """Patterns (n, positions …, positions …) as (n, S, S)."""
    size = math.prod(pattern.shape[1 : 1 + (pattern.ndim - 1) // 2])
    return pattern.reshape(pattern.shape[0], size, size)


def _check_size(nodes: int, positions: tuple[int, ...]) -> None:
    if nodes != math.prod(positions):
        raise ValueError(
            f"patterns are between {nodes} nodes, but the inputs of Aggregate have {math.prod(positions)}, axes of"
            f" positions {positions}: layers before it must keep the number of positions"
        )
