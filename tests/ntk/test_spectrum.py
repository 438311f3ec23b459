"""The spectrum of an empirical NTK: that of the dense kernel, by products alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fixntk as fx


def network(params, x):
    return jnp.tanh(x @ params["hidden"]) @ params["head"]


@pytest.fixture
def params(rng):
    return {"hidden": rng.standard_normal((4, 12)), "head": rng.standard_normal((12, 2))}


def dense_kernel(params, x, **options):
    kernel = np.asarray(fx.empirical_ntk(network, params, x, **options))
    return kernel.transpose(0, 2, 1, 3).reshape(2 * len(x), 2 * len(x))


@pytest.mark.parametrize("num_rows", [20, 130])
@pytest.mark.parametrize("select", [None, "head"])
def test_leading_eigenpairs_and_trace_are_those_of_the_kernel(params, rng, num_rows, select):
    x = rng.standard_normal((num_rows, 4))
    kernel = dense_kernel(params, x, select=select)
    values = np.linalg.eigvalsh(kernel)
    found = fx.ntk_spectrum(network, params, x, num=5, tol=1e-10, select=select)
    np.testing.assert_allclose(found.eigenvalues, values[::-1][:5], rtol=1e-9)
    flat = np.asarray(found.eigenvectors).reshape(5, -1)
    # Eigenvalues of the last layer come in pairs, so that eigenvectors are known up to a rotation.
    np.testing.assert_allclose(flat @ flat.T, np.eye(5), atol=1e-10)
    np.testing.assert_allclose(flat @ kernel, found.eigenvalues[:, None] * flat, atol=1e-7)
    np.testing.assert_allclose(
        found.residuals, np.linalg.norm(flat @ kernel - found.eigenvalues[:, None] * flat, axis=1), atol=1e-9
    )
    np.testing.assert_allclose(found.trace, np.trace(kernel), rtol=1e-12)
    np.testing.assert_allclose(found.effective_rank, np.trace(kernel) / values[-1], rtol=1e-9)


@pytest.mark.parametrize("num_rows", [20, 130])
def test_the_smallest_eigenvalue_and_the_condition_number(params, rng, num_rows):
    x = rng.standard_normal((num_rows, 4))
    params = params | {"head": rng.standard_normal((12, 2))}
    values = np.linalg.eigvalsh(dense_kernel(params, x))
    found = fx.ntk_spectrum(network, params, x, num=2, smallest=True, tol=1e-6)
    # 260 rows and 72 parameters: the kernel is singular, and the smallest eigenvalue known to tol times the largest.
    np.testing.assert_allclose(found.smallest, values[0], atol=1e-6 * values[-1])
    if num_rows == 20:
        np.testing.assert_allclose(found.condition_number, values[-1] / values[0], rtol=1e-3)
    with pytest.raises(ValueError, match="pass smallest=True"):
        _ = fx.ntk_spectrum(network, params, x, num=2).condition_number


def test_alignment_is_the_share_of_the_targets_along_the_eigenvectors(params, rng):
    x, y = rng.standard_normal((20, 4)), rng.standard_normal((20, 2))
    found = fx.ntk_spectrum(network, params, x, num=40)
    assert found.eigenvalues.shape == (40,)
    np.testing.assert_allclose(jnp.sum(found.alignment(y)), 1, rtol=1e-12)
    np.testing.assert_allclose(found.alignment(found.eigenvectors[3]), np.eye(40)[3], atol=1e-12)
    with pytest.raises(ValueError, match=r"y must have the outputs' shape \(20, 2\)"):
        found.alignment(y[:, :1])
    with pytest.raises(ValueError, match="y must not be zero"):
        found.alignment(0 * y)


def test_float32_and_tiles_give_the_same_spectrum(params, rng):
    x = rng.standard_normal((130, 4))
    exact = fx.ntk_spectrum(network, params, x, num=4)
    single = fx.ntk_spectrum(network, *jax.tree.map(np.float32, (params, x)), num=4, batch_size=33)
    assert single.eigenvalues.dtype == jnp.float32
    np.testing.assert_allclose(single.eigenvalues, exact.eigenvalues, rtol=1e-5)


def test_what_does_not_converge_is_left_out_with_a_warning(params, rng, monkeypatch):
    monkeypatch.setattr("fixntk.ntk.spectrum._MAX_RESTARTS", 1)
    monkeypatch.setattr("fixntk.ntk.spectrum._MIN_VECTORS", 12)
    monkeypatch.setattr("fixntk.ntk.spectrum._VECTORS_PER_EIGENVALUE", 2)
    x = rng.standard_normal((130, 4))
    with pytest.warns(fx.ConvergenceWarning, match="of 6 eigenvalues converged"):
        found = fx.ntk_spectrum(network, params, x, num=6, tol=1e-9)
    values = np.linalg.eigvalsh(dense_kernel(params, x))[::-1]
    assert 0 < found.eigenvalues.size < 6
    np.testing.assert_allclose(found.eigenvalues, values[: found.eigenvalues.size], rtol=1e-8)


def test_wrong_options_and_tracing_are_refused(params, rng):
    x = rng.standard_normal((5, 4))
    with pytest.raises(ValueError, match="num must be at least 1, got 0"):
        fx.ntk_spectrum(network, params, x, num=0)
    with pytest.raises(ValueError, match="tol must be between 0 and 1"):
        fx.ntk_spectrum(network, params, x, tol=0)
    with pytest.raises(ValueError, match="cannot be traced"):
        jax.jit(lambda p: fx.ntk_spectrum(network, p, x).eigenvalues)(params)
