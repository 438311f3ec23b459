"""Kernel ridge regression by landmark rows: seconds, memory, what is left of the kernel, and the errors of predictions.

The NTK of a wide gated-ReLU network on Gaussian rows with a smooth target and noise of 0.1.

Run with `python benchmarks/nystrom.py [--rows 100000] [--features 5] [--rank 2048] [--double]`.
"""

from __future__ import annotations

import argparse
import resource
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np

import fixntk as fx


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--features", type=int, default=5)
    parser.add_argument("--rank", type=int, default=2048)
    parser.add_argument("--double", action="store_true")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", arguments.double)
    # The trace that is left is printed.
    warnings.simplefilter("ignore", fx.ConvergenceWarning)
    rng, dtype = np.random.default_rng(0), np.float64 if arguments.double else np.float32
    x, new = (jnp.asarray(rng.standard_normal((count, arguments.features)), dtype) for count in (arguments.rows, 2000))
    y = target(x) + 0.1 * jnp.asarray(rng.standard_normal(arguments.rows), dtype)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in ("first", "second"):
        times = [time.perf_counter()]
        kernel = fx.nystrom(fx.gated_relu_ntk, x, key=jax.random.key(0), max_rank=arguments.rank)
        times.append(time.perf_counter())
        ridge = fx.nystrom_ridge(kernel, y, reg=1.0)
        jax.block_until_ready(ridge.outputs)
        times.append(time.perf_counter())
        outputs = jax.block_until_ready(ridge.predict(new))
        times.append(time.perf_counter())
        seconds = ", ".join(f"{s:.1f} s" for s in np.diff(times))
        error = float(jnp.sqrt(jnp.mean((outputs - target(new)) ** 2)))
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
        print(f"{number}: {kernel!r}; landmarks, ridge, 2000 predictions: {seconds}; error {error:.3f}; {peak:.1f} GB")


def target(x: jax.Array) -> jax.Array:
    """The function to be learnt."""
    return jnp.tanh(2 * x[:, 0]) + x[:, 1] * x[:, 2]


if __name__ == "__main__":
    main()
