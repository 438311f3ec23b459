"""Ensembles of infinitely wide networks: neural-tangents, each initialisation by itself, Gaussian processes."""

from collections import namedtuple
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flow_problems import TIMES, as_matrix, problem

import fixntk as fx
from fixntk.ntk import gradient_flow, gradient_flow_ensemble
from fixntk.ntk.neural_tangents_compat import import_neural_tangents


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


EYE = np.eye(3)
ONES = np.ones(3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        pytest.param(
            lambda: gradient_flow_ensemble(EYE, ONES, mode="gp"),
            ValueError,
            "mode must be 'ntk' or 'nngp', got 'gp'",
            marks=pytest.mark.wrong_types,
        ),
        (
            lambda: gradient_flow_ensemble(SimpleNamespace(ntk=EYE, nngp=np.eye(2)), ONES),
            ValueError,
            "kernel_train.nngp and kernel_train.ntk must have one shape",
        ),
        (
            lambda: gradient_flow_ensemble(EYE, ONES, mode="nngp").predict(1.0, EYE[:2]),
            ValueError,
            "kernel_test_train and kernel_test must be given together",
        ),
        (
            lambda: gradient_flow_ensemble(EYE, ONES, mode="nngp").predict(1.0, EYE[:2], EYE),
            ValueError,
            "kernel_test must have 2 rows and columns",
        ),
        (
            lambda: gradient_flow_ensemble(EYE, ONES),
            TypeError,
            "kernel_train must have attributes nngp and ntk.*without ntk",
        ),
    ],
)
def test_bad_kernels_of_ensembles_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_gaussian_process_has_the_posterior_of_neural_tangents():
    p, noise = problem(), 0.3
    found = fx.gp_inference(p.train, p.y, p.test_train, p.test, noise=noise)
    predict = import_neural_tangents().predict.gp_inference(p.train, p.y, diag_reg=noise, diag_reg_absolute_scale=True)
    expected = predict("nngp", p.test_train, p.test)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.covariance, expected.covariance, rtol=1e-10, atol=1e-12)
    on_training = fx.gp_inference(fx.Kernel(p.train, p.train), p.y, noise=noise)
    np.testing.assert_allclose(
        on_training.mean, p.train @ np.linalg.solve(p.train + noise * np.eye(6), p.y), atol=1e-12
    )
    with pytest.raises(ValueError, match="noise must"):
        fx.gp_inference(p.train, p.y, noise=-1.0)
