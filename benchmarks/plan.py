"""Times that `fixntk plan` estimates beside measured ones.

Five sizes, float32 and float64, the targets of a network of five neurons with noise, λ = 0.1 λ_max, the default
tolerance. Rates are measured right before each solve, in the same process. Measured is the median of the warm solves.
`--methods` adds others than the one that `solve` takes; the reweighting ones are slow.

Run with `python benchmarks/plan.py [--sizes 0 1 2 3 4] [--dtypes float32 float64] [--methods newton fista]`.
"""

from __future__ import annotations

import argparse
import statistics
import time

import jax
import numpy as np

import fixntk as fx
from fixntk.convex import solve_plan
from fixntk.convex.program import program_at_share
from fixntk.convex.rates import measure_rates

# Rows, features and gates.
SIZES = ((500, 10, 200), (2000, 20, 500), (5000, 20, 1000), (20_000, 20, 1000), (100_000, 50, 500))
# A warm solve is repeated until this number of seconds is over.
SECONDS = 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=list(range(len(SIZES))))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float64"])
    parser.add_argument("--methods", nargs="+", default=["newton"])
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    print(f"{'rows, features, gates':22} {'dtype':8} {'method':8} {'estimated':>10} {'measured':>10} {'ratio':>6}")
    for size in (SIZES[number] for number in arguments.sizes):
        for dtype in arguments.dtypes:
            program = make(*size, dtype)
            began = time.perf_counter()
            rates = measure_rates(program)
            taken = time.perf_counter() - began
            plans = {each.name: each for each in solve_plan(*size, dtype=dtype, rates=rates).methods}
            for method in arguments.methods:
                seconds, iterations = time_solves(program, method)
                estimate = plans[method].seconds
                print(
                    f"{size!s:22} {dtype:8} {method:8} {estimate:10.3f} {seconds:10.3f} {estimate / seconds:6.2f}"
                    f"   {iterations} steps, {plans[method].iterations} expected; rates took {taken:.1f} s",
                    flush=True,
                )


def make(num_rows: int, num_features: int, num_gates: int, dtype: str) -> fx.ConvexProgram:
    """The program of a size."""
    rng = np.random.default_rng(0)
    x, gates = rng.standard_normal((num_rows, num_features)), rng.standard_normal((num_gates, num_features))
    neurons = rng.standard_normal((2, 5, num_features))
    y = np.sum((x @ neurons[0].T >= 0) * (x @ neurons[1].T), axis=1) + 0.1 * rng.standard_normal(num_rows)
    x, y, gates = (array.astype(dtype) for array in (x, (y - y.mean()) / y.std(), gates))
    return program_at_share(x, y, fx.activation_masks(x, gates), 0.1)


def time_solves(program: fx.ConvexProgram, method: str) -> tuple[float, int]:
    """Median seconds of the warm solves, and their iterations."""
    fx.solve(program, method=method)
    seconds: list[float] = []
    while sum(seconds) < SECONDS:
        start = time.perf_counter()
        solution = jax.block_until_ready(fx.solve(program, method=method))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), int(solution.iterations)


if __name__ == "__main__":
    main()
