"""Gradient flow in closed form: neural-tangents, differential equations, gradient descent, derivatives."""

from collections import namedtuple
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg

import fixntk as fx
from fixntk.ntk import gradient_flow, gradient_flow_ensemble, kernel_ridge, max_learning_rate, spectrum
from fixntk.ntk.linearize import linearize
from fixntk.ntk.neural_tangents_compat import import_neural_tangents

TIMES = np.array([0.0, 0.3, 5.0, 200.0])
RELATIVE = {"float64": 1e-10, "float32": 2e-4}


def problem(outputs=(2,), full=False, rank=None, n=6, n_test=4, dtype="float64", seed=0):
    """Kernels of one positive semidefinite matrix over training and other points; targets; outputs at t = 0."""
    rng = np.random.default_rng(seed)
    pairs = [size for size in outputs for _ in range(2)] if full else []
    c = int(np.prod(outputs)) if full else 1
    rows = rng.standard_normal(((n + n_test) * c, rank or 2 * (n + n_test) * c))
    rows = rows / np.sqrt(rows.shape[1])

    def kernel(a, b):
        matrix = (a @ b.T).reshape(-1, *outputs, len(b) // c, *outputs) if full else a @ b.T
        k = len(outputs) + 1
        return matrix.transpose([axis + j * k for axis in range(k) for j in range(2)]) if full else matrix

    train, test = rows[: n * c], rows[n * c :]
    assert kernel(test, train).shape == (n_test, n, *pairs)
    found = {
        "train": kernel(train, train),
        "test_train": kernel(test, train),
        "test": kernel(test, test),
        "y": rng.standard_normal((n, *outputs)),
        "f0": rng.standard_normal((n, *outputs)),
        "f0_test": rng.standard_normal((n_test, *outputs)),
    }
    return SimpleNamespace(**{name: jnp.asarray(value, dtype) for name, value in found.items()})


def as_matrix(kernel):
    order = [*range(0, kernel.ndim, 2), *range(1, kernel.ndim, 2)]
    kernel = np.asarray(kernel, np.float64)
    return kernel.transpose(order).reshape(np.prod(kernel.shape[::2]), -1)


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


@pytest.mark.parametrize(("mode", "diag_reg"), [("ntk", 0.0), ("ntk", 0.1), ("nngp", 0.1)])
def test_ensembles_are_those_of_neural_tangents(mode, diag_reg):
    nt, kinds = import_neural_tangents(), ("nngp", "ntk")
    Kernel = namedtuple("Kernel", kinds)
    joint = [problem(outputs=(), n=10, n_test=1, seed=seed).train for seed in (0, 1)]

    def kernel_fn(x1, x2, get):
        """Kernels by row number."""
        found = Kernel(*(matrix[x1][:, x1 if x2 is None else x2] for matrix in joint))
        return getattr(found, get) if isinstance(get, str) else found

    x, x_test, y = jnp.arange(6), jnp.arange(6, 10), problem().y
    theirs = nt.predict.gradient_descent_mse_ensemble(kernel_fn, x, y, 2.0, diag_reg=diag_reg)
    kernels = kernel_fn(x, None, kinds), kernel_fn(x_test, x, kinds), kernel_fn(x_test, None, kinds)
    options = {"mode": mode, "learning_rate": 2.0 / y.size, "diag_reg": diag_reg}
    ensemble = gradient_flow_ensemble(kernels[0], y, **options)
    rounded, *rounded_test = (
        SimpleNamespace(**{k: jnp.asarray(getattr(kernel, k), "float32") for k in kinds}) for kernel in kernels
    )
    ensemble32 = gradient_flow_ensemble(rounded, y, **options)
    for t in (TIMES, None):
        # On training points theirs leave the ridge out unless these are passed as others.
        for points, ours, ours32 in (
            (x_test, ensemble.predict(t, *kernels[1:]), ensemble32.predict(t, *rounded_test)),
            (x if diag_reg or t is None else None, ensemble.predict(t), ensemble32.predict(t)),
        ):
            expected = theirs(t=t, x_test=points, get=mode, compute_cov=True)
            for one, single, two in zip(ours, ours32, expected, strict=True):
                assert one.shape == two.shape
                assert (one.dtype, single.dtype) == (jnp.float64, jnp.float32)
                np.testing.assert_allclose(one, two, rtol=0, atol=1e-10)
                np.testing.assert_allclose(single, two, rtol=0, atol=1e-3)


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


def network(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


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


def test_infinite_time_with_a_ridge_is_the_ridge_solution(dtype):
    p, reg = problem(dtype=dtype), 0.3
    expected = np.linalg.solve(as_matrix(p.train) + reg * np.eye(6), np.asarray(p.y, np.float64))
    tolerance = RELATIVE[str(dtype)]
    np.testing.assert_allclose(kernel_ridge(p.train, p.y, reg=reg), p.train @ expected, atol=tolerance)
    np.testing.assert_allclose(
        kernel_ridge(p.train, p.y, p.test_train, reg=reg), p.test_train @ expected, atol=tolerance
    )
    flow = gradient_flow(p.train, p.y, diag_reg=reg, diag_reg_absolute_scale=True)
    for t in (None, np.inf, 1e300):
        np.testing.assert_allclose(flow.coefficients(t), expected, atol=tolerance)


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


@pytest.mark.parametrize(("mode", "reg", "full"), [("ntk", 0.2, False), ("ntk", 0.2, True), ("nngp", 0.0, False)])
def test_ensemble_covariance_is_that_of_networks_trained_from_each_initialisation(mode, reg, full):
    ntk, nngp = problem(full=full, n=3, n_test=2), problem(full=full, n=3, n_test=2, seed=1)
    options = {"learning_rate": 0.6, "diag_reg": reg, "diag_reg_absolute_scale": True}
    kernel, between = (SimpleNamespace(nngp=getattr(nngp, k), ntk=getattr(ntk, k)) for k in ("train", "test_train"))
    t = jnp.array([0.0, 1.5, jnp.inf])
    # Initial outputs with this covariance: the columns of a factor.
    joint = np.block(
        [[as_matrix(nngp.train), as_matrix(nngp.test_train).T], [as_matrix(nngp.test_train), as_matrix(nngp.test)]]
    )
    split = len(as_matrix(nngp.train))
    columns = np.linalg.cholesky(joint)
    flow = gradient_flow(getattr(kernel, mode), np.zeros((3, 2) if full else (3, len(joint))), **options)
    if full:
        draw = jax.vmap(lambda a, b: flow.predict(t, getattr(between, mode), f0=a, f0_test=b))
        drawn = draw(columns[:split].T.reshape(-1, 3, 2), columns[split:].T.reshape(-1, 2, 2))
        drawn_train = jax.vmap(lambda a: flow.predict(t, f0=a))(columns[:split].T.reshape(-1, 3, 2))
        contract = "ktio,ktjq->tijoq"
    else:
        drawn = flow.predict(t, getattr(between, mode), f0=columns[:split], f0_test=columns[split:])
        drawn_train, contract = flow.predict(t, f0=columns[:split]), "tik,tjk->tij"
    ensemble = gradient_flow_ensemble(kernel, ntk.y, mode=mode, **options)
    np.testing.assert_allclose(
        ensemble.predict(t, between, nngp.test).covariance, np.einsum(contract, drawn, drawn), atol=1e-12
    )
    np.testing.assert_allclose(
        ensemble.predict(t).covariance, np.einsum(contract, drawn_train, drawn_train), atol=1e-12
    )
    mean = gradient_flow(getattr(kernel, mode), ntk.y, **options).predict(t, getattr(between, mode))
    np.testing.assert_allclose(ensemble.predict(t, between, nngp.test).mean, mean, atol=1e-13)


def test_nngp_ensemble_with_a_ridge_ends_in_the_gaussian_process_posterior():
    p, noise = problem(), 0.3
    ensemble = gradient_flow_ensemble(p.train, p.y, mode="nngp", diag_reg=noise, diag_reg_absolute_scale=True)
    inverse = np.linalg.inv(p.train + noise * np.eye(6))
    posterior = ensemble.predict(None, p.test_train, p.test)
    np.testing.assert_allclose(posterior.mean, p.test_train @ inverse @ p.y, atol=1e-12)
    np.testing.assert_allclose(posterior.covariance, p.test - p.test_train @ inverse @ p.test_train.T, atol=1e-12)
    on_training = ensemble.predict(np.inf).covariance
    np.testing.assert_allclose(on_training, p.train - p.train @ inverse @ p.train, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_gradient_descent_converges_below_the_largest_learning_rate_and_not_above(momentum):
    p = problem(outputs=(), n=3)
    largest = float(max_learning_rate(p.train, momentum=momentum))

    def distance(rate):
        f, before = np.zeros(3), np.zeros(3)
        for _ in range(4000):
            f, before = f - rate * p.train @ (f - p.y) + momentum * (f - before), f
        return np.linalg.norm(f - p.y)

    with np.errstate(all="ignore"):
        assert distance(0.99 * largest) < 1e-6
        assert distance(1.01 * largest) > 1e3


def test_largest_learning_rate_is_that_of_neural_tangents_over_the_number_of_targets(monkeypatch):
    nt, p, shared = import_neural_tangents(), problem(full=True), problem()
    # Its branch for the CPU calls a SciPy function as it was before SciPy 1.14.
    monkeypatch.setattr("neural_tangents._src.predict._is_on_cpu", lambda _: False)
    assert max_learning_rate(p.train) * p.y.size == pytest.approx(float(nt.predict.max_learning_rate(p.train)))
    theirs = nt.predict.max_learning_rate(shared.train, y_train_size=shared.y.size)
    assert max_learning_rate(shared.train) * shared.y.size == pytest.approx(float(theirs))
    with_ridge = max_learning_rate(p.train, diag_reg=0.5, diag_reg_absolute_scale=True)
    assert with_ridge == pytest.approx(2 / (2 / float(max_learning_rate(p.train)) + 0.5))
    assert max_learning_rate(np.zeros((2, 2))) == np.inf


@pytest.mark.parametrize("kind", ["inverse", "progress", "decay"])
def test_functions_of_eigenvalues_and_their_divided_differences_keep_all_digits(kind):
    values = np.array([0.0, 1e-30, 1e-12, 1e-5, 0.3, 0.3 + 1e-15, 0.49, 0.51, 2.0, 2 + 1e-9, 40.0])
    for s in (1e-3, 7.0, 1e5):
        with mpmath.workdps(400):
            s_, exact = mpmath.mpf(s), {}

            def function(mu, s_=s_):
                left = mpmath.exp(-s_ * mu)
                return {"decay": left, "progress": 1 - left, "inverse": (1 - left) / mu if mu else s_}[kind]

            def slope(mu, s_=s_):
                left = mpmath.exp(-s_ * mu)
                if kind == "inverse":
                    small = -(s_**2) / 2 + s_**3 * mu / 3
                    return small if s_ * mu < mpmath.mpf(10) ** -20 else (s_ * left * mu - (1 - left)) / mu**2
                return s_ * left * (1 if kind == "progress" else -1)

            for a in map(mpmath.mpf, values):
                for b in map(mpmath.mpf, values):
                    exact[a, b] = (function(a) - function(b)) / (a - b) if a != b else slope(a)
            expected = np.array([float(exact[mpmath.mpf(a), mpmath.mpf(b)]) for a in values for b in values])
            expected_function = np.array([float(function(mpmath.mpf(a))) for a in values])
        cutoff, mu = jnp.asarray(0.0), jnp.asarray(values)
        differences = jax.jit(spectrum._divided_differences, static_argnums=0)
        values_found = spectrum._spectral_function(kind, mu, jnp.asarray(s), cutoff)
        np.testing.assert_allclose(values_found, expected_function, rtol=1e-14)
        found = differences(kind, mu, jnp.asarray(s), cutoff).ravel()
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-300)


KERNELS = {
    "distinct": problem(outputs=(), n=4).train,
    "repeated": jnp.eye(4) * 0.8,
    "singular": problem(outputs=(), n=4, rank=2).train,
    "singular, repeated": jnp.diag(jnp.array([0.0, 0.0, 1.0, 1.0])),
}


def central_difference(function, point, number, step=1e-3):
    """Derivative by one argument, to fourth order in the step."""
    ahead = {k: function(*point[:number], point[number] + k * step, *point[number + 1 :]) for k in (-2, -1, 1, 2)}
    return jax.tree.map(
        lambda a, b, c, d: (8 * (b - a) - (d - c)) / (12 * step), ahead[-1], ahead[1], ahead[-2], ahead[2]
    )


def outputs_by_scalars(kernel, step, rate, t, scale):
    """Outputs at t and ∞ with the kernel moved in a direction and the targets scaled."""
    p = problem(outputs=(), n=4)
    direction = 0.1 * problem(outputs=(), n=4, seed=1).train
    flow = gradient_flow(kernel + step * direction, scale * p.y, learning_rate=rate, diag_reg=0.1)
    t = jnp.stack([jnp.asarray(t), jnp.asarray(jnp.inf)])
    return jnp.concatenate([flow.predict(t, p.test_train), flow.predict(t)], axis=1)


COMPILED = {
    "value": jax.jit(outputs_by_scalars),
    "forward": jax.jit(jax.jacfwd(outputs_by_scalars, (1, 2, 3, 4))),
    "reverse": jax.jit(jax.jacrev(outputs_by_scalars, (1, 2, 3, 4))),
}


@pytest.mark.parametrize("name", KERNELS)
def test_derivatives_are_finite_differences_for_repeated_eigenvalues_too(name):
    point = (KERNELS[name], 0.0, 0.9, 0.7, 1.0)
    for number in (1, 2, 3, 4):
        expected = central_difference(COMPILED["value"], point, number)
        assert jnp.max(jnp.abs(expected)) > 1e-3
        for mode in ("forward", "reverse"):
            np.testing.assert_allclose(COMPILED[mode](*point)[number - 1], expected, rtol=1e-8, atol=1e-9)


def test_derivative_of_the_pseudo_inverse_limit_at_fixed_rank(rng):
    features, y = jnp.asarray(rng.standard_normal((5, 2))), jnp.asarray(rng.standard_normal(5))

    def through_kernel(features):
        return gradient_flow(features @ features.T, y).predict(None, jnp.ones((1, 2)) @ features.T)[0]

    def least_squares(features):
        return jnp.ones(2) @ jnp.linalg.solve(features.T @ features, features.T @ y)

    np.testing.assert_allclose(
        jax.jit(jax.grad(through_kernel))(features), jax.grad(least_squares)(features), atol=1e-10
    )


def test_second_and_mixed_derivatives_are_finite_differences_of_the_first():
    p, point = problem(outputs=(), n=4), (0.1, 1.0)
    direction = 0.1 * problem(outputs=(), n=4, seed=1).train

    def value(step, scale):
        return jnp.sum(jnp.sin(gradient_flow(p.train + step * direction, scale * p.y).coefficients(0.7)))

    # Reverse over reverse: a transpose must not forget what the outer derivative needs.
    found, gradient = jax.jit(jax.jacrev(jax.grad(value, (0, 1)), (0, 1)))(*point), jax.jit(jax.grad(value, (0, 1)))
    for column in (0, 1):
        expected = central_difference(gradient, point, column)
        np.testing.assert_allclose([row[column] for row in found], expected, rtol=1e-8, atol=1e-9)


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


def test_linearisation_is_the_tangent_by_finite_differences(rng):
    def f(params, x, *, scale):
        return {"out": scale * network(params[0], x), "bias": jnp.sin(params[1])}

    params0 = ({"w": rng.standard_normal((3, 5)), "v": rng.standard_normal((5, 2))}, rng.standard_normal(2))
    other = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), params0)
    x, step = rng.standard_normal((4, 3)), 1e-6
    f_lin = linearize(f, params0)
    ahead, behind = (
        f(jax.tree.map(lambda a, b, s=s: a + s * (b - a), params0, other), x, scale=2.0) for s in (step, -step)
    )
    expected = jax.tree.map(lambda v, a, b: v + (a - b) / (2 * step), f(params0, x, scale=2.0), ahead, behind)
    found = jax.jit(f_lin, static_argnames="scale")(other, x, scale=2.0)
    for key in expected:
        np.testing.assert_allclose(found[key], expected[key], atol=1e-8)
    np.testing.assert_allclose(f_lin(params0, x, scale=2.0)["out"], f(params0, x, scale=2.0)["out"], rtol=1e-14)


