"""Solves and paths that were killed go on from their checkpoints to the same bits; other checkpoints are refused."""

import errno
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import random_problem

import fixntk as fx
from fixntk._files import Checkpoints
from fixntk.convex import checkpoints, path
from fixntk.convex.checkpoints import Keeper
from fixntk.convex.losses import huber
from fixntk.convex.solution import History
from fixntk.convex.solve import solve_quietly

# Each case has the problem, and the options of solve.
SOLVES = {
    "newton": ({"num_gates": 60}, {"method": "newton"}),
    "fista": ({}, {"method": "fista"}),
    "irls": ({}, {"method": "irls", "max_iter": 40}),
    "anderson": ({}, {"method": "anderson"}),
    "prox_newton": ({"loss": "logistic", "intercept": True}, {"method": "newton"}),
}
PATHS = {"screened": True, "whole": False}
REGS = {"num_regs": 6, "min_share": 0.05}
# The iteration, or the solution of a path, after which the process is killed.
KILLED_AT = 3

KILLED = """
import os, resource, signal, sys
from pathlib import Path
import jax
import fixntk as fx
from test_solve_checkpoints import KILLED_AT, PATHS, REGS, SOLVES, problem_of_path
from fixntk.convex import checkpoints, path
from problems import random_problem

jax.config.update("jax_enable_x64", True)
checkpoints._MIN_SECONDS, checkpoints._MAX_WRITING_SHARE = 0.0, float("inf")
path._WORTH_SCREENING = 0
folder, case = Path(sys.argv[1]) / sys.argv[2], sys.argv[2]
count = 0

def kill_self(seen):
    global count
    count += 1
    if getattr(seen, "iteration", count) == KILLED_AT:
        os.kill(os.getpid(), signal.SIGKILL)

if case == "full":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    fx.solve(random_problem(0), checkpoint=folder)
elif case in PATHS:
    fx.solve_path(problem_of_path(), **REGS, screen=PATHS[case], callback=kill_self, checkpoint=folder)
else:
    problem, options = SOLVES[case]
    fx.solve(random_problem(0, **problem), **options, callback=kill_self, checkpoint=folder)
"""


def problem_of_path():
    return random_problem(1, num_rows=60, num_gates=200, num_features=5)


def run_in_a_process(folder, case):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(folder), case]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def kill(folder, case):
    """The checkpoints of a case whose process was killed."""
    if not hasattr(signal, "SIGKILL"):
        pytest.skip("Windows has no SIGKILL")
    run = run_in_a_process(folder, case)
    assert run.returncode == -signal.SIGKILL, run.stderr
    return folder / case


