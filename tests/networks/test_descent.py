"""Descent on stacks of networks: against a plain Adam in NumPy, with units, padding and batches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fixntk as fx
from fixntk.networks import descent
from fixntk.networks.descent import adam, descend, sample_stack

NUM_STEPS, RATE = 30, 0.01


@pytest.fixture
def rows(rng):
    x, targets = rng.standard_normal((40, 3)), rng.standard_normal((40, 2))
    return x, targets, rng.uniform(0.2, 2, 40)


def stack_of(size, columns, num_outputs=2):
    return sample_stack(jax.random.key(1), jnp.asarray(columns, float), size=size, width=7, num_outputs=num_outputs)


def gradients(hidden, output, intercept, x, targets, weights, reg):
    """Of ½ Σ ω ‖f − y‖² + λ/2 (‖w‖² + ‖v‖²), written out."""
    inner = x @ hidden.T
    active = np.maximum(inner, 0)
    residual = weights[:, None] * (active @ output + intercept - targets)
    of_inner = residual @ output.T * (inner > 0)
    return [of_inner.T @ x + reg * hidden, active.T @ residual + reg * output, residual.sum(axis=0)]


def adam_in_numpy(parameters, x, targets, weights, reg):
    """Adam as published, with its usual constants, on inputs and targets of root mean square one."""
    total = weights.sum()
    a, b = (np.sqrt((weights @ values**2 / total).mean()) for values in (x, targets))
    parameters = [np.sqrt(a / b) * parameters[0], np.sqrt(a / b) * parameters[1], parameters[2] / b]
    first, second = ([np.zeros_like(each) for each in parameters] for _ in range(2))
    for step in range(1, NUM_STEPS + 1):
        found = gradients(*parameters, x / a, targets / b, weights, reg / (a * b))
        for k, gradient in enumerate(found):
            first[k] = 0.9 * first[k] + 0.1 * gradient
            second[k] = 0.999 * second[k] + 0.001 * gradient**2
            corrected = first[k] / (1 - 0.9**step), second[k] / (1 - 0.999**step)
            parameters[k] = parameters[k] - RATE * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
    return np.sqrt(b / a) * parameters[0], np.sqrt(b / a) * parameters[1], b * parameters[2]


def test_each_network_of_a_stack_takes_the_steps_of_adam_at_its_own_reg(rows):
    x = rows[0]
    regs = np.array([0.5, 5.0])
    start = stack_of(2, [1, 1, 1])
    found = descend(start, *map(jnp.asarray, rows), jnp.asarray(regs), num_steps=NUM_STEPS, optimizer=optax.adam(RATE))
    for k, reg in enumerate(regs):
        hidden, output, intercept = adam_in_numpy([np.asarray(leaf[k]) for leaf in start.parameters], *rows, reg)
        expected = np.maximum(x @ hidden.T, 0) @ output + intercept
        network = jax.tree.map(lambda leaf: leaf[k], found)  # noqa: B023  # Used in this round only.
        np.testing.assert_allclose(network(x), expected, atol=1e-9)
        np.testing.assert_allclose(
            jnp.linalg.norm(network.hidden, axis=1), jnp.linalg.norm(network.output, axis=1), rtol=1e-12
        )
        decay = np.sum(np.linalg.norm(hidden, axis=1) * np.linalg.norm(output, axis=1))
        assert float(network.weight_decay()) == pytest.approx(decay, rel=1e-9)


def test_rows_and_columns_of_padding_change_nothing(rows):
    x, targets, weights = rows
    regs, options = jnp.asarray([1.0]), {"num_steps": NUM_STEPS}
    narrow = np.pad(x[:, :2], ((0, 0), (0, 2))), targets, weights
    alone = descend(stack_of(1, [1, 1, 0, 0]), *map(jnp.asarray, narrow), regs, **options)
    padded = np.pad(x[:, :2], ((0, 9), (0, 2))), np.pad(targets, ((0, 9), (0, 0))), np.pad(weights, (0, 9))
    found = descend(stack_of(1, [1, 1, 0, 0]), *map(jnp.asarray, padded), regs, **options)
    for one, other in zip(alone.parameters, found.parameters, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)
    assert not np.any(np.asarray(found.hidden[..., 2:]))


def test_other_units_of_inputs_and_targets_give_the_same_function(rows):
    x, targets, weights = map(jnp.asarray, rows)
    start = stack_of(1, [1, 1, 1])
    options = {"num_steps": NUM_STEPS}
    found = descend(start, x, targets, weights, jnp.asarray([1.0]), **options)
    # A network on inputs that are 8 times as large, with outputs twice as large, has weights of half the size.
    factor = jnp.sqrt(2.0 / 8.0)
    scaled = start.with_parameters(
        start.parameters._replace(hidden=factor * start.hidden, output=factor * start.output)
    )
    other = descend(scaled, 8 * x, 2 * targets, weights, jnp.asarray([16.0]), **options)
    outputs = [jax.tree.map(lambda leaf: leaf[0], network)(rows) for network, rows in ((found, x), (other, 8 * x))]
    np.testing.assert_allclose(outputs[1], 2 * outputs[0], atol=1e-9)


def test_many_steps_come_near_the_certified_optimum_over_their_cells(rng):
    x = np.column_stack([rng.standard_normal((60, 2)), np.ones(60)])
    y = np.abs(x[:, 0]) - np.maximum(x[:, 1] - 0.3, 0)
    reg = 0.5
    start = sample_stack(jax.random.key(0), jnp.ones(3), size=1, width=30, num_outputs=1)
    rows = jnp.asarray(x), jnp.asarray(y[:, None]), jnp.ones(60)
    found = jax.tree.map(lambda leaf: leaf[0], descend(start, *rows, jnp.asarray([reg]), num_steps=3000))
    gates = found.pruned(1e-3).hidden
    program = fx.ConvexProgram(x, y, fx.activation_masks(x, gates), reg, intercept=True)
    optimum = fx.solve_relu(program, gates, tol=1e-4)
    reached = float(fx.network_objective(found, x, y[:, None], reg))
    at_zero = float(program.primal_at_zero())
    assert optimum.dual - 1e-9 <= reached <= optimum.primal + 2e-3 * at_zero


def test_batches_reach_the_objective_of_all_rows(rows, monkeypatch):
    x, _, weights = map(jnp.asarray, rows)
    targets = jnp.abs(x[:, :2])
    reg = jnp.asarray([1.0])
    start = stack_of(1, [1, 1, 1])

    def objective(network):
        network = jax.tree.map(lambda leaf: leaf[0], network)
        return float(fx.network_objective(network, x, targets, 1.0, sample_weight=weights))

    whole = objective(descend(start, x, targets, weights, reg, num_steps=601))
    monkeypatch.setattr(descent, "_MAX_BATCH", 15)
    in_batches = objective(descend(start, x, targets, weights, reg, num_steps=600))
    assert in_batches == pytest.approx(whole, rel=0.05)
    assert in_batches < 0.7 * objective(start)


def test_the_default_optimizer_is_one_object_for_a_number_of_steps():
    assert adam(10) is adam(10)
