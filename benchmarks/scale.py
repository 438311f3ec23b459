"""Many rows: seconds and memory of one process, and two processes against one, each on a core of its own.

Gaussian inputs, targets of a network of five neurons with noise of half their deviation, random gates, 0.1 λ_max,
float32, to a relative gap of 1e-3. Two processes share the rows by `fixntk.distribute_rows`; the second of two solves
is compared, when everything is compiled.

Run with `python benchmarks/scale.py [--rows 1000000] [--pair-rows 200000] [--features 50] [--gates 1000]`.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import socket
import subprocess
import sys
import time
import warnings

import numpy as np

TOL = 1e-3
SHARE = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--pair-rows", type=int, default=200_000)
    parser.add_argument("--features", type=int, default=50)
    parser.add_argument("--gates", type=int, default=1000)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments)
        return
    print(f"{arguments.rows:,} rows, all cores: {run(arguments, 'alone', rows=arguments.rows)[0]}", flush=True)
    (alone,) = run(arguments, "alone", rows=arguments.pair_rows, cores=[0])
    print(f"{arguments.pair_rows:,} rows, one process on one core: {alone}", flush=True)
    pair = run(arguments, "pair", rows=arguments.pair_rows, cores=[0, 1])
    print(f"{arguments.pair_rows:,} rows, two processes on a core each: {pair[0]}")
    single, both = (float(re.search(r"again ([\d.]+) s", line)[1]) for line in (alone, pair[0]))
    print(f"two processes are {single / both:.2f} times as fast")


def run(arguments: argparse.Namespace, kind: str, *, rows: int, cores: list[int] | None = None) -> list[str]:
    """What the processes print, each bound to a core where cores are given."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    started = []
    for index, core in enumerate(cores or [None]):
        worker = f"{kind}:{rows}:{index}:{'' if core is None else core}:{address}"
        sizes = ["--features", str(arguments.features), "--gates", str(arguments.gates)]
        command = [sys.executable, __file__, *sizes, "--worker", worker]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    # Gloo writes lines of its own before.
    return [process.communicate()[0].strip().splitlines()[-1] for process in started]


def work(arguments: argparse.Namespace) -> None:
    """One process: twice the same solve, and what it took."""
    kind, rows, index, core, address = arguments.worker.split(":", 4)
    if core:
        # Before JAX starts its threads.
        os.sched_setaffinity(0, {int(core)})
    import jax

    import fixntk as fx

    warnings.simplefilter("ignore", fx.ConvergenceWarning)
    if kind == "pair":
        jax.distributed.initialize(address, 2, int(index))
    x, y, gates = draw(int(rows), arguments.features, arguments.gates)
    own = slice(int(index), None, 2) if kind == "pair" else slice(None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    program = make_program(x[own], y[own], gates, together=kind == "pair")
    times = [time.perf_counter()]
    # The method that several processes take by themselves, so that both do the same.
    method = "fista" if core else "auto"
    for _ in range(2):
        solution = fx.solve(program, method=method, tol=TOL)
        times.append(time.perf_counter())
    first, again = np.diff(times)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    print(
        f"{solution.method}, gap {float(solution.relative_gap):.1e} in {int(solution.iterations)} iterations, "
        f"first {first:.1f} s, again {again:.2f} s, {peak:.2f} GiB beyond the inputs"
    )


def make_program(x: np.ndarray, y: np.ndarray, gates: np.ndarray, *, together: bool) -> object:
    """The program of the rows of this process, or of those of all of them together."""
    import fixntk as fx

    if together:
        rows = fx.distribute_rows(x, y)
        program = fx.ConvexProgram(
            rows.x, rows.y, fx.activation_masks(rows.x, gates), 1.0, sample_weight=rows.sample_weight
        )
    else:
        program = fx.ConvexProgram(x, y, fx.activation_masks(x, gates), 1.0)
    return program.with_reg(SHARE * program.max_reg())


def draw(num_rows: int, num_features: int, num_gates: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, targets and gates, the same in every process."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((num_rows, num_features), np.float32)
    neurons = rng.standard_normal((num_features, 5), np.float32)
    y = np.maximum(x @ neurons, 0) @ np.array([1, -1, 1, -1, 1], np.float32)
    y += np.float32(0.5 * y.std()) * rng.standard_normal(num_rows, np.float32)
    return x, y - y.mean(), rng.standard_normal((num_gates, num_features), np.float32)


if __name__ == "__main__":
    main()