@pytest.fixture
def always_due(monkeypatch):
    monkeypatch.setattr(checkpoints, "_MIN_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "_MAX_WRITING_SHARE", float("inf"))


def assert_same_bits(one, other):
    """Two solutions are the same but for the seconds of their histories."""
    one_named, other_named = (
        jax.tree_util.tree_flatten_with_path(solution)[0] for solution in (without_seconds(one), without_seconds(other))
    )
    assert jax.tree.structure(without_seconds(one)) == jax.tree.structure(without_seconds(other))
    for (name, found), (_, expected) in zip(one_named, other_named, strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected, err_msg=str(name))


def without_seconds(solution):
    return jax.tree.map(
        lambda part: part._replace(seconds=0 * part.primal) if isinstance(part, History) else part,
        solution,
        is_leaf=lambda part: isinstance(part, History),
    )


def steps(folder):
    return sorted(int(file.stem.removeprefix("step-")) for file in folder.iterdir())


def one_now_others_long(cases):
    first, *others = cases
    return pytest.mark.parametrize("case", [first, *(pytest.param(case, marks=pytest.mark.long) for case in others)])


@one_now_others_long(SOLVES)
def test_a_killed_solve_goes_on_to_the_same_bits(tmp_path, case):
    folder = kill(tmp_path, case)
    problem, options = SOLVES[case]
    program = random_problem(0, **problem)
    assert steps(folder) == [KILLED_AT - 2, KILLED_AT - 1]
    seen = []
    resumed = solve_quietly(program, **options, checkpoint=folder, callback=lambda one: seen.append(one.iteration))
    whole = solve_quietly(program, **options)
    assert_same_bits(resumed, whole)
    assert seen == list(range(KILLED_AT - 1, int(whole.iterations) + 1))
    assert len(seen) > 3
    seconds = np.asarray(resumed.history.seconds)
    assert np.all(np.diff(seconds) >= 0)
    assert seconds[0] == 0


@one_now_others_long(PATHS)
def test_a_killed_path_goes_on_to_the_same_bits(tmp_path, case, monkeypatch):
    folder = kill(tmp_path, case)
    monkeypatch.setattr(path, "_WORTH_SCREENING", 0)
    options = {**REGS, "screen": PATHS[case]}
    assert steps(folder) == [KILLED_AT - 1, KILLED_AT]
    solved = []
    resumed = fx.solve_path(problem_of_path(), **options, checkpoint=folder, callback=solved.append)
    whole = fx.solve_path(problem_of_path(), **options)
    assert len(solved) == REGS["num_regs"] - KILLED_AT
    assert len(resumed) == len(whole)
    np.testing.assert_array_equal(resumed.regs, whole.regs)
    for one, other in zip(resumed, whole, strict=True):
        assert_same_bits(one, other)


@pytest.mark.parametrize("case", SOLVES)
def test_a_solve_that_ran_out_of_iterations_goes_on_with_more(tmp_path, case):
    problem, options = SOLVES[case]
    program = random_problem(0, **problem)
    stopped = solve_quietly(program, **(options | {"max_iter": 3}), checkpoint=tmp_path)
    assert not bool(stopped.converged)
    resumed = solve_quietly(program, **options, checkpoint=tmp_path)
    assert_same_bits(resumed, solve_quietly(program, **options))
    assert int(resumed.iterations) > 3


def test_a_finished_solve_is_read_and_a_tighter_one_goes_on_from_it(tmp_path):
    program, seen = random_problem(2), []
    rough = fx.solve(program, tol=1e-2, checkpoint=tmp_path)
    again = fx.solve(program, tol=1e-2, checkpoint=tmp_path, callback=lambda one: seen.append(one.iteration))
    assert_same_bits(again, rough)
    assert seen == [int(rough.iterations)]
    assert_same_bits(fx.solve(program, tol=1e-9, checkpoint=tmp_path), fx.solve(program, tol=1e-9))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_was_reached_is_kept_when_the_call_is_interrupted(tmp_path, error):
    program = random_problem(2)

    def stop(seen):
        if seen.iteration == 4:
            raise error

    with pytest.raises(error):
        fx.solve(program, callback=stop, checkpoint=tmp_path / "solve")
    assert steps(tmp_path / "solve") == [4]
    assert_same_bits(fx.solve(program, checkpoint=tmp_path / "solve"), fx.solve(program))

    def stop_path(_):
        raise error

    with pytest.raises(error):
        fx.solve_path(program, **REGS, callback=stop_path, checkpoint=tmp_path / "path")
    assert steps(tmp_path / "path") == [1]


def changed(program, **fields):
    arguments = {name: getattr(program, name) for name in ("x", "y", "masks", "reg", "loss", "num_gates")}
    return fx.ConvexProgram(**(arguments | fields))


def changes():
    program = random_problem(3)
    ones = np.ones(30)
    return {
        "x": {"x": program.x.at[29, 3].add(1e-12)},
        "y": {"y": program.y.at[29].add(1e-12)},
        "masks": {"masks": program.masks.at[29, 19].set(~program.masks[29, 19])},
        "reg": {"reg": 1.001 * program.reg},
        "loss": {"loss": huber(0.5)},
        "sample_weight": {"sample_weight": ones},
        "intercept": {"intercept": True},
        "penalty_weights": {"penalty_weights": ones[:20]},
        "ridge": {"ridge": 0.1},
        "x, y": {"x": program.x + 1, "y": program.y + 1},
    }


@pytest.mark.parametrize("name", changes())
def test_a_checkpoint_of_another_program_is_refused_by_the_name_of_what_differs(tmp_path, name):
    fx.solve(random_problem(3), checkpoint=tmp_path, tol=1e-2)
    with pytest.raises(ValueError, match=rf"is of a solve with other {name}: pass the same as before, or another"):
        fx.solve(changed(random_problem(3), **changes()[name]), checkpoint=tmp_path)


def test_checkpoints_of_other_options_and_computations_are_refused(tmp_path):
    program = random_problem(3)
    folder, walked, trained = (tmp_path / name for name in ("solve", "path", "training"))
    fx.solve(program, checkpoint=folder)
    with pytest.raises(ValueError, match="is of a solve with other method:"):
        fx.solve(program, method="fista", checkpoint=folder)
    with pytest.raises(ValueError, match="is of a solve with other init:"):
        fx.solve(program, init=np.ones((20, 4)), checkpoint=folder)
    with pytest.raises(ValueError, match="is of a solve, not of a path:"):
        fx.solve_path(program, **REGS, checkpoint=folder)
    fx.solve_path(program, **REGS, checkpoint=walked)
    for name, options in {"regs": {"num_regs": 5}, "tol": {"tol": 1e-3}, "max_iter": {"max_iter": 7}}.items():
        with pytest.raises(ValueError, match=f"is of a path with other {name}:"):
            fx.solve_path(program, **(REGS | options), checkpoint=walked)
    # Its own λ is not used.
    again = fx.solve_path(program.with_reg(program.reg * 2), **REGS, checkpoint=walked)
    assert len(again) == REGS["num_regs"]
    network = fx.ReLUNetwork.sample(jax.random.key(0), 3, 4)
    fx.train(network, program.x, program.y, optax.sgd(0.01), reg=0.1, num_steps=1, checkpoint=trained)
    with pytest.raises(ValueError, match="is of a training, not of a solve:"):
        fx.solve(program, checkpoint=trained)
    with pytest.raises(ValueError, match="is of a solve, not of a training:"):
        fx.train(network, program.x, program.y, optax.sgd(0.01), reg=0.1, checkpoint=folder, resume=True)


@pytest.mark.usefixtures("always_due")
def test_a_damaged_checkpoint_gives_the_one_before_and_the_same_bits(tmp_path):
    program = random_problem(2)
    # With a callback there is a checkpoint for each step.
    solve_quietly(program, checkpoint=tmp_path, max_iter=4, callback=lambda _: None)
    newest = tmp_path / "step-4.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    seen = []
    with pytest.warns(UserWarning, match=r"step-4\.safetensors: is damaged.*; the solve continues from the checkpoint"):
        resumed = fx.solve(program, checkpoint=tmp_path, callback=lambda one: seen.append(one.iteration))
    assert seen[0] == 3
    assert_same_bits(resumed, fx.solve(program))


def test_a_state_of_another_shape_is_refused(tmp_path):
    made = Checkpoints(tmp_path, "solve", {})
    Keeper(made).save(1, lambda: {"leaf 0": np.zeros(3), "record": np.zeros((2, 6)), "seconds": np.zeros(2)})
    for like in (jnp.zeros(4), jnp.zeros(3, jnp.float32), (jnp.zeros(3), jnp.zeros(3))):
        with (
            pytest.warns(UserWarning, match="other shapes or dtypes|is damaged"),
            pytest.raises(ValueError, match="all of its 1 checkpoints are damaged: remove them"),
        ):
            checkpoints.restore_trace(Keeper(made), like)
    assert checkpoints.restore_trace(Keeper(made), jnp.zeros(3)) is not None


# Its checkpoints are an imitation.
@pytest.mark.wrong_types
def test_writing_takes_a_twentieth_of_the_time_at_most(monkeypatch):
    now, written = [0.0], []
    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def save(step, *_):
        written.append((step, now[0]))
        now[0] += 2.0

    keeper = Keeper(SimpleNamespace(save=save))
    for step in range(1, 1001):
        now[0] += 0.5
        if keeper.is_due():
            keeper.save(step, dict)
    keeper.save(1000, dict)
    starts = [began for _, began in written]
    assert starts[0] == checkpoints._MIN_SECONDS
    # Two seconds of writing after at least forty of the solver's.
    assert min(np.diff(starts[:-1])) == 42
    assert 2 * len(written) <= 0.05 * now[0] + 2 * 2
    assert written[-1][0] == 1000


def test_a_solve_of_less_than_seconds_writes_once(tmp_path, monkeypatch):
    count, save = [], Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda *args: (count.append(1), save(*args)))
    fx.solve(random_problem(2), checkpoint=tmp_path, callback=lambda _: None)
    assert len(count) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of the size of files")
