import jax
import numpy as np
import pytest
from test_arrangements import DATA

import fixntk as fx

LOW_RANK = [name for name in DATA if np.linalg.matrix_rank(DATA[name]) <= 3]


@pytest.mark.parametrize("name", LOW_RANK)
def test_exact_weights_sum_to_one(name):
    weights, errors = fx.arrangement_weights(DATA[name], fx.enumerate_arrangements(DATA[name]))
    assert float(weights.min()) > 0
    np.testing.assert_allclose(weights.sum(), 1, atol=1e-12)
    np.testing.assert_array_equal(errors, 0)


@pytest.mark.parametrize("name", LOW_RANK)
def test_exact_weights_make_the_ntk(name):
    arrangements = fx.enumerate_arrangements(DATA[name])
    weights, _ = fx.arrangement_weights(DATA[name], arrangements)
    kernel, ntk = fx.masked_gram(weights, arrangements.masks, DATA[name]), fx.gated_relu_ntk(DATA[name])
    np.testing.assert_allclose(kernel, ntk, atol=1e-10 * float(ntk.max()))


@pytest.mark.parametrize("num_rows", [3, 40, 200])
def test_many_polygons_make_the_ntk(rng, num_rows):
    x = rng.standard_normal((num_rows, 3))
    arrangements = fx.enumerate_arrangements(x)
    weights, _ = fx.arrangement_weights(x, arrangements)
    np.testing.assert_allclose(fx.masked_gram(weights, arrangements.masks, x), fx.gated_relu_ntk(x), atol=1e-10)


def test_exact_weights_are_the_shares_of_random_gates(rng, key):
    x = rng.standard_normal((6, 3))
    arrangements = fx.enumerate_arrangements(x)
    weights, _ = fx.arrangement_weights(x, arrangements)
    hits = np.asarray(fx.activation_masks(x, fx.sample_gates(key, 100_000, 3)))
    shares = [np.mean(np.all(hits == column[:, None], axis=0)) for column in np.asarray(arrangements.masks).T]
    errors = np.sqrt(weights * (1 - weights) / 100_000)
    assert np.max(np.abs(np.asarray(shares) - weights) / errors) < 5


def test_octants_have_an_eighth_each():
    weights, _ = fx.arrangement_weights(np.eye(3), fx.enumerate_arrangements(np.eye(3)))
    np.testing.assert_allclose(weights, 1 / 8, rtol=1e-14)


def test_weights_of_some_cells_are_those_of_all(rng):
    x = rng.standard_normal((20, 3))
    arrangements = fx.enumerate_arrangements(x)
    weights, _ = fx.arrangement_weights(x, arrangements)
    some = fx.Arrangements(arrangements.masks[:, 5:9], arrangements.gates[5:9])
    np.testing.assert_allclose(fx.arrangement_weights(x, some)[0], weights[5:9], rtol=1e-12)


def test_monte_carlo_weights_are_within_their_errors_of_the_exact_ones(key):
    # Four orthogonal rows: sixteen equal cells.
    arrangements = fx.enumerate_arrangements(np.eye(4))
    weights, errors = fx.arrangement_weights(np.eye(4), arrangements, key=key, num_samples=50_000)
    np.testing.assert_allclose(weights.sum(), 1, atol=1e-12)
    np.testing.assert_allclose(errors, np.sqrt(1 / 16 * 15 / 16 / 50_000), rtol=0.05)
    assert float(np.max(np.abs(weights - 1 / 16) / errors)) < 4


def test_monte_carlo_depends_on_the_key_alone(rng):
    x = rng.standard_normal((6, 4))
    arrangements = fx.enumerate_arrangements(x)
    first, again, other = (
        fx.arrangement_weights(x, arrangements, key=jax.random.key(seed), num_samples=1000)[0] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def test_cells_never_hit_still_have_an_error(rng, key):
    x = rng.standard_normal((12, 5))
    weights, errors = fx.arrangement_weights(x, fx.enumerate_arrangements(x), key=key, num_samples=10)
    assert np.any(weights == 0)
    assert np.all(errors > 0)


def test_gates_outside_their_cells_are_refused(rng):
    x = rng.standard_normal((5, 3))
    arrangements = fx.enumerate_arrangements(x)
    wrong = fx.Arrangements(arrangements.masks, arrangements.gates[::-1])
    with pytest.raises(ValueError, match=r"arrangements\.gates: .* do not lie inside the cell"):
        fx.arrangement_weights(x, wrong)


def test_arrangements_of_other_data_are_refused(rng):
    arrangements = fx.enumerate_arrangements(rng.standard_normal((5, 3)))
    with pytest.raises(ValueError, match="do not fit together"):
        fx.arrangement_weights(rng.standard_normal((6, 3)), arrangements)
