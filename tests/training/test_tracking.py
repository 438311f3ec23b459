"""Records of the tangent kernel along training: those of the dense kernel at every step, by a Jacobian."""

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fixntk as fx


def network(params, x):
    return jnp.tanh(x @ params["hidden"]) @ params["head"]


def sample(rng, width=12, num_outputs=2):
    shapes = {"hidden": (4, width), "head": (width, num_outputs)}
    return {name: rng.standard_normal(shape) / np.sqrt(shape[0]) for name, shape in shapes.items()}


def descend(f, params, x, y, rate=0.05):
    """Parameters at the start and after each of five steps of gradient descent."""
    gradient = jax.jit(jax.grad(lambda p: jnp.mean((f(p, x) - y) ** 2)))
    yield params
    for _ in range(5):
        params = jax.tree.map(lambda p, g: p - rate * g, params, gradient(params))
        yield params


def dense_kernel(f, params, x):
    """The kernel from the Jacobian, a row for each example and output."""
    jacobian = jax.jacobian(lambda p: f(p, x).ravel())(params)
    flat = np.concatenate([np.asarray(leaf).reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(jacobian)], axis=1)
    return flat @ flat.T


def centring(num_rows, num_outputs):
    return np.kron(np.eye(num_rows) - 1 / num_rows, np.eye(num_outputs))


def cosine(one, other):
    return np.sum(one * other) / (np.linalg.norm(one) * np.linalg.norm(other))


@pytest.mark.parametrize("centred", [True, False])
def test_every_record_is_of_the_dense_kernel(rng, centred):
    x, y = rng.standard_normal((20, 4)), rng.standard_normal((20, 2)) + 3
    tracker = fx.track(network, x, y, num=4, smallest=True, centred=centred)
    found, kernels = [], []
    for step, params in enumerate(descend(network, sample(rng), x, y)):
        found.append(tracker(10 * step, params))
        kernels.append(dense_kernel(network, params, x))
    centre = centring(20, 2) if centred else np.eye(40)
    for record, kernel in zip(found, kernels, strict=True):
        values, targets = np.linalg.eigvalsh(kernel), centre @ y.ravel()
        np.testing.assert_allclose(record.eigenvalues, values[::-1][:4], rtol=1e-10)
        np.testing.assert_allclose(record.trace, np.trace(kernel), rtol=1e-10)
        np.testing.assert_allclose(record.effective_rank, np.trace(kernel) / values[-1], rtol=1e-10)
        np.testing.assert_allclose(record.condition_number, values[-1] / values[0], rtol=1e-6)
        np.testing.assert_allclose(record.norm, np.linalg.norm(centre @ kernel @ centre), rtol=1e-10)
        np.testing.assert_allclose(
            record.alignment, cosine(centre @ kernel @ centre, np.outer(targets, targets)), rtol=1e-10
        )
        np.testing.assert_allclose(
            record.similarity, cosine(centre @ kernel @ centre, centre @ kernels[0] @ centre), rtol=1e-10
        )
    history = tracker.history
    np.testing.assert_array_equal(history.steps, np.arange(0, 60, 10))
    np.testing.assert_array_equal(history.eigenvalues, [record.eigenvalues for record in found])
    np.testing.assert_array_equal(history.condition_number, [record.condition_number for record in found])
    assert np.all(history.norm_error == 0)
    assert history.similarity[-1] < 1 - 1e-6


@pytest.mark.parametrize("centred", [True, False])
def test_without_the_matrix_norms_are_estimated_within_their_errors_and_all_else_is_exact(rng, centred):
    x = rng.standard_normal((60, 4))
    y = np.stack([np.tanh(x[:, 0]), x[:, 1] * x[:, 2]], axis=1)
    options = {"num": 4, "smallest": True, "centred": centred, "tol": 1e-10}
    exact = fx.track(network, x, y, **options)
    found = fx.track(network, x, y, **options, dense_rows=100, num_probes=40, batch_size=33)
    for step, params in enumerate(descend(network, sample(rng), x, y)):
        exact(step, params)
        found(step, params)
    exact, found = exact.history, found.history
    np.testing.assert_allclose(found.eigenvalues, exact.eigenvalues, rtol=1e-8)
    np.testing.assert_allclose(found.trace, exact.trace, rtol=1e-10)
    np.testing.assert_allclose(found.smallest, exact.smallest, atol=1e-8 * exact.eigenvalues[0, 0])
    # The numerator of the alignment takes no estimate.
    np.testing.assert_allclose(found.alignment * found.norm, exact.alignment * exact.norm, rtol=1e-8)
    assert np.all(found.norm_error > 0)
    assert np.all(found.norm_error < 0.05 * found.norm)
    assert np.all(np.abs(found.norm - exact.norm) < 4 * found.norm_error)
    assert found.similarity[0] == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(found.similarity, exact.similarity, atol=0.02)