def test_linearisation_has_the_same_empirical_ntk_everywhere(rng):
    params0, other = (
        {"w": jnp.asarray(rng.standard_normal((3, 5))), "v": jnp.asarray(rng.standard_normal((5, 2)))} for _ in "ab"
    )
    x = rng.standard_normal((4, 3))
    kernel = fx.empirical_ntk(linearize(network, params0), other, x)
    np.testing.assert_allclose(kernel, fx.empirical_ntk(network, params0, x), atol=1e-12)


def test_linearisation_keeps_the_dtype_of_its_parameters():
    f_lin = linearize(lambda p, x: x * p, jnp.ones(3, jnp.float32))
    assert f_lin(np.zeros(3), jnp.ones(3, jnp.float32)).dtype == jnp.float32


def test_linearisation_leaves_integers_and_takes_custom_backward_passes(rng):
    params0, step, x = (jnp.asarray(rng.standard_normal(shape)) for shape in ((3, 2), (3, 2), (4, 3)))

    @jax.custom_vjp
    def doubled(h):
        return jnp.sin(h)

    doubled.defvjp(lambda h: (jnp.sin(h), h), lambda h, change: (2 * change * jnp.cos(h),))
    values, classes = linearize(lambda p, x: (x @ p, jnp.argmax(x @ p, axis=1)), params0)(params0 + step, x)
    np.testing.assert_allclose(values, x @ (params0 + step))
    np.testing.assert_array_equal(classes, jnp.argmax(x @ params0, axis=1))
    moved = linearize(lambda p, x: doubled(x @ p), params0)(params0 + step, x)
    np.testing.assert_allclose(moved, jnp.sin(x @ params0) + 2 * jnp.cos(x @ params0) * (x @ step))
    with pytest.raises(TypeError, match="f must return one floating-point array where it uses"):
        linearize(lambda p, x: (doubled(x @ p), 1.0), params0)(params0, x)


