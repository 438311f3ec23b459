r"""Gated and ReLU networks as pytrees.

A gated network is :math:`f(x) = b + \sum_j 1\{g_j^⊤x ≥ 0\}\, (w_j^⊤x)\, v_j` with fixed gates g_j; a ReLU network has
:math:`g_j = w_j`. Their weight decay is :math:`½ \sum_j (\|w_j\|^2 + \|v_j\|^2)`.

See docs/mathematics.md, M10.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Key

from fixntk._checks import as_matrix, check_same_columns, describe_fields, is_traced
from fixntk.gates.masks import activation_masks, sample_gates
from fixntk.networks.decomposition import decompose
from fixntk.networks.neurons import (
    Parameters,
    as_inputs,
    balance,
    count_parameters,
    factor_groups,
    large_neurons,
    outputs,
    reshape_outputs,
    sample_parameters,
    take_neurons,
    weight_decay,
)

# The arrays of a network may have more axes in front, as a stack of networks has. `Any` is in the annotations of fields
# because JAX's transformations also build networks of shapes and placeholders.


# Not typing.Self: beartype refuses it in methods of classes that are not decorated themselves.
_SameNetwork = TypeVar("_SameNetwork")


class _Parametrised:
    """What every network does with its parameters."""

    @property
    def parameters(self) -> Parameters:
        raise NotImplementedError

    def with_parameters(self: _SameNetwork, parameters: Parameters) -> _SameNetwork:
        """The network with other parameters."""
        # Every network is a dataclass.
        return replace(self, **parameters._asdict())  # type: ignore[type-var]

    @property
    def num_parameters(self) -> int:
        """Number of parameters that training changes; gates do not count."""
        return count_parameters(self.parameters)

    def weight_decay(self) -> Float[Array, ""]:
        """½ Σ_j (‖w_j‖² + ‖v_j‖²); times λ it is the convex program's penalty.

        See docs/mathematics.md, M10.
        """
        return weight_decay(self.parameters)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class GatedReLUNetwork(_Parametrised):
    """A network of gated ReLUs with fixed gates.

    Attributes
    ----------
    gates
        (m, d) gates g_j.
    hidden, output, intercept
        As in :class:`Parameters`.
    squeeze
        Whether outputs have shape (n,) instead of (n, 1).

    See docs/mathematics.md, M5 and M10.
    """

    gates: Float[Array, "*S m d"] | Any
    hidden: Float[Array, "*S m d"] | Any
    output: Float[Array, "*S m c"] | Any
    intercept: Float[Array, "*S c"] | Any | None = None
    squeeze: bool = field(default=False, metadata={"static": True})

    def __repr__(self) -> str:
        return describe_fields("GatedReLUNetwork", gates=self.gates, **self.parameters._asdict())

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
            Whether the network has one.
        gates
            (P, d) gates to use instead of random ones; neuron j has gate j modulo P.
        """
        gate_key, key = jax.random.split(key)
        parameters = sample_parameters(key, width, num_features, num_outputs, intercept)
        if gates is None:
            chosen = sample_gates(gate_key, width, num_features)
        else:
            given = as_matrix("gates", gates)
            check_same_columns("gates", given, "hidden", parameters.hidden)
            chosen = given[jnp.arange(width) % given.shape[0]]
        return cls(chosen, *parameters, squeeze=num_outputs is None)

    def __call__(self, x: ArrayLike) -> Float[Array, " n *c"]:
        """Outputs (n,) or (n, c) on (n, d) inputs.

        Raises
        ------
        ValueError
            If x has another number of columns than the gates, or gates and hidden weights differ in shape.
        """
        x = as_inputs(x, self.parameters)
        if self.gates.shape != self.hidden.shape:
            raise ValueError(
                f"gates and hidden must have one shape (m, d), got {self.gates.shape} and {self.hidden.shape}"
            )
        return reshape_outputs(outputs(self.parameters, x, self.masks(x)), self.squeeze)

    def masks(self, x: ArrayLike) -> Bool[Array, "n m"]:
        """Which rows of x are on the active side of each neuron's gate."""
        return activation_masks(x, self.gates)

    @property
    def parameters(self) -> Parameters:
        """The parameters that training changes: all but the gates."""
        return Parameters(self.hidden, self.output, self.intercept)

    def pruned(self, share: float = 0.0) -> GatedReLUNetwork:
        """Drop the neurons whose ‖w_j‖ ‖v_j‖ is at most ``share`` of the largest; at least one neuron stays."""
        kept = large_neurons(self.parameters, share)
        gates, hidden, output = (take_neurons(part, kept) for part in (self.gates, self.hidden, self.output))
        return replace(self, gates=gates, hidden=hidden, output=output)

    def merged(self, x: ArrayLike | None = None) -> GatedReLUNetwork:
        """Merge neurons that share a gate: the fewest neurons with the same outputs, and no more weight decay.

        Not under ``jit``: the number of neurons depends on values.

        Parameters
        ----------
        x
            (n, d) data. Gates with the same mask on it count as one, and outputs on other data can change. None merges
            equal gates only.

        Raises
        ------
        ValueError
            Under ``jit``, ``vmap`` and ``grad``.

        See docs/mathematics.md, M10.
        """
        if is_traced(self, x):
            raise ValueError("merged depends on values: it cannot be traced by jit, vmap or grad")
        keys = np.asarray(self.gates if x is None else self.masks(x).T)
        _, first, group = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        # The outputs depend only on the sum of w_j v_jᵀ over the neurons that are active together.
        products = self.hidden[:, :, None] * self.output[:, None, :]
        weights = jax.ops.segment_sum(products, jnp.asarray(group).reshape(-1), first.size)
        gates, hidden, output = factor_groups(self.gates[first], weights)
        return replace(self, gates=gates, hidden=hidden, output=output).pruned()

    def to_relu(
        self, x: ArrayLike, *, method: str = "minimum_norm", tol: float = 1e-4, max_iter: int = 200
    ) -> ReLUNetwork:
        """A ReLU network, which needs no gates, with the same outputs on x: the cone decomposition.

        Each w_j is the difference of two vectors in its gate's cone, where ReLU and gate agree on x. On other data the
        two networks differ. The ReLU network has more weight decay, the minimum up to the tolerance for
        ``"minimum_norm"``.

        Parameters
        ----------
        x
            (n, d) data; no row may lie on the boundary of a gate.
        method
            ``"minimum_norm"`` minimises ‖a‖ + ‖b‖ over all w = a − b with both in the cone. ``"interior"`` shifts w
            along a direction inside the cone, a closed form: faster, with larger norms.
        tol
            For ``"minimum_norm"``: largest excess of ‖a‖ + ‖b‖ over the minimum, as a share of ‖w‖.
        max_iter
            For ``"minimum_norm"``: largest number of Newton steps.

        Raises
        ------
        ValueError
            If a row of x lies on a gate's boundary, or the method is unknown.

        Warns
        -----
        ConvergenceWarning
            If the tolerance is not reached; the outputs are correct, the norms are larger than necessary.

        See docs/mathematics.md, M10.
        """
        x = as_inputs(x, self.parameters)
        parts = decompose(x, self.gates, self.hidden, method=method, tol=tol, max_iter=max_iter)
        hidden, output = balance(
            jnp.concatenate([parts.positive, parts.negative]), jnp.concatenate([self.output, -self.output])
        )
        return ReLUNetwork(hidden, output, self.intercept, self.squeeze).pruned()


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class ReLUNetwork(_Parametrised):
    """A network of one hidden layer of ReLUs.

    Attributes
    ----------
    hidden, output, intercept
        As in :class:`Parameters`.
    squeeze
        Whether outputs have shape (n,) instead of (n, 1).

    See docs/mathematics.md, M10.
    """

    hidden: Float[Array, "*S m d"] | Any
    output: Float[Array, "*S m c"] | Any
    intercept: Float[Array, "*S c"] | Any | None = None
    squeeze: bool = field(default=False, metadata={"static": True})

    def __repr__(self) -> str:
        return describe_fields("ReLUNetwork", **self.parameters._asdict())

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
        key, width, num_features, num_outputs, intercept
            As for :meth:`GatedReLUNetwork.sample`.
        """
        parameters = sample_parameters(key, width, num_features, num_outputs, intercept)
        return cls(*parameters, squeeze=num_outputs is None)

    def __call__(self, x: ArrayLike) -> Float[Array, " n *c"]:
        """Outputs (n,) or (n, c) on (n, d) inputs.

        Raises
        ------
        ValueError
            If x has another number of columns than the hidden weights.
        """
        return reshape_outputs(outputs(self.parameters, as_inputs(x, self.parameters), None), self.squeeze)

    @property
    def parameters(self) -> Parameters:
        """The parameters that training changes: all of them."""
        return Parameters(self.hidden, self.output, self.intercept)

    def pruned(self, share: float = 0.0) -> ReLUNetwork:
        """Drop the neurons whose ‖w_j‖ ‖v_j‖ is at most ``share`` of the largest; at least one neuron stays."""
        kept = large_neurons(self.parameters, share)
        hidden, output = (take_neurons(part, kept) for part in (self.hidden, self.output))
        return replace(self, hidden=hidden, output=output)


Network = TypeVar("Network", GatedReLUNetwork, ReLUNetwork)
