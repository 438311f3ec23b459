"""Sizes of working sets, and rounds of first-order steps on the nearest groups."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import random_problem

import fixntk as fx
from fixntk.convex.program import group_shape_of
from fixntk.convex.solvers import working_sets
from fixntk.convex.solvers.working_sets import Schedule


def test_sizes_differ_in_cost():
    # Directions of a small program cost less than the rest of a step; of a larger one each size has its own.
    assert working_sets.schedule_of(random_problem(3)) == ((20,), ())
    assert working_sets.schedule_of(random_problem(3, 120, 5, 300)) == ((300,), ())
    newton_sizes, round_sizes = working_sets.schedule_of(random_problem(3, 1000, 10, 1000))
    assert len(newton_sizes) > 2 < len(round_sizes)
    # Newton steps can have all groups active; rounds are for few.
    assert newton_sizes[-1] == 1000 > round_sizes[-1]
    for sizes in (newton_sizes, round_sizes):
        assert all(size < following for size, following in itertools.pairwise(sizes))


def test_steps_have_room_for_the_active_groups():
    schedule = Schedule((16, 64, 100), (32, 64))
    for num_active in range(101):
        size = next(k for k, size in enumerate(schedule.newton_sizes) if size >= num_active)
        assert schedule.newton_index(jnp.asarray(num_active)) == size
        rounds = [3 + k for k, size in enumerate(schedule.round_sizes) if size >= 1.2 * num_active]
        assert schedule.round_index(jnp.asarray(num_active)) == (rounds or [schedule.last_resort])[0]
    assert schedule.last_resort == 5
    assert Schedule((7,), ()).round_index(jnp.asarray(0)) == 1


def test_active_groups_are_nearest_then_those_of_the_largest_duals_by_their_thresholds(rng):
    weights = np.zeros((6, 2, 1))
    weights[[1, 4], 0] = 1e-30
    duals, thresholds = jnp.asarray(rng.uniform(0.1, 1, 6)), jnp.asarray(rng.uniform(0.1, 1, 6))
    near = np.asarray(working_sets.nearness(jnp.asarray(weights), duals, thresholds))
    np.testing.assert_array_equal(np.isinf(near), [0, 1, 0, 0, 1, 0])
    others = [0, 2, 3, 5]
    np.testing.assert_allclose(near[others], np.asarray(duals / thresholds)[others], rtol=1e-14)


@pytest.mark.parametrize("options", [{}, {"penalty_weights": np.linspace(0.5, 2, 40)}], ids=["plain", "weighted"])
def test_a_round_changes_the_nearest_groups_alone_and_nearly_solves_their_problem(options):
    program = random_problem(3, 60, 4, 40, share=0.1, **options)
    zeros = jnp.zeros(group_shape_of(program))
    found = program.evaluate(zeros)
    duals = np.linalg.norm(np.asarray(found.correlations), axis=(1, 2))
    nearest = np.argsort(-duals / options.get("penalty_weights", 1.0))[:16]
    run = jax.jit(working_sets.run_round, static_argnames="size")
    weights, cost = run(program, zeros, found.correlations, found.gap, size=16)
    assert weights.dtype == jnp.float32
    assert set(np.flatnonzero(np.linalg.norm(weights, axis=(1, 2)))) <= set(nearest.tolist())
    assert cost > 0
    penalties = {name: value[nearest] for name, value in options.items()}
    part = fx.ConvexProgram(program.x, program.y, program.masks[:, nearest], program.reg, **penalties)
    optimum = fx.solve(part, method="fista", tol=1e-9)
    distance = part.primal(jnp.asarray(weights, "float64")[nearest]) - optimum.primal
    assert -1e-6 * optimum.primal <= distance <= 0.05 * found.gap


def test_first_order_steps_stop_at_the_gap_or_at_their_number():
    program = random_problem(3, 30, 4, 20, share=0.1)
    zeros = jnp.zeros(group_shape_of(program))
    gap = program.gap(zeros)
    run = jax.jit(working_sets.run_first_order)
    weights, num_steps = run(program, zeros, 0.01 * gap, 1000)
    assert 1 < int(num_steps) < 1000
    assert program.gap(weights) <= 0.01 * gap
    # One step fewer does not suffice.
    before, fewer = run(program, zeros, 0.01 * gap, int(num_steps) - 1)
    assert int(fewer) == int(num_steps) - 1
    assert program.gap(before) > 0.01 * gap
