"""Samplers: where their hyperplanes lie."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fixntk.gates import samplers

KEY = jax.random.key(0)


@pytest.fixture(params=[False, True], ids=["through the origin", "with a bias column"])
def x(request, rng):
    rows = rng.standard_normal((30, 4))
    return np.column_stack([rows[:, :2], np.full(30, 2.5), rows[:, 2:]]) if request.param else rows


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_every_sampler_is_called_alike_and_obeys_its_key(name, x):
    y = np.arange(30) % 3
    gates = samplers.SAMPLERS[name](KEY, 7, x, y)
    assert gates.shape == (7, x.shape[1])
    assert gates.dtype == jnp.float64
    np.testing.assert_array_equal(gates, samplers.SAMPLERS[name](KEY, 7, x, y))
    assert not np.array_equal(gates, samplers.SAMPLERS[name](jax.random.key(1), 7, x, y))
    jitted = jax.jit(lambda x, y: samplers.SAMPLERS[name](KEY, 7, x, y))(x, y)
    np.testing.assert_allclose(jitted, gates, atol=1e-12)


def test_gaussian_gates_have_the_scale_of_the_bias_column(x):
    gates = np.asarray(samplers.gaussian(KEY, 4000, x, bias_scale=3.0))
    expected = np.ones(x.shape[1])
    if x.shape[1] == 5:
        expected[2] = 3.0
    np.testing.assert_allclose(gates.std(axis=0), expected, rtol=0.05)


def test_hyperplanes_pass_through_d_minus_1_rows(x):
    gates = np.asarray(samplers.through_points(KEY, 20, x))
    distances = np.sort(np.abs(x @ gates.T), axis=0)
    d = x.shape[1]
    assert np.all(distances[: d - 1] < 1e-13)
    assert np.all(distances[d - 1] > 1e-6)


def test_dependent_and_few_rows_leave_hyperplanes_of_the_other_directions(rng):
    rows = rng.standard_normal((2, 5))
    few = np.asarray(samplers.through_points(KEY, 6, rows))
    assert np.all(np.abs(rows @ few.T) < 1e-13)
    dependent = np.repeat(rows, 10, axis=0)
    gates = np.asarray(samplers.through_points(KEY, 6, dependent))
    np.testing.assert_allclose(np.linalg.norm(gates, axis=1), 1, rtol=1e-12)
    # Four rows are drawn, of one or both kinds.
    assert np.all(np.min(np.abs(rows @ gates.T), axis=0) < 1e-13)


def test_one_column_has_no_rows_to_pass_through():
    assert samplers.through_points(KEY, 3, np.ones((4, 1))).shape == (3, 1)


@pytest.mark.parametrize("sampler", [samplers.between_classes, samplers.between_targets])
def test_a_hyperplane_is_halfway_between_two_rows_of_different_targets(sampler, x):
    y = np.arange(30) % 2
    gates = np.asarray(sampler(KEY, 15, x, y))
    products = x @ gates.T
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    # Rows at the same distance on both sides: of the planes, or without a bias column at the same angle.
    values = products if x.shape[1] == 5 else products / lengths
    for column in values.T:
        sums = np.abs(column[y == 0][:, None] + column[y == 1][None, :])
        assert sums.min() < 1e-12


def test_pairs_are_drawn_in_proportion_to_the_difference_of_targets():
    # Row 0 differs from rows 1 and 2 by 1 and 9; rows 1 and 2 by 8.
    x, y = np.array([[0.0, 1.0], [1.0, 1.0], [5.0, 1.0]]), np.array([0.0, 1.0, 9.0])
    gates = np.asarray(samplers.between_targets(KEY, 20000, x, y))
    midpoints = np.round(-gates[:, 1] / gates[:, 0], 6)
    shares = {value: np.mean(midpoints == value) for value in (0.5, 2.5, 3.0)}
    # (0, 1): from 0 with 1/10, from 1 with 1/9; (0, 2): 9/10, 9/17; (1, 2): 8/9, 8/17; each start has chance 1/3.
    expected = {0.5: (1 / 10 + 1 / 9) / 3, 2.5: (9 / 10 + 9 / 17) / 3, 3.0: (8 / 9 + 8 / 17) / 3}
    for value, share in expected.items():
        assert shares[value] == pytest.approx(share, abs=0.01)


def test_gates_around_others_stay_near_them(x, rng):
    centres = rng.standard_normal((3, x.shape[1]))
    gates = np.asarray(samplers.around_gates(KEY, 200, x, gates=centres, spread=0.01))
    units = centres / np.linalg.norm(centres, axis=1, keepdims=True)
    nearest = np.max(gates @ units.T, axis=1)
    assert np.all(nearest > 1 - 1e-3)
    assert len(np.unique(np.argmax(gates @ units.T, axis=1))) == 3


def test_rows_of_one_direction_still_give_gates():
    gates = samplers.between_classes(KEY, 5, np.array([[1.0], [2.0], [0.0]]), np.array([0, 1, 1]))
    assert np.all(np.isfinite(gates))
    assert np.all(np.any(np.asarray(gates) != 0, axis=1))


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(samplers.between_classes, y=None), "y must be given"),
        (samplers.between_targets, "y must be given"),
        (partial(samplers.between_targets, y=np.ones(30)), "y must hold at least two different values"),
        (partial(samplers.between_classes, y=np.arange(29)), "same number of rows"),
        (partial(samplers.between_classes, y=np.eye(30)), r"y must have shape \(n,\)"),
        (partial(samplers.gaussian, bias_scale=0.0), "bias_scale must be positive"),
        (partial(samplers.around_gates, gates=np.ones((2, 9))), "same number of columns"),
        (partial(samplers.around_gates, gates=np.ones((2, 4)), spread=-1), "spread must be positive"),
    ],
)
def test_wrong_arguments_are_named(call, message, rng):
    with pytest.raises(ValueError, match=message):
        call(KEY, 3, rng.standard_normal((30, 4)))


def test_a_number_of_gates_is_positive(rng):
    for sampler in samplers.SAMPLERS.values():
        with pytest.raises(ValueError, match="num_gates must be at least 1"):
            sampler(KEY, 0, rng.standard_normal((30, 4)), np.arange(30))