def test_the_kernel_of_a_linearised_network_stays(rng):
    params, x, y = sample(rng), rng.standard_normal((20, 4)), rng.standard_normal((20, 2))
    frozen = fx.linearize(network, params)
    tracker, moving = fx.track(frozen, x, y), fx.track(network, x, y)
    for step, now in enumerate(descend(frozen, params, x, y)):
        tracker(step, now)
        moving(step, now)
    for values in (tracker.history.eigenvalues, tracker.history.alignment, tracker.history.norm):
        np.testing.assert_allclose(values, np.broadcast_to(values[0], values.shape), rtol=1e-10)
    np.testing.assert_allclose(tracker.history.similarity, 1, rtol=1e-12)
    assert moving.history.similarity[-1] < 1 - 1e-5


def test_wide_networks_change_less(rng):
    x = rng.standard_normal((20, 4))
    changes = []
    for width in (8, 64, 512):
        params = sample(rng, width, 1)
        tracker = fx.track(network, x)
        for step, now in enumerate(descend(network, params, x, np.sin(3 * x[:, :1]), rate=0.3 / np.sqrt(width))):
            tracker(step, now)
        changes.append(1 - tracker.history.similarity[-1])
    assert changes[0] > 3 * changes[1] > 9 * changes[2] > 0


def test_a_training_calls_it_at_each_record(rng):
    x, y = rng.standard_normal((30, 3)), rng.standard_normal(30)
    start = fx.ReLUNetwork.sample(jax.random.key(0), 6, 3)
    tracker = fx.track(fx.ReLUNetwork.__call__, x, y)
    options = {"num_steps": 50, "record_every": 20}
    training = fx.train(start, x, y, optax.adam(0.01), callback=tracker, **options)
    np.testing.assert_array_equal(tracker.history.steps, training.history.steps)
    for record, ended in ((0, start), (-1, training.network)):
        kernel = dense_kernel(lambda p, x, n=ended: n.with_parameters(p)(x), ended.parameters, x)
        np.testing.assert_allclose(tracker.history.trace[record], np.trace(kernel), rtol=1e-10)
    gated = fx.GatedReLUNetwork.sample(jax.random.key(0), 6, 3)
    tracker = fx.track(fx.GatedReLUNetwork.__call__, x, y, select=("hidden", "output"))
    fx.train(gated, x, y, optax.adam(0.01), callback=tracker, **options)
    kernel = dense_kernel(lambda p, x: gated.with_parameters(p)(x), gated.parameters, x)
    np.testing.assert_allclose(tracker.history.trace[0], np.trace(kernel), rtol=1e-10)


def test_a_training_that_diverges_says_so_itself(rng):
    x, y = rng.standard_normal((30, 3)), rng.standard_normal(30)
    tracker = fx.track(fx.ReLUNetwork.__call__, x)
    with pytest.raises(fx.DivergedError):
        fx.train(fx.ReLUNetwork.sample(jax.random.key(0), 6, 3), x, y, optax.sgd(1e3), callback=tracker)
    assert tracker.history.steps.size == 1


def test_calls_between_records_return_nothing(rng):
    params, x = sample(rng), rng.standard_normal((5, 4))
    tracker = fx.track(network, x, every=10)
    recorded = [step for step in range(0, 40, 4) if tracker(step, params) is not None]
    assert recorded == [0, 12, 24, 36]
    assert tracker.history.steps.tolist() == recorded
    assert tracker.history.alignment is None
    with pytest.raises(ValueError, match="pass smallest=True"):
        _ = tracker.history.condition_number


