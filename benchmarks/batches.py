"""Reweighting of 32 programs at once by `jax.vmap` beside one after another: values of λ, targets, and folds.

Warm seconds, the median of three runs of each in alternation, float64, ten steps from the NTK. Run with
`OPENBLAS_NUM_THREADS=1 python benchmarks/batches.py`, or without the variable for BLAS's default number of threads.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import fixntk as fx

# Numbers of rows, features and gates.
SIZE = (500, 10, 400)
NUM_PROGRAMS = 32
NUM_STEPS = 10
REPEATS = 3


# The objective reached, as a function of a program and of what differs from one to the next.
Objective = Callable[[fx.ConvexProgram, jax.Array], jax.Array]


def cases() -> tuple[fx.ConvexProgram, dict[str, tuple[Objective, jax.Array]]]:
    """A program, and for each kind of batch how the others differ from it."""
    num_rows, num_features, num_gates = SIZE
    rng = np.random.default_rng(0)
    x, gates = rng.standard_normal((num_rows, num_features)), rng.standard_normal((num_gates, num_features))
    y = np.sin(x[:, 0]) + 0.1 * rng.standard_normal((NUM_PROGRAMS, num_rows))
    program = fx.ConvexProgram(x, y[0], fx.activation_masks(x, gates), 1.0)
    program = program.with_reg(0.1 * program.max_reg())
    regs = program.reg * jnp.logspace(0.5, -1, NUM_PROGRAMS)
    # Ones for the rows on which a fold is fitted.
    folds = rng.integers(0, NUM_PROGRAMS, num_rows) != np.arange(NUM_PROGRAMS)[:, None]

    def reached(program: fx.ConvexProgram) -> jax.Array:
        return fx.solve(program, method="irls", tol=1e-12, max_iter=NUM_STEPS).primal

    def of_targets(program: fx.ConvexProgram, y: jax.Array) -> jax.Array:
        return reached(fx.ConvexProgram(program.x, y, program.masks, program.reg))

    def of_fold(program: fx.ConvexProgram, weights: jax.Array) -> jax.Array:
        return reached(fx.ConvexProgram(program.x, program.y, program.masks, program.reg, sample_weight=weights))

    return program, {
        "values of λ": (lambda program, reg: reached(program.with_reg(reg)), regs),
        "targets": (of_targets, jnp.asarray(y)),
        "folds": (of_fold, jnp.asarray(folds, float)),
    }


def one_by_one(solve: Objective, program: fx.ConvexProgram, values: jax.Array) -> jax.Array:
    return jnp.stack([solve(program, value) for value in values])


def seconds_of(call: Callable[[], jax.Array]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    threads = os.environ.get("OPENBLAS_NUM_THREADS", "default number of")
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {threads} BLAS threads; (n, d, P) = {SIZE}")
    program, batches = cases()
    for name, (objective, values) in batches.items():
        # The program is an argument: of a constant, XLA would compute the first kernel while it compiles.
        one, at_once = jax.jit(objective), jax.jit(jax.vmap(objective, in_axes=(None, 0)))
        calls = [partial(at_once, program, values), partial(one_by_one, one, program, values)]
        results = [call() for call in calls]
        difference = float(jnp.max(jnp.abs(results[0] / results[1] - 1)))
        seconds = [[seconds_of(call) for call in calls] for _ in range(REPEATS)]
        together, apart = (statistics.median(times) for times in zip(*seconds, strict=True))
        print(
            f"{NUM_PROGRAMS} {name}: at once {together:.2f} s, one after another {apart:.2f} s, ratio "
            f"{apart / together:.2f}; largest difference {difference:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
