r"""Gated and ReLU networks as pytrees, and the way from convex weights to them (M10).

A gated network is :math:`f(x) = b + \sum_j 1\{g_j^⊤x ≥ 0\}\, (w_j^⊤x)\, v_j` with fixed gates g_j; a ReLU network has
:math:`g_j = w_j`. Their weight decay is :math:`½ \sum_j (\|w_j\|^2 + \|v_j\|^2)`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Key

from fixntk._checks import as_float_array, as_matrix, as_positive_int, check_same_columns, is_traced
from fixntk._numerics import matmul, safe_sqrt
from fixntk.gates.masks import activation_masks, sample_gates
from fixntk.networks.cones import decompose


class Parameters(NamedTuple):
    """What training changes.

    Attributes
    ----------
    hidden
        (m, d) w_j.
    output
        (m, c) v_j.
    intercept
        (c,) b, which weight decay leaves alone; None for a network without one.
    """

    hidden: Float[Array, "m d"]
    output: Float[Array, "m c"]
    intercept: Float[Array, " c"] | None


@partial(
    jax.tree_util.register_dataclass, data_fields=["gates", "hidden", "output", "intercept"], meta_fields=["squeeze"]
)
@dataclass(frozen=True, eq=False)
class GatedReLUNetwork:
    """A network of gated ReLUs, whose gates are fixed.

    Attributes
    ----------
    gates
        (m, d) g_j.
    hidden, output, intercept
        As in :class:`Parameters`.
    squeeze
        Whether outputs have shape (n,) instead of (n, 1).
    """

    gates: Float[Array, "m d"]
    hidden: Float[Array, "m d"]
    output: Float[Array, "m c"]
    intercept: Float[Array, " c"] | None = None
    squeeze: bool = False

    @classmethod
    def sample(
        cls,
        key: Key[Array, ""],
        width: int,
        num_features: int,
        *,
        num_outputs: int | None = None,
        intercept: bool = False,
        gates: ArrayLike | None = None,
    ) -> GatedReLUNetwork:
        """Draw a network: gates N(0, 1), hidden weights N(0, 1/d), output weights N(0, 1/m), intercept zero.

        Parameters
        ----------
        key
            JAX random key.
        width, num_features
            m and d.
        num_outputs
            c; None for outputs of shape (n,).
        intercept
            Whether there is one.
        gates
            (P, d) gates to use instead of random ones, in turn where the width is another.
        """
        gate_key, key = jax.random.split(key)
        parameters = _sampled(key, width, num_features, num_outputs, intercept)
        if gates is None:
            chosen = sample_gates(gate_key, width, num_features)
        else:
            given = as_matrix("gates", gates)
            check_same_columns("gates", given, "hidden", parameters.hidden)
            chosen = given[jnp.arange(width) % given.shape[0]]
        return cls(chosen, *parameters, squeeze=num_outputs is None)

    def __call__(self, x: ArrayLike) -> Array:
        """Outputs (n,) or (n, c) on (n, d) inputs.

        Raises
        ------
        ValueError
            If the columns of x are not as many as a gate has entries, or gates and weights differ in number.
        """
        x = _as_inputs(self, x)
        if self.gates.shape != self.hidden.shape:
            raise ValueError(
                f"gates and hidden must have one shape (m, d), got {self.gates.shape} and {self.hidden.shape}"
            )
        return _squeezed(self, outputs(self.parameters, x, self.masks(x)))

    def masks(self, x: ArrayLike) -> Bool[Array, "n m"]:
        """Which rows of x each neuron's gate lets through."""
        return activation_masks(x, self.gates)

    @property
    def parameters(self) -> Parameters:
        """What training changes: all but the gates."""
        return Parameters(self.hidden, self.output, self.intercept)

    def with_parameters(self, parameters: Parameters) -> GatedReLUNetwork:
        """The network with other parameters."""
        return replace(self, **parameters._asdict())

    @property
    def num_parameters(self) -> int:
        """Numbers that training changes; the gates are not among them."""
        return _num_parameters(self.parameters)

    def weight_decay(self) -> Float[Array, ""]:
        """½ Σ_j (‖w_j‖² + ‖v_j‖²); times λ it is the convex program's penalty (M10)."""
        return weight_decay(self.parameters)

    def pruned(self, share: float = 0.0) -> GatedReLUNetwork:
        """Without the neurons whose ‖w_j‖ ‖v_j‖ is at most ``share`` of the largest; one stays if none is left."""
        kept = _kept_neurons(self.parameters, share)
        return replace(self, gates=self.gates[kept], hidden=self.hidden[kept], output=self.output[kept])

    def merged(self, x: ArrayLike | None = None) -> GatedReLUNetwork:
        """Merge neurons that share a gate: as few as can be, the same outputs, no more weight decay (M10).

        Not under ``jit``: how many stay depends on the values.

        Parameters
        ----------
        x
            (n, d) data on which gates count as one if they give the same mask; equal gates when None. With x outputs
            elsewhere can change.
        """
        if is_traced(self, x):
            raise ValueError("merged depends on values: it cannot be traced by jit, vmap or grad")
        keys = np.asarray(self.gates if x is None else self.masks(x).T)
        _, first, group = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        products = self.hidden[:, :, None] * self.output[:, None, :]
        weights = jax.ops.segment_sum(products, jnp.asarray(group).reshape(-1), first.size)
        return from_group_weights(self.gates[first], weights, self.intercept, squeeze=self.squeeze)

    def to_relu(
        self, x: ArrayLike, *, method: str = "minimum_norm", tol: float = 1e-4, max_iter: int = 200
    ) -> ReLUNetwork:
        """A ReLU network with the same outputs on x, which needs no gates: the cone decomposition (M10).

        Each w_j is a difference of two vectors of its gate's cone, on which ReLU and gate agree over x; elsewhere the
        two networks differ. Its weight decay is larger, by as little as can be within the tolerance for
        ``"minimum_norm"``.

        Parameters
        ----------
        x
            (n, d) data, no row of which may lie on the boundary of a gate.
        method
            ``"minimum_norm"``: least ‖a‖ + ‖b‖ over all w = a − b with both in the cone. ``"interior"``: a closed form,
            w shifted along a direction inside of the cone; quicker and larger.
        tol, max_iter
            For ``"minimum_norm"``: how far ‖a‖ + ‖b‖ may be above the least, as a share of ‖w‖, and steps to get there.

        Raises
        ------
        ValueError
            If a row of x lies on a gate's boundary, or the method is unknown.

        Warns
        -----
        ConvergenceWarning
            If the tolerance is not reached; the network is right, larger than it could be.
        """
        x = _as_inputs(self, x)
        parts = decompose(x, self.gates, self.hidden, method=method, tol=tol, max_iter=max_iter)
        hidden = jnp.concatenate([parts.positive, parts.negative])
        output = jnp.concatenate([self.output, -self.output])
        return ReLUNetwork(*_balanced(hidden, output), self.intercept, self.squeeze).pruned()