def test_records_show_themselves_in_a_line(rng):
    params, x = sample(rng), rng.standard_normal((5, 4))
    tracker = fx.track(network, x, np.ones((5, 2)), centred=False)
    assert repr(tracker) == "NTKTracker(0 records)"
    with pytest.raises(ValueError, match="has no record yet"):
        _ = tracker.history
    assert repr(tracker(3, params)).startswith("NTKHistory(1 records: step 3, trace ")
    tracker(7, params)
    assert repr(tracker.history).startswith("NTKHistory(2 records: step 3 to 7, trace ")


@pytest.mark.parametrize("dense_rows", [200, 1])
def test_several_outputs_other_axes_and_keyword_arguments(rng, dense_rows):
    """The kernel of all outputs together, by the Jacobian."""
    x, y, params = rng.standard_normal((20, 4)), rng.standard_normal((20, 3)), sample(rng)

    def joined(params, x):
        outputs = network(params, x)
        return jnp.concatenate([outputs, jnp.sum(outputs**2, axis=1, keepdims=True)], axis=1)

    def heads(params, x, factor):
        outputs = network(params, x.T)
        return {"all": factor * outputs.T, "square": factor * jnp.sum(outputs**2, axis=1)}

    options = {"num": 4, "dense_rows": dense_rows, "tol": 1e-10}
    tracker = fx.track(heads, x.T, y, batch_axes=(1, -1), kwargs={"factor": 2.0}, **options)
    record, kernel = tracker(0, params), 4 * dense_kernel(joined, params, x)
    np.testing.assert_allclose(record.eigenvalues, np.linalg.eigvalsh(kernel)[::-1][:4], rtol=1e-9)
    np.testing.assert_allclose(record.trace, np.trace(kernel), rtol=1e-10)
    if dense_rows == 200:
        targets = centring(20, 3) @ y.ravel()
        centred = centring(20, 3) @ kernel @ centring(20, 3)
        np.testing.assert_allclose(record.alignment, cosine(np.outer(targets, targets), centred), rtol=1e-10)


def test_a_module_is_followed_as_it_changes(rng):
    x = rng.standard_normal((6, 4))
    model = nnx.Sequential(nnx.Linear(4, 5, rngs=nnx.Rngs(0), param_dtype=jnp.float64), jnp.tanh)
    tracker = fx.track(model, x)
    for step in range(2):
        record = tracker(step, model)
        graph, params, rest = nnx.split(model, nnx.Param, ...)
        kernel = dense_kernel(lambda p, x, graph=graph, rest=rest: nnx.merge(graph, p, rest)(x), params, x)
        np.testing.assert_allclose(record.trace, np.trace(kernel), rtol=1e-10)
        model.layers[0].kernel[...] = 2 * model.layers[0].kernel[...]
    assert tracker.history.trace[0] != tracker.history.trace[1]
    with pytest.raises(TypeError, match="the tracker follows a module: call it with a step and the module, got dict"):
        tracker(2, {})


@pytest.mark.wrong_types
def test_wrong_arguments_are_refused(rng):
    params, x = sample(rng), rng.standard_normal((5, 4))
    with pytest.raises(ValueError, match=r"y must have the outputs' shape \(5, 2\), got \(5,\)"):
        fx.track(network, x, np.arange(5.0))(0, params)
    with pytest.raises(ValueError, match="nor constant where the kernel is centred"):
        fx.track(network, x, np.ones((5, 2)))(0, params)
    with pytest.raises(ValueError, match="num_probes must be at least 2"):
        fx.track(network, x, num_probes=1)
    with pytest.raises(ValueError, match="every must be at least 1"):
        fx.track(network, x, every=0)
    with pytest.raises(ValueError, match="tol must be between 0 and 1"):
        fx.track(network, x, tol=1.0)
    with pytest.raises(TypeError, match="tol must be a number, got str"):
        fx.track(network, x, tol="a")
    with pytest.raises(TypeError, match="step must be an integer or the progress of a training, got str"):
        fx.track(network, x)("a", params)
    with pytest.raises(ValueError, match="y must have 1 dimension"):
        fx.track(network, x, 3.0)
    networks = jax.vmap(lambda key: fx.ReLUNetwork.sample(key, 6, 4))(jax.random.split(jax.random.key(0), 2))
    with pytest.raises(ValueError, match="this training is of a stack of networks"):
        fx.train(networks, x, x[:, 0], optax.sgd(0.1), callback=fx.track(fx.ReLUNetwork.__call__, x))
