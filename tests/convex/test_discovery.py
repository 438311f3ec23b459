"""Gate discovery: the optimum over every cell where that can be enumerated, more than random gates elsewhere."""

from functools import partial

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

import fixntk as fx
from fixntk._numerics import ignore_convergence_warnings
from fixntk.convex import column_generation, discover_quietly, discovery, pricing
from fixntk.convex.program import masked_outputs, targets_of
from fixntk.convex.solvers import fista
from fixntk.gates.samplers import normalise

COMPILED = "/jax/core/compile/backend_compile_duration"


def plane(rng, num_rows=16):
    x = np.column_stack([rng.standard_normal((num_rows, 2)), np.ones(num_rows)])
    return x, np.sin(2 * x[:, 0]) * x[:, 1]


def start(x, y, reg, num_gates=4, loss="squared", seed=0, **options):
    """A program of random gates, and the gates."""
    gates = fx.sample_gates(jax.random.key(seed), num_gates, x.shape[1], dtype=x.dtype)
    return fx.ConvexProgram(x, y, fx.activation_masks(x, gates), reg, loss, **options), gates


@pytest.mark.parametrize("num_outputs", [None, 2])
def test_where_cells_are_enumerated_the_result_is_the_optimum_over_all_of_them(rng, num_outputs):
    x, y = plane(rng)
    y = y if num_outputs is None else np.column_stack([y, y[::-1]])
    cells = fx.enumerate_arrangements(x)
    largest = fx.ConvexProgram(x, y, cells.masks, 1.0).max_reg()
    whole = fx.solve(fx.ConvexProgram(x, y, cells.masks, 0.02 * largest), method="fista", tol=1e-8)
    found = fx.discover(*start(x, y, 0.02 * largest), key=jax.random.key(0), per_round=16, method="fista")
    assert found.exact
    assert found.rounds > 1
    assert found.gates.shape[0] < cells.masks.shape[1]
    scale = 0.5 * np.sum(y**2)
    assert abs(float(found.solution.primal - whole.primal)) <= 1e-6 * scale
    assert found.lower_bound <= float(whole.primal) * (1 + 1e-9)
    assert float(found.solution.primal) - found.lower_bound == found.gap <= 2e-6 * scale
    assert found.converged
    assert f"within {found.gap:.1e} of the optimum over all gates" in found.message
    # What it returns fits together: gates, masks, weights, predictions.
    np.testing.assert_array_equal(found.masks, fx.activation_masks(x, found.gates))
    program = fx.ConvexProgram(x, y, found.masks, 0.02 * largest)
    np.testing.assert_allclose(program.primal(found.solution.weights), found.solution.primal, rtol=1e-10)
    outputs = found.solution.predict(x, found.gates)
    np.testing.assert_allclose(
        outputs.reshape(targets_of(program).shape), masked_outputs(program, found.solution.weights)
    )


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("logistic", {"intercept": True}),
        ("squared", {"intercept": True, "sample_weight": np.linspace(0, 2, 16)}),
        ("huber", {}),
        ("squared_hinge", {"sample_weight": np.linspace(0.5, 1.5, 16)}),
        ("softmax", {"norm": "nuclear"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_bound_over_all_cells_holds_for_every_loss(rng, loss, options):
    x, y = plane(rng)
    if loss in ("logistic", "squared_hinge", "softmax"):
        y = (y > np.median(y)).astype(int)
    cells = fx.enumerate_arrangements(x)
    program = fx.ConvexProgram(x, y, cells.masks, 1.0, loss, **options)
    reg = 0.05 * float(program.max_reg())
    whole = fx.solve(program.with_reg(reg), tol=1e-8, max_iter=20_000)
    found = fx.discover(
        *start(x, y, reg, loss=loss, **options), key=jax.random.key(0), per_round=16, tol=1e-6, max_cells=10_000
    )
    assert found.exact
    assert found.converged, found.message
    scale = float(program.primal_at_zero())
    assert abs(float(found.solution.primal - whole.primal)) <= 2e-6 * scale
    assert found.lower_bound <= float(whole.primal) + 1e-9 * scale
    assert found.gap <= 2e-6 * scale


def test_a_discovery_that_stops_early_warns_and_says_so(rng):
    x, y = plane(rng)
    options = {"key": jax.random.key(0), "per_round": 2}
    with pytest.warns(fx.ConvergenceWarning, match="discovery stopped early with 4 gates after 1 rounds: .*max_rounds"):
        found = fx.discover(*start(x, y, 0.1), max_rounds=1, **options)
    assert not found.converged
    # A warning would be an error here.
    quiet = discover_quietly(*start(x, y, 0.1), max_rounds=1, **options)
    assert quiet.message == found.message
    with pytest.warns(fx.ConvergenceWarning):
        local = fx.discover(*start(x, y, 0.1), max_rounds=1, max_cells=1, **options)
    assert local.gap == np.inf


def test_a_solution_above_its_tolerance_is_told(rng, monkeypatch):
    monkeypatch.setattr(discovery, "choose_warm_method", lambda *_: fista.METHOD._replace(max_iter=2))
    with pytest.warns(fx.ConvergenceWarning, match="fista stopped early: .*above tol=1.0e-06"):
        found = fx.discover(*start(*plane(rng), 0.1), key=jax.random.key(0))
    assert not found.solution.converged


def test_discovery_in_float32_ends(rng):
    x, y = plane(rng)
    found = fx.discover(*start(x.astype("float32"), y.astype("float32"), 0.1), key=jax.random.key(0), per_round=16)
    assert found.converged, found.message
    assert found.solution.weights.dtype == jnp.float32


def test_on_a_plane_discovered_gates_beat_ten_times_as_many_random_ones(rng):
    x = rng.standard_normal((60, 2))
    y = np.sin(3 * x[:, 0]) * x[:, 1]
    found = fx.discover(*start(x, y, 0.1), key=jax.random.key(0), tol=1e-4)
    assert found.exact
    many = fx.sample_gates(jax.random.key(2), 10 * found.gates.shape[0], 2, dtype=jnp.float64)
    random = fx.solve(fx.ConvexProgram(x, y, fx.activation_masks(x, many), 0.1), tol=1e-4)
    assert float(found.solution.primal) < float(random.dual)


def test_discovered_gates_beat_ten_times_as_many_random_ones(rng):
    x = rng.standard_normal((80, 5))
    y = np.sum(np.maximum(x @ rng.standard_normal((5, 3)), 0) * [1.0, -1.0, 1.0], axis=1)
    reg = 0.5
    with pytest.warns(fx.ConvergenceWarning, match="raise max_rounds"):
        found = fx.discover(
            *start(x, y, reg, num_gates=32, seed=1),
            key=jax.random.key(1),
            num_candidates=512,
            max_rounds=8,
            method="fista",
            tol=1e-4,
        )
    assert not found.exact
    assert found.lower_bound == -np.inf
    many = fx.sample_gates(jax.random.key(2), 10 * found.gates.shape[0], 5, dtype=jnp.float64)
    random = fx.solve(fx.ConvexProgram(x, y, fx.activation_masks(x, many), reg))
    assert float(found.solution.primal) < float(random.dual)


def test_a_callback_sees_every_round_and_can_stop(rng):
    x, y = plane(rng)
    seen = []
    found = fx.discover(
        *start(x, y, 0.1),
        key=jax.random.key(0),
        method="fista",
        callback=lambda d: seen.append(d) or len(seen) == 2,
    )
    assert [discovery.rounds for discovery in seen] == [1, 2]
    assert seen[1] is found
    assert float(seen[1].solution.primal) <= float(seen[0].solution.primal)


def test_bad_numbers_and_tracing_are_refused(rng):
    x, y = plane(rng)
    program, gates = start(x, y, 0.1)
    with pytest.raises(ValueError, match="per_round must be at least 1, got 0"):
        fx.discover(program, gates, key=jax.random.key(0), per_round=0)
    with pytest.raises(ValueError, match="max_rounds must be at least 1, got 0"):
        fx.discover(program, gates, key=jax.random.key(0), max_rounds=0)
    with pytest.raises(ValueError, match="discover cannot be traced"):
        jax.jit(lambda reg: fx.discover(program.with_reg(reg), gates, key=jax.random.key(0)).gates)(0.1)


def test_gates_and_programs_that_do_not_fit_are_named(rng):
    x, y = plane(rng)
    program, gates = start(x, y, 0.1)
    with pytest.raises(ValueError, match="gates must give the program's masks on its x: 4 of 4 do not"):
        fx.discover(program, -gates, key=jax.random.key(0))
    with pytest.raises(ValueError, match="program must have no penalty_weights"):
        fx.discover(*start(x, y, 0.1, penalty_weights=np.ones(4)), key=jax.random.key(0))
    with pytest.raises(ValueError, match="program must have no ridge"):
        fx.discover(*start(x, y, 0.1, ridge=0.1), key=jax.random.key(0))
    with pytest.raises(ValueError, match="method 'irls' starts at kernel weights"):
        fx.discover(program, gates, key=jax.random.key(0), method="irls")


@pytest.mark.wrong_types
def test_data_in_place_of_a_program_are_named(rng):
    x, y = plane(rng)
    with pytest.raises(TypeError, match="program must be a ConvexProgram, got ndarray"):
        fx.discover(x, y, key=jax.random.key(0))


def test_a_local_search_in_low_rank_reaches_the_optimum_over_all_cells(rng):
    # Enumeration, which the local search does not use, gives the optimum.
    x, y = plane(rng, 12)
    cells = fx.enumerate_arrangements(x)
    largest = fx.ConvexProgram(x, y, cells.masks, 1.0).max_reg()
    whole = fx.solve(fx.ConvexProgram(x, y, cells.masks, 0.1 * largest), tol=1e-7)
    found = fx.discover(*start(x, y, 0.1 * largest), key=jax.random.key(0), max_cells=1, least_violation=1e-4)
    assert not found.exact
    assert found.stopped == "no violation"
    assert float(found.solution.relative_gap) <= 1e-6
    assert float(found.solution.primal) <= float(whole.primal) * (1 + 1e-4)
    assert float(found.solution.primal) >= float(whole.dual)


def test_rounds_after_the_first_other_data_of_one_shape_and_other_numbers_of_gates_compile_nothing():
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if event == COMPILED else None
    )
    counts, starts = [], []
    for seed, num_gates in ((0, 8), (1, 7)):
        x = np.random.default_rng(seed).standard_normal((41, 5))
        starts.append(start(x, np.abs(x[:, 0]) + x[:, 1] * (x[:, 2] > 0), 1.5, num_gates=num_gates))
    for program, gates in starts:
        fx.discover(
            program,
            gates,
            key=jax.random.key(len(counts)),
            per_round=12,
            num_candidates=200,
            tol=1e-4,
            callback=lambda _: counts.append(len(compiled)) or len(counts) in (4, 8),
        )
    assert len(counts) == 8
    assert counts[1:] == counts[:1] * 7


def test_held_out_rows_end_it_where_their_loss_was_least(rng):
    x = rng.standard_normal((60, 6))
    targets = np.abs(x[:, 0]) + rng.standard_normal(60)
    held_out = x[40:], targets[40:]
    seen = []
    found = fx.discover(
        *start(x[:40], targets[:40], 0.3, num_gates=8),
        key=jax.random.key(0),
        per_round=4,
        held_out=held_out,
        patience=1,
        tol=1e-4,
        least_violation=1e-3,
        callback=lambda d: seen.append(d) and None,
    )
    assert found.stopped == "held-out loss"
    assert "the held-out loss was least" in found.message
    assert len(found.held_out_losses) == found.rounds == len(seen)
    best = int(np.argmin(found.held_out_losses))
    np.testing.assert_array_equal(found.gates, seen[best].gates)
    # A loop over the held-out rows, of the rounds' own solutions.
    for loss, one in zip(found.held_out_losses, seen[:-1], strict=False):
        outputs = np.array([float(one.solution.predict(row[None], one.gates)[0]) for row in held_out[0]])
        np.testing.assert_allclose(loss, 0.5 * np.mean((outputs - held_out[1]) ** 2), rtol=1e-9)
    assert float(found.solution.relative_gap) <= 1e-4


@pytest.mark.parametrize("budget", [{"max_gates": 6}, {"max_seconds": 1e-6}, {"max_rounds": 2}], ids=str)
def test_budgets_end_it_and_are_named(rng, budget):
    x = rng.standard_normal((30, 5))
    (name,) = budget
    with pytest.warns(fx.ConvergenceWarning, match=f"raise {name}"):
        found = fx.discover(*start(x, np.abs(x[:, 0]) * x[:, 1], 0.1), key=jax.random.key(0), per_round=8, **budget)
    assert found.stopped == name
    assert not found.converged
    # Rounds that are followed by others are solved roughly, the last one is not.
    assert float(found.solution.relative_gap) <= 1e-6


def test_a_path_starts_from_the_gates_before_and_keeps_the_order_of_its_values(rng):
    x, y = plane(rng)
    program, gates = start(x, y, 1.0)
    regs = float(program.max_reg()) * np.array([0.1, 0.5, 0.3])
    seen = []
    options = {"key": jax.random.key(0), "per_round": 16}
    path = fx.discover_path(program, gates, regs, callback=lambda d: seen.append(d) and None, **options)
    assert [path[i] for i in (1, 2, 0)] == seen
    for reg, found in zip(path.regs, path, strict=True):
        alone = fx.discover(program.with_reg(reg), gates, **options)
        assert found.converged
        np.testing.assert_allclose(found.solution.primal, alone.solution.primal, rtol=1e-5)
    assert "DiscoveryPath(3 discoveries" in repr(path)
    # Fewer rounds than from the start: the gates of the last value are kept.
    assert path[0].rounds < alone.rounds or path[2].rounds <= 2


@pytest.mark.filterwarnings("ignore::fixntk.ConvergenceWarning")
def test_further_gates_violate_the_dual_and_the_next_value_of_a_path_starts_with_them(rng):
    x = rng.standard_normal((60, 5))
    program, gates = start(x, np.abs(x[:, 0]) - x[:, 1], 1.0)
    regs = float(program.max_reg()) * np.array([0.3, 0.2])
    first, second = fx.discover_path(program, gates, regs, key=jax.random.key(0), max_rounds=1)
    further = first.further
    assert len(further.gates) > 0
    np.testing.assert_array_equal(further.masks, x @ further.gates.T >= 0)
    residual = program.with_reg(regs[0]).y - first.solution.predict(x, first.gates)
    prices = [np.linalg.norm(x.T @ (mask * residual)) / regs[0] for mask in further.masks.T]
    assert min(prices) > 1.05
    # The second program has the gates in use and the further ones.
    used = np.linalg.norm(first.solution.weights, axis=(1, 2)) > 0
    started = np.concatenate([first.gates[used], further.gates])
    np.testing.assert_array_equal(second.gates, started)


def test_data_of_a_high_rank_are_not_searched_for_equal_hyperplanes(monkeypatch, rng):
    # That takes the square of the number of rows.
    monkeypatch.setattr(column_generation, "distinct_hyperplanes", lambda _: pytest.fail("is not needed"))
    assert column_generation.enumerate_cells(jnp.asarray(rng.standard_normal((50, 4))), 100) is None


@pytest.mark.wrong_types
def test_bad_budgets_samplers_and_held_out_rows_are_named(rng):
    x, y = plane(rng)
    program, gates = start(x, y, 0.1)
    discover = partial(fx.discover, program, gates, key=jax.random.key(0))
    with pytest.raises(ValueError, match="max_seconds must be a positive number, got 0"):
        discover(max_seconds=0)
    with pytest.raises(ValueError, match="max_gates must be at least 1, got 0"):
        discover(max_gates=0)
    for shape in ((2,), (3, 1), ()):
        with pytest.raises(ValueError, match=r"samplers must return the .* gates asked for, \(.*, 3\), got"):
            discover(samplers=[lambda _key, count, *_, shape=shape: jnp.zeros((count, *shape))], max_cells=1)
    with pytest.raises(ValueError, match=r"samplers must return the .* got \(7, 3\)"):
        discover(samplers=[lambda *_: jnp.ones((7, 3))], max_cells=1)
    with pytest.raises(ValueError, match="samplers must return finite gates"):
        discover(samplers=[lambda _key, count, *_: jnp.full((count, 3), jnp.nan)], max_cells=1)
    with pytest.raises(TypeError, match="samplers must be a list of functions"):
        discover(samplers=None)
    with pytest.raises(ValueError, match="held_out must be a pair"):
        discover(held_out=(x,))
    with pytest.raises(ValueError, match="must have the same number of columns"):
        discover(held_out=(x[:, :2], y))
    with pytest.raises(ValueError, match="held_out y must have shape"):
        discover(held_out=(x, np.stack([y, y], axis=1)))


@pytest.mark.parametrize("options", [{"num_candidates": 2**34}, {"num_candidates": 10**9}])
def test_candidates_that_do_not_fit_into_memory_are_refused(rng, options):
    x = rng.standard_normal((30, 6))
    gates = rng.standard_normal((4, 6))
    program = fx.ConvexProgram(x, x[:, 0], fx.activation_masks(x, gates), 1.0)
    with pytest.raises(fx.OutOfMemoryError, match="lower num_candidates or per_round"):
        fx.discover(program, gates, key=jax.random.key(0), **options)


def test_candidates_around_gates_in_use_are_around_all_of_them_and_no_padding(rng):
    x = rng.standard_normal((30, 40))
    program, gates = start(x, x[:, 0], 1.0, num_gates=3)
    padded = jnp.pad(gates, ((0, 61), (0, 0)))
    drawn = pricing.draw(jax.random.key(0), 0, program, padded, 3, samplers=(), num_candidates=300)
    # A change of length 0.1 leaves cosines of 0.99 or so; random gates of 40 columns have none above 0.9.
    cosines = np.asarray(normalise(drawn) @ normalise(gates).T)
    assert cosines.max(axis=1).min() > 0.9
    assert np.bincount(cosines.argmax(axis=1), minlength=3).min() > 60


def test_each_reg_of_a_path_prices_candidates_of_its_own(rng):
    x, y = plane(rng)
    program, gates = start(x, y, 0.1)
    seen = []

    def draw(key, count, x, _):
        jax.debug.callback(lambda data: seen.append(tuple(np.ravel(data).tolist())), jax.random.key_data(key))
        return jax.random.normal(key, (count, x.shape[1]), x.dtype)

    options = {"samplers": [draw], "max_cells": 1, "max_rounds": 1, "num_candidates": 64}
    with ignore_convergence_warnings():
        fx.discover_path(program, gates, np.array([0.3, 0.2, 0.1]), key=jax.random.key(0), **options)
    assert len(seen) == len(set(seen)) == 3
