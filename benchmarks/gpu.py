"""An accelerator's figures, in JSON lines: its ceilings, kernels, solvers, and many values of λ at once.

Each part is a process of its own, which is ended when its seconds are over; the lines that it has printed until then
count. ``first`` are the seconds of the first call, with compiling, ``again`` the median of the call repeated for at
most two seconds. Everything is float32, compared with products in full precision. Certificates of solutions are
computed in float64 NumPy (benchmarks/problems.py).

Run with `python benchmarks/gpu.py [--parts ceilings gram ...] [--seconds SECONDS] [--small]`; `--small` tries it on a
CPU.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from problems import make, relative_gap

import fixntk as fx

# A call is repeated until this number of seconds is over.
REPEAT_SECONDS = 2.0
# Names and shares of λ_max of the teacher problems, and the relative gap that is asked for.
SOLVES = (("T", 0.1, 1e-4), ("T", 0.01, 1e-4), ("20k", 0.01, 1e-4), ("100k", 0.1, 1e-3))
SMALL_SOLVES = (("S", 0.1, 1e-4),)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--seconds", type=float, default=120.0, help="for each part")
    parser.add_argument("--small", action="store_true", help="sizes that a CPU computes in seconds")
    parser.add_argument("--worker", choices=list(PARTS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        device = jax.devices()[0]
        report(arguments.worker, device=device.device_kind, platform=device.platform, jax=jax.__version__)
        PARTS[arguments.worker](arguments.small)
        return
    for part in arguments.parts:
        run_part(part, arguments.seconds, arguments.small)


def run_part(part: str, seconds: float, small: bool) -> None:
    """Run a part in a process of its own, whose lines go where those of this one go."""
    command = [sys.executable, __file__, "--worker", part, *(["--small"] if small else [])]
    began = time.perf_counter()
    process = subprocess.Popen(command)
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        code = process.wait()
    finally:
        timer.cancel()
        process.kill()
    taken = time.perf_counter() - began
    report(part, finished=code == 0, seconds=taken, ended_by_budget=code != 0 and taken >= seconds)


def report(part: str, **figures: Any) -> None:
    """Print a line."""
    rounded = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in figures.items()}
    print(json.dumps({"part": part, **rounded}), flush=True)


def times_of(function: Callable[[], Any]) -> dict[str, float]:
    """Seconds of the first call and of the same call again."""
    first, again, began = seconds_of(function), [], time.perf_counter()
    while not again or time.perf_counter() - began < REPEAT_SECONDS:
        again.append(seconds_of(function))
    return {"first": first, "again": statistics.median(again)}


def seconds_of(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - began


def peak_mib() -> float | None:
    """Largest memory of the device in use since the process began; None where it does not say."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats["peak_bytes_in_use"] / 2**20 if "peak_bytes_in_use" in stats else None


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32)


@functools.partial(jax.jit, static_argnames="precision")
def product(a: jax.Array, b: jax.Array, precision: str | None = "highest") -> jax.Array:
    return jnp.matmul(a, b.T, precision=precision)


def ceilings(small: bool) -> None:
    """Rates of matrix products and of a copy."""
    size = 512 if small else 16_384
    a, b = normal(0, size, size), normal(1, size, size)
    cases = {
        "float32": (a, b, "highest"),
        "default precision": (a, b, None),
        "bfloat16": (a.astype(jnp.bfloat16), b.astype(jnp.bfloat16), None),
    }
    for name, (left, right, precision) in cases.items():
        times = times_of(functools.partial(product, left, right, precision=precision))
        report("ceilings", what=f"product, {name}", n=size, **times, tflops=2e-12 * size**3 / times["again"])
    copy = jax.jit(lambda array: array + 1)
    times = times_of(lambda: copy(a))
    report("ceilings", what="copy", n=size, **times, gb_per_s=8e-9 * size**2 / times["again"])


def gram(small: bool) -> None:
    """masked_gram beside the product of the masks that it contains."""
    size, num_features = (512, 16) if small else (16_384, 64)
    x, weights = normal(0, size, num_features), jnp.abs(normal(1, size))
    masks = fx.activation_masks(x, normal(2, size, num_features))
    numbers, weighted = masks.astype(jnp.float32), masks * weights
    alone = times_of(lambda: product(weighted, numbers))["again"]
    times = times_of(lambda: fx.masked_gram(weights, masks, x))
    report("gram", what="masked_gram", n=size, P=size, d=num_features, **times, ratio_to_product=times["again"] / alone)
    operator, vector = fx.MaskedGram(weights, masks, x), normal(3, size)
    report("gram", what="MaskedGram @ v", n=size, P=size, d=num_features, **times_of(lambda: operator @ vector))
    times = times_of(lambda: fx.mlp_kernel(x, depth=3))
    report("gram", what="mlp_kernel, depth 3", n=size, d=num_features, **times, peak_mib=peak_mib())


