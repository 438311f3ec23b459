"""Progress bars, callbacks that fail, and interrupted calls."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import random_problem

import fixntk as fx
from fixntk.convex import progress


def interrupt_at(iteration):
    def callback(seen):
        if seen.iteration == iteration:
            raise KeyboardInterrupt

    return callback


@pytest.fixture(scope="module")
def program():
    return random_problem(0, share=0.05)


def test_a_bar_shows_iterations_gap_and_active_groups(program, capsys):
    solution = fx.solve(program, progress=True)
    shown = capsys.readouterr().err
    assert "solve (newton)" in shown
    assert f"relative gap {float(solution.history.gap[-1] / program.primal_at_zero()):.1e}" in shown
    assert f"{int(jnp.sum(solution.active))} active" in shown
    fx.solve(program)
    assert capsys.readouterr().err == ""


def gates_of(program):
    """Gates that give the program's masks."""
    gates = fx.sample_gates(jax.random.key(0), 12, program.x.shape[1])
    return fx.ConvexProgram(program.x, program.y, fx.activation_masks(program.x, gates), program.reg), gates


ENTRIES = {
    "solve_path": lambda p: fx.solve_path(p, num_regs=3, progress=True),
    "discover": lambda p: fx.discover(
        *gates_of(p), key=jax.random.key(1), max_rounds=2, num_candidates=16, callback=lambda _: True, progress=True
    ),
    "solve_kernels": lambda p: fx.solve_kernels(np.stack([np.eye(5), np.ones((5, 5))]), p.y[:5], 0.1, progress=True),
    "solve_relu": lambda p: fx.solve_relu(*gates_of(p), tol=1e-3, progress=True),
    "train": lambda p: fx.train(
        fx.ReLUNetwork.sample(jax.random.key(0), 4, p.x.shape[1]),
        p.x,
        p.y,
        optax.adam(0.01),
        num_steps=20,
        record_every=10,
        progress=True,
    ),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_has_a_bar(name, program, capsys):
    ENTRIES[name](program)
    assert name in capsys.readouterr().err


def test_a_callback_that_raises_ends_the_solve_with_its_own_error(program):
    def callback(_):
        raise RuntimeError("of the callback")

    with pytest.raises(RuntimeError, match="of the callback"):
        fx.solve(program, callback=callback)


@pytest.mark.parametrize("method", ["newton", "fista", "irls"])
def test_an_interrupted_solve_hands_out_what_it_reached(program, method):
    with pytest.raises(fx.Interrupted) as caught:
        fx.solve(program, method=method, tol=1e-9, callback=interrupt_at(2))
    assert isinstance(caught.value, KeyboardInterrupt)
    reached = caught.value.result
    assert int(reached.iterations) == 2
    assert not bool(reached.converged)
    np.testing.assert_allclose(reached.gap, program.gap(reached.weights), rtol=1e-9)


def _interrupt_third_call(answer=None):
    """A function that gives an answer twice, and is interrupted then."""
    calls = []

    def call(*_):
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answer

    return call


def _raise_interrupt(*_):
    raise KeyboardInterrupt


def test_an_interrupted_relu_solve_hands_out_what_it_reached(program):
    gated, gates = gates_of(program)
    with pytest.raises(fx.Interrupted) as caught:
        fx.solve_relu(gated, gates, callback=_interrupt_third_call())
    reached = caught.value.result
    assert (reached.iterations, len(reached.history), reached.converged) == (2, 3, False)
    assert reached.gap == reached.history[-1, 2]
    assert reached.dual <= fx.solve_relu(gated, gates).primal <= reached.primal


def test_interrupted_multiple_kernel_learning_hands_out_what_it_reached(program, monkeypatch):
    kernels = np.stack([np.eye(5), np.ones((5, 5)), np.diag(np.arange(5.0))])
    optimum = float(fx.solve_kernels(kernels, program.y[:5], 0.1).primal)
    monkeypatch.setattr("fixntk.convex.multiple_kernels.describe", _interrupt_third_call(""))
    with pytest.raises(fx.Interrupted) as caught:
        fx.solve_kernels(kernels, program.y[:5], 0.1, progress=True)
    reached = caught.value.result
    assert int(reached.iterations) == 2
    assert float(reached.dual) <= optimum <= float(reached.primal)


def test_an_interrupted_training_hands_out_its_records(program):
    network = fx.ReLUNetwork.sample(jax.random.key(0), 4, program.x.shape[1])
    with pytest.raises(fx.Interrupted) as caught:
        fx.train(
            network,
            program.x,
            program.y,
            optax.adam(0.01),
            num_steps=50,
            record_every=10,
            callback=_interrupt_third_call(),
        )
    reached = caught.value.result
    np.testing.assert_array_equal(reached.history.steps, [0, 10, 20])
    np.testing.assert_array_equal(reached.network.hidden.shape, network.hidden.shape)


def test_nobody_is_handed_a_result_that_nobody_watches(program, monkeypatch):
    gated, gates = gates_of(program)
    monkeypatch.setattr("fixntk.convex.relu_step.step", _raise_interrupt)
    with pytest.raises(KeyboardInterrupt) as caught:
        fx.solve_relu(gated, gates)
    assert not isinstance(caught.value, fx.Interrupted)


def test_an_interrupted_path_hands_out_its_solutions(program):
    solutions = []

    def callback(solution):
        solutions.append(solution)
        if len(solutions) == 2:
            raise KeyboardInterrupt

    with pytest.raises(fx.Interrupted) as caught:
        fx.solve_path(program, num_regs=5, callback=callback)
    assert list(caught.value.result) == solutions


def test_a_bar_says_that_something_compiles(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LOOKS", 0.02)
    monkeypatch.setattr(progress, "seconds_in_compiler", lambda: lambda: 7.0)
    with progress.progress_bar("title") as show:
        show(3, "a line")
        time.sleep(0.3)
    shown = capsys.readouterr().err
    assert "a line, compiling for 7 s" in shown
