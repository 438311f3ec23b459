r"""The neurons of networks with one hidden layer: their parameters, and pure functions of these.

Gated and ReLU networks share these functions. See docs/mathematics.md, M10.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Key

from fixntk._checks import as_matrix, as_positive_int, check_same_columns, is_traced, to_device
from fixntk._compilation import jit_for_host
from fixntk._numerics import eps_of, matmul, safe_sqrt
from fixntk._tiling import memory_for

# Singular values of group weights below this number of epsilons, relative to the largest, are rounding errors.
_NEGLIGIBLE_EPSILONS = 10


class Parameters(NamedTuple):
    """The parameters that training changes.

    Attributes
    ----------
    hidden
        (m, d) hidden weights w_j.
    output
        (m, c) output weights v_j.
    intercept
        (c,) intercept b, not decayed; None for a network without one.
    """

    hidden: Float[Array, "m d"]
    output: Float[Array, "m c"]
    intercept: Float[Array, " c"] | None


def sample_parameters(
    key: Key[Array, ""], width: int, num_features: int, num_outputs: int | None, intercept: bool
) -> Parameters:
    """Draw hidden weights N(0, 1/d) and output weights N(0, 1/m); the intercept, if there is one, is zero.

    Parameters
    ----------
    key
        JAX random key.
    width, num_features, num_outputs
        m, d and c; None stands for one output.
    intercept
        Whether there is an intercept.
    """
    width, num_features = as_positive_int("width", width), as_positive_int("num_features", num_features)
    num_outputs = 1 if num_outputs is None else as_positive_int("num_outputs", num_outputs)
    key1, key2 = jax.random.split(key)
    # The random bits, the numbers, and the same scaled.
    needed = int(2.5 * width * (num_features + num_outputs) * jnp.result_type(float).itemsize)
    with memory_for(f"a network of {width} neurons", needed, "take a smaller width", key) as done:
        parameters = Parameters(
            hidden=jax.random.normal(key1, (width, num_features)) / jnp.sqrt(num_features),
            output=jax.random.normal(key2, (width, num_outputs)) / jnp.sqrt(width),
            intercept=jnp.zeros(num_outputs) if intercept else None,
        )
        return done(parameters)


def as_inputs(x: ArrayLike, parameters: Parameters) -> Float[Array, "n d"]:
    """Inputs as a floating-point matrix.

    Raises
    ------
    ValueError
        If x has another number of columns than the hidden weights, or is not a finite matrix.
    """
    x = as_matrix("x", x)
    check_same_columns("x", x, "hidden", parameters.hidden)
    return x


def outputs(parameters: Parameters, x: Float[Array, "n d"], masks: Bool[Array, "n m"] | None) -> Float[Array, "n c"]:
    """Outputs of a gated network with (n, m) masks, or of a ReLU network if masks is None."""
    num_rows, width = x.shape[0], parameters.hidden.shape[0]
    # The neurons before and after their ReLU or mask.
    needed = 2 * num_rows * width * jnp.result_type(x, parameters.hidden).itemsize
    what = f"the outputs of {width} neurons on {num_rows} rows"
    with memory_for(what, needed, "pass fewer rows at a time", x, parameters) as done:
        hidden = matmul(x, parameters.hidden.T)
        active = jax.nn.relu(hidden) if masks is None else jnp.where(masks, hidden, 0)
        result = matmul(active, parameters.output)
        return done(result if parameters.intercept is None else result + parameters.intercept[None, :])


def reshape_outputs(values: Float[Array, "n c"], squeeze: bool) -> Float[Array, "n ..."]:
    """Outputs in the shape that a network gives them: (n,) with ``squeeze``, else (n, c)."""
    return values[:, 0] if squeeze else values


def weight_decay(parameters: Parameters) -> Float[Array, ""]:
    """½ Σ_j (‖w_j‖² + ‖v_j‖²)."""
    return 0.5 * (jnp.sum(parameters.hidden**2) + jnp.sum(parameters.output**2))


def count_parameters(parameters: Parameters) -> int:
    """Total number of entries."""
    return sum(leaf.size for leaf in jax.tree.leaves(parameters))


def large_neurons(parameters: Parameters, share: float) -> Int[np.ndarray, " kept"]:
    """Indices of the neurons whose ‖w_j‖ ‖v_j‖ is above ``share`` of the largest; of the largest if there are none.

    Raises
    ------
    ValueError
        Under ``jit``, ``vmap`` and ``grad``: the number of neurons depends on values.
    """
    if is_traced(parameters):
        raise ValueError("pruned depends on values: it cannot be traced by jit, vmap or grad")
    # NumPy's, as JAX would compile for every number of neurons.
    hidden, output = (np.asarray(part, np.float64) for part in (parameters.hidden, parameters.output))
    sizes = np.linalg.norm(hidden, axis=1) * np.linalg.norm(output, axis=1)
    large = np.flatnonzero(sizes > share * sizes.max())
    return large if large.size else np.array([int(sizes.argmax())])


def take_neurons(array: Array, kept: Int[np.ndarray, " kept"]) -> Array:
    """The rows of some neurons, chosen by NumPy, as JAX would compile for every number of them."""
    return to_device(np.asarray(array)[kept])


def balance(
    hidden: Float[Array, "m d"], output: Float[Array, "m c"]
) -> tuple[Float[Array, "m d"], Float[Array, "m c"]]:
    """Rescale neurons to ‖w_j‖ = ‖v_j‖, their minimum of weight decay; both are zero where either is.

    Any w_j / s, s v_j with s > 0 gives the same outputs, and ½ (‖w_j‖²/s² + s² ‖v_j‖²) ≥ ‖w_j‖ ‖v_j‖.
    """
    hidden_norms, output_norms = (safe_sqrt(jnp.sum(part**2, axis=1, keepdims=True)) for part in (hidden, output))
    is_present = (hidden_norms > 0) & (output_norms > 0)
    ratio = safe_sqrt(jnp.where(is_present, output_norms / jnp.where(is_present, hidden_norms, 1.0), 0.0))
    inverse = jnp.where(is_present, 1 / jnp.where(is_present, ratio, 1.0), 0.0)
    return hidden * ratio, output * inverse


@jit_for_host
def factor_groups(
    gates: Float[Array, "P d"], weights: Float[Array, "P d *c"]
) -> tuple[Float[Array, "m d"], Float[Array, "m d"], Float[Array, "m c"]]:
    """Gates, hidden and output weights of neurons with W_p = Σ w_j v_jᵀ over the neurons of gate p.

    The neurons are balanced and have the minimum of weight decay: the sum of the groups' nuclear norms, which for one
    output are ‖W_p‖. One neuron a group for one output; min(c, d) for several, one for each singular value.
    """
    if weights.ndim == 2 or weights.shape[2] == 1:
        columns = weights.reshape(gates.shape)
        return gates, *balance(columns, jnp.ones((columns.shape[0], 1), columns.dtype))
    left, values, right = jnp.linalg.svd(weights, full_matrices=False)
    # Neurons of negligible singular values would only enlarge the network.
    threshold = _NEGLIGIBLE_EPSILONS * eps_of(values) * jnp.max(values)
    root = safe_sqrt(jnp.where(values > threshold, values, 0.0))
    hidden = (left * root[:, None, :]).swapaxes(1, 2).reshape(-1, gates.shape[1])
    output = (root[:, :, None] * right).reshape(hidden.shape[0], -1)
    return jnp.repeat(gates, values.shape[1], axis=0), hidden, output
