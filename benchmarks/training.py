"""Training: fx.train against a jitted optax loop written by hand, and 16 networks at once against one after another.

Seconds are medians over repeats after one run that compiles, in float32. The machine's load affects all contestants
alike, so compare ratios. Run with `python benchmarks/training.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import fixntk as fx

# Number of networks that are trained at once.
NUM_NETWORKS = 16
# Number of timed runs of each contestant.
REPEATS = 3
# Numbers of rows and features, width, and number of gradient steps.
CASES = [
    (25, 5, 16, 20_000),
    (50, 5, 64, 10_000),
    (200, 5, 64, 5_000),
    (200, 5, 256, 2_000),
    (1000, 20, 64, 1_000),
    (1000, 20, 256, 500),
]
# λ of the weight decay.
REG = 0.1
OPTIMIZER = optax.adam(1e-3)


def by_hand(network: fx.GatedReLUNetwork, x: jax.Array, y: jax.Array, num_steps: int) -> Callable[[], jax.Array]:
    """A scan over full-batch steps, with masks computed once."""
    masks = x @ network.gates.T >= 0

    def objective(parameters: tuple[jax.Array, jax.Array]) -> jax.Array:
        hidden, output = parameters
        errors = (jnp.where(masks, x @ hidden.T, 0) @ output)[:, 0] - y
        return 0.5 * jnp.sum(errors**2) + 0.5 * REG * (jnp.sum(hidden**2) + jnp.sum(output**2))

    @jax.jit
    def run(parameters: tuple[jax.Array, jax.Array]) -> jax.Array:
        def step(carry, _):
            parameters, state = carry
            updates, state = OPTIMIZER.update(jax.grad(objective)(parameters), state, parameters)
            return (optax.apply_updates(parameters, updates), state), None

        (parameters, _), _ = lax.scan(step, (parameters, OPTIMIZER.init(parameters)), length=num_steps)
        return objective(parameters)

    return lambda: run((network.hidden, network.output))


def by_train(network: fx.GatedReLUNetwork, x: jax.Array, y: jax.Array, num_steps: int) -> Callable[[], np.ndarray]:
    """The same steps by `fx.train`."""
    return lambda: fx.train(
        network, x, y, OPTIMIZER, reg=REG, num_steps=num_steps, record_every=num_steps
    ).history.objective[-1]


def seconds(*functions: Callable[[], object]) -> list[float]:
    """Median seconds of each function, run in turn, so that other load on the machine affects all alike."""
    for function in functions:
        jax.block_until_ready(function())
    taken = []
    for _ in range(REPEATS):
        row = []
        for function in functions:
            began = time.perf_counter()
            jax.block_until_ready(function())
            row.append(time.perf_counter() - began)
        taken.append(row)
    return np.median(taken, axis=0).tolist()


def main() -> None:
    """Print a line for each case."""
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}, full-batch steps of Adam")
    print("    n   d  width  steps   by hand  fx.train  ratio    16 in turn  16 at once  ratio")
    for num_rows, num_features, width, num_steps in CASES:
        keys = jax.random.split(jax.random.key(0), NUM_NETWORKS)
        x = jax.random.normal(jax.random.key(1), (num_rows, num_features))
        y = jnp.sin(2 * x[:, 0])
        stack = jax.vmap(lambda key, w=width, d=num_features: fx.GatedReLUNetwork.sample(key, w, d))(keys)
        networks = [jax.tree.map(lambda leaf, k=k: leaf[k], stack) for k in range(NUM_NETWORKS)]
        hand, library = by_hand(networks[0], x, y, num_steps), by_train(networks[0], x, y, num_steps)
        np.testing.assert_allclose(hand(), library(), rtol=1e-3)
        alone = [by_train(network, x, y, num_steps) for network in networks]
        one, two, turn, once = seconds(
            hand, library, lambda alone=alone: [run() for run in alone], by_train(stack, x, y, num_steps)
        )
        print(
            f"{num_rows:5} {num_features:3} {width:6} {num_steps:6}  {one:8.3f}  {two:8.3f}  {two / one:5.2f}  "
            f"{turn:12.3f}  {once:10.3f}  {turn / once:5.2f}"
        )


if __name__ == "__main__":
    main()
