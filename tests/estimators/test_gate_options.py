"""Gates of the estimators: random, from a sampler, given, from a function, discovered."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.base import clone

from fixntk.estimators import (
    GatedReLUClassifier,
    GatedReLUClassifierCV,
    GatedReLURegressor,
    GatedReLURegressorCV,
)
from fixntk.estimators.gate_options import GateOptions, draw_gates
from fixntk.gates import samplers


@pytest.fixture
def rows(rng):
    return np.column_stack([rng.standard_normal((40, 3)), np.ones(40)])


def test_samplers_get_the_rows_and_the_target(rows, rng):
    targets = rng.standard_normal((40, 1))
    gates = draw_gates(GateOptions("between_targets", 6, 4, 5), rows, targets)
    assert gates.shape == (6, 8)
    expected = samplers.between_targets(jax.random.key(5), 6, rows, targets[:, 0])
    np.testing.assert_allclose(gates[:, :4], expected, atol=1e-12)
    np.testing.assert_array_equal(gates[:, 4:], 0)


def test_of_several_targets_samplers_get_one_number_that_tells_classes_apart(rows):
    codes = np.arange(40) % 3
    seen = []

    def source(key, num_gates, x, y):
        seen.append(np.asarray(y))
        return jax.random.normal(key, (num_gates, x.shape[1]))

    draw_gates(GateOptions(source, 6, 4, 5), rows, 2 * np.eye(3)[codes] - 1)
    assert len(np.unique(seen[0])) == 3
    for code in range(3):
        assert len(np.unique(seen[0][codes == code])) == 1


def test_given_gates_are_taken_as_they_are(rows, rng):
    given = rng.standard_normal((3, 4))
    np.testing.assert_array_equal(draw_gates(GateOptions(given, 99, 4, 0), rows, np.zeros((40, 1)))[:, :4], given)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.ones((3, 5)), r"gates must have 4 columns, .*got shape \(3, 5\)"),
        (lambda *_: jnp.ones((3, 2)), "gates must have 4 columns"),
        (lambda *_: jnp.ones(4), "gates must"),
        (lambda *_: jnp.full((3, 4), jnp.nan), "gates"),
        (np.eye(4)[[0, 1]] * [[1], [0]], "gates must not be zero"),
    ],
)
def test_wrong_gates_are_named(rows, source, message):
    with pytest.raises(ValueError, match=message):
        draw_gates(GateOptions(source, 6, 4, 5), rows, np.zeros((40, 1)))


@pytest.mark.parametrize("estimator", [GatedReLURegressor(8), GatedReLUClassifierCV(8, regs=[0.1], num_folds=2)])
def test_an_unknown_name_lists_the_names(rows, estimator):
    with pytest.raises(ValueError, match=r"gates must be one of 'random', .*'through_points'.*got 'grid'"):
        clone(estimator).set_params(gates="grid").fit(rows, np.arange(40) % 2)


def first_rows(_key, num_gates, x, _y):
    return x[:num_gates]


@pytest.mark.parametrize(
    ("estimator", "y"),
    [
        (GatedReLURegressor(8, reg=0.1, random_state=0), np.sin(np.arange(40))),
        (GatedReLUClassifier(8, reg=0.1, random_state=0), np.arange(40) % 3),
        (GatedReLURegressorCV(8, regs=[0.1], num_folds=2, max_steps=1, random_state=0), np.sin(np.arange(40))),
        (GatedReLUClassifierCV(8, regs=[0.1], num_folds=2, max_steps=1, random_state=0), np.arange(40) % 3),
    ],
)
@pytest.mark.parametrize("source", ["between_targets", "array", "function"])
def test_every_gated_estimator_takes_gates_from_anywhere(rows, rng, estimator, y, source):
    gates = {"array": rng.standard_normal((5, 4)), "function": first_rows}.get(source, source)
    fitted = clone(estimator).set_params(gates=gates).fit(rows[:, :3], y)
    assert np.all(np.isfinite(fitted.predict(rows[:, :3]).astype(float)))
    assert fitted.gates_.shape[0] == (5 if source == "array" else 8)


def test_folds_draw_their_gates_from_their_own_training_rows(rows):
    calls = []

    def source(key, num_gates, x, _):
        calls.append(len(x))
        return jax.random.normal(key, (num_gates, x.shape[1]))

    GatedReLURegressorCV(8, gates=source, regs=[0.1], num_folds=4, max_steps=1).fit(rows[:, :3], np.arange(40.0))
    # All rows for the final fit, 30 for each of four folds.
    assert sorted(calls) == [30, 30, 30, 30, 40]


@pytest.mark.long
def test_discovered_gates_lower_the_objective_of_their_start(rng):
    x = rng.standard_normal((60, 4))
    y = np.maximum(x[:, 0], 0) - np.maximum(x[:, 1] + x[:, 2], 0)
    random = GatedReLURegressor(32, reg=0.01, random_state=0).fit(x, y)
    # The λ of the random fit, as λ/λ_max is that of the random gates in both.
    discovered = GatedReLURegressor(32, reg=0.01, random_state=0, gates="discovered").fit(x, y)
    assert float(discovered.solution_.primal) < 0.9 * float(random.solution_.primal)
    assert discovered.gap_ < 1e-5
    outputs = discovered.predict(x)
    assert np.mean((outputs - y) ** 2) < np.mean((random.predict(x) - y) ** 2)
