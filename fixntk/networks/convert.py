"""Networks from the weights of convex programs.

See docs/mathematics.md, M10.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from fixntk._checks import as_float_array, as_matrix, is_traced
from fixntk.networks.models import GatedReLUNetwork, ReLUNetwork
from fixntk.networks.neurons import balance, factor_groups


def from_group_weights(
    gates: ArrayLike, weights: ArrayLike, intercept: Float[Array, " c"] | None = None, *, squeeze: bool = False
) -> GatedReLUNetwork:
    """The gated network with the same outputs as group weights, and the minimum of weight decay.

    For one output: w = W/√‖W‖ and v = √‖W‖. The weight decay is Σ ‖W_p‖, so network and convex program have the same
    objective. For several outputs: one neuron for each singular value of W_p. The weight decay is the sum of the
    nuclear norms, so the network's objective equals the objective of the program with ``norm="nuclear"``, and is at
    least the objective of the program with ``norm="frobenius"``. Neurons that are zero are left out, except under
    ``jit`` and ``vmap``.

    Parameters
    ----------
    gates
        (P, d) gates.
    weights
        (P, d, c) weights, or (P, d) for one output.
    intercept
        (c,) or None.
    squeeze
        Whether outputs have shape (n,).

    Raises
    ------
    ValueError
        If gates and weights differ in P or d.

    See docs/mathematics.md, M10.
    """
    gates, weights = as_matrix("gates", gates), as_float_array("weights", weights, (2, 3))
    if gates.shape != weights.shape[:2]:
        raise ValueError(f"gates must have shape {weights.shape[:2]}, as the weights have groups, got {gates.shape}")
    gates, hidden, output = factor_groups(gates, weights)
    network = GatedReLUNetwork(gates, hidden, output, intercept, squeeze)
    return network if is_traced(network) else network.pruned()


def from_signed_cones(
    positive: ArrayLike, negative: ArrayLike, intercept: Float[Array, " 1"] | None = None, *, squeeze: bool = False
) -> ReLUNetwork:
    """The ReLU network of a solution of its convex program, with the same objective.

    Its neurons have hidden weights v/√‖v‖ with output weight √‖v‖, and u/√‖u‖ with output weight −√‖u‖.

    Parameters
    ----------
    positive, negative
        (P, d) v and u. No unit.
    intercept
        (1,) or None.
    squeeze
        Whether outputs have shape (n,).

    Raises
    ------
    TypeError
        If v or u are not real numbers.
    ValueError
        If v or u is not a finite matrix, or their shapes differ.

    See docs/mathematics.md, M10.
    """
    positive, negative = as_matrix("positive", positive), as_matrix("negative", negative)
    if positive.shape != negative.shape:
        raise ValueError(f"negative must have positive's shape {positive.shape}, got {negative.shape}")
    vectors = jnp.concatenate([positive, negative])
    ones = jnp.ones((positive.shape[0], 1), vectors.dtype)
    hidden, output = balance(vectors, jnp.concatenate([ones, -ones]))
    return ReLUNetwork(hidden, output, intercept, squeeze).pruned()
