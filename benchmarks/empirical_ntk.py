"""NTKs, empirical and analytic, side by side with others: seconds cold and warm, peak memory, and ratios.

Peers of small networks: neural-tangents 0.6.5 with its structured derivatives on the last JAX they work with (0.4.23,
in a virtual environment that this script makes in `.bench-jax-0.4.23`), and with its two other implementations on the
installed JAX. Peers of transformers and residual networks: Jacobians by a vmapped `jax.jacrev`, contracted in the same
program. Of projections: gradients and a product with a dense matrix. Of eigenvalues: the kernel and LAPACK's
`eigvalsh`. Of analytic kernels: neural-tangents on the installed JAX, and the product that every kernel contains.
The same networks, parameters and inputs, float32. Each measurement is a process of its own; processes of all
contestants take turns, and the best of their rounds counts. Beside fixntk's time stands the time that its counted
operations would take at the rate of a large matrix product.

Run with `python benchmarks/empirical_ntk.py [--rounds N] [--skip-slow] [--cases PART] [--small]`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ntk_cases import CASES

ROOT = Path(__file__).resolve().parent.parent
OLD_ENVIRONMENT = ROOT / ".bench-jax-0.4.23"
OLD_PACKAGES = ("jax==0.4.23", "jaxlib==0.4.23", "numpy<2", "scipy<1.13", "frozendict")
# Number of results of each contestant that are compared.
NUM_COMPARED = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--skip-slow", action="store_true", help="leave out neural-tangents' two slow implementations")
    parser.add_argument("--skip-old", action="store_true", help="leave out what needs JAX 0.4.23")
    parser.add_argument("--cases", default="", help="only cases whose name contains this")
    parser.add_argument("--small", action="store_true", help="small sizes, to try that every case runs")
    parser.add_argument("--worker", nargs=2, metavar=("CONTESTANT", "CASE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(*arguments.worker, is_small=arguments.small)))
        return
    for name, case in CASES.items():
        if arguments.cases in name:
            contestants = [each for each in case.contestants if takes_part(each, arguments)]
            best = run_rounds(name, contestants, arguments.rounds, arguments.small)
            print_case(name, best)


def takes_part(contestant: str, arguments: argparse.Namespace) -> bool:
    """Whether options leave a contestant in."""
    if contestant in ("jacobian, JAX today", "ntvp, JAX today"):
        return not arguments.skip_slow
    return not (arguments.skip_old and "0.4.23" in contestant)


def run_rounds(case: str, contestants: list[str], rounds: int, is_small: bool) -> dict[str, dict[str, Any]]:
    """The best results of each contestant."""
    best: dict[str, dict[str, Any]] = {}
    for round_number in range(rounds):
        for contestant in contestants:
            # Contestants that take more than 5 s run once.
            if round_number and best[contestant]["warm"] > 5:
                continue
            result = run_worker(contestant, case, is_small)
            known = best.setdefault(contestant, result)
            times = {key: min(value, known[key]) for key, value in result.items() if key != "values"}
            best[contestant] = {**result, **times}
    return best


def print_case(case: str, best: dict[str, dict[str, Any]]) -> None:
    print(f"\n{case}", flush=True)
    ours = best["fixntk"]
    for contestant, result in best.items():
        ratio = "" if contestant == "fixntk" else f"{result['warm'] / ours['warm']:8.2f}x fixntk's"
        floor = f"  counted {result['floor']:.4f} s" if "floor" in result else ""
        difference = f"  differs by {relative_difference(result, ours):.1e}" if ratio and "values" in ours else ""
        print(
            f"  {contestant:30} warm {result['warm']:8.4f} s  cold {result['cold']:6.2f} s "
            f" peak {result['peak_mb']:6.0f} MB  {ratio}{floor}{difference}",
            flush=True,
        )


def relative_difference(one: dict[str, Any], two: dict[str, Any]) -> float:
    """The largest difference of two contestants' results, relative to the largest of them."""
    pairs = list(zip(one["values"], two["values"], strict=True))
    return max(abs(a - b) for a, b in pairs) / max(abs(b) for _, b in pairs)


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


def run_worker(contestant: str, case: str, is_small: bool) -> dict[str, Any]:
    python = Path(sys.executable)
    if "0.4.23" in contestant:
        make_old_environment()
        python = OLD_ENVIRONMENT / "bin" / "python"
    command = [str(python), __file__, *["--small"] * is_small, "--worker", contestant, case]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{contestant}, {case}:\n{run.stderr}")
    return json.loads(run.stdout.splitlines()[-1])


def measure(contestant: str, name: str, is_small: bool) -> dict[str, Any]:
    """Time one contestant in this process: cold with compilation, warm as the best of the runs within two seconds."""
    case = CASES[name]
    options = {**case.options, **(case.small if is_small else {})}
    function, flops, share, are_equal = case.build(contestant, **options)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    outputs = jax.block_until_ready(function())
    cold = time.perf_counter() - began
    # Where the inputs are many, a contestant may be measured on a share of them.
    result: dict[str, Any] = {"cold": cold, "warm": seconds(function) / share}
    result["peak_mb"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    if flops is not None:
        matrix = jax.numpy.ones((1024, 1024), "float32")
        result["floor"] = flops * seconds(jax.jit(lambda: matrix @ matrix)) / (2 * 1024**3)
    if are_equal:
        leaf = jax.tree.leaves(outputs)[-1].ravel()
        result["values"] = [float(value) for value in leaf[:NUM_COMPARED]]
    return result


def seconds(function: Callable[[], Any]) -> float:
    """Seconds of the best run within two seconds."""
    best, started = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - started < 2:
        began = time.perf_counter()
        jax.block_until_ready(function())
        best = min(best, time.perf_counter() - began)
    return best


if __name__ == "__main__":
    main()
