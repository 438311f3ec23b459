"""The core of the library, in calls that `make test-strict` repeats under each of JAX's stricter modes.

What is compared is computed by NumPy, which these modes do not change.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fixntk as fx
from fixntk.estimators import GatedReLURegressor, NTKRegressor
from fixntk.gates import samplers
from fixntk.ntk import layers

pytestmark = pytest.mark.core

TARGETS = {
    "squared": lambda x: np.abs(x[:, 0]),
    "huber": lambda x: np.abs(x[:, 0]),
    "logistic": lambda x: np.sign(x[:, 0]),
    "squared_hinge": lambda x: np.sign(x[:, 0]),
    "softmax": lambda x: np.digitize(x[:, 0], [-0.5, 0.5]),
}


def tolerance(array):
    return 1e-9 if array.dtype == jnp.float64 else 1e-4


@pytest.fixture
def data():
    """Inputs in JAX's default dtype, gates and masks."""
    rng = np.random.default_rng(0)
    dtype = jnp.result_type(float)
    x, gates = (jax.device_put(rng.standard_normal(shape).astype(dtype)) for shape in ((25, 3), (12, 3)))
    return x, gates, fx.activation_masks(x, gates)


@pytest.mark.parametrize("method", ["newton", "fista", "irls", "anderson"])
def test_solvers_certify_their_solution(data, method):
    x, gates, masks = data
    program = fx.ConvexProgram(x, np.abs(x[:, 0]), masks, 0.3)
    solution = fx.solve(program, method=method, tol=1e-3)
    assert bool(solution.converged)
    outputs = sum(np.asarray(masks)[:, p, None] * (np.asarray(x) @ np.asarray(solution.weights)[p]) for p in range(12))
    np.testing.assert_allclose(solution.predict(x, gates), outputs[:, 0], atol=10 * tolerance(x))


@pytest.mark.parametrize("method", ["newton", "fista", "irls", "anderson"])
def test_single_precision_stays_single_where_double_is_on(data, method):
    x, _, masks = data
    x = x.astype(jnp.float32)
    solution = fx.solve(fx.ConvexProgram(x, jnp.abs(x[:, 0]), masks, 0.3), method=method, tol=1e-3)
    assert {leaf.dtype for leaf in (solution.weights, solution.kernel_weights, solution.primal)} == {x.dtype}


@pytest.mark.parametrize("loss", TARGETS)
def test_losses_options_and_outputs_certify_too(data, loss):
    x, _, masks = data
    options = {"sample_weight": np.linspace(0.5, 1.5, 25), "intercept": True, "ridge": 0.1}
    program = fx.ConvexProgram(x, TARGETS[loss](np.asarray(x)), masks, 0.3, loss=loss, **options)
    assert bool(fx.solve(program, tol=1e-2).converged)


def test_paths_solve_under_jit_as_from_the_host(data):
    x, _, masks = data
    program = fx.ConvexProgram(x, np.abs(x[:, 0]), masks, 0.3)
    found = jax.jit(lambda program: fx.solve(program, method="fista", max_iter=300).primal)(program)
    assert abs(float(found) / float(fx.solve(program).primal) - 1) < 1e-3
    assert all(bool(solution.converged) for solution in fx.solve_path(program, regs=[1.0, 0.5]))


def test_masked_grams_are_sums_over_gates(data):
    x, _, masks = data
    weights = np.linspace(0.1, 1, 12)
    m, products = np.asarray(masks, float), np.asarray(x) @ np.asarray(x).T
    expected = (m * weights) @ m.T * products
    np.testing.assert_allclose(fx.masked_gram(weights, masks, x), expected, atol=tolerance(x))
    operator = fx.MaskedGram(weights, fx.pack_masks(masks), x)
    np.testing.assert_allclose(operator @ x[:, 0], expected @ np.asarray(x)[:, 0], atol=10 * tolerance(x))
    np.testing.assert_allclose(operator.diagonal(), np.diag(expected), atol=tolerance(x))


def test_the_gated_ntk_has_the_closed_form_and_a_derivative(data):
    x = np.asarray(data[0], np.float64)
    lengths = np.linalg.norm(x, axis=1)
    angles = np.arccos(np.clip(x @ x.T / np.outer(lengths, lengths), -1, 1))
    expected = x @ x.T * (np.pi - angles) / (2 * np.pi)
    np.testing.assert_allclose(fx.gated_relu_ntk(data[0]), expected, atol=10 * tolerance(data[0]))
    assert np.isfinite(jax.grad(lambda x: jnp.sum(fx.gated_relu_ntk(x)))(data[0])).all()
    # With many columns, near pairs are computed row by row.
    wide = jnp.tile(data[0], (1, 20))
    np.testing.assert_allclose(fx.gated_relu_ntk(wide), 20 * expected, atol=200 * tolerance(wide))
    assert np.isfinite(jax.grad(lambda x: jnp.sum(fx.gated_relu_ntk(x)))(wide)).all()


