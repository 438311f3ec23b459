r"""Gradient descent on stacks of ReLU networks, with the squared loss and weight decay.

.. math:: \tfrac12 \sum_i ω_i \|f(x_i) − y_i\|^2 + \tfrac{λ}{2} \sum_j (\|w_j\|^2 + \|v_j\|^2)

All networks of a stack are one compiled loop, each with a λ of its own. :func:`fixntk.train` has everything else that
training needs: other losses, histories, checkpoints.

See docs/mathematics.md, M10.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jaxtyping import Float, Key, Shaped

from fixntk._compilation import jit_for_host
from fixntk._tiling import memory_for
from fixntk.networks.models import ReLUNetwork
from fixntk.networks.neurons import Parameters, balance, outputs, weight_decay

# Largest learning rate of Adam on inputs and targets of root mean square one. It falls to zero as a cosine does, so
# that the last steps settle.
_LEARNING_RATE = 0.03
# Largest number of rows in a step. More take turns in batches, whose noise the falling learning rate averages out.
_MAX_BATCH = 4096


@cache
def adam(num_steps: int) -> optax.GradientTransformation:
    """Adam with a learning rate that falls from 0.03 to zero: one object for each number of steps, compiled once."""
    return optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, num_steps))


@partial(jit_for_host, static_argnames=("size", "width", "num_outputs"))
def sample_stack(
    key: Key[Array, ""], columns: Shaped[Array, " d"], *, size: int, width: int, num_outputs: int
) -> ReLUNetwork:
    """A stack of ``size`` copies of a random network with an intercept, whose weights are zero where columns are.

    Parameters
    ----------
    key
        JAX random key.
    columns
        (d,) nonzero for each column in use.
    size, width
        S, and m, the number of neurons.
    num_outputs
        c.
    """
    network = ReLUNetwork.sample(key, width, columns.shape[0], num_outputs=num_outputs, intercept=True)
    network = replace(network, hidden=jnp.where(columns != 0, network.hidden, 0))
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (size, *leaf.shape)), network)


def descend(
    networks: ReLUNetwork,
    x: Float[Array, "n d"],
    targets: Float[Array, "n c"],
    weights: Float[Array, " n"],
    regs: Float[Array, " S"],
    *,
    num_steps: int,
    optimizer: optax.GradientTransformation | None = None,
) -> ReLUNetwork:
    """The stack of networks after gradient steps, with neurons balanced, in the dtype of x.

    Parameters
    ----------
    networks
        Leaves with an axis (S, …) in front.
    x, targets, weights
        Rows, of which those of weight zero do not count, all in one dtype.
    regs
        λ of each network.
    num_steps
        Number of steps.
    optimizer
        For inputs and targets of root mean square one; :func:`adam` when None.

    See docs/mathematics.md, M10.
    """
    optimizer = adam(num_steps) if optimizer is None else optimizer
    num_networks, width = networks.hidden.shape[:2]
    # The neurons of all networks before and after their ReLU, and the gradients of both.
    needed = 4 * num_networks * width * min(x.shape[0], _MAX_BATCH) * x.dtype.itemsize
    with memory_for(f"training {num_networks} networks", needed, "take fewer neurons or rows", networks, x) as done:
        rows = x, targets, weights
        return done(_descend(networks, *rows, regs, optimizer=optimizer, num_steps=num_steps))


@partial(jit_for_host, static_argnames=("optimizer", "num_steps"), optimised=True)
def _descend(
    networks: ReLUNetwork,
    x: Array,
    targets: Array,
    weights: Array,
    regs: Array,
    *,
    optimizer: optax.GradientTransformation,
    num_steps: int,
) -> ReLUNetwork:
    """Descent on inputs x/a and targets y/b of root mean square one.

    The network of weights √(a/b) v and √(a/b) u has the outputs f/b there, and at λ/(ab) the objective over b².
    """
    a, b = _root_mean_square(x, weights), _root_mean_square(targets, weights)
    batches = (_as_batches(x / a), _as_batches(targets / b), _as_batches(weights))

    def descend_one(parameters: Parameters, reg: Array) -> Parameters:
        return _take_steps(parameters, batches, reg / (a * b), optimizer, num_steps)

    # v·(x/a)·√(a/b) times u·√(a/b) is f/b; the decay of the weights grows by a/b, which λ/(ab) makes λ/b².
    to_scaled = jnp.sqrt(a / b)
    found = jax.vmap(descend_one)(_scale(networks.parameters, to_scaled, 1 / b), regs)
    found = _scale(found, 1 / to_scaled, b)
    hidden, output = jax.vmap(balance)(found.hidden, found.output)
    return networks.with_parameters(found._replace(hidden=hidden, output=output))


def _take_steps(
    start: Parameters,
    batches: tuple[Float[Array, "b t d"], Float[Array, "b t c"], Float[Array, "b t"]],
    reg: Array,
    optimizer: optax.GradientTransformation,
    num_steps: int,
) -> Parameters:
    """Each step takes the next batch, in turn."""
    num_batches = batches[0].shape[0]

    def objective(parameters: Parameters, x: Array, targets: Array, weights: Array) -> Array:
        # Times the number of batches, so that the mean over them is the loss of all rows.
        residual = outputs(parameters, x, None) - targets
        return 0.5 * num_batches * jnp.sum(weights[:, None] * residual**2) + reg * weight_decay(parameters)

    gradient: Callable[..., Parameters] = jax.grad(objective)

    def step(carry: tuple[Parameters, Any], number: Array) -> tuple[tuple[Parameters, Any], None]:
        parameters, state = carry
        rows = (array[number % num_batches] for array in batches)
        updates, state = optimizer.update(gradient(parameters, *rows), state, parameters)
        return (optax.apply_updates(parameters, updates), state), None

    return lax.scan(step, (start, optimizer.init(start)), jnp.arange(num_steps))[0][0]


def _as_batches(rows: Float[Array, "n ..."]) -> Float[Array, "b t ..."]:
    """Rows in a random order that is always the same, in as few batches of one size as may be; zeros fill the last."""
    num_rows = rows.shape[0]
    num_batches = -(-num_rows // _MAX_BATCH)
    if num_batches == 1:
        return rows[None]
    size = -(-num_rows // num_batches)
    shuffled = rows[jax.random.permutation(jax.random.key(0), num_rows)]
    room = ((0, num_batches * size - num_rows), *[(0, 0)] * (rows.ndim - 1))
    return jnp.pad(shuffled, room).reshape(num_batches, size, *rows.shape[1:])


def _root_mean_square(values: Float[Array, "n k"], weights: Float[Array, " n"]) -> Float[Array, ""]:
    """Over the columns that are not zero, as others are padding; 1 where all are."""
    squares = weights @ values**2 / jnp.sum(weights)
    is_used = squares > 0
    mean = jnp.sum(squares) / jnp.maximum(jnp.sum(is_used), 1)
    return jnp.sqrt(jnp.where(mean > 0, mean, 1.0))


def _scale(parameters: Parameters, of_weights: Array, of_intercept: Array) -> Parameters:
    intercept = None if parameters.intercept is None else of_intercept * parameters.intercept
    return Parameters(of_weights * parameters.hidden, of_weights * parameters.output, intercept)
