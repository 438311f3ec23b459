"""Training against hand-written loops, the certified bound, and itself interrupted."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import random_problem

import fixntk as fx
from fixntk.convex.losses import as_loss

RNG = np.random.default_rng(0)
X = RNG.standard_normal((24, 3))
GATES = RNG.standard_normal((5, 3))
Y = np.maximum(X @ RNG.standard_normal((3, 2)), 0).sum(1) + 0.1 * RNG.standard_normal(24)


def gated(seed=0, width=10, **options):
    return fx.GatedReLUNetwork.sample(jax.random.key(seed), width, 3, gates=GATES, **options)


def stacked(networks):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *networks)


@pytest.mark.parametrize("network", [gated(), fx.ReLUNetwork.sample(jax.random.key(0), 10, 3)], ids=["gated", "relu"])
def test_steps_are_those_of_a_loop_written_by_hand(network):
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 40))

    def objective(parameters):
        hidden = X @ parameters[0].T
        active = (X @ network.gates.T >= 0) * hidden if isinstance(network, fx.GatedReLUNetwork) else hidden.clip(0)
        errors = (active @ parameters[1])[:, 0] - Y
        return 0.5 * jnp.sum(errors**2) + 0.15 * (jnp.sum(parameters[0] ** 2) + jnp.sum(parameters[1] ** 2))

    parameters = (network.hidden, network.output)
    state = optimizer.init(parameters)
    expected = [objective(parameters)]
    for _ in range(30):
        updates, state = optimizer.update(jax.grad(objective)(parameters), state, parameters)
        parameters = optax.apply_updates(parameters, updates)
        expected.append(objective(parameters))
    training = fx.train(network, X, Y, optimizer, reg=0.3, num_steps=30, record_every=7)
    assert training.history.steps.tolist() == [0, 7, 14, 21, 28, 30]
    np.testing.assert_allclose(training.history.objective, np.array(expected)[training.history.steps], rtol=1e-12)
    np.testing.assert_allclose(training.network.hidden, parameters[0], rtol=1e-10)
    again = fx.network_objective(training.network, X, Y, 0.3)
    np.testing.assert_allclose(training.history.objective[-1], again, rtol=1e-12)


def test_training_ends_at_the_certified_optimum_and_never_below():
    program = fx.ConvexProgram(X, Y, X @ GATES.T >= 0, 1.0)
    program = program.with_reg(0.1 * program.max_reg())
    solution = fx.solve(program, tol=1e-10)
    networks = stacked([gated(seed) for seed in range(4)])
    training = fx.train(networks, X, Y, optax.adam(1e-2), reg=program.reg, num_steps=4000, record_every=500)
    assert training.history.objective.shape == (9, 4)
    assert np.all(training.history.objective >= float(solution.dual))
    assert training.history.objective[-1].min() <= 1.01 * float(solution.primal)
    best = training.lowest()
    lowest = fx.network_objective(best, X, Y, program.reg)
    np.testing.assert_allclose(lowest, training.history.objective.min(), rtol=1e-12)


@pytest.mark.parametrize("batch_size", [None, 7])
def test_a_stack_trains_as_its_networks_alone(batch_size):
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-2))
    options = {"num_steps": 25, "record_every": 10, "batch_size": batch_size, "key": jax.random.key(7)}
    networks = [gated(seed, num_outputs=2, intercept=True) for seed in range(3)]
    targets = np.stack([Y, Y**2], axis=1)
    together = fx.train(stacked(networks), X, targets, optimizer, reg=np.array([0.1, 0.2, 0.0]), **options)
    for k, reg in enumerate([0.1, 0.2, 0.0]):
        alone = fx.train(networks[k], X, targets, optimizer, reg=reg, **options)
        chex.assert_trees_all_close(jax.tree.map(lambda leaf, k=k: leaf[k], together.network), alone.network, rtol=1e-9)
        np.testing.assert_allclose(together.history.objective[:, k], alone.history.objective, rtol=1e-10)


def test_records_of_equal_length_share_one_compiled_loop():
    squared = as_loss("squared")
    # Two traces of the loss: one for the steps, one for the records.
    counted = replace(squared, values=chex.assert_max_traces(squared.values, n=2))
    fx.train(gated(), X, Y, optax.sgd(1e-3), loss=counted, num_steps=50, record_every=10)


def test_an_epoch_sees_every_row_once():
    """With a linear loss in each row's own weight, SGD from zero sums the rows' gradients."""
    network = fx.ReLUNetwork(jnp.eye(24), jnp.zeros((24, 1)), squeeze=True)
    options = {"parameters": ["output"], "batch_size": 6, "key": jax.random.key(0), "record_every": 4}
    training = fx.train(network, np.eye(24), np.arange(24.0), optax.sgd(0.25), num_steps=4, **options)
    np.testing.assert_allclose(training.network.output[:, 0], np.arange(24.0), rtol=1e-12)
    np.testing.assert_array_equal(training.network.hidden, np.eye(24))


@pytest.mark.parametrize("loss", ["logistic", "softmax", "huber", "squared_hinge"])
def test_losses_are_those_of_the_convex_program(loss):
    weight = np.linspace(0.5, 2, 30)
    program = random_problem(
        1, num_outputs=3 if loss == "softmax" else None, loss=loss, sample_weight=weight, intercept=True
    )
    gates = np.random.default_rng(5).standard_normal((20, 4))
    y = np.argmax(program.y, axis=1) if loss == "softmax" else program.y
    masks = fx.activation_masks(program.x, gates)
    program = fx.ConvexProgram(
        program.x, y, masks, program.reg, loss, sample_weight=weight, intercept=True, norm="nuclear"
    )
    solution = fx.solve(program, tol=1e-8)
    network = solution.to_network(gates)
    objective = fx.network_objective(network, program.x, y, program.reg, loss=loss, sample_weight=weight)
    np.testing.assert_allclose(objective, solution.primal, rtol=1e-9)
    options = {"reg": program.reg, "loss": loss, "sample_weight": weight, "num_steps": 60, "record_every": 20}
    training = fx.train(network, program.x, y, optax.sgd(1e-3), **options)
    assert training.history.objective.min() >= float(solution.dual)


def test_the_best_by_validation_is_kept_and_patience_stops():
    rows = np.random.default_rng(3).permutation(24)
    fit, held = rows[:12], rows[12:]
    network = fx.ReLUNetwork.sample(jax.random.key(0), 200, 3)
    options = {"num_steps": 5000, "record_every": 20, "validation": (X[held], -Y[held]), "patience": 3}
    training = fx.train(network, X[fit], Y[fit], optax.adam(1e-2), **options)
    validation = training.history.validation
    assert len(validation) == int(np.argmin(validation)) + 1 + 3 < 251
    errors = 0.5 * np.mean((np.asarray(training.best(X[held])) + Y[held]) ** 2)
    np.testing.assert_allclose(errors, validation.min(), rtol=1e-10)


def test_an_interrupted_training_resumes_to_the_same_result(tmp_path):
    optimizer, network = optax.adam(1e-2), gated()
    options = {"reg": 0.1, "record_every": 10, "batch_size": 7, "key": jax.random.key(3)}
    whole = fx.train(network, X, Y, optimizer, num_steps=60, **options)
    folder = tmp_path / "checkpoints"
    fx.train(network, X, Y, optimizer, num_steps=60, checkpoint=folder, callback=lambda p: p.step == 30, **options)
    with pytest.raises(ValueError, match="has a training already: pass resume=True"):
        fx.train(network, X, Y, optimizer, num_steps=60, checkpoint=folder, **options)
    with pytest.raises(ValueError, match="is of a training with other network"):
        fx.train(gated(width=11), X, Y, optimizer, num_steps=60, checkpoint=folder, resume=True, **options)
    resumed = fx.train(network, X, Y, optimizer, num_steps=60, checkpoint=folder, resume=True, **options)
    np.testing.assert_array_equal(resumed.history.steps, whole.history.steps)
    np.testing.assert_array_equal(resumed.history.objective, whole.history.objective)
    chex.assert_trees_all_equal((resumed.network, resumed.best), (whole.network, whole.best))
    assert np.all(np.diff(resumed.history.seconds) >= 0)


@pytest.mark.parametrize("is_stack", [False, True])
def test_patience_is_resumed(tmp_path, is_stack):
    network = stacked([gated(0), gated(1)]) if is_stack else gated()
    options = {"num_steps": 5000, "record_every": 20, "validation": (X + 1, Y), "patience": 3}
    whole = fx.train(network, X, Y, optax.adam(1e-2), **options)
    last = int(whole.history.steps[-1])
    assert 60 <= last < 5000
    # Stopped at each of the records that patience counts.
    for k, before in enumerate((60, 40, 20, 0)):
        folder = tmp_path / str(k)
        end = last - before
        fx.train(network, X, Y, optax.adam(1e-2), **options, checkpoint=folder, callback=lambda p, e=end: p.step >= e)
        for _ in range(2):
            again = fx.train(network, X, Y, optax.adam(1e-2), **options, checkpoint=folder, resume=True)
            np.testing.assert_array_equal(again.history.steps, whole.history.steps)
            np.testing.assert_array_equal(again.history.validation, whole.history.validation)
            assert again.history.validation.dtype == whole.history.validation.dtype
            chex.assert_trees_all_equal((again.network, again.best), (whole.network, whole.best))


# One of the calls passes x as a list.
@pytest.mark.wrong_types
def test_a_checkpoint_of_other_arguments_is_refused_by_name(tmp_path):
    key, noise = jax.random.key(3), jax.random.key(4)

    def optimizer(rate=1e-2, seed=noise):
        return optax.chain(optax.add_noise(0.1, 0.5, seed), optax.adam(optax.linear_schedule(rate, 1e-3, 40)))

    same = {"network": gated(), "x": X, "y": Y, "optimizer": optimizer(), "reg": 0.1, "batch_size": 7, "key": key}
    same |= {"num_steps": 30, "record_every": 10, "validation": (X, Y), "checkpoint": tmp_path / "folder"}
    fx.train(**same)
    others = {
        "network": replace(gated(), gates=gated().gates + 1),
        "x": X + 1e-12,
        "y": -Y,
        "reg": 0.2,
        "batch_size": 8,
        "key": jax.random.key(5),
        "loss": "huber(0.5)",
        "sample_weight": np.full(len(X), 2.0),
        "validation": (X, -Y),
        "parameters": ["output"],
    }
    for name, other in others.items():
        with pytest.raises(ValueError, match=rf"is of a training with other [^:]*\b{name}\b.*: pass the same"):
            fx.train(**{**same, name: other}, resume=True)
    for other in (optimizer(2e-2), optimizer(seed=key), optax.sgd(1e-2)):
        with pytest.raises(ValueError, match="is of a training with other optimizer: pass the same"):
            fx.train(**{**same, "optimizer": other}, resume=True)
    # Losses of one name that compute different numbers, in the program or in a constant of it.
    squared = as_loss("squared")
    for factor in (3.0, np.full(len(X), 3.0)):
        other = replace(squared, values=lambda f, y, factor=factor: factor * squared.values(f, y))
        with pytest.raises(ValueError, match="is of a training with other loss: pass the same"):
            fx.train(**{**same, "loss": other}, resume=True)
    # The same values from another object, and a longer training.
    longer = fx.train(**{**same, "optimizer": optimizer(), "num_steps": 50, "x": X.tolist()}, resume=True)
    whole = fx.train(**{**same, "num_steps": 50, "checkpoint": None})
    chex.assert_trees_all_equal(longer.network, whole.network)


def test_divergence_is_an_error_and_the_last_good_state_stays(tmp_path):
    def explode(step):
        return jnp.where(step < 20, 1e-3, 1e300)

    folder = tmp_path / "checkpoints"
    options = {"num_steps": 500, "record_every": 10, "checkpoint": folder}
    with pytest.raises(fx.DivergedError, match=r"lower the learning rate\..*training\.network has .*checkpoints"):
        fx.train(gated(), X, Y, optax.sgd(explode), **options)
    with pytest.raises(ValueError, match="is of a training with other optimizer"):
        fx.train(gated(), X, Y, optax.sgd(lambda _: 1e-3), resume=True, **options)
    with pytest.raises(fx.DivergedError) as caught:
        fx.train(gated(), X, Y, optax.sgd(explode), resume=True, **options)
    good = caught.value.training
    chex.assert_tree_all_finite(good.network)
    first = fx.network_objective(good.network, X, Y, 0.0)
    finite = np.isfinite(good.history.objective)
    np.testing.assert_allclose(first, good.history.objective[finite][-1], rtol=1e-12)


def test_one_of_a_stack_may_diverge():
    networks = stacked([gated(0), jax.tree.map(lambda leaf: 1e8 * leaf, gated(1))])
    with pytest.warns(UserWarning, match="1 of 2 networks diverged: 1"):
        training = fx.train(networks, X, Y, optax.sgd(1e-3), num_steps=300)
    assert training.diverged.tolist() == [False, True]
    chex.assert_tree_all_finite((training.network, training.lowest()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"y": Y[:3]}, "x and y must have the same number of rows"),
        ({"x": X[:, :2]}, "x and hidden must have the same number of columns"),
        ({"y": np.stack([Y, Y], 1)}, r"y has 2 output\(s\), the network 1"),
        ({"loss": "logistic"}, "y must hold both labels"),
        ({"batch_size": 5}, "key must be given with batch_size"),
        ({"batch_size": 50, "key": jax.random.key(0)}, "batch_size must be at most the number of rows, 24"),
        ({"parameters": ["gates"]}, "parameters must be some of hidden, output"),
        ({"sample_weight": -np.ones(24)}, "sample_weight must not be negative"),
        ({"reg": -1.0}, "reg must be a finite number that is not negative"),
        ({"network": replace(gated(), gates=jnp.array(GATES[:2]))}, "gates must have hidden's shape"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
    ],
)
def test_bad_input_is_named(options, message):
    arguments = {"network": gated(), "x": X, "y": Y, "optimizer": optax.sgd(1e-3), **options}
    with pytest.raises(ValueError, match=message):
        fx.train(**arguments)


@pytest.mark.wrong_types
def test_arguments_of_other_types_are_named():
    with pytest.raises(TypeError, match="network must be a GatedReLUNetwork or a ReLUNetwork"):
        fx.train({"hidden": 1}, X, Y, optax.sgd(1e-3))
    with pytest.raises(TypeError, match="validation must be a pair"):
        fx.train(gated(), X, Y, optax.sgd(1e-3), validation=X)
