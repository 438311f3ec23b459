"""Solvers of the convex program side by side: seconds to a relative gap of 1e-4, 1e-6 and 1e-8, and peak memory.

Contestants: fixntk's Newton and FISTA, celer, skglm, CVXPY with Clarabel on the small problems, and in environments of
their own adelie, where ``--adelie`` names a Python that has it (it needs NumPy below 2), and scnn's R-FISTA, where
``--scnn`` does (`pip install torch linalg_backends tqdm cvxpy scikit-learn`, then `pip install --no-deps pyscnn`). One
certificate, `problems.relative_gap`, judges the weights that each returns. A solver that stops by a rule of its own is
run with a ladder of tolerances, and the fastest run within the gap counts. Each contestant has a process of its own for
each problem; the dense design that peers need is built before the clock starts. float64.

With ``--cold`` the clock runs from the first call in a fresh process, imports, data and dense designs not included, at
the loosest tolerance with which the contestant reached 1e-6 before; the median of three processes, with the seconds of
it that JAX spent compiling.

Run with `python benchmarks/solvers.py [--cold] [--problems teacher-M ...] [--shares 0.1 ...] [--limit SECONDS]
[--scnn PYTHON] [--adelie PYTHON]`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
from problems import Problem, make, relative_gap

# Relative gaps whose times are reported.
GAPS = (1e-4, 1e-6, 1e-8)
# Of first calls one gap is asked for, in this number of processes.
COLD_GAP = 1e-6
COLD_RUNS = 3
COMPILED = "/jax/core/compile/backend_compile_duration"
# Values of λ/λ_max for each problem.
PROBLEMS = {
    **{f"planted-{size}": (0.1, 0.01) for size in "SML"},
    **{f"teacher-{size}": (0.1, 0.01, 0.001) for size in "SMT"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--shares", nargs="+", type=float, help="only these λ, as shares of λ_max")
    parser.add_argument("--solvers", nargs="+", default=list(SOLVERS), choices=list(SOLVERS))
    parser.add_argument("--limit", type=float, default=60.0, help="seconds that a solver has for all of its runs")
    parser.add_argument("--scnn", metavar="PYTHON", help="a Python that has scnn")
    parser.add_argument("--adelie", metavar="PYTHON", help="a Python that has adelie")
    parser.add_argument("--cold", action="store_true", help="first calls in fresh processes")
    parser.add_argument("--worker", nargs=3, metavar=("SOLVER", "PROBLEM", "SHARE"), help=argparse.SUPPRESS)
    parser.add_argument("--tolerance", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(*arguments.worker[:2], float(arguments.worker[2]), arguments.tolerance)
        return
    print(f"{multiprocessing.cpu_count()} cores; seconds to a relative gap of {', '.join(f'{gap:g}' for gap in GAPS)}")
    for problem in arguments.problems:
        for share in PROBLEMS[problem]:
            if arguments.shares and share not in arguments.shares:
                continue
            print(f"\n{problem}, λ = {share} λ_max", flush=True)
            best = {}
            for solver in arguments.solvers:
                if solver.startswith("CVXPY") and not problem.endswith("S"):
                    continue
                pythons = {"scnn R-FISTA": arguments.scnn, "adelie": arguments.adelie}
                if (python := pythons.get(solver, sys.executable)) is None:
                    continue
                result = run(python, solver, problem, share, arguments.limit)
                best[solver] = result["seconds"]
                if arguments.cold:
                    print(f"  {solver:16} {first_call(python, solver, problem, share, result)}", flush=True)
                    continue
                times = "  ".join(
                    f"{s:8.3f}" if s < np.inf else f"  >{arguments.limit:5.0f}" for s in result["seconds"]
                )
                cold = f"cold {result['cold']:6.2f}" if result["cold"] < np.inf else "cold      -"
                print(f"  {solver:16} {times}   {cold}   peak {result['peak_gb']:.2f} GB", flush=True)
            if arguments.cold:
                continue
            peers = [seconds[1] for solver, seconds in best.items() if not solver.startswith("fixntk")]
            if peers and "fixntk newton" in best:
                ratio = min(*peers, arguments.limit) / best["fixntk newton"][1]
                more = "" if min(peers) <= arguments.limit else "> "
                print(f"  best peer / fixntk newton at 1e-6: {more}{ratio:.2f}", flush=True)


def run(python: str, solver: str, problem: str, share: float, limit: float) -> dict:
    """Run a contestant in a process of its own, for at most ``limit`` seconds after its first run."""
    command = [python, __file__, "--worker", solver, problem, str(share)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    seconds, cold, peak, tolerance = [np.inf] * len(GAPS), np.inf, 0.0, None
    try:
        # The first run also compiles, for which the same time is allowed again.
        for line in _lines(process, 2 * limit + 30):
            result = json.loads(line)
            peak = max(peak, result["peak_gb"])
            if result["cold"]:
                cold = result["seconds"]
                continue
            if tolerance is None and result["gap"] <= COLD_GAP:
                tolerance = result["tolerance"]
            if result["seconds"] <= limit:
                reached = [result["gap"] <= gap for gap in GAPS]
                seconds = [min(s, result["seconds"]) if r else s for s, r in zip(seconds, reached, strict=True)]
    finally:
        process.kill()
        process.wait()
    return {"seconds": seconds, "cold": cold, "peak_gb": peak, "tolerance": tolerance}


def first_call(python: str, solver: str, problem: str, share: float, result: dict) -> str:
    """The first call in three fresh processes, in words."""
    if result["tolerance"] is None:
        return f"did not reach {COLD_GAP:g}"
    command = [python, __file__, "--worker", solver, problem, str(share), "--tolerance", str(result["tolerance"])]
    # What JAX has compiled before must not be found on disk.
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0"}
    runs = [
        json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout)
        for _ in range(COLD_RUNS)
    ]
    middle = sorted(runs, key=lambda run: run["seconds"])[COLD_RUNS // 2]
    warm = result["seconds"][GAPS.index(COLD_GAP)]
    return (
        f"first call {middle['seconds']:7.2f} s, of which compiling {middle['compiling']:6.2f} s; "
        f"again {warm:7.3f} s; gap {middle['gap']:.1e}"
    )


def _lines(process: subprocess.Popen, limit: float) -> Iterator[str]:
    timer = threading.Timer(limit, process.kill)
    timer.start()
    try:
        for line in process.stdout:
            if line.startswith("{"):
                yield line
    finally:
        timer.cancel()


def work(solver: str, name: str, share: float, tolerance: float | None) -> None:
    """Print a line for each run: seconds, gap, whether it was the first, and peak memory beyond that of the data.

    With a tolerance it is one run, with the seconds that JAX compiled.
    """
    problem = make(*name.split("-"), share)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    attempt, ladder = SOLVERS[solver](problem)
    compiling: list[float] = []
    if solver.startswith("fixntk"):
        import jax.monitoring

        jax.monitoring.register_event_duration_secs_listener(
            lambda event, seconds, **_: compiling.append(seconds) if event == COMPILED else None
        )
    # The first run compiles all that the others need.
    first = ladder[-1] if solver.startswith("fixntk") else ladder[0]
    for number, tried in enumerate([first, *ladder] if tolerance is None else [tolerance]):
        seconds, repeats = np.inf, 0
        # Short runs are repeated and the fastest counts, as the first of a kind has costs of its own.
        while repeats == 0 or (number and repeats < 3 and seconds < 1):
            began = time.perf_counter()
            weights = attempt(tried)
            seconds, repeats = min(seconds, time.perf_counter() - began), repeats + 1
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
        gap = float(relative_gap(problem, weights))
        line = {"seconds": seconds, "gap": gap, "cold": number == 0, "peak_gb": peak, "tolerance": tried}
        print(json.dumps(line | {"compiling": sum(compiling)}), flush=True)
        if gap <= GAPS[-1] and number:
            return


def fixntk(method: str) -> Callable:
    def prepare(problem: Problem) -> tuple[Callable, list[float]]:
        import warnings

        import jax

        jax.config.update("jax_enable_x64", True)
        import fixntk as fx

        warnings.simplefilter("ignore", fx.ConvergenceWarning)
        program = fx.ConvexProgram(*problem[:4])

        def attempt(tolerance: float) -> np.ndarray:
            solution = fx.solve(program, method=method, tol=tolerance)
            return np.asarray(solution.weights[:, :, 0])

        return attempt, list(GAPS)

    return prepare


def dense_design(problem: Problem) -> np.ndarray:
    """(n, P·d), the columns of D_p X side by side."""
    n = problem.x.shape[0]
    return np.asfortranarray((problem.masks[:, :, None] * problem.x[:, None, :]).reshape(n, -1))


def celer(problem: Problem) -> tuple[Callable, list[float]]:
    from celer import GroupLasso

    design, n, d = dense_design(problem), *problem.x.shape

    def attempt(tolerance: float) -> np.ndarray:
        import warnings

        model = GroupLasso(groups=d, alpha=problem.reg / n, tol=tolerance, fit_intercept=False, max_iter=1000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(design, problem.y)
        return model.coef_.reshape(-1, d)

    return attempt, [1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9]


def adelie(problem: Problem) -> tuple[Callable, list[float]]:
    import adelie as ad

    design, n, d = dense_design(problem), *problem.x.shape
    groups = np.arange(0, design.shape[1], d)

    def attempt(tolerance: float) -> np.ndarray:
        state = ad.grpnet(
            design,
            ad.glm.gaussian(problem.y),
            groups=groups,
            penalty=np.ones(groups.size),
            lmda_path=[problem.reg / n],
            intercept=False,
            early_exit=False,
            tol=tolerance,
            progress_bar=False,
        )
        return state.betas.toarray()[-1].reshape(-1, d)

    return attempt, [1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-12, 1e-14]


def skglm(problem: Problem) -> tuple[Callable, list[float]]:
    from skglm.datafits import QuadraticGroup
    from skglm.penalties import WeightedGroupL2
    from skglm.solvers import GroupBCD
    from skglm.utils.data import grp_converter
    from skglm.utils.jit_compilation import compiled_clone

    design, n, d = dense_design(problem), *problem.x.shape
    indices, pointers = grp_converter(d, design.shape[1])
    penalty = compiled_clone(
        WeightedGroupL2(problem.reg / n, np.ones(len(pointers) - 1), pointers, indices, positive=False)
    )
    datafit = compiled_clone(QuadraticGroup(pointers, indices))

    def attempt(tolerance: float) -> np.ndarray:
        import warnings

        solver = GroupBCD(tol=tolerance, fit_intercept=False, max_iter=200)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return solver.solve(design, problem.y, datafit, penalty)[0].reshape(-1, d)

    return attempt, [problem.reg / n * factor for factor in (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4, 1e-5, 1e-6)]


def scnn(problem: Problem) -> tuple[Callable, list[float]]:
    from scnn.metrics import Metrics
    from scnn.models import ConvexGatedReLU
    from scnn.optimize import optimize_model
    from scnn.regularizers import NeuronGL1
    from scnn.solvers import RFISTA

    n = problem.x.shape[0]
    # scnn sorts the gates by their masks.
    order = {column.tobytes(): p for p, column in enumerate(problem.masks.T)}

    def attempt(tolerance: float) -> np.ndarray:
        model = ConvexGatedReLU(problem.gates.T.copy())
        solver = RFISTA(model, max_iters=20_000, tol=tolerance)
        penalty = NeuronGL1(problem.reg / n)
        options = {"regularizer": penalty, "return_convex": True, "unitize_data": False, "dtype": "float64"}
        fitted, _ = optimize_model(model, solver, Metrics(), problem.x, problem.y[:, None], **options)
        weights = np.zeros((problem.masks.shape[1], problem.x.shape[1]))
        places = [order[column.tobytes()] for column in (problem.x @ fitted.G >= 0).T]
        weights[places] = fitted.parameters[0][0]
        return weights

    # Its tolerances bound the squared norm of a subgradient.
    return attempt, [1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-11, 1e-12, 1e-13, 1e-14]


def clarabel(problem: Problem) -> tuple[Callable, list[float]]:
    import cvxpy

    design, d = dense_design(problem), problem.x.shape[1]
    weights = cvxpy.Variable((problem.masks.shape[1], d))
    fitted = design @ cvxpy.reshape(weights, (weights.size,), order="C")
    penalty = problem.reg * cvxpy.sum(cvxpy.norm(weights, 2, axis=1))
    model = cvxpy.Problem(cvxpy.Minimize(0.5 * cvxpy.sum_squares(problem.y - fitted) + penalty))

    def attempt(tolerance: float) -> np.ndarray:
        model.solve(solver=cvxpy.CLARABEL, tol_gap_abs=tolerance, tol_gap_rel=tolerance, tol_feas=tolerance)
        return weights.value

    return attempt, [1e-6, 1e-8, 1e-10]


SOLVERS: dict[str, Callable] = {
    "fixntk newton": fixntk("newton"),
    "fixntk fista": fixntk("fista"),
    "celer": celer,
    "skglm": skglm,
    "adelie": adelie,
    "scnn R-FISTA": scnn,
    "CVXPY + Clarabel": clarabel,
}

if __name__ == "__main__":
    main()