def test_a_full_disk_is_a_clear_error(tmp_path):
    *_, line = run_in_a_process(tmp_path, "full").stderr.splitlines()
    expected = f"checkpoint {tmp_path / 'full'} cannot be written: File too large; what was written before stays"
    assert line == f"OSError: [Errno {errno.EFBIG}] {expected}"
    assert steps(tmp_path / "full") == []


@pytest.mark.wrong_types
def test_bad_folders_are_refused_at_once(tmp_path):
    program = random_problem(2)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(TypeError, match="checkpoint must be the path of a folder, got int"):
        fx.solve(program, checkpoint=3)
    for call in (fx.solve, fx.solve_path):
        with pytest.raises(OSError, match=f"checkpoint {file} cannot be written: is a file, not a folder"):
            call(program, checkpoint=file)
    with pytest.raises(ValueError, match="callback, progress and checkpoint need the host: not under jit or vmap"):
        jax.jit(lambda p: fx.solve(p, checkpoint=tmp_path))(program)


def test_a_zero_solution_leaves_no_checkpoint(tmp_path):
    program = random_problem(2, share=1.5)
    for method in ("irls", "newton"):
        assert bool(fx.solve(program, method=method, checkpoint=tmp_path / method).converged)
        assert steps(tmp_path / method) == []
