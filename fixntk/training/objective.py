r"""The training objective of a network, or of a stack of networks.

.. math:: \sum_i ω_i ℓ\bigl(f(x_i); y_i\bigr) + \tfrac{λ}{2} \sum_j (\|w_j\|^2 + \|v_j\|^2)

See docs/mathematics.md, M10.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float

from fixntk._checks import as_float_array, as_matrix, check_same_columns, check_same_rows, check_scalar, is_tracing
from fixntk._compilation import workspace_bytes
from fixntk._tiling import memory_for
from fixntk.convex.losses import Loss, as_loss
from fixntk.gates.masks import activation_masks
from fixntk.networks.models import GatedReLUNetwork, Network
from fixntk.networks.neurons import Parameters, outputs, weight_decay


class Rows(NamedTuple):
    """The rows of data that a loss sums over.

    Attributes
    ----------
    x
        (n, d) inputs.
    targets
        (n, c) targets, encoded by the loss.
    weights
        (n,) weights ω.
    masks
        (..., n, m) masks of gated networks, computed once; None for ReLU networks.
    """

    x: Float[Array, "n d"]
    targets: Float[Array, "n c"]
    weights: Float[Array, " n"]
    masks: Bool[Array, "... n m"] | None


# Axes for jax.vmap: a stack of networks shares the data, not the masks.
ROW_AXES = Rows(None, None, None, 0)  # type: ignore[arg-type]


def network_objective(
    network: Network,
    x: ArrayLike,
    y: ArrayLike,
    reg: ArrayLike,
    *,
    loss: str | Loss = "squared",
    sample_weight: ArrayLike | None = None,
) -> Float[Array, " ..."]:
    """Σ_i ω_i ℓ(f(x_i); y_i) + λ · weight decay, which :func:`train` minimises and the convex program bounds.

    Parameters
    ----------
    network, x, y, reg, loss, sample_weight
        As for :func:`train`.

    Returns
    -------
    A number, (S,) for a stack, in the unit of the loss.

    Raises
    ------
    TypeError
        If ``network`` is not a network, or x or y are not real numbers.
    ValueError
        If shapes or labels do not fit, data hold NaN or infinity, a weight or λ is negative, or the loss is unknown.

    See docs/mathematics.md, M10.
    """
    check_network(network)
    loss = as_loss(loss)
    reg = as_regs(reg, network)
    rows = as_rows(network, x, y, loss, sample_weight)
    return within_memory(measure, loss=loss)(network.parameters._asdict(), {}, rows, None, reg)[0]


def within_memory(compiled: Any, **static: Any) -> Callable[..., Any]:
    """A compiled function of the training, whose error where memory does not suffice says what lowers its need."""
    needed: int | None = None

    def call(*args: Any, **more: Any) -> Any:
        nonlocal needed
        if is_tracing((args, more)):
            return compiled(*args, **static, **more)
        # Asking XLA takes milliseconds, and the shapes stay.
        if needed is None:
            needed = workspace_bytes(compiled, *args, **static, **more)
        with memory_for("training", needed, "lower batch_size, or take fewer neurons or rows", *args) as done:
            return done(compiled(*args, **static, **more))

    return call


def check_network(network: Any) -> None:
    """Check that this is a network, or a stack of networks.

    Raises
    ------
    TypeError
        If it is something else.
    ValueError
        If its hidden weights have neither two nor three axes.
    """
    if not hasattr(network, "parameters") or not hasattr(network, "hidden"):
        raise TypeError(f"network must be a GatedReLUNetwork or a ReLUNetwork, got {type(network).__name__}")
    if network.hidden.ndim not in (2, 3):
        raise ValueError(f"hidden must have shape (m, d), or (S, m, d) for a stack, got {network.hidden.shape}")


def as_regs(reg: ArrayLike, network: Network) -> Float[Array, "*S"]:
    """λ in the network's dtype: a number, (S,) for a stack."""
    check_scalar("reg", reg)
    return jnp.broadcast_to(jnp.asarray(reg, network.hidden.dtype), network.hidden.shape[:-2])


