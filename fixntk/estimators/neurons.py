"""Trained ReLU networks as gated ones: each neuron is its own gate.

See docs/mathematics.md, M10 and M11.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from fixntk.estimators.candidates import NUM_KEPT_REGS
from fixntk.estimators.preprocessing import pad_rows
from fixntk.estimators.ridges import UsedGates
from fixntk.networks.descent import descend, sample_stack

# Number of neurons.
_WIDTH = 100
# Number of gradient steps from random weights.
_NUM_STEPS = 1000
# Number of networks in a compiled loop: the number of λ that the folds after the first try.
_STACK = NUM_KEPT_REGS
# Neurons whose norm is below this share of the largest norm are left out.
_LEAST_NEURON = 1e-3


class Neurons(NamedTuple):
    """A trained ReLU network as a gated one, whose gates are its hidden weights: Σ_p 1{g_p·x ≥ 0} g_p·x v_p + b.

    Attributes
    ----------
    gates
        (m, w) hidden weights g_p scaled to norm 1, or near zero where a neuron is left out.
    output
        (m, c) output weights v_p of these, zero where a neuron is left out.
    intercept
        (c,)
    """

    gates: Float[np.ndarray, "m w"]
    output: Float[np.ndarray, "m c"]
    intercept: Float[np.ndarray, " c"]

    @property
    def weights(self) -> Float[np.ndarray, "m w c"]:
        """The groups W_p = g_p v_pᵀ."""
        return self.gates[:, :, None] * self.output[:, None, :]

    @property
    def kernel_weights(self) -> Float[np.ndarray, " m"]:
        """η_p = ‖W_p‖."""
        return np.linalg.norm(self.gates, axis=1) * np.linalg.norm(self.output, axis=1)

    @property
    def used(self) -> UsedGates:
        """The gates of neurons that are not left out."""
        norms = self.kernel_weights
        return UsedGates(self.gates[norms > 0], norms[norms > 0])

    def predict(self, x: Float[np.ndarray, "n w"]) -> Float[np.ndarray, "n c"]:
        """Outputs of rows."""
        return np.maximum(x @ self.gates.T, 0) @ self.output + self.intercept


def train_networks(
    x: Float[np.ndarray, "n w"],
    targets: Float[np.ndarray, "n c"],
    weights: Float[np.ndarray, " n"],
    regs: Float[np.ndarray, " R"],
    num_padded: int,
    seed: int,
) -> list[Neurons]:
    """A network for each λ, trained in single precision on rows that are padded with zeros to a size that recurs.

    A fixed number of networks is trained at a time, and copies of the last fill the last stack, so that another number
    of λ compiles nothing.
    """
    size = min(len(regs), _STACK)
    filled = np.append(regs, np.repeat(regs[-1:], -len(regs) % size))
    is_column = jnp.asarray(np.any(x != 0, axis=0))
    sizes = {"size": size, "width": _WIDTH, "num_outputs": targets.shape[1]}
    start = sample_stack(jax.random.key(seed), is_column, **sizes)
    # Converted by NumPy, as JAX would compile that for each shape.
    start = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float32)), start)
    rows, outputs, shares = (
        jnp.asarray(pad_rows(array, num_padded).astype(np.float32)) for array in (x, targets, weights)
    )
    neurons: list[Neurons] = []
    for some in np.split(filled, len(filled) // size):
        found = descend(start, rows, outputs, shares, jnp.asarray(some.astype(np.float32)), num_steps=_NUM_STEPS)
        stack = [np.asarray(leaf, np.float64) for leaf in found.parameters]
        neurons += [_as_neurons(*parameters) for parameters in zip(*stack, strict=True)]
    return neurons[: len(regs)]


def _as_neurons(
    hidden: Float[np.ndarray, "m w"], output: Float[np.ndarray, "m c"], intercept: Float[np.ndarray, " c"]
) -> Neurons:
    lengths = np.linalg.norm(hidden, axis=1)
    norms = lengths * np.linalg.norm(output, axis=1)
    is_used = norms > _LEAST_NEURON * norms.max()
    # Those left out keep their place, so that the number of gates, for which much is compiled, is always the same.
    scale = np.where(is_used, lengths, 1.0)[:, None]
    return Neurons(hidden / scale, np.where(is_used[:, None], scale * output, 0.0), intercept)
