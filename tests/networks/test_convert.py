"""Networks from convex weights: outputs by a loop, and the weight decay that the program counts."""

import jax
import numpy as np
import pytest

from fixntk.networks.convert import from_group_weights, from_signed_cones


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3)])
def test_group_weights_and_their_network_have_the_same_outputs_everywhere(rng, shape):
    gates, weights, x = rng.standard_normal((5, 4)), rng.standard_normal(shape), rng.standard_normal((20, 4))
    weights[3] = 0
    intercept = np.arange(1.0, 1 + (shape[2] if len(shape) == 3 else 1))
    network = from_group_weights(gates, weights, jax.numpy.asarray(intercept))
    groups = weights.reshape(5, 4, -1)
    expected = intercept + sum(
        (x @ gate >= 0)[:, None] * (x @ group) for gate, group in zip(gates, groups, strict=True)
    )
    np.testing.assert_allclose(network(x), expected, atol=1e-12)
    # The group of zeros has no neurons.
    assert network.hidden.shape[0] == 4 * min(groups.shape[1:])
    nuclear = sum(np.linalg.norm(group, "nuc") for group in groups)
    np.testing.assert_allclose(network.weight_decay(), nuclear, rtol=1e-12)


def test_a_pair_of_cones_is_a_relu_network_of_their_difference_and_of_their_norms(rng):
    positive, negative, x = rng.standard_normal((3, 4)), rng.standard_normal((3, 4)), rng.standard_normal((20, 4))
    positive[1] = negative[0] = 0
    network = from_signed_cones(positive, negative, squeeze=True)
    expected = np.maximum(x @ positive.T, 0).sum(axis=1) - np.maximum(x @ negative.T, 0).sum(axis=1)
    np.testing.assert_allclose(network(x), expected, atol=1e-12)
    assert network.hidden.shape == (4, 4)
    norms = np.linalg.norm(positive, axis=1).sum() + np.linalg.norm(negative, axis=1).sum()
    np.testing.assert_allclose(network.weight_decay(), norms, rtol=1e-12)


def test_gates_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"gates must have shape \(5, 4\), as the weights have groups, got \(3, 4\)"):
        from_group_weights(np.ones((3, 4)), np.ones((5, 4)))


@pytest.mark.parametrize("shape", [(2, 4), (3, 5)])
def test_cones_of_different_shapes_are_named(rng, shape):
    with pytest.raises(ValueError, match=r"negative must have positive's shape \(3, 4\)"):
        from_signed_cones(rng.standard_normal((3, 4)), rng.standard_normal(shape))