def solve_teachers(method: str, small: bool) -> None:
    """Seconds of a method on teacher problems, and gaps by the library and by NumPy in float64."""
    for name, share, tol in SMALL_SOLVES if small else SOLVES:
        problem = make("teacher", name, share)
        x, y = problem.x.astype(np.float32), problem.y.astype(np.float32)
        program = fx.ConvexProgram(x, y, problem.masks, problem.reg)
        solution = None

        def solve(program: fx.ConvexProgram = program, tol: float = tol) -> jax.Array:
            nonlocal solution
            solution = fx.solve(program, method=method, tol=tol)
            return solution.weights

        times = times_of(solve)
        rounded = problem._replace(x=x.astype(float), y=y.astype(float))
        report(
            method,
            what=f"teacher-{name}",
            share=share,
            tol=tol,
            **times,
            iterations=int(solution.iterations),
            relative_gap=float(solution.relative_gap),
            relative_gap_in_float64=relative_gap(rounded, np.asarray(solution.weights, float)[:, :, 0]),
            peak_mib=peak_mib(),
        )


def mlp(params: list[jax.Array], x: jax.Array) -> jax.Array:
    for weights in params[:-1]:
        x = jax.nn.relu(x @ weights)
    return x @ params[-1]


def cnn(params: list[jax.Array], x: jax.Array) -> jax.Array:
    for kernel in params[:-1]:
        numbers = ("NHWC", "HWIO", "NHWC")
        x = jax.nn.relu(jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers))
    return x.mean((1, 2)) @ params[-1]


def initialise(*shapes: tuple[int, ...]) -> list[jax.Array]:
    return [normal(k, *shape) * (2 / np.prod(shape[:-1]).item()) ** 0.5 for k, shape in enumerate(shapes)]


@functools.partial(jax.jit, static_argnums=0)
def contract_jacobians(f: Callable[..., Any], params: list[jax.Array], x: jax.Array) -> jax.Array:
    """The kernel's trace over outputs, a mean, from the Jacobians of all examples."""
    with jax.default_matmul_precision("highest"):
        jacobians = jax.vmap(jax.jacrev(lambda p, one: f(p, one[None])[0]), in_axes=(None, 0))(params, x)
        flat = [leaf.reshape(leaf.shape[0], -1) for leaf in jacobians]
        return sum(leaf @ leaf.T for leaf in flat) / jacobians[0].shape[1]


def ntk(small: bool) -> None:
    """The empirical NTK of an MLP and of a CNN beside a contraction of their Jacobians."""
    wide, channels, num_rows, num_images = (64, 8, 32, 4) if small else (512, 32, 256, 64)
    filters = [(3, 3, 3, channels), *[(3, 3, channels, channels)] * 2]
    cases = (
        ("MLP", mlp, initialise((784, wide), *[(wide, wide)] * 2, (wide, 10)), normal(9, num_rows, 784)),
        ("CNN", cnn, initialise(*filters, (channels, 10)), normal(9, num_images, 32, 32, 3)),
    )
    for name, f, params, x in cases:
        contracted = contract_jacobians(f, params, x)
        beside = times_of(functools.partial(contract_jacobians, f, params, x))["again"]
        for method in ("auto", "structured", "jacobian"):
            call = functools.partial(fx.empirical_ntk, f, params, x, outputs="trace", method=method)
            times = times_of(call)
            error = float(jnp.max(jnp.abs(call() - contracted)) / jnp.max(jnp.abs(contracted)))
            report("ntk", what=name, method=method, n=len(x), **times, speedup=beside / times["again"], error=error)


def lambdas(small: bool) -> None:
    """32 values of λ by vmap of reweighting, beside one after another."""
    problem = make("teacher", "S" if small else "M", 0.1)
    x, y = problem.x.astype(np.float32), problem.y.astype(np.float32)
    program = fx.ConvexProgram(x, y, problem.masks, problem.reg)
    regs = program.reg * jnp.logspace(0.5, -1, 32, dtype=jnp.float32)
    solve = jax.jit(lambda reg: fx.solve(program.with_reg(reg), method="irls", tol=1e-6, max_iter=10).primal)
    at_once = jax.jit(jax.vmap(solve))
    times, beside = times_of(lambda: at_once(regs)), times_of(lambda: [solve(reg) for reg in regs])
    difference = float(jnp.max(jnp.abs(at_once(regs) / jnp.stack([solve(reg) for reg in regs]) - 1)))
    report("lambdas", n=x.shape[0], steps=10, **times, speedup=beside["again"] / times["again"], difference=difference)


PARTS: dict[str, Callable[[bool], None]] = {
    "ceilings": ceilings,
    "gram": gram,
    "newton": functools.partial(solve_teachers, "newton"),
    "fista": functools.partial(solve_teachers, "fista"),
    "ntk": ntk,
    "lambdas": lambdas,
}

if __name__ == "__main__":
    main()