EYE, ONES = np.eye(3), np.ones(3)
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
        pytest.param(
            lambda: gradient_flow_ensemble(EYE, ONES, mode="gp"),
            "mode must be 'ntk' or 'nngp', got 'gp'",
            marks=pytest.mark.wrong_types,
        ),
        (
            lambda: gradient_flow_ensemble(SimpleNamespace(ntk=EYE, nngp=np.eye(2)), ONES),
            "kernel_train.nngp and kernel_train.ntk must have one shape",
        ),
        (
            lambda: gradient_flow_ensemble(EYE, ONES, mode="nngp").predict(1.0, EYE[:2]),
            "kernel_test_train and kernel_test must be given together",
        ),
        (
            lambda: gradient_flow_ensemble(EYE, ONES, mode="nngp").predict(1.0, EYE[:2], EYE),
            "kernel_test must have 2 rows and columns",
        ),
        (lambda: kernel_ridge(EYE, ONES, reg=-1.0), "reg must be at least 0, got -1.0"),
        (lambda: max_learning_rate(ASYMMETRIC), "kernel_train must be symmetric"),
        (lambda: max_learning_rate(EYE, momentum=1.0), "momentum must be below 1"),
        (lambda: linearize(network, {"w": np.ones(2)})({"v": np.ones(2)}), "params must be a pytree like params0"),
        (lambda: linearize(network, {"w": np.ones(2)})({"w": np.ones(1)}), r"params\['w'\] must have params0's shape"),
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
            "t must be a number, an array of numbers or None",
            marks=pytest.mark.wrong_types,
        ),
        (lambda: gradient_flow(EYE, ONES).predict(1j), "t must be real numbers, got dtype complex"),
        (lambda: gradient_flow_ensemble(EYE, ONES), "kernel_train must have attributes nngp and ntk.*without ntk"),
        pytest.param(
            lambda: linearize(None, ONES),
            r"f must be a function f\(params, ...\), got NoneType",
            marks=pytest.mark.wrong_types,
        ),
        (
            lambda: linearize(network, {"w": np.arange(3)}),
            r"params0\['w'\] must be a real floating-point array, got int",
        ),
        (lambda: linearize(network, {"w": "text"}), r"params0\['w'\] must be a real floating-point array, got str"),
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