@pytest.mark.parametrize("activation", ["relu", "erf", "gelu", jnp.tanh])
def test_deep_kernels_are_symmetric_and_positive(data, activation):
    kernel = fx.mlp_kernel(data[0], depth=2, activation=activation, b_std=0.1)
    for matrix in map(np.asarray, kernel):
        np.testing.assert_allclose(matrix, matrix.T, atol=tolerance(data[0]))
        assert np.linalg.eigvalsh(matrix).min() > -1e-4


@pytest.mark.parametrize("method", ["structured", "jacobian", "ntvp"])
def test_empirical_kernels_are_products_of_jacobians(data, method):
    x, gates, _ = data

    def network(weights, x):
        return jax.nn.relu(x @ weights)

    features = np.asarray(jax.jacobian(lambda w: network(w, x))(gates.T)).reshape(25, 12, -1)
    expected = np.einsum("iop,jqp->ijoq", features, features)
    found = fx.empirical_ntk(network, gates.T, x, method=method, batch_size=10)
    np.testing.assert_allclose(found, expected, atol=10 * tolerance(x))


def test_kernels_are_learnt_and_flow_to_their_ridge_regression(data):
    x = data[0]
    kernels = jnp.stack([x @ x.T, jnp.eye(25, dtype=x.dtype)])
    assert bool(fx.solve_kernels(kernels, x[:, 0], 0.5, tol=1e-3).converged)
    kernel = np.asarray(x) @ np.asarray(x).T + np.eye(25)
    flow = fx.gradient_flow(kernel, np.asarray(x)[:, 0])
    np.testing.assert_allclose(np.asarray(flow.predict(1e6)), np.asarray(x)[:, 0], atol=1e-2)


def test_compiled_calls_need_no_transfers(data):
    x, gates, masks = data
    program = fx.ConvexProgram(x, jnp.abs(x[:, 0]), masks, 0.3)
    weights, key = jnp.ones(12, x.dtype), jax.random.key(0)
    calls = [
        jax.jit(lambda program: fx.solve(program, method="fista", max_iter=5).primal),
        jax.jit(lambda program: fx.masked_gram(weights, masks, program.x)),
        jax.jit(lambda program: fx.gated_relu_ntk(program.x)),
        jax.jit(lambda program: fx.empirical_ntk(lambda w, x: x @ w, gates.T, program.x)),
        jax.jit(lambda program: fx.ntk_vector_product(lambda w, x: x @ w, gates[0], program.x[:, 0], program.x)),
        jax.jit(lambda program: fx.projected_gradients(lambda w, x: x @ w, gates[0], program.x, dim=2, key=key)),
        jax.jit(lambda program: fx.taylor_expand(lambda w, x: x @ w**2, gates[0], 2)(gates[1], program.x)),
    ]
    first = [call(program) for call in calls]
    with jax.transfer_guard("disallow"):
        again = [call(program) for call in calls]
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_kernels_and_masks_need_no_transfers_from_the_host_either(data):
    x, gates, masks = data
    weights = jnp.ones(12, x.dtype)

    def calls():
        return fx.masked_gram(weights, masks, x), fx.gated_relu_ntk(x), fx.activation_masks(x, gates)

    first = calls()
    with jax.transfer_guard("disallow"):
        again = calls()
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_layers_have_kernels_and_finite_networks(data):
    x = jnp.tile(data[0], (1, 2)).reshape(25, 6, 1)
    first = layers.Conv((2,), b_std=0.1)
    attention = layers.SelfAttention(b_std=0.1, position_std=0.5, position_decay=lambda s: jnp.exp(-s / 1e5))
    network = layers.Serial(
        layers.Concatenate(first, layers.Serial(first, layers.Activate("relu"))),
        layers.ConvTranspose((3,), (2,), "SAME", b_std=0.1),
        attention,
        layers.LayerNorm(),
        layers.GlobalAveragePool(),
        layers.Dense(b_std=0.1),
    )
    ntk = np.asarray(fx.network_kernel(network, x).ntk)
    np.testing.assert_allclose(ntk, ntk.T, atol=10 * tolerance(x))
    outputs = network.apply(network.init(jax.random.key(0), (6, 1), 8), x)
    assert outputs.dtype == x.dtype
    assert np.all(np.isfinite(outputs))


