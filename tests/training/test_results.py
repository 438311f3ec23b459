"""Which network of a training counts as its best."""

import jax.numpy as jnp
import numpy as np
import pytest

import fixntk as fx
from fixntk.training.results import Training, TrainingHistory


def trained(objective, validation, num_networks=None):
    """A training whose k-th best network has hidden weights k."""
    numbers = jnp.arange(num_networks or 1, dtype=float)[:, None, None]
    stack = fx.ReLUNetwork(jnp.ones((1, 2, 3)) * numbers, jnp.ones((1, 2, 1)) * numbers)
    network = stack if num_networks else fx.ReLUNetwork(stack.hidden[0], stack.output[0])
    steps = np.arange(len(objective))
    return Training(
        network, network, TrainingHistory(steps, objective, validation, steps.astype(float)), np.bool_(False)
    )


@pytest.mark.parametrize(
    ("objective", "validation", "lowest"),
    [
        ([[3.0, 2.0, 9.0], [2.5, 2.0, 1.0]], None, 2),
        ([[3.0, 2.0, 0.5], [2.5, 2.0, 1.0]], None, 2),
        # What was monitored decides, at any record; diverged networks never win.
        ([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]], [[5.0, 1.0, 2.0], [0.1, 7.0, 2.0]], 0),
        ([[3.0, 1.0, 2.0], [3.0, np.nan, -np.inf]], None, 1),
    ],
)
def test_of_a_stack_the_lowest_finite_record_decides(objective, validation, lowest):
    training = trained(np.array(objective), None if validation is None else np.array(validation), 3)
    np.testing.assert_array_equal(training.lowest().hidden, np.full((2, 3), lowest))


def test_a_single_network_is_its_own_lowest():
    training = trained(np.array([3.0, 1.0, 2.0]), None)
    assert training.lowest() is training.best
