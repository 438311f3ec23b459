"""Tasks that run in several processes give the rows of a serial run, in the same order, and one process writes them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import joblib
import pytest

from fixntk.cli import main
from fixntk.runner import run as runs
from fixntk.runner import tasks
from fixntk.runner.config import ConfigError
from fixntk.runner.rows import read_results
from fixntk.runner.tasks import Jobs, split_jobs

pytest_plugins = ("toy_experiment",)

ROOT = Path(__file__).parent.parent.parent
TASKS = [("iris", 0), ("iris", 1), ("wine", 0), ("wine", 1)]
# Keys of measured times.
TIMES = {"seconds"}


def run(*words, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "fixntk_command", "run", *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **options,
    )


def test_rows_are_those_of_a_serial_run_in_the_same_order(project):
    # The first tasks end last, and one has no use for its data.
    project.control(slow="iris", broken={"wine": "no rows"})
    assert project.execute() == 1
    serial, config = project.results.read_bytes(), (project.out / "config.json").read_bytes()
    assert {call["process"] for call in project.calls()} == {os.getpid()}
    project.results.unlink()
    assert project.execute(jobs=Jobs(2)) == 1
    assert project.results.read_bytes() == serial
    assert (project.out / "config.json").read_bytes() == config
    calls = project.calls()
    assert sorted((call["table"], call["seed"]) for call in calls) == [
        ("iris", 0),
        ("iris", 1),
        ("wine", 0),
        ("wine", 1),
    ]
    processes = {call["process"] for call in calls}
    assert len(processes) > 1
    assert os.getpid() not in processes
    assert not any(Path(f"/proc/{process}").exists() for process in processes)
    # The tables that failed run again, whatever the number of jobs.
    project.control()
    assert project.execute(resume=True, jobs=Jobs(2)) == 0
    assert {call["table"] for call in project.calls()} == {"wine"}
    assert len(runs.read_rows(project.out)) == 8


def test_numbers_that_are_not_finite_reach_other_processes(project):
    project.config.write_text(project.config.read_text() + "reg: .nan\n")
    assert project.execute(jobs=Jobs(2)) == 0
    assert len(runs.read_rows(project.out)) == 8


def test_a_bug_in_another_process_propagates(project):
    project.control(bug="wine")
    with pytest.raises(KeyError, match="a bug"):
        project.execute(jobs=Jobs(2))
    project.control()
    assert project.execute(resume=True) == 0
    assert len(runs.read_rows(project.out)) == 8


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_a_process_that_is_killed_ends_the_run_with_a_line_and_resume_does_the_rest(project):
    project.control(kill="wine")
    process = run("configs/toy.yaml", "jobs=2")
    errors = process.communicate(timeout=100)[1]
    assert process.returncode == 2, errors
    *_, line = errors.splitlines()
    expected = (
        "fixntk: error: a process that ran tasks was ended from outside: is there memory for 2 tasks at a time? What"
    )
    assert line.startswith(expected)
    assert "Traceback" not in errors
    project.control()
    assert main(["run", "configs/toy.yaml", "--resume"]) == 0
    assert len(runs.read_rows(project.out)) == 8


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="Windows has no process groups")
def test_ctrl_c_of_a_terminal_ends_all_processes_and_keeps_the_rows(project):
    project.control(sleep="wine")
    # As in a terminal, the signal goes to all processes.
    process = run("configs/toy.yaml", "jobs=2", start_new_session=True)
    deadline = time.monotonic() + 100
    while process.poll() is None and sum("wine" in line for line in calls_so_far(project)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130, errors
    assert time.monotonic() - began < 30
    assert "interrupted: 2 of 4 tasks are finished" in errors
    assert "Traceback" not in errors
    assert not any(Path(f"/proc/{call['process']}").exists() for call in project.calls())
    assert len(runs.read_rows(project.out)) == 4


def calls_so_far(project):
    path = project.root / "calls.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def test_jobs_and_backend_are_no_keys_of_the_config():
    assert split_jobs([]) == ([], Jobs(1, "loky"))
    words = ["jobs=3", "tables=iris", "backend=dask", "solver.jobs=2", "jobs"]
    assert split_jobs(words) == (["tables=iris", "solver.jobs=2", "jobs"], Jobs(3, "dask"))
    for wrong in ("0", "-1", "2.5", "", "two", "²", "9999999"):
        with pytest.raises(ConfigError, match=f"jobs={wrong}: expected how many tasks run at a time, 1 to 1024"):
            split_jobs([f"jobs={wrong}"])
    with pytest.raises(ConfigError, match="backend=threading: expected one of loky, dask, ray"):
        split_jobs(["backend=threading"])


def test_a_missing_back_end_is_a_line_that_says_what_to_install(project, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match="backend=dask needs distributed: pip install distributed"):
        project.execute(jobs=Jobs(2, "dask"))


BACKENDS = pytest.mark.parametrize("backend", ["loky", pytest.param("dask", marks=pytest.mark.long)])


@BACKENDS
def test_processes_start_with_as_many_threads_for_products_as_this_one_has(backend):
    pytest.importorskip(tasks._BACKENDS[backend])
    with tasks._processes(Jobs(2, backend), 3) as parallel:
        for name in tasks._THREAD_VARIABLES:
            assert list(parallel([joblib.delayed(os.getenv)(name)])) == ["3"]


# Its back end is an imitation.
@pytest.mark.wrong_types
def test_back_ends_that_give_lists_get_as_many_tasks_as_they_run():
    sizes = []

    class Parallel:
        return_generator = False

        def __call__(self, calls):
            calls = list(calls)
            sizes.append(len(calls))
            return [call[1][1] for call in calls]

    listed = [{"seed": k} for k in range(5)]
    assert list(tasks._results(Parallel(), None, listed, Jobs(2, "ray"))) == listed
    assert sizes == [2, 2, 1]


def without_times(folder):
    finished = read_results(folder / runs.RESULTS).finished
    return [
        (block.task, [{key: value for key, value in row.items() if key not in TIMES} for row in block.rows])
        for block in finished
    ]


@pytest.mark.long
@pytest.mark.parametrize("backend", ["loky", "dask", "ray"])
def test_an_experiment_has_the_same_rows_from_every_back_end(tmp_path, monkeypatch, backend):
    pytest.importorskip(tasks._BACKENDS[backend])
    monkeypatch.chdir(ROOT)
    for name, words in {"serial": [], "parallel": ["jobs=2", f"backend={backend}"]}.items():
        process = run("configs/quickstart.yaml", "--out", str(tmp_path / name), *words)
        errors = process.communicate(timeout=500)[1]
        assert process.returncode == 0, errors
        assert "Traceback" not in errors
    serial, parallel = (without_times(tmp_path / name) for name in ("serial", "parallel"))
    assert json.dumps(serial) == json.dumps(parallel)
