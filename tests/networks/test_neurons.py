"""Neurons: outputs by a loop, balancing and factoring against the inequality of the means and nuclear norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fixntk.networks import neurons
from fixntk.networks.neurons import Parameters


def drawn(rng, num_outputs=2, intercept=True):
    return Parameters(
        jnp.asarray(rng.standard_normal((6, 4))),
        jnp.asarray(rng.standard_normal((6, num_outputs))),
        jnp.asarray(rng.standard_normal(num_outputs)) if intercept else None,
    )


@pytest.mark.parametrize("intercept", [False, True])
def test_outputs_are_a_loop_over_neurons(rng, intercept):
    parameters, x = drawn(rng, intercept=intercept), rng.standard_normal((9, 4))
    masks = rng.random((9, 6)) < 0.5
    for given in (None, masks):
        expected = np.zeros((9, 2)) + (np.asarray(parameters.intercept) if intercept else 0)
        for i in range(9):
            for j in range(6):
                inner = x[i] @ np.asarray(parameters.hidden[j])
                is_on = inner > 0 if given is None else given[i, j]
                expected[i] += is_on * inner * np.asarray(parameters.output[j])
        found = neurons.outputs(parameters, jnp.asarray(x), None if given is None else jnp.asarray(given))
        np.testing.assert_allclose(found, expected, atol=1e-12)
    expected_decay = 0.5 * (np.sum(parameters.hidden**2) + np.sum(parameters.output**2))
    np.testing.assert_allclose(neurons.weight_decay(parameters), expected_decay, rtol=1e-12)
    assert neurons.count_parameters(parameters) == 6 * 4 + 6 * 2 + 2 * intercept


def test_balanced_neurons_have_the_same_products_and_the_least_weight_decay(rng):
    hidden, output, _ = drawn(rng)
    hidden = hidden.at[2].set(0)
    new_hidden, new_output = neurons.balance(hidden, output)
    products = [np.outer(*pair) for pair in zip(hidden, output, strict=True)]
    for product, *pair in zip(products, new_hidden, new_output, strict=True):
        np.testing.assert_allclose(np.outer(*pair), product, atol=1e-13)
    sizes = [np.linalg.norm(part, axis=1) for part in (new_hidden, new_output)]
    np.testing.assert_allclose(*sizes, rtol=1e-12)
    assert sizes[1][2] == 0
    # By the inequality of the means no rescaling has less than Σ ‖w_j‖ ‖v_j‖.
    least = sum(np.linalg.norm(product) for product in products)
    np.testing.assert_allclose(neurons.weight_decay(Parameters(new_hidden, new_output, None)), least, rtol=1e-12)
    for _ in range(10):
        factor = np.exp(0.3 * rng.standard_normal((6, 1)))
        moved = Parameters(new_hidden * factor, new_output / factor, None)
        assert float(neurons.weight_decay(moved)) > least


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 3), (5, 2, 3)])
def test_the_neurons_of_a_gate_add_up_to_its_group_with_its_nuclear_norm(rng, shape):
    gates, weights = rng.standard_normal((5, shape[1])), rng.standard_normal(shape)
    weights[1] = 0
    # A group of rank one needs one neuron only; the others are zero.
    weights[2] = np.multiply.outer(rng.standard_normal(shape[1]), rng.standard_normal(shape[2:]))
    new_gates, hidden, output = neurons.factor_groups(jnp.asarray(gates), jnp.asarray(weights))
    groups = weights.reshape(5, shape[1], -1)
    for gate, group in zip(gates, groups, strict=True):
        of_gate = np.flatnonzero(np.all(np.asarray(new_gates) == gate, axis=1))
        assert len(of_gate) == min(group.shape)
        np.testing.assert_allclose(np.asarray(hidden)[of_gate].T @ np.asarray(output)[of_gate], group, atol=1e-12)
    sizes = [np.linalg.norm(part, axis=1) for part in (hidden, output)]
    np.testing.assert_allclose(*sizes, atol=1e-12)
    nuclear = sum(np.linalg.norm(group, "nuc") for group in groups)
    np.testing.assert_allclose(neurons.weight_decay(Parameters(hidden, output, None)), nuclear, rtol=1e-12)
    assert np.sum(sizes[0] > 0) == 3 * min(groups.shape[1:]) + 1


def test_large_neurons_are_those_above_the_share_or_the_largest():
    hidden = jnp.array([[3.0, 4.0], [0.0, 0.1], [1.0, 0.0]])
    parameters = Parameters(hidden, jnp.array([[1.0], [2.0], [-1.0]]), None)
    # Sizes 5, 0.2 and 1.
    for share, kept in ((0.0, [0, 1, 2]), (0.1, [0, 2]), (0.5, [0]), (2.0, [0])):
        np.testing.assert_array_equal(neurons.large_neurons(parameters, share), kept)
    zero = jax.tree.map(jnp.zeros_like, parameters)
    np.testing.assert_array_equal(neurons.large_neurons(zero, 0.1), [0])
    with pytest.raises(ValueError, match="pruned depends on values"):
        jax.jit(lambda p: jnp.asarray(neurons.large_neurons(p, 0.1)))(parameters)


def test_sampled_parameters_have_the_variances_one_over_the_numbers_of_inputs(key):
    found = neurons.sample_parameters(key, 4000, 9, 5, True)
    assert (found.hidden.shape, found.output.shape, found.intercept.shape) == ((4000, 9), (4000, 5), (5,))
    np.testing.assert_allclose(np.var(found.hidden), 1 / 9, rtol=0.05)
    np.testing.assert_allclose(np.var(found.output), 1 / 4000, rtol=0.05)
    assert not np.any(found.intercept)
    # Independent of each other.
    correlation = np.corrcoef(found.hidden[:, 0], found.output[:, 0])[0, 1]
    assert abs(correlation) < 0.1
    assert neurons.sample_parameters(key, 3, 2, None, False).intercept is None


def test_bad_sizes_and_inputs_are_named(key, rng):
    with pytest.raises(ValueError, match="width must be at least 1"):
        neurons.sample_parameters(key, 0, 9, 5, True)
    with pytest.raises(ValueError, match="x and hidden must have the same number of columns"):
        neurons.as_inputs(np.ones((2, 3)), drawn(rng))
