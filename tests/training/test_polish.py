"""Gates that move: objectives fall, the result is optimal over its cells, and near the optimum over all cells."""

import jax
import numpy as np
import optax
import pytest

import fixntk as fx
from fixntk.training.polish import _move_into_cells

STEPS = {"num_steps": 500, "max_rounds": 2}


def planted(seed=0, num_rows=40, num_features=3, **options):
    """A program of a planted ReLU network of two neurons, and random gates."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num_rows, num_features))
    y = np.maximum(x @ rng.standard_normal((num_features, 2)), 0) @ np.array([1.0, -1.5])
    gates = rng.standard_normal((6, num_features))
    program = fx.ConvexProgram(x, y + 0.05 * rng.standard_normal(num_rows), x @ gates.T >= 0, 1.0, **options)
    return program.with_reg(0.02 * program.max_reg()), gates


@pytest.mark.parametrize("options", [{}, {"intercept": True, "sample_weight": np.linspace(0.2, 1.5, 40)}])
def test_objectives_are_the_networks_and_fall(options):
    program, gates = planted(**options)
    found = fx.polish(program, gates, tol=1e-8, **STEPS)
    assert np.all(np.diff(found.objectives) < 0)
    weights = program.sample_weight
    objective = fx.network_objective(found.network, program.x, program.y, program.reg, sample_weight=weights)
    np.testing.assert_allclose(objective, found.objectives[-1], rtol=1e-9)
    assert found.solution.converged
    # It is the optimum over its cells: the same from the program itself.
    masks = fx.activation_masks(program.x, found.gates)
    options["intercept"] = options.get("intercept", False)
    again = fx.solve_relu(fx.ConvexProgram(program.x, program.y, masks, program.reg, **options), found.gates, tol=1e-8)
    np.testing.assert_allclose(again.primal, found.objectives[-1], rtol=1e-7)
    # The gates that it started from have a higher optimum.
    assert found.objectives[-1] < 0.9 * fx.solve_relu(program, gates, tol=1e-6).primal


def test_it_comes_near_the_optimum_over_all_cells():
    program, gates = planted(1, num_features=2)
    cells = fx.enumerate_arrangements(program.x)
    optimum = fx.solve_relu(fx.ConvexProgram(program.x, program.y, cells.masks, program.reg), cells.gates, tol=1e-8)
    found = fx.polish(program, gates, tol=1e-8, num_steps=2000)
    assert optimum.dual <= found.objectives[-1] <= 1.02 * optimum.primal
    # From the optimal cells there is nothing to gain.
    is_used = np.any(np.asarray(optimum.positive) != 0, 1) | np.any(np.asarray(optimum.negative) != 0, 1)
    again = fx.polish(program, np.asarray(cells.gates)[is_used], tol=1e-8, num_steps=2000)
    np.testing.assert_allclose(again.objectives[-1], optimum.primal, rtol=1e-2)


def test_neurons_where_cells_meet_are_moved_into_one(rng):
    x = rng.standard_normal((30, 4)).astype(np.float32)
    x[29] = 0
    # The first has three rows on its boundary, the second none; for the last one rows depend on one another.
    on_three = np.linalg.svd(x[:3])[2][3]
    x[7] = -x[6]
    on_opposite = np.linalg.svd(np.stack([x[6], x[11], x[12]]))[2][3]
    hidden = np.stack([on_three, rng.standard_normal(4), on_opposite]).astype(np.float32)
    gates = _move_into_cells(x, hidden)
    assert gates.shape == (2, 4)
    np.testing.assert_array_equal(gates[1], hidden[1])
    np.testing.assert_allclose(gates[0], hidden[0], atol=1e-4)
    for cell, neuron in zip(gates, hidden[:2], strict=True):
        margins, before = x[:29].astype(float) @ cell, x[:29].astype(float) @ neuron
        assert np.abs(margins).min() > 1e-7
        # Only rows on the boundary change their side, to the active one.
        changed = np.sign(margins) != np.sign(before)
        assert np.all(np.abs(before[changed]) < 1e-5)
        assert np.all(margins[np.abs(before) < 1e-6] > 0)


def test_it_works_in_single_precision():
    program, gates = planted(4)
    narrow = fx.ConvexProgram(*(np.asarray(a, np.float32) for a in (program.x, program.y)), program.masks, program.reg)
    found = fx.polish(narrow, gates.astype(np.float32), **STEPS)
    assert found.network.hidden.dtype == np.float32
    wide = fx.polish(program, gates, **STEPS)
    np.testing.assert_allclose(found.objectives[-1], wide.objectives[-1], rtol=0.05)


def test_units_of_inputs_and_targets_do_not_matter():
    program, gates = planted(2)
    found = fx.polish(program, gates, **STEPS)
    a, b = 2.0**10, 2.0**-12
    scaled = fx.ConvexProgram(a * program.x, b * program.y, program.masks, a * b * program.reg)
    other = fx.polish(scaled, gates, **STEPS)
    np.testing.assert_allclose(other.objectives, b**2 * found.objectives, rtol=1e-5)
    fresh = np.random.default_rng(3).standard_normal((20, 3))
    np.testing.assert_allclose(other.network(a * fresh), b * found.network(fresh), rtol=1e-3, atol=1e-4 * b)


def test_a_round_that_lowers_nothing_is_not_kept():
    program, gates = planted(3)
    # Steps of zero leave the network, and its cells' optimum is kept; a second round finds nothing lower.
    found = fx.polish(program, gates, optimizer=optax.sgd(0.0), num_steps=1, max_rounds=5, least_fall=1e-9)
    assert len(found.objectives) <= 3
    assert found.objectives[1] < found.objectives[0]


def test_it_generalises_where_the_target_is_a_relu_network():
    rng = np.random.default_rng(0)
    x, fresh = rng.standard_normal((150, 5)), rng.standard_normal((500, 5))
    inner, outer = rng.standard_normal((5, 2)), np.array([1.0, -1.0])

    def truth(rows):
        return np.maximum(rows @ inner, 0) @ outer

    gates = fx.sample_gates(jax.random.key(0), 30, 5)
    program = fx.ConvexProgram(x, truth(x) + 0.1 * rng.standard_normal(150), fx.activation_masks(x, gates), 1.0)
    program = program.with_reg(0.02 * program.max_reg())
    gated = fx.solve(program)
    found = fx.polish(program, gates, num_steps=2000, max_rounds=1)
    errors = [np.mean((outputs - truth(fresh)) ** 2) for outputs in (gated.predict(fresh, gates), found.network(fresh))]
    assert errors[1] < 0.3 * errors[0]


def test_the_callback_sees_each_round_and_ends_it(capsys):
    program, gates = planted()
    seen = []
    found = fx.polish(program, gates, callback=lambda each: seen.append(each) or True, progress=True, **STEPS)
    assert len(seen) == 1
    assert seen[0] is found
    assert "polish" in capsys.readouterr().err
    assert f"{len(found.gates)} cells" in repr(found)


def test_an_interruption_returns_the_last_round():
    program, gates = planted()

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(fx.Interrupted) as ended:
        fx.polish(program, gates, callback=interrupt, **STEPS)
    assert len(ended.value.result.objectives) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ridge": 0.1}, "no ridge"),
        ({"penalty_weights": np.ones(6)}, "no penalty weights"),
        ({"loss": "huber"}, "squared loss"),
    ],
)
def test_other_programs_are_refused(options, message):
    program, gates = planted()
    other = fx.ConvexProgram(program.x, program.y, program.masks, 0.1, **options)
    with pytest.raises(ValueError, match=message):
        fx.polish(other, gates)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gates": np.ones((2, 5))}, "gates"),
        ({"max_rounds": 0}, "max_rounds"),
        ({"num_steps": -1}, "num_steps"),
        ({"least_fall": 0.0}, "least_fall must be positive"),
    ],
)
def test_bad_arguments_are_named(change, message):
    program, gates = planted()
    with pytest.raises(ValueError, match=message):
        fx.polish(program, **({"gates": gates} | change))


@pytest.mark.wrong_types
def test_something_else_is_no_program():
    with pytest.raises(TypeError, match="program must be a ConvexProgram, got ndarray"):
        fx.polish(np.ones((3, 2)), np.ones((1, 2)))