def test_networks_of_a_solution_have_its_outputs(data):
    x, gates, masks = data
    solution = fx.solve(fx.ConvexProgram(x, np.abs(x[:, 0]), masks, 0.3, intercept=True), tol=1e-3)
    gated = solution.to_network(gates)
    np.testing.assert_allclose(gated(x), solution.predict(x, gates), atol=10 * tolerance(x))
    np.testing.assert_allclose(gated.to_relu(x)(x), gated(x), atol=1e-2)


@pytest.mark.parametrize("kind", ["sjlt", "gaussian", "rademacher"])
def test_projections_and_spectra_are_of_the_gradients(data, kind):
    x, gates, _ = data
    key = jax.random.key(0)

    def f(w, x):
        return x @ w

    projected = fx.projected_gradients(f, gates[0], x, dim=2, key=key, kind=kind)
    matrix = fx.projected_gradients(f, gates[0], jnp.eye(3, dtype=x.dtype), dim=2, key=key, kind=kind)
    np.testing.assert_allclose(projected, np.asarray(x) @ np.asarray(matrix), atol=10 * tolerance(x))
    values = np.linalg.svd(np.asarray(x), compute_uv=False) ** 2
    np.testing.assert_allclose(fx.ntk_spectrum(f, gates[0], x, num=3).eigenvalues, values, rtol=10 * tolerance(x))


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_samplers_give_finite_gates(data, name):
    x, _, _ = data
    gates = samplers.SAMPLERS[name](jax.random.key(0), 5, x, jnp.arange(25) % 2)
    assert gates.dtype == x.dtype
    assert np.all(np.isfinite(gates))
    biased = jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)
    assert samplers.SAMPLERS[name](jax.random.key(0), 5, biased, jnp.arange(25) % 2).shape == (5, 4)


# The solver's own while loop, in Equinox, keeps tracers while it is traced.
@pytest.mark.skipif(bool(jax.config.jax_check_tracer_leaks), reason="diffrax keeps tracers")
def test_gradient_descent_has_the_closed_form(data):
    x, _, _ = data
    kernel, y = x @ x.T, jnp.abs(x[:, :1])
    descent, flow = (fit(kernel, y, learning_rate=0.01) for fit in (fx.gradient_descent, fx.gradient_flow))
    np.testing.assert_allclose(descent.predict(3.0), flow.predict(3.0), atol=1e-3)


def test_networks_are_trained(data):
    x, _, _ = data
    network = fx.ReLUNetwork.sample(jax.random.key(0), 5, 3)
    y = jnp.abs(x[:, 0])
    training = fx.train(network, x, y, optax.sgd(1e-2), num_steps=4)
    before, after = (float(fx.network_objective(each, x, y, 0.0)) for each in (network, training.network))
    assert after < before


def test_paths_relu_programs_and_derivatives_solve_too(data):
    x, gates, masks = data
    program = fx.ConvexProgram(x, np.abs(x[:, 0]), masks, 0.3)
    assert all(bool(solution.converged) for solution in fx.solve_path(program, num_regs=4, min_share=0.1, tol=1e-3))
    assert bool(fx.solve_relu(program, gates, tol=1e-2).converged)

    def sum_of_weights(y):
        return jnp.sum(fx.optimal_weights(fx.ConvexProgram(x, y, masks, 0.3), tol=1e-3))

    assert np.isfinite(jax.grad(sum_of_weights)(program.y)).all()


@pytest.mark.parametrize("mode", ["ntk", "nngp"])
def test_ensembles_predict_with_their_spread(data, mode):
    x, _, _ = data
    ntk, nngp = x @ x.T + jnp.eye(25, dtype=x.dtype), x @ x.T + 2 * jnp.eye(25, dtype=x.dtype)
    pair = SimpleNamespace(ntk=ntk, nngp=nngp)
    found = fx.gradient_flow_ensemble(pair, x[:, :1], mode=mode).predict(jnp.asarray([0.1, 1.0], x.dtype))
    np.testing.assert_allclose(found.covariance, np.swapaxes(found.covariance, 1, 2), atol=10 * tolerance(x))


def test_estimators_predict(data):
    x = np.asarray(data[0])
    for estimator in (GatedReLURegressor(8), NTKRegressor()):
        assert np.isfinite(estimator.fit(x, np.abs(x[:, 0])).predict(x)).all()
