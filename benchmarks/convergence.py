"""Figures of docs/convex_programs.md: objective and gap against seconds, seconds against size, cost of a path.

Sizes double from a planted problem of 500 rows, 512 gates and 20 features, solved to 1e-6 at 0.1 λ_max; slopes are of
a line through the logarithms. The path is on teacher-M from λ_max to 0.001 λ_max, each solution to 1e-6. All in
float64; the second run of each is timed.

Run with `python benchmarks/convergence.py`; writes docs/figures/convergence.png and docs/figures/scaling.png.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from problems import make

import fixntk as fx
from fixntk.convex.program import program_at_share
from fixntk.runner.report import STYLE

# Folder of the figures.
FIGURES = Path(__file__).parent.parent / "docs" / "figures"
# Largest number of iterations of each method.
METHODS = {"irls": 400, "anderson": 200, "fista": 20_000, "newton": 200}
# Sizes from which one is varied at a time.
BASE = {"num_rows": 500, "num_gates": 512, "num_features": 20}
# Number of sizes in each sweep; each size is twice the one before.
DOUBLINGS = 4


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    warnings.simplefilter("ignore", fx.ConvergenceWarning)
    plt.rcParams.update(STYLE)
    convergence()
    scaling()
    path()


def program_of(problem: str, share: float) -> fx.ConvexProgram:
    made = make(*problem.split("-"), share)
    return fx.ConvexProgram(made.x, made.y, made.masks, made.reg)


def time_warm(solve: Callable[[], Any]) -> tuple[Any, float]:
    """The result of the second run, and its seconds."""
    jax.block_until_ready(solve())
    began = time.perf_counter()
    result = jax.block_until_ready(solve())
    return result, time.perf_counter() - began


def convergence() -> None:
    """Draw the lowest objective reached minus the best lower bound of all methods, and the smallest gap reached."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharey=True, sharex="col")
    for column, (problem, share) in zip(axes.T, (("planted-S", 0.1), ("teacher-S", 0.01)), strict=True):
        program = program_of(problem, share)
        at_zero = float(program.primal_at_zero())
        solutions = {
            method: time_warm(lambda m=method, k=max_iter, p=program: fx.solve(p, method=m, tol=1e-9, max_iter=k))[0]
            for method, max_iter in METHODS.items()
        }
        bound = max(float(solution.dual) for solution in solutions.values())
        for method, solution in solutions.items():
            seconds, primals, gaps = (
                np.asarray(values)
                for values in (solution.history.seconds, solution.history.primal, solution.history.gap)
            )
            excess, gap = (np.minimum.accumulate(values) / at_zero for values in (primals - bound, gaps))
            for axis, values in zip(column, (excess, gap), strict=True):
                (line,) = axis.plot(seconds, np.maximum(values, 1e-9), label=method)
                if method == "irls":
                    axis.plot(seconds[0], values[0], "o", color=line.get_color())
            reached = seconds[np.argmax(gap <= 1e-6)] if gap[-1] <= 1e-6 else np.inf
            print(f"{problem} {share}: {method:9} {reached:7.3f} s to 1e-6, {gap[-1]:.1e} at {seconds[-1]:.2f} s")
        column[0].set(title=f"{problem}, λ = {share} λ_max", yscale="log")
        column[1].set(xlabel="seconds", yscale="log")
        column[1].set_xscale("symlog", linthresh=0.01)
        column[1].set_xlim(left=0)
    axes[0, 0].set_ylabel("objective above the optimum")
    axes[1, 0].set_ylabel("relative gap")
    axes[0, 1].legend()
    figure.savefig(FIGURES / "convergence.png")


def random_program(num_rows: int, num_gates: int, num_features: int) -> fx.ConvexProgram:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((num_rows, num_features))
    masks = x @ rng.standard_normal((num_features, num_gates)) >= 0
    weights = rng.standard_normal((10, num_features))
    y = sum((masks[:, p] * (x @ weights[p])) for p in range(10)) / np.sqrt(10 * num_features)
    y += 0.1 * rng.standard_normal(num_rows)
    return program_at_share(x, y, masks, 0.1)


def scaling() -> None:
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.6), sharey=True)
    for axis, (name, symbol) in zip(axes, zip(BASE, ("n", "P", "d"), strict=True), strict=True):
        sizes = [BASE[name] * 2**k for k in range(DOUBLINGS)]
        if name == "num_features":
            sizes = [size // 4 for size in sizes]
        for method in ("newton", "fista"):
            seconds = []
            for size in sizes:
                program = random_program(**{**BASE, name: size})
                solution, elapsed = time_warm(lambda m=method, p=program: fx.solve(p, method=m))
                seconds.append(elapsed)
                assert bool(solution.converged), solution.message
            slope = np.polyfit(np.log(sizes), np.log(seconds), 1)[0]
            axis.plot(sizes, seconds, "o-", label=f"{method}, slope {slope:.2f}")
            print(f"{method} by {symbol}: {dict(zip(sizes, np.round(seconds, 4), strict=True))}, slope {slope:.2f}")
        flops = seconds[0] * np.asarray(sizes) / sizes[0]
        axis.plot(sizes, flops, "--", color="0.5", label="operations of a product, slope 1")
        axis.set(xscale="log", yscale="log", xlabel=symbol, xticks=sizes, xticklabels=sizes)
        axis.minorticks_off()
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1))
    axes[0].set_ylabel("seconds to 1e-6")
    figure.savefig(FIGURES / "scaling.png")


def path() -> None:
    made = make("teacher", "M", 0.001)
    _, single = time_warm(lambda: fx.solve(fx.ConvexProgram(made.x, made.y, made.masks, made.reg)))
    solutions, whole = time_warm(
        lambda: fx.solve_path(fx.ConvexProgram(made.x, made.y, made.masks, 1.0), num_regs=100, min_share=1e-3)
    )
    gaps = max(float(solution.relative_gap) for solution in solutions)
    iterations = sum(int(solution.iterations) for solution in solutions)
    ratio = f"{whole / single:.1f} × the last alone, {single:.2f} s"
    print(f"100 values on teacher-M: {whole:.2f} s, {ratio}; {iterations} iterations, gaps ≤ {gaps:.1e}")


if __name__ == "__main__":
    main()
