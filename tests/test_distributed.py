"""Programs whose rows two processes of jax.distributed have, each its own: solutions, refusals, a killed process."""

import inspect
import json
import re
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from process_pairs import run_pair

import fixntk as fx
from fixntk.convex import processes

OPTIONS = inspect.signature(jax.distributed.initialize).parameters
pytestmark = [
    pytest.mark.skipif("shutdown_timeout_seconds" not in OPTIONS, reason="this JAX has fixed time-outs"),
    pytest.mark.skipif(sys.platform != "linux", reason="JAX's collectives between processes of a CPU are for Linux"),
]

# What the process that is left says, or JAX for it, where another one ended.
LOST = r"cannot reach another of the 2 processes any more|another task died"


def found_of(group, *args, **options):
    """What both processes report of a group of tests/two_processes.py, by case."""
    pair = run_pair("tests/two_processes.py", group, *args, **options)
    for process in pair:
        assert process.returncode == 0, process.stderr[-3000:]
    return [reports_of(process) for process in pair]


def reports_of(process):
    # The CPU's collectives write lines of their own.
    rows = (json.loads(line) for line in process.stdout.splitlines() if line.startswith("{"))
    return {row.pop("case"): row for row in rows}


def assert_same_as_of_one(group, cases):
    # Sums between processes take long where other programs have the cores.
    first, second = found_of(group, timeout=400)
    assert first == second
    refused = first.pop("refused", None)
    assert set(first) == cases
    for name, each in first.items():
        assert each["weights"] < 1e-9, name
        assert each["primal"] < 1e-9, name
    return refused


def test_solutions_are_those_of_one_process_and_the_same_on_both():
    assert_same_as_of_one("solutions", {"fista, squared", "fista, logistic"})


@pytest.mark.long
def test_other_losses_options_and_methods_give_the_solution_too():
    by_fista = {f"fista, {case}" for case in ("softmax", "squared, options", "logistic, options")}
    assert_same_as_of_one("others", by_fista | {"newton, squared", "irls, squared"})


@pytest.mark.long
def test_proximal_newton_fista_and_anderson_give_the_solution_too():
    refused = assert_same_as_of_one(
        "methods", {"newton, logistic", "newton, logistic, options", "fista, logistic", "anderson, squared"}
    )
    assert refused["error"] == "method 'anderson' is for the squared loss, not for logistic: use 'newton' or 'fista'"


REFUSED = {
    "columns": r"process 0: float64 rows of shape \[3\], process 1: float64 rows of shape \[2\]",
    "dtype": r"x \(process 0: float64 rows.*process 1: float32 rows",
    "targets": r"y \(process 0: float64 rows of shape \[\], process 1: float64 rows of shape \[2\]",
    "gates": r"gates \(process 0: float64 \[20, 3\] with digest \w+, process 1: float64 \[20, 3\] with digest",
    "weights": r"sample_weight \(process 0: none, process 1: float64",
    "rows": r"process 1: x and y must have the same number of rows, got \(35, 3\), \(34,\)",
    "text": r"process 1: y must be a real numeric array",
    "missing": r"x holds \d+ NaN or infinite value\(s\) in shape \(80, 3\)",
    "reg": r"reg \(process 0: float64 1\.0, process 1: float64 2\.0\)",
    "method": r"method \(process 0: 'fista', process 1: 'newton'\)",
    "init": r"init \(process 0: None, process 1: float64 \[20, 3\] with digest",
    "checkpoint": r"checkpoint \(process 0: False, process 1: True\)",
    "labels": r"y must hold both labels -1 and 1, or 0 and 1, for this loss, got labels -",
    "sample_weight": r"sample_weight must not be negative and not all zero, got from -1 to -?0",
    "version": r"version of fixntk \(process 0: 0\.0\.2, process 1: 0\.0\.1\)",
}