def as_rows(network: Network, x: ArrayLike, y: ArrayLike, loss: Loss, sample_weight: ArrayLike | None = None) -> Rows:
    """Check data against a network and bring it into the network's dtype.

    Raises
    ------
    ValueError
        If shapes or labels do not fit, or a weight is negative.
    """
    dtype = network.hidden.dtype
    x, targets = as_matrix("x", x).astype(dtype), loss.encode(y).astype(dtype)
    check_same_rows("x", x, "y", targets)
    check_same_columns("x", x, "hidden", network.hidden.reshape(-1, network.hidden.shape[-1]))
    targets = targets[:, None] if targets.ndim == 1 else targets
    if targets.shape[1] != network.output.shape[-1]:
        raise ValueError(f"y has {targets.shape[1]} output(s), the network {network.output.shape[-1]}")
    masks = _masks(network, x) if isinstance(network, GatedReLUNetwork) else None
    weights = jnp.ones(x.shape[0], dtype)
    if sample_weight is not None:
        weights = as_float_array("sample_weight", sample_weight, (1,)).astype(dtype)
        check_same_rows("x", x, "sample_weight", weights)
        if float(jnp.min(weights)) < 0:
            raise ValueError(f"sample_weight must not be negative, got {float(jnp.min(weights)):g}")
    return Rows(x, targets, weights, masks)


def as_validation_rows(network: Network, validation: Any, loss: Loss) -> Rows:
    """Check validation data; its weights sum to 1, so that the loss is a mean.

    Raises
    ------
    TypeError
        If it is not a pair (x, y).
    ValueError
        If shapes or labels do not fit.
    """
    if not isinstance(validation, tuple) or len(validation) != 2:
        raise TypeError(f"validation must be a pair (x, y), got {type(validation).__name__}")
    rows = as_rows(network, *validation, loss)
    return rows._replace(weights=rows.weights / rows.x.shape[0])


def _masks(network: GatedReLUNetwork, x: Array) -> Bool[Array, "... n m"]:
    gates = network.gates
    if gates.shape != network.hidden.shape:
        raise ValueError(f"gates must have hidden's shape {network.hidden.shape}, got {gates.shape}")
    flat = activation_masks(x, gates.reshape(-1, x.shape[1])).reshape(x.shape[0], *gates.shape[:-1])
    return jnp.moveaxis(flat, 0, -2)


def draw_rows(rows: Rows, chosen: Array) -> Rows:
    """The chosen rows, weighted so that the expected loss of a random choice is the loss of all rows."""
    return Rows(
        rows.x[chosen],
        rows.targets[chosen],
        rows.weights[chosen] * (rows.x.shape[0] / chosen.size),
        None if rows.masks is None else jnp.take(rows.masks, chosen, axis=-2),
    )


def map_stack(function: Callable[..., Any], is_stack: bool, axes: tuple[Any, ...]) -> Callable[..., Any]:
    """The function for each network of a stack, with the axes of ``jax.vmap``; itself for a single network."""
    return jax.vmap(function, in_axes=axes) if is_stack else function


def summed_loss(trained: dict[str, Array], frozen: dict[str, Any], rows: Rows, loss: Loss) -> Float[Array, ""]:
    """Σ_i ω_i ℓ(f(x_i); y_i) of one network, whose parameters are given in two parts."""
    fitted = outputs(Parameters(**trained, **frozen), rows.x, rows.masks)
    return jnp.sum(rows.weights * loss.values(fitted, rows.targets))


def objective(
    trained: dict[str, Array], frozen: dict[str, Any], rows: Rows, reg: Array, loss: Loss
) -> Float[Array, ""]:
    """:func:`summed_loss` plus λ · weight decay."""
    penalty = weight_decay(Parameters(**trained, **frozen))
    # Without a penalty the objective stays finite even if the squares of the weights overflow.
    return summed_loss(trained, frozen, rows, loss) + jnp.where(reg > 0, reg * penalty, 0)


@partial(jax.jit, static_argnames=("loss",))
def measure(
    trained: dict[str, Array],
    frozen: dict[str, Any],
    rows: Rows,
    validation_rows: Rows | None,
    reg: Float[Array, "*S"],
    *,
    loss: Loss,
) -> tuple[Float[Array, "*S"], Float[Array, "*S"]]:
    """Objective on all rows, and mean loss on the validation rows (the objective without any), for each network."""
    is_stack = reg.ndim == 1
    value = map_stack(partial(objective, loss=loss), is_stack, (0, 0, ROW_AXES, 0))(trained, frozen, rows, reg)
    if validation_rows is None:
        return value, value
    mean_loss = map_stack(partial(summed_loss, loss=loss), is_stack, (0, 0, ROW_AXES))
    return value, mean_loss(trained, frozen, validation_rows)
