"""Networks from convex weights: outputs, objectives, merging, pruning, and ReLU networks by cones (M10)."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from problems import random_problem

import fixntk as fx
from fixntk.convex.penalties import NORMS
from fixntk.convex.program import targets_of


def objective(network, program):
    """From the definition, in NumPy."""
    outputs = np.asarray(network(program.x)).reshape(program.x.shape[0], -1)
    decay = 0.5 * (np.sum(np.asarray(network.hidden) ** 2) + np.sum(np.asarray(network.output) ** 2))
    return 0.5 * np.sum((outputs - np.asarray(targets_of(program))) ** 2) + float(program.reg) * decay


def gated(seed=0, **options):
    """A program, its gates and its solution."""
    program = random_problem(seed, **options)
    gates = jax.random.normal(jax.random.key(seed), (25, program.x.shape[1]))
    masks = fx.activation_masks(program.x, gates)
    program = fx.ConvexProgram(
        program.x, program.y, masks, program.reg, intercept=program.column is not None, norm=program.norm.name
    )
    return program, gates, fx.solve(program, tol=1e-10)


def test_one_output_has_the_objective_of_the_convex_program():
    program, gates, solution = gated()
    network = solution.to_network(gates)
    assert network.hidden.shape[0] == int(jnp.sum(jnp.any(solution.weights != 0, axis=(1, 2)))) < 25
    np.testing.assert_allclose(objective(network, program), solution.primal, rtol=1e-12)
    np.testing.assert_allclose(network.weight_decay(), jnp.sum(solution.kernel_weights), rtol=1e-12)
    fresh = np.random.default_rng(1).standard_normal((7, 4))
    np.testing.assert_allclose(network(fresh), solution.predict(fresh, gates), atol=1e-13)
    assert network(fresh).shape == (7,)


def test_several_outputs_have_the_nuclear_norm_for_weight_decay():
    program, gates, solution = gated(num_outputs=3, norm="nuclear")
    network = solution.to_network(gates)
    np.testing.assert_allclose(objective(network, program), solution.primal, rtol=1e-9)
    shared, _, frobenius = gated(num_outputs=3)
    network = frobenius.to_network(gates)
    np.testing.assert_allclose(network(shared.x), frobenius.predict(shared.x, gates), atol=1e-12)
    nuclear = jnp.sum(NORMS["nuclear"].values(frobenius.weights))
    np.testing.assert_allclose(network.weight_decay(), nuclear, rtol=1e-10)
    assert float(nuclear) > float(jnp.sum(frobenius.kernel_weights))


def test_an_intercept_goes_along_and_is_not_decayed():
    program, gates, solution = gated(intercept=True)
    network = solution.to_network(gates)
    np.testing.assert_allclose(objective(network, program), solution.primal, rtol=1e-12)
    assert network.num_parameters == network.hidden.size + network.output.size + 1
    assert gated()[2].to_network(gates).intercept is None


def test_conversion_goes_through_jit_and_keeps_every_neuron():
    program, gates, solution = gated()
    traced = jax.jit(lambda s: s.to_network(gates))(solution)
    assert traced.hidden.shape == gates.shape
    np.testing.assert_allclose(traced(program.x), solution.to_network(gates)(program.x), atol=1e-13)


def test_merging_keeps_outputs_and_lowers_weight_decay():
    network = fx.GatedReLUNetwork.sample(
        jax.random.key(0), 40, 3, num_outputs=2, gates=np.random.default_rng(0).standard_normal((4, 3))
    )
    x = np.random.default_rng(1).standard_normal((30, 3))
    merged = network.merged()
    assert merged.hidden.shape[0] == 4 * 2
    np.testing.assert_allclose(merged(x), network(x), atol=1e-13)
    assert float(merged.weight_decay()) < float(network.weight_decay())
    groups = [
        np.asarray(network.hidden)[p::4].T @ np.asarray(network.output)[p::4] for p in range(4)
    ]  # gates are used in turn
    nuclear = sum(np.linalg.norm(group, "nuc") for group in groups)
    np.testing.assert_allclose(merged.weight_decay(), nuclear, rtol=1e-12)


def test_merging_on_data_joins_gates_of_one_mask():
    x = np.random.default_rng(0).standard_normal((5, 2))
    network = fx.GatedReLUNetwork.sample(jax.random.key(1), 200, 2)
    merged = network.merged(x)
    assert merged.hidden.shape[0] <= fx.cover_count(5, 2)
    np.testing.assert_allclose(merged(x), network(x), atol=1e-13)


def test_pruning_drops_what_is_small_and_never_all():
    hidden, output = jnp.diag(jnp.array([1.0, 1e-3, 0.0])), jnp.ones((3, 1))
    network = fx.ReLUNetwork(hidden, output)
    assert network.pruned().hidden.shape == (2, 3)
    assert network.pruned(0.01).hidden.shape == (1, 3)
    assert fx.ReLUNetwork(jnp.zeros((3, 3)), output).pruned().hidden.shape == (1, 3)


class TestOutputs(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(fx.GatedReLUNetwork, fx.ReLUNetwork)
    def test_outputs_are_the_sum_over_neurons(self, network_type):
        network = network_type.sample(jax.random.key(0), 6, 3, num_outputs=2, intercept=True)
        network = network.with_parameters(network.parameters._replace(intercept=jnp.array([1.0, -2.0])))
        x = np.random.default_rng(0).standard_normal((9, 3))
        gates = np.asarray(network.gates if network_type is fx.GatedReLUNetwork else network.hidden)
        expected = np.tile([1.0, -2.0], (9, 1))
        for i, j in itertools.product(range(9), range(6)):
            if x[i] @ gates[j] >= 0:
                expected[i] += (x[i] @ np.asarray(network.hidden)[j]) * np.asarray(network.output)[j]
        np.testing.assert_allclose(self.variant(lambda n, x: n(x))(network, x), expected, atol=1e-13)
        assert network.num_parameters == 6 * 3 + 6 * 2 + 2


@pytest.mark.parametrize("method", ["minimum_norm", "interior"])
@pytest.mark.parametrize("num_outputs", [None, 3])
def test_relu_networks_have_the_same_outputs_on_the_data(dtype, method, num_outputs):
    program, gates, solution = gated(2, num_outputs=num_outputs)
    network = solution.to_network(gates)
    network = jax.tree.map(lambda leaf: leaf.astype(dtype), network)
    relu = network.to_relu(program.x.astype(dtype), method=method, tol=1e-3)
    assert relu.hidden.dtype == dtype
    scale = float(jnp.max(jnp.linalg.norm(relu.hidden, axis=1) ** 2))
    error = float(jnp.max(jnp.abs(relu(program.x.astype(dtype)) - network(program.x.astype(dtype)))))
    assert error <= 100 * float(jnp.finfo(dtype).eps) * scale


def test_bad_input_is_named():
    program, gates, solution = gated()
    with pytest.raises(ValueError, match="gates must have shape"):
        solution.to_network(gates[:3])
    with pytest.raises(ValueError, match="25 of 25 do not; are they those of other data"):
        solution.to_network(-gates, program)
    network = solution.to_network(gates, program)
    with pytest.raises(ValueError, match="x and hidden must have the same number of columns"):
        network(np.ones((3, 7)))
    with pytest.raises(ValueError, match="gates and hidden must have one shape"):
        fx.GatedReLUNetwork(gates[:3], network.hidden, network.output)(program.x)
    with pytest.raises(ValueError, match="method must be one of"):
        network.to_relu(program.x, method="best")
    on_boundary = fx.GatedReLUNetwork(jnp.array([[0.0, 1.0]]), jnp.ones((1, 2)), jnp.ones((1, 1)))
    with pytest.raises(ValueError, match="gate 0 has"):
        on_boundary.to_relu(np.array([[1.0, 0.0], [-1.0, 0.0]]))
    with pytest.raises(ValueError, match="cannot be traced"):
        jax.jit(lambda n: n.merged().hidden)(network)
    with pytest.warns(fx.ConvergenceWarning, match="decompositions are up to"):
        network.to_relu(program.x, max_iter=2)