@partial(jax.tree_util.register_dataclass, data_fields=["hidden", "output", "intercept"], meta_fields=["squeeze"])
@dataclass(frozen=True, eq=False)
class ReLUNetwork:
    """A network of one hidden layer of ReLUs.

    Attributes
    ----------
    hidden, output, intercept
        As in :class:`Parameters`.
    squeeze
        Whether outputs have shape (n,) instead of (n, 1).
    """

    hidden: Float[Array, "m d"]
    output: Float[Array, "m c"]
    intercept: Float[Array, " c"] | None = None
    squeeze: bool = False

    @classmethod
    def sample(
        cls,
        key: Key[Array, ""],
        width: int,
        num_features: int,
        *,
        num_outputs: int | None = None,
        intercept: bool = False,
    ) -> ReLUNetwork:
        """Draw a network: hidden weights N(0, 1/d), output weights N(0, 1/m), intercept zero.

        Parameters
        ----------
        key
            JAX random key.
        width, num_features
            m and d.
        num_outputs
            c; None for outputs of shape (n,).
        intercept
            Whether there is one.
        """
        parameters = _sampled(key, width, num_features, num_outputs, intercept)
        return cls(*parameters, squeeze=num_outputs is None)

    def __call__(self, x: ArrayLike) -> Array:
        """Outputs (n,) or (n, c) on (n, d) inputs.

        Raises
        ------
        ValueError
            If the columns of x are not as many as a hidden weight has entries.
        """
        return _squeezed(self, outputs(self.parameters, _as_inputs(self, x), None))

    @property
    def parameters(self) -> Parameters:
        """What training changes: everything."""
        return Parameters(self.hidden, self.output, self.intercept)

    def with_parameters(self, parameters: Parameters) -> ReLUNetwork:
        """The network with other parameters."""
        return replace(self, **parameters._asdict())

    @property
    def num_parameters(self) -> int:
        """Numbers that training changes."""
        return _num_parameters(self.parameters)

    def weight_decay(self) -> Float[Array, ""]:
        """½ Σ_j (‖w_j‖² + ‖v_j‖²)."""
        return weight_decay(self.parameters)

    def pruned(self, share: float = 0.0) -> ReLUNetwork:
        """Without the neurons whose ‖w_j‖ ‖v_j‖ is at most ``share`` of the largest; one stays if none is left."""
        kept = _kept_neurons(self.parameters, share)
        return replace(self, hidden=self.hidden[kept], output=self.output[kept])


Network = TypeVar("Network", GatedReLUNetwork, ReLUNetwork)


