"""The loop of all solvers, with steps that are known beforehand, and from the host as in one computation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import random_problem
from threadpoolctl import threadpool_info, threadpool_limits

import fixntk as fx
from fixntk.convex import driver
from fixntk.convex.method import Method
from fixntk.convex.program import group_shape_of
from fixntk.convex.units import Units

EARLY = pytest.mark.filterwarnings("ignore::fixntk.ConvergenceWarning")
METHODS = pytest.mark.parametrize("method", ["irls", "anderson", "fista", "newton"])
LOOPS = pytest.mark.parametrize("run", [driver.run_from_host, driver.run_traced])


class Counter(NamedTuple):
    """A state whose gap halves in each step; its weights count the steps of two kinds."""

    weights: jax.Array
    primal: jax.Array
    gap: jax.Array
    objective: jax.Array
    failed: jax.Array
    next_step: jax.Array


def counting(*, pattern=(0,), fails_at=1000, unit=1.0):
    """A method whose kinds of steps follow a pattern, in a unit of weights, and that fails at some step."""
    kinds = jnp.asarray(pattern)

    def init(program, start, _):
        one = jnp.ones(())
        return Counter(start, 10 * one, program.primal_at_zero(), one, jnp.asarray(False), kinds[0])

    def step(kind, _, state):
        weights = state.weights.at[kind, 0, 0].add(1.0)
        done = jnp.sum(weights).astype(int)
        following = kinds[done % len(pattern)]
        failed = done >= fails_at
        return Counter(weights, state.primal - 1, 0.5 * state.gap, state.objective, failed, following)

    steps = tuple(lambda program, state, kind=kind: step(kind, program, state) for kind in range(2))
    prepare = lambda program: (program, Units(jnp.asarray(1.0), jnp.asarray(unit)))  # noqa: E731
    return Method("counting", init, lambda _: steps, lambda _: None, 100, prepare=prepare)


@LOOPS
@pytest.mark.parametrize(("tol", "expected"), [(1.0, 1), (0.6, 1), (0.4, 2), (1e-3, 10), (1e-9, 20)])
def test_steps_are_made_until_the_gap_is_reached_or_there_are_enough(run, tol, expected):
    program = random_problem(0)
    start = jnp.zeros(group_shape_of(program))
    outcome = run(program, counting(), start, None, tol, 20)
    assert int(outcome.iterations) == expected == int(outcome.weights.sum())
    np.testing.assert_allclose(
        outcome.history.gap[: expected + 1], 0.5 ** np.arange(expected + 1) * float(program.primal_at_zero())
    )
    np.testing.assert_array_equal(outcome.history.primal[: expected + 1], 10 - np.arange(expected + 1))
    assert np.all(np.isnan(outcome.history.gap[expected + 1 :]))
    assert len(outcome.history.gap) == (21 if run is driver.run_traced else expected + 1)


@LOOPS
def test_a_step_that_fails_is_the_last(run):
    program = random_problem(0)
    outcome = run(program, counting(fails_at=3), jnp.zeros(group_shape_of(program)), None, 1e-9, 20)
    assert bool(outcome.failed)
    assert int(outcome.iterations) == 3


@LOOPS
@pytest.mark.parametrize("pattern", [(0, 1), (0, 0, 1), (1,)])
def test_each_step_is_of_the_kind_that_the_state_asks_for(run, pattern):
    program = random_problem(0)
    outcome = run(program, counting(pattern=pattern), jnp.zeros(group_shape_of(program)), None, 1e-15, 30)
    made = np.resize(pattern, 30)
    assert int(outcome.iterations) == 30
    np.testing.assert_array_equal(outcome.weights[:2, 0, 0], [np.sum(made == 0), np.sum(made == 1)])


@LOOPS
def test_weights_and_objectives_are_given_in_the_units_of_the_program(run):
    program = random_problem(0)
    start = jnp.zeros(group_shape_of(program)).at[2].set(6.0)
    outcome = run(program, counting(unit=2.0), start, None, 1e-9, 3)
    # Each of three steps adds one in the method's unit.
    weights = outcome.weights * outcome.unit
    np.testing.assert_array_equal(weights[0, 0, 0], 3 * 2.0)
    np.testing.assert_array_equal(weights[2], 6.0)
    np.testing.assert_array_equal(outcome.history.primal[0], 2.0**2 * 10)
    np.testing.assert_allclose(outcome.history.gap[0], 4 * program.primal_at_zero())


@EARLY
@METHODS
def test_the_traced_loop_has_the_history_of_the_one_from_the_host(method):
    program = random_problem(4)
    alone = fx.solve(program, method=method, tol=1e-4, max_iter=60)
    traced = jax.jit(lambda p: fx.solve(p, method=method, tol=1e-4, max_iter=60))(program)
    made = int(alone.iterations)
    assert int(traced.iterations) == made > 0
    for name in ("primal", "gap", "num_active", "objective"):
        values = np.asarray(getattr(traced.history, name))
        np.testing.assert_allclose(values[: made + 1], getattr(alone.history, name), rtol=1e-6, atol=1e-9)
        assert np.all(np.isnan(values[made + 1 :]))
    assert np.all(np.isnan(traced.history.seconds))


@METHODS
def test_a_callback_sees_the_history_in_order_and_changes_no_iterate(method):
    # Of targets whose unit is not one, as methods may work in other units.
    small, seen = random_problem(4), []
    program = fx.ConvexProgram(small.x, 1000 * small.y, small.masks, 1000 * small.reg)
    alone = fx.solve(program, method=method, tol=1e-3)
    watched = fx.solve(program, method=method, tol=1e-3, callback=seen.append)
    assert [progress.iteration for progress in seen] == list(range(int(alone.iterations) + 1))
    np.testing.assert_array_equal(watched.weights, alone.weights)
    for name in ("primal", "gap", "num_active"):
        np.testing.assert_allclose([getattr(one, name) for one in seen], getattr(alone.history, name), rtol=1e-12)
    shares = alone.history.gap / program.primal_at_zero()
    np.testing.assert_allclose([progress.relative_gap for progress in seen], shares, rtol=1e-12)
    assert np.all(np.diff([progress.seconds for progress in seen]) >= 0)


@EARLY
@METHODS
def test_a_true_answer_of_the_callback_stops_at_once(method):
    for last in (0, 2):
        solution = fx.solve(random_problem(4), method=method, callback=lambda p, last=last: p.iteration == last)
        assert int(solution.iterations) == last == len(solution.history.gap) - 1


@METHODS
def test_an_error_in_the_callback_is_the_one_that_arrives(method):
    class Interrupted(Exception):
        pass

    error, calls = Interrupted("enough"), []

    def callback(progress):
        calls.append(progress.iteration)
        if progress.iteration == 1:
            raise error

    with pytest.raises(Interrupted) as caught:
        fx.solve(random_problem(4), method=method, callback=callback)
    assert caught.value is error
    assert calls == [0, 1]


def test_small_programs_are_solved_with_one_blas_thread():
    seen = []

    def look(_):
        seen.extend(library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas")

    with threadpool_limits(2, user_api="blas"):
        fx.solve(random_problem(4), callback=look)
    assert set(seen) <= {1}