def test_both_processes_say_what_differs_between_them_and_on_which():
    first, second = found_of("refusals")
    assert first == second
    assert set(first) == set(REFUSED)
    for case, pattern in REFUSED.items():
        assert re.search(pattern, first[case]["error"] or first[case]["result"]), (case, first[case])


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.long)])
def test_a_killed_process_ends_the_other_and_a_restart_goes_on_to_the_same_bits(tmp_path, victim):
    pair = run_pair("tests/two_processes.py", "checkpointed", tmp_path, victim)
    assert pair[victim].returncode == -signal.SIGKILL
    left = pair[1 - victim]
    assert left.returncode != 0
    assert re.search(LOST, left.stderr), left.stderr[-3000:]
    assert not reports_of(left)
    resumed, other = found_of("checkpointed", tmp_path, 2)
    whole, _ = found_of("whole")
    assert resumed == other
    # The last checkpoint that both had made before the callback in which the process was killed.
    assert resumed["checkpointed"]["first"] in (8, 9)
    assert resumed["checkpointed"]["iterations"] == 30
    assert resumed["checkpointed"]["state"] == whole["whole"]["state"]
    # The first alone writes, and both fail where it cannot.
    assert "is a file, not a folder" in whole["refused"]["error"]


def test_the_script_of_the_page_reads_own_rows_only_and_the_first_process_reports(tmp_path, rng):
    x, parts = rng.standard_normal((61, 4)), (slice(0, 31), slice(31, 61))
    y = np.abs(x[:, 0])
    for index, part in enumerate(parts):
        folder = tmp_path / str(index)
        folder.mkdir()
        np.save(folder / "x.npy", x[part])
        np.save(folder / "y.npy", y[part])
    shared = tmp_path / "shared"
    shared.mkdir()
    own = [(tmp_path / str(index), shared) for index in (0, 1)]
    for process in run_pair("docs/scripts/solve_in_processes.py", own=own):
        assert process.returncode == 0, process.stderr[-3000:]
    report = json.loads((shared / "report.json").read_text())
    gates = fx.sample_gates(jax.random.key(0), 40, 4, dtype="float64")
    program = fx.ConvexProgram(x, y, fx.activation_masks(x, gates), 1.0)
    program = program.with_reg(0.1 * program.max_reg())
    expected = fx.solve(program, method="fista")
    np.testing.assert_allclose(np.load(shared / "weights.npy"), expected.weights, rtol=0, atol=1e-9)
    np.testing.assert_allclose(report["primal"], expected.primal, rtol=1e-9)
    np.testing.assert_allclose(report["primal_by_iteration"], expected.history.primal, rtol=1e-9)
    assert float(program.gap(np.load(shared / "weights.npy"))) < 2e-6 * float(program.primal_at_zero())


def test_rows_of_one_process_are_divided_over_its_devices(rng):
    x, y, gates = rng.standard_normal((7, 2)), rng.standard_normal(7), rng.standard_normal((3, 2))
    rows = fx.distribute_rows(x, y, gates)
    assert rows.sample_weight is None
    np.testing.assert_array_equal(rows.x, x)
    np.testing.assert_array_equal(rows.y, y)
    np.testing.assert_array_equal(rows.masks, x @ gates.T >= 0)
    assert fx.distribute_rows(x, y, sample_weight=np.ones(7)).sample_weight.shape == (7,)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.ones(3), np.ones(3), "x must have 2 dimensions and a row or more, got shape"),
        (np.ones((0, 3)), np.ones(0), "x must have 2 dimensions and a row or more, got shape"),
        (np.ones((3, 2)), np.ones(4), "x and y must have the same number of rows"),
    ],
)
def test_rows_that_do_not_fit_are_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        fx.distribute_rows(x, y)


def test_arrays_that_the_first_process_shares_keep_their_bits(monkeypatch):
    monkeypatch.setattr(processes.multihost_utils, "broadcast_one_to_all", lambda content: content)
    arrays = {"a": np.array([[0.1, -0.0]]), "b": np.array(True), "c": np.asarray(jnp.ones(3, "bfloat16"))}
    found = processes.share_arrays(arrays)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[name], array)
    assert processes.share_arrays(None) is None


def test_only_errors_of_a_lost_process_are_explained():
    lost = pytest.raises(ConnectionError, match="solve: process 0 cannot reach another of the 1 processes")
    with lost, processes.explain_lost_process("solve", ""):
        raise ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer")
    with pytest.raises(ValueError, match="another reason"), processes.explain_lost_process("solve", ""):
        raise ValueError("another reason")
