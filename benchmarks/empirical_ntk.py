"""NTKs, empirical and analytic, side by side with neural-tangents: seconds cold and warm, peak memory, and ratios.

Peers of the empirical ones: neural-tangents 0.6.5 with its structured derivatives on the last JAX they work with
(0.4.23, in a virtual environment that this script makes in `.bench-jax-0.4.23`), and with its two other implementations
on the installed JAX.
Of the analytic one: neural-tangents on the installed JAX, and the matrix product that every kernel contains.
The same networks in the same parameterisation (neural-tangents' stax), the same inputs, float32. Each measurement is a
process of its own; processes of all contestants take turns, and the best of their rounds counts.

Run with `python benchmarks/empirical_ntk.py [--rounds N] [--skip-slow]`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OLD_ENVIRONMENT = ROOT / ".bench-jax-0.4.23"
OLD_PACKAGES = ("jax==0.4.23", "jaxlib==0.4.23", "numpy<2", "scipy<1.13", "frozendict")

CASES = {
    "MLP 784-512x3-10, 64x64, full": {"network": "mlp", "n": 64, "trace": False},
    "MLP 784-512x3-10, 256x256, trace": {"network": "mlp", "n": 256, "trace": True},
    "CNN 3x(3x3x32 SAME)+GAP-10, 16 of 32x32x3, trace": {"network": "cnn", "n": 16, "trace": True},
    "analytic MLP 784, depth 3, 256 points": {"network": "analytic", "n": 256, "trace": False},
    "analytic MLP 784, depth 3, 4000 points": {"network": "analytic", "n": 4000, "trace": False},
}
EMPIRICAL = ("fixntk", "structured, JAX 0.4.23", "jacobian, JAX today", "ntvp, JAX today")
ANALYTIC = ("fixntk", "neural-tangents, JAX today", "matrix product")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--skip-slow", action="store_true", help="leave out neural-tangents' two slow implementations")
    parser.add_argument("--cases", default="", help="only cases whose name contains this")
    parser.add_argument("--worker", nargs=2, metavar=("CONTESTANT", "CASE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(*arguments.worker)))
        return
    make_old_environment()
    for case, options in CASES.items():
        if arguments.cases not in case:
            continue
        contestants = ANALYTIC if options["network"] == "analytic" else EMPIRICAL[: 2 if arguments.skip_slow else None]
        best: dict[str, dict[str, float]] = {}
        for round_number in range(arguments.rounds):
            for contestant in contestants:
                # Contestants that take more than 5 s run once.
                if round_number and best[contestant]["warm"] > 5:
                    continue
                result = run_worker(contestant, case)
                known = best.setdefault(contestant, result)
                best[contestant] = {key: min(value, known[key]) for key, value in result.items()}
        print(f"\n{case}", flush=True)
        ours = best["fixntk"]["warm"]
        for contestant, result in best.items():
            ratio = "" if contestant == "fixntk" else f"{result['warm'] / ours:8.2f}x fixntk's"
            print(
                f"  {contestant:28} warm {result['warm']:8.4f} s  cold {result['cold']:6.2f} s "
                f" peak {result['peak_mb']:6.0f} MB  {ratio}",
                flush=True,
            )


def make_old_environment() -> None:
    python = OLD_ENVIRONMENT / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(OLD_ENVIRONMENT)], check=True)
    done = OLD_ENVIRONMENT / ".installed"
    if not done.exists():
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *OLD_PACKAGES], check=True)
        subprocess.run([*pip, "--no-deps", "neural-tangents==0.6.5"], check=True)
        done.touch()


def run_worker(contestant: str, case: str) -> dict[str, float]:
    python = OLD_ENVIRONMENT / "bin" / "python" if "0.4.23" in contestant else Path(sys.executable)
    command = [str(python), __file__, "--worker", contestant, case]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{contestant}, {case}:\n{run.stderr}")
    return json.loads(run.stdout.splitlines()[-1])


def import_stax(contestant: str) -> Any:
    if "0.4.23" in contestant:
        # The only part of neural-tangents that needs TensorFlow.
        sys.modules["neural_tangents.experimental"] = types.ModuleType("neural_tangents.experimental")
        import neural_tangents

        return neural_tangents
    from fixntk.ntk.neural_tangents_compat import import_neural_tangents

    return import_neural_tangents()


def measure(contestant: str, case: str) -> dict[str, float]:
    """Time one contestant in this process: cold with compilation, warm as the best of the runs within two seconds."""
    import jax
    import numpy as np

    options = CASES[case]
    function, arguments = FUNCTIONS[options["network"]](contestant, options["n"], options["trace"])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    cold = time.perf_counter() - began
    warm, started = np.inf, time.perf_counter()
    while time.perf_counter() - started < 2 or not np.isfinite(warm):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        warm = min(warm, time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"cold": cold, "warm": warm, "peak_mb": peak / 1024}


def empirical_case(contestant: str, n: int, trace: bool, shape: tuple[int, ...], network: Any) -> Any:
    import jax
    import numpy as np

    nt = import_stax(contestant)
    initialise, apply, _ = network(nt.stax)
    _, params = initialise(jax.random.PRNGKey(0), (n, *shape))
    x1 = jax.numpy.asarray(np.random.default_rng(1).normal(size=(n, *shape)), "float32")
    x2 = jax.numpy.asarray(np.random.default_rng(2).normal(size=(n, *shape)), "float32")
    if contestant == "fixntk":
        import fixntk as fx

        outputs = "trace" if trace else "full"
        return jax.jit(lambda a, b, p: fx.empirical_ntk(apply, p, a, b, outputs=outputs)), (x1, x2, params)
    implementation = {"structured": 3, "jacobian": 1, "ntvp": 2}[contestant.split(",")[0]]
    kernel = nt.empirical_ntk_fn(apply, trace_axes=(-1,) if trace else (), vmap_axes=0, implementation=implementation)
    return jax.jit(kernel), (x1, x2, params)


def mlp_case(contestant: str, n: int, trace: bool) -> Any:
    def network(stax: Any) -> Any:
        hidden = [layer for _ in range(3) for layer in (stax.Dense(512, b_std=0.1), stax.Relu())]
        return stax.serial(*hidden, stax.Dense(10, b_std=0.1))

    return empirical_case(contestant, n, trace, (784,), network)


def cnn_case(contestant: str, n: int, trace: bool) -> Any:
    def network(stax: Any) -> Any:
        hidden = [layer for _ in range(3) for layer in (stax.Conv(32, (3, 3), padding="SAME", b_std=0.1), stax.Relu())]
        return stax.serial(*hidden, stax.GlobalAvgPool(), stax.Dense(10, b_std=0.1))

    return empirical_case(contestant, n, trace, (32, 32, 3), network)


def analytic_case(contestant: str, n: int, _: bool) -> Any:
    import jax
    import numpy as np

    x = jax.numpy.asarray(np.random.default_rng(1).normal(size=(n, 784)), "float32")
    if contestant == "matrix product":
        return jax.jit(lambda a: a @ a.T), (x,)
    if contestant == "fixntk":
        import fixntk as fx

        return lambda a: fx.mlp_kernel(a, depth=3, w_std=2**0.5), (x,)
    stax = import_stax(contestant).stax
    hidden = [layer for _ in range(3) for layer in (stax.Dense(1, 2**0.5), stax.Relu())]
    kernel = stax.serial(*hidden, stax.Dense(1, 2**0.5))[2]
    return jax.jit(lambda a: tuple(kernel(a, None, ("nngp", "ntk")))), (x,)


FUNCTIONS = {"mlp": mlp_case, "cnn": cnn_case, "analytic": analytic_case}

if __name__ == "__main__":
    main()