def from_group_weights(
    gates: ArrayLike, weights: ArrayLike, intercept: Array | None = None, *, squeeze: bool = False
) -> GatedReLUNetwork:
    """The gated network with the same outputs as group weights, and the least weight decay that it can have (M10).

    One output: w = W/√‖W‖, v = √‖W‖, and the weight decay is Σ ‖W_p‖, so that network and convex program have the same
    objective. Several: one neuron for each singular pair of W_p, and the weight decay is the sum of the nuclear norms:
    the objective is that of the program with ``norm="nuclear"``, and at least that of ``norm="frobenius"``.
    Neurons that are zero are left out, except under ``jit`` and ``vmap``.

    Parameters
    ----------
    gates
        (P, d).
    weights
        (P, d, c), or (P, d) for one output.
    intercept
        (c,) or None.
    squeeze
        Whether outputs have shape (n,).

    Raises
    ------
    ValueError
        If gates and weights differ in number or entries.
    """
    gates, weights = as_matrix("gates", gates), as_float_array("weights", weights, (2, 3))
    if gates.shape != weights.shape[:2]:
        raise ValueError(f"gates must have shape {weights.shape[:2]}, as the weights have groups, got {gates.shape}")
    if weights.ndim == 2 or weights.shape[2] == 1:
        flat = weights.reshape(gates.shape)
        hidden, output = _balanced(flat, jnp.ones((flat.shape[0], 1), flat.dtype))
    else:
        left, values, right = jnp.linalg.svd(weights, full_matrices=False)
        # What is rounding beside the largest singular value of all would only be more neurons.
        values = jnp.where(values > 10 * jnp.finfo(values.dtype).eps * jnp.max(values), values, 0.0)
        root = safe_sqrt(values)
        hidden = (left * root[:, None, :]).swapaxes(1, 2).reshape(-1, gates.shape[1])
        output = (root[:, :, None] * right).reshape(hidden.shape[0], -1)
        gates = jnp.repeat(gates, values.shape[1], axis=0)
    network = GatedReLUNetwork(gates, hidden, output, intercept, squeeze)
    return network if is_traced(network) else network.pruned()


def from_signed_cones(
    positive: ArrayLike, negative: ArrayLike, intercept: Array | None = None, *, squeeze: bool = False
) -> ReLUNetwork:
    """The ReLU network of a solution of its convex program: neurons v/√‖v‖ with output √‖v‖, and u with −√‖u‖ (M10).

    Parameters
    ----------
    positive, negative
        (P, d) v and u.
    intercept
        (1,) or None.
    squeeze
        Whether outputs have shape (n,).
    """
    positive, negative = as_matrix("positive", positive), as_matrix("negative", negative)
    hidden = jnp.concatenate([positive, negative])
    ones = jnp.ones((positive.shape[0], 1), hidden.dtype)
    return ReLUNetwork(*_balanced(hidden, jnp.concatenate([ones, -ones])), intercept, squeeze).pruned()


def outputs(parameters: Parameters, x: Array, masks: Array | None) -> Float[Array, "n c"]:
    """Outputs of a gated network with (n, m) masks, or of a ReLU network where masks is None."""
    hidden = matmul(x, parameters.hidden.T)
    active = jax.nn.relu(hidden) if masks is None else jnp.where(masks, hidden, 0)
    result = matmul(active, parameters.output)
    return result if parameters.intercept is None else result + parameters.intercept


def weight_decay(parameters: Parameters) -> Float[Array, ""]:
    """½ Σ_j (‖w_j‖² + ‖v_j‖²)."""
    return 0.5 * (jnp.sum(parameters.hidden**2) + jnp.sum(parameters.output**2))


def _sampled(key: Array, width: int, num_features: int, num_outputs: int | None, intercept: bool) -> Parameters:
    width, num_features = as_positive_int("width", width), as_positive_int("num_features", num_features)
    num_outputs = 1 if num_outputs is None else as_positive_int("num_outputs", num_outputs)
    key1, key2 = jax.random.split(key)
    return Parameters(
        hidden=jax.random.normal(key1, (width, num_features)) / jnp.sqrt(num_features),
        output=jax.random.normal(key2, (width, num_outputs)) / jnp.sqrt(width),
        intercept=jnp.zeros(num_outputs) if intercept else None,
    )


def _as_inputs(network: Any, x: ArrayLike) -> Array:
    x = as_matrix("x", x)
    check_same_columns("x", x, "hidden", network.hidden)
    return x


def _squeezed(network: Any, result: Array) -> Array:
    return result[:, 0] if network.squeeze else result


def _num_parameters(parameters: Parameters) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(parameters))


def _sizes(parameters: Parameters) -> Array:
    return jnp.linalg.norm(parameters.hidden, axis=1) * jnp.linalg.norm(parameters.output, axis=1)


def _kept_neurons(parameters: Parameters, share: float) -> np.ndarray:
    if is_traced(parameters):
        raise ValueError("pruned depends on values: it cannot be traced by jit, vmap or grad")
    sizes = np.asarray(_sizes(parameters))
    kept = np.flatnonzero(sizes > share * sizes.max())
    return kept if kept.size else np.array([int(sizes.argmax())])


def _balanced(hidden: Array, output: Array) -> tuple[Array, Array]:
    """The same neurons with ‖w_j‖ = ‖v_j‖, which is their least weight decay; zero where either is."""
    lengths, widths = (safe_sqrt(jnp.sum(part**2, axis=1, keepdims=True)) for part in (hidden, output))
    present = (lengths > 0) & (widths > 0)
    ratio = safe_sqrt(jnp.where(present, widths / jnp.where(present, lengths, 1.0), 0.0))
    inverse = jnp.where(present, 1 / jnp.where(present, ratio, 1.0), 0.0)
    return hidden * ratio, output * inverse
