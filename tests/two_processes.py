"""Calls on rows of two processes beside the same in one of them: run in each as ADDRESS COUNT INDEX GROUP ....

For each case it prints a line of JSON; tests/test_distributed.py says what must be in it.
"""

import json
import os
import signal
import sys
import warnings
from pathlib import Path

import jax
import numpy as np

import fixntk as fx
from fixntk._files import digest
from fixntk.convex import checkpoints, processes

warnings.simplefilter("ignore")
NUM_ROWS, NUM_FEATURES, NUM_GATES = 75, 3, 20
# Rows of the two processes, of other numbers.
PARTS = slice(0, 40), slice(40, NUM_ROWS)
KILLED_AT, NUM_STEPS = 10, 30

address, count, index, group = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
# Seconds without a sign of life after which a process counts as dead. On a busy machine all are silent for a while.
limit = 15 if group == "checkpointed" else 100
jax.distributed.initialize(address, count, index, heartbeat_timeout_seconds=limit, shutdown_timeout_seconds=limit)


def report(case, **found):
    print(json.dumps({"case": case, **found}), flush=True)


def data(loss="squared"):
    rng = np.random.default_rng(0)
    x, gates = rng.standard_normal((NUM_ROWS, NUM_FEATURES)), rng.standard_normal((NUM_GATES, NUM_FEATURES))
    y = np.abs(x[:, 0]) + 0.1 * rng.standard_normal(NUM_ROWS)
    return x, {"logistic": (y > 0.5).astype(int), "softmax": np.digitize(y, [0.5, 1])}.get(loss, y), gates


def program(loss="squared", part=PARTS[index], **options):
    """The program on rows of all processes; with a part of None, on those of one."""
    x, y, gates = data(loss)
    if part is None:
        given = fx.ConvexProgram(x, y, fx.activation_masks(x, gates), 1.0, loss, **options)
    else:
        rows = fx.distribute_rows(x[part], y[part], gates)
        weights = {"sample_weight": rows.sample_weight}
        given = fx.ConvexProgram(rows.x, rows.y, rows.masks, 1.0, loss, **weights, **options)
    return given.with_reg(0.1 * float(given.max_reg()))


def state_of(solution):
    """A digest of a solution but for the seconds of its history."""
    history = solution.history._replace(seconds=None)
    return digest([solution.weights, solution.primal, solution.dual, solution.relative_gap, history])


def solutions():
    """FISTA to the default tolerance, and some steps of it with labels."""
    compare("squared", {}, {})
    compare("logistic", {}, {"max_iter": 20})


def others():
    """Other losses and options. An intercept takes many sums over the processes where it has no closed form."""
    compare("softmax", {}, {"max_iter": 20})
    compare("squared", {"intercept": True, "ridge": 0.1}, {"max_iter": 50})
    compare("logistic", {"intercept": True}, {"max_iter": 3})
    # The methods that make matrices of all rows.
    compare("squared", {}, {"method": "newton", "tol": 1e-6})
    compare("squared", {}, {"method": "irls", "max_iter": 5})


def methods():
    """The methods that others leave out: proximal Newton, which is Newton's for labels, FISTA, Anderson's."""
    # Their steps end at weights that differ by the square root of the gap.
    compare("logistic", {}, {"method": "newton", "tol": 1e-11})
    compare("logistic", {"intercept": True}, {"method": "newton", "tol": 1e-11})
    compare("logistic", {}, {"method": "fista", "tol": 1e-6})
    compare("squared", {}, {"method": "anderson", "max_iter": 8})
    # Only the squared loss has kernel weights to accelerate.
    try:
        fx.solve(program("logistic"), method="anderson")
    except ValueError as error:
        report("refused", error=str(error))


def compare(loss, of_program, of_solve):
    """A solution by two processes beside that of one."""
    both = fx.solve(program(loss, **of_program), **of_solve)
    one = fx.solve(program(loss, None, **of_program), **{"method": "fista"} | of_solve)
    report(
        f"{both.method}, {loss}{', options' if of_program else ''}",
        weights=float(np.max(np.abs(both.weights - one.weights)) / np.max(np.abs(one.weights))),
        primal=float(abs(both.primal - one.primal) / one.primal),
        steps=[int(both.iterations), int(one.iterations)],
        state=state_of(both),
    )


def refusals():
    """What differs between the processes, or is wrong on one."""
    x, y, gates = data()
    x, y, last = x[PARTS[index]], y[PARTS[index]], index == 1
    rows = fx.distribute_rows(x, y, gates)
    given = program()
    calls = {
        "columns": lambda: fx.distribute_rows(x[:, : 2 if last else 3], y),
        "dtype": lambda: fx.distribute_rows(x.astype("float32" if last else "float64"), y),
        "targets": lambda: fx.distribute_rows(x, np.stack([y, y], 1) if last else y),
        "gates": lambda: fx.distribute_rows(x, y, gates + (0.5 if last else 0)),
        "weights": lambda: fx.distribute_rows(x, y, sample_weight=np.ones(len(y)) if last else None),
        "rows": lambda: fx.distribute_rows(x, y[:-1] if last else y),
        "text": lambda: fx.distribute_rows(x, np.full(len(y), "a") if last else y),
        "missing": lambda: fx.ConvexProgram(
            fx.distribute_rows(np.where(last & (x > 1), np.nan, x), y).x, rows.y, rows.masks, 1.0
        ),
        "reg": lambda: fx.solve(given.with_reg(2.0 if last else 1.0)),
        "method": lambda: fx.solve(given, method="newton" if last else "fista"),
        "init": lambda: fx.solve(given, init=np.ones((NUM_GATES, NUM_FEATURES)) if last else None),
        "checkpoint": lambda: fx.solve(given, checkpoint="/tmp/never" if last else None),
        "labels": lambda: fx.ConvexProgram(rows.x, rows.y, rows.masks, 1.0, "logistic"),
        "sample_weight": lambda: fx.ConvexProgram(rows.x, rows.y, rows.masks, 1.0, sample_weight=-rows.sample_weight),
        "version": lambda: with_version("0.0.1" if last else "0.0.2", lambda: fx.distribute_rows(x, y)),
    }
    for case, call in calls.items():
        try:
            report(case, error=None, result=repr(call()))
        except ValueError as error:
            report(case, error=str(error))


def with_version(name, call):
    kept, processes.version = processes.version, lambda _: name
    try:
        return call()
    finally:
        processes.version = kept


def checkpointed():
    """A solve with a checkpoint at each iteration, in which the process of a given index is killed."""
    folder, victim = Path(sys.argv[5]), int(sys.argv[6])
    checkpoints._MIN_SECONDS, checkpoints._MAX_WRITING_SHARE = 0.0, float("inf")
    seen = []

    def watch(progress):
        seen.append(progress.iteration)
        if index == victim and progress.iteration == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        # The first process decides for both.
        return index == 1

    solution = fx.solve(program(), method="fista", max_iter=NUM_STEPS, callback=watch, checkpoint=folder)
    report("checkpointed", first=seen[0], iterations=int(solution.iterations), state=state_of(solution))


def whole():
    """The same solve without a checkpoint, and one whose folder cannot be made."""
    report("whole", state=state_of(fx.solve(program(), method="fista", max_iter=NUM_STEPS)))
    try:
        fx.solve(program(), method="fista", checkpoint=__file__)
    except OSError as error:
        report("refused", error=str(error))


GROUPS = {each.__name__: each for each in (solutions, methods, others, refusals, checkpointed, whole)}

if __name__ == "__main__":
    GROUPS[group]()
