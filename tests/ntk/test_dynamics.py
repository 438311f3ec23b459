"""Gradient flow in closed form: neural-tangents, differential equations, gradient descent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
from flow_problems import RELATIVE, TIMES, as_matrix, network, problem

import fixntk as fx
from fixntk.ntk import gradient_flow
from fixntk.ntk.linearize import linearize
from fixntk.ntk.neural_tangents_compat import import_neural_tangents


def exact_factor(matrix, s):
    """(1 − e^(−s Θ)) Θ⁻¹ without an inverse: a block of the exponential of an augmented matrix."""
    m = len(matrix)
    augmented = np.block([[-s * matrix, s * np.eye(m)], [np.zeros((m, 2 * m))]])
    return scipy.linalg.expm(augmented)[:m, m:]


@pytest.mark.parametrize(
    ("full", "reg"),
    [
        (False, {}),
        (False, {"diag_reg": 0.3}),
        (True, {"diag_reg": 0.2, "diag_reg_absolute_scale": True}),
    ],
    ids=["shared", "shared, ridge", "full, absolute ridge"],
)
def test_predictions_are_those_of_neural_tangents(full, reg):
    nt, p, rate = import_neural_tangents(), problem(full=full), 0.7
    theirs = nt.predict.gradient_descent_mse(p.train, p.y, rate, trace_axes=() if full else (-1,), **reg)
    for t in (TIMES, None):
        expected_train, expected = theirs(t, p.f0, p.f0_test, p.test_train)
        if reg:
            # Without a kernel they predict the noisy targets.
            expected_train = theirs(t, p.f0, p.f0, p.train)[1]
        for dtype, tolerance in RELATIVE.items():
            q = problem(full=full, dtype=dtype)
            # Their loss is the mean over all targets, ours the sum.
            flow = gradient_flow(q.train, q.y, learning_rate=rate / q.y.size, **reg)
            train, test = flow.predict(t, f0=q.f0), flow.predict(t, q.test_train, f0=q.f0, f0_test=q.f0_test)
            assert train.dtype == test.dtype == dtype
            for ours, other in ((train, expected_train), (test, expected)):
                assert ours.shape == other.shape
                np.testing.assert_allclose(ours, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("reg", [0.0, 0.4])
def test_flow_solves_its_differential_equation(reg):
    p, rate = problem(outputs=(), rank=4), 0.8
    kernel, between = np.asarray(p.train), np.asarray(p.test_train)

    def velocity(_, state):
        # Of f on both sets, and of A in f = f₀ + Θ A under the ridge's pull back.
        coefficients = state[-6:]
        change = -rate * (state[:6] - p.y + reg * coefficients)
        return np.concatenate([kernel @ change, between @ change, change])

    start = np.concatenate([p.f0, p.f0_test, np.zeros(6)])
    solved = scipy.integrate.solve_ivp(velocity, (0, 5), start, "DOP853", [0.3, 5.0], rtol=1e-12, atol=1e-13).y.T
    flow = gradient_flow(p.train, p.y, learning_rate=rate, diag_reg=reg, diag_reg_absolute_scale=True)
    t = np.array([0.3, 5.0])
    np.testing.assert_allclose(flow.predict(t, f0=p.f0), solved[:, :6], atol=1e-10)
    np.testing.assert_allclose(flow.predict(t, p.test_train, f0=p.f0, f0_test=p.f0_test), solved[:, 6:10], atol=1e-10)
    np.testing.assert_allclose(flow.coefficients(t, f0=p.f0), solved[:, 10:], atol=1e-10)


@pytest.mark.parametrize(("outputs", "full"), [((2, 3), False), ((2, 3), True)])
def test_flow_is_the_matrix_exponential_for_any_outputs_and_times(outputs, full):
    p = problem(outputs, full, n=4, n_test=3)
    t = np.array([[0.2, 1.0, 3.0]])
    ours = gradient_flow(p.train, p.y).predict(t, p.test_train, f0=p.f0, f0_test=p.f0_test)
    assert ours.shape == (1, 3, 3, *outputs)
    matrix, between = as_matrix(p.train), as_matrix(p.test_train)
    for k, time in enumerate(t[0]):
        moved = between @ exact_factor(matrix, time) @ np.asarray(p.y - p.f0).reshape(len(matrix), -1)
        np.testing.assert_allclose(ours[0, k], p.f0_test + moved.reshape(p.f0_test.shape), atol=1e-11)


def test_gradient_descent_on_the_linearised_network_converges_to_the_flow_of_its_empirical_ntk(rng):
    params0 = {"w": jnp.asarray(rng.standard_normal((3, 5))), "v": jnp.asarray(rng.standard_normal((5, 2)))}
    x, x_test, y = (jnp.asarray(rng.standard_normal(shape)) for shape in ((4, 3), (3, 3), (4, 2)))
    reg, f_lin = 0.3, linearize(network, params0)

    def loss(params):
        distance = sum(jnp.sum((params[k] - params0[k]) ** 2) for k in params)
        return 0.5 * jnp.sum((f_lin(params, x) - y) ** 2) + 0.5 * reg * distance

    @jax.jit
    def trained(num_steps):
        step = 0.5 / num_steps
        descend = lambda _, params: jax.tree.map(lambda p, g: p - step * g, params, jax.grad(loss)(params))  # noqa: E731
        params = jax.lax.fori_loop(0, num_steps, descend, params0)
        return jnp.concatenate([f_lin(params, x), f_lin(params, x_test)])

    kernel = fx.empirical_ntk(network, params0, x)
    between = fx.empirical_ntk(network, params0, x_test, x)
    flow = gradient_flow(kernel, y, diag_reg=reg, diag_reg_absolute_scale=True)
    f0, f0_test = network(params0, x), network(params0, x_test)
    expected = jnp.concatenate([flow.predict(0.5, f0=f0), flow.predict(0.5, between, f0=f0, f0_test=f0_test)])
    errors = [float(jnp.max(jnp.abs(trained(steps) - expected))) for steps in (500, 1000, 2000)]
    assert errors[0] < 1e-2
    # Euler's method: half the step, half the error. Extrapolation leaves its square.
    np.testing.assert_allclose(np.array(errors[:2]) / errors[1:], 2, rtol=0.01)
    np.testing.assert_allclose(2 * trained(2000) - trained(1000), expected, atol=1e-5)


def test_singular_kernels_lead_to_the_least_norm_interpolant(dtype):
    p = problem(rank=3, dtype=dtype)
    inverse, tolerance = np.linalg.pinv(as_matrix(p.train), rcond=1e-5), 10 * RELATIVE[str(dtype)]
    flow = gradient_flow(p.train, p.y)
    initial = {"f0": p.f0, "f0_test": p.f0_test}
    limit = p.f0_test + p.test_train @ inverse @ (p.y - p.f0)
    np.testing.assert_allclose(flow.predict(None, p.test_train, **initial), limit, atol=tolerance)
    projector = inverse @ as_matrix(p.train)
    np.testing.assert_allclose(flow.predict(None, f0=p.f0), p.f0 + projector @ (p.y - p.f0), atol=tolerance)
    # Far beyond where rounding in eigenvalues decides.
    np.testing.assert_allclose(flow.predict(1e30, p.test_train, **initial), limit, atol=tolerance)
    early = p.f0_test + p.test_train @ exact_factor(as_matrix(p.train), 2.0) @ np.asarray(p.y - p.f0)
    np.testing.assert_allclose(flow.predict(2.0, p.test_train, **initial), early, atol=tolerance)


def test_duplicate_points_with_different_targets_meet_at_their_mean():
    x = np.array([[1.0, 2.0], [1.0, 2.0], [-1.0, 0.5]])
    flow = gradient_flow(fx.gated_relu_ntk(x), np.array([1.0, 3.0, -1.0]))
    np.testing.assert_allclose(flow.predict(), [2.0, 2.0, -1.0], atol=1e-12)


@pytest.mark.parametrize("t", [0.0, 3.0, None])
def test_the_kernel_zero_does_not_move(t):
    flow = gradient_flow(np.zeros((3, 3)), np.ones(3))
    np.testing.assert_array_equal(flow.predict(t, f0=0.5), 0.5)
    np.testing.assert_array_equal(flow.predict(t, np.zeros((2, 3))), 0)


def test_flow_is_a_pytree_under_jit_and_vmap():
    problems = [problem(seed=seed) for seed in range(3)]
    stacked = {k: jnp.stack([getattr(p, k) for p in problems]) for k in ("train", "y", "test_train", "f0", "f0_test")}
    flows = jax.jit(jax.vmap(lambda kernel, y: gradient_flow(kernel, y, learning_rate=0.5)))(
        stacked["train"], stacked["y"]
    )
    predict = jax.vmap(lambda flow, k, a, b, t: flow.predict(t, k, f0=a, f0_test=b), (0, 0, 0, 0, None))
    found = jax.jit(predict)(flows, stacked["test_train"], stacked["f0"], stacked["f0_test"], TIMES)
    for one, p in zip(found, problems, strict=True):
        expected = gradient_flow(p.train, p.y, learning_rate=0.5).predict(
            TIMES, p.test_train, f0=p.f0, f0_test=p.f0_test
        )
        np.testing.assert_allclose(one, expected, atol=1e-12)


def test_kernels_of_each_output_by_vmap(rng):
    per_output = jnp.stack([problem(outputs=(), seed=seed).train for seed in range(2)], axis=-1)
    y = jnp.asarray(rng.standard_normal((6, 2)))
    found = jax.vmap(lambda kernel, y: gradient_flow(kernel, y).predict(1.0), -1, -1)(per_output, y)
    np.testing.assert_allclose(found[:, 1], gradient_flow(per_output[..., 1], y[:, 1]).predict(1.0), atol=1e-13)


EYE = np.eye(3)
ONES = np.ones(3)


ASYMMETRIC = EYE + np.eye(3, k=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gradient_flow(ASYMMETRIC, ONES), "kernel_train must be symmetric.* by up to 1 .*another order"),
        (lambda: gradient_flow(np.ones((3, 2)), ONES), r"kernel_train must have shape \(n, n\), got shape \(3, 2\)"),
        (lambda: gradient_flow(EYE, np.ones(4)), "kernel_train and y must have the same number of rows"),
        (lambda: gradient_flow(EYE * np.nan, ONES), "kernel_train holds 9 NaN"),
        (lambda: gradient_flow(EYE, ONES * np.inf), "y holds 3 NaN or inf"),
        (lambda: gradient_flow(EYE[:, :, None, None], np.ones((3, 2))), r"\(n, n\) or \(n, n, 2, 2\), got shape"),
        (lambda: gradient_flow(EYE[:, :, None], np.ones((3, 2))), "kernel_train must have 2 or 4 dimensions"),
        (lambda: gradient_flow(EYE, ONES, learning_rate=0.0), "learning_rate must be positive, got 0.0"),
        (lambda: gradient_flow(EYE, ONES, learning_rate=-1.0), "learning_rate must be positive"),
        (lambda: gradient_flow(EYE, ONES, diag_reg=-0.1), "diag_reg must be at least 0, got -0.1"),
        (lambda: gradient_flow(EYE, ONES, rcond=-0.1), "rcond must be at least 0"),
        (lambda: gradient_flow(EYE, ONES).predict(-1.0), "t must be at least 0, got 1 negative or NaN"),
        (
            lambda: gradient_flow(EYE, ONES).predict(np.array([0.0, np.nan])),
            "t must be at least 0, got 1 negative or NaN",
        ),
        (lambda: gradient_flow(EYE, ONES).predict(1.0, np.ones((3, 2))), r"kernel_test_train .*\(n_test, 3\)"),
        (lambda: gradient_flow(EYE, ONES).predict(1.0, EYE * np.nan), "kernel_test_train holds 9 NaN"),
        (lambda: gradient_flow(EYE, ONES).predict(1.0, EYE, f0=ONES), "f0 and f0_test must be given together"),
        (lambda: gradient_flow(EYE, ONES).predict(1.0, EYE, f0_test=ONES), "f0 and f0_test must be given together"),
        (lambda: gradient_flow(EYE, ONES).predict(1.0, f0=ONES, f0_test=ONES), "kernel_test_train is None"),
        (lambda: gradient_flow(EYE, ONES).predict(1.0, f0=np.ones(2)), r"f0 must be a scalar or have shape \(3,\)"),
        (lambda: gradient_flow(EYE, ONES).predict(1.0, EYE[:2], f0=ONES, f0_test=ONES), r"f0_test .*shape \(2,\)"),
    ],
)
def test_bad_values_and_shapes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(
            lambda: gradient_flow("kernel", ONES),
            "kernel_train must be a real numeric array",
            marks=pytest.mark.wrong_types,
        ),
        pytest.param(
            lambda: gradient_flow(EYE, ONES).predict("late"),
            "t must be a real numeric array, got dtype <U4",
            marks=pytest.mark.wrong_types,
        ),
        (lambda: gradient_flow(EYE, ONES).predict(1j), "t must be a real numeric array, got dtype complex"),
    ],
)
def test_bad_types_are_named(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_a_kernel_that_is_not_positive_semidefinite_is_explained():
    kernel = np.diag([1.0, 0.5, -1e-3])
    with pytest.raises(
        ValueError, match=r"smallest eigenvalue is -0\.001, its largest 1,.*lower precision.*same order"
    ):
        gradient_flow(kernel, ONES)
    with pytest.raises(ValueError, match=r"diag_reg=0\.002 with diag_reg_absolute_scale=True"):
        gradient_flow(kernel, ONES)
    flow = gradient_flow(kernel, ONES, diag_reg=0.002, diag_reg_absolute_scale=True)
    np.testing.assert_allclose(flow.coefficients(), 1 / (np.diag(kernel) + 0.002), rtol=1e-12)
    # Rounding in float32 is let through, and values cannot be looked at under jit.
    gradient_flow(np.diag([1.0, 0.5, -1e-6]).astype(np.float32), ONES)
    assert np.all(np.isfinite(jax.jit(lambda k: gradient_flow(k, ONES).predict(1.0))(kernel)))
