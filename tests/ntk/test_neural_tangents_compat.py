"""neural-tangents on the JAX of today: what the project uses of it gives the right numbers, and JAX is left alone."""

import contextlib
import importlib
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fixntk.ntk import neural_tangents_compat
from fixntk.ntk.neural_tangents_compat import import_neural_tangents

# Modules in which names are put back during the import.
PATCHED = ("jax.core", "jax.interpreters.ad", "jax.util")


@pytest.fixture
def nt():
    # No skip when it is missing: the Makefile installs it.
    return import_neural_tangents()


@pytest.fixture
def kernel_fn(nt):
    layers = nt.stax.Dense(1, W_std=1.0), nt.stax.Relu(), nt.stax.Dense(1, W_std=1.0)
    return nt.stax.serial(*layers)[2]


@pytest.fixture
def network(rng):
    """A small MLP with two outputs: its function, parameters and inputs."""

    def apply(params, x):
        return jnp.tanh(x @ params["hidden"] + params["bias"]) @ params["output"]

    params = {"hidden": rng.normal(size=(3, 7)), "bias": rng.normal(size=7), "output": rng.normal(size=(7, 2))}
    x1, x2 = rng.normal(size=(4, 3)), rng.normal(size=(5, 3))
    return apply, *jax.tree.map(jnp.asarray, (params, x1, x2))


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_stax_ntk_minus_nngp_is_the_gated_relu_ntk_over_d(kernel_fn, rng, transform):
    x = rng.normal(size=(12, 5))
    kernels = transform(lambda x: tuple(kernel_fn(x, None, ("ntk", "nngp"))))(jnp.asarray(x))
    actual = np.asarray(kernels[0] - kernels[1])

    units = x / np.linalg.norm(x, axis=1, keepdims=True)
    theta = 2 * np.arctan2(
        np.linalg.norm(units[:, None] - units[None], axis=-1), np.linalg.norm(units[:, None] + units[None], axis=-1)
    )
    expected = (x @ x.T / x.shape[1]) * (np.pi - theta) / (2 * np.pi)

    assert actual.dtype == np.float64
    off_diagonal = ~np.eye(len(x), dtype=bool)
    np.testing.assert_allclose(actual[off_diagonal], expected[off_diagonal], rtol=0, atol=1e-10)
    # On the diagonal neural-tangents' arccos(1) loses half of the digits.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("implementation", ["JACOBIAN_CONTRACTION", "NTK_VECTOR_PRODUCTS"])
def test_empirical_ntk_is_the_contraction_of_two_jacobians(nt, network, implementation, transform):
    apply, params, x1, x2 = network

    def flat_jacobian(x):
        leaves = jax.tree.leaves(jax.jit(jax.jacobian(apply))(params, x))
        return np.concatenate([np.asarray(leaf).reshape(*leaf.shape[:2], -1) for leaf in leaves], axis=2)

    ntk_fn = nt.empirical_ntk_fn(apply, trace_axes=(), implementation=nt.NtkImplementation[implementation])
    actual = np.asarray(transform(ntk_fn)(x1, x2, params))

    assert actual.shape == (4, 5, 2, 2)
    assert actual.dtype == np.float64
    expected = np.einsum("iap,jbp->ijab", flat_jacobian(x1), flat_jacobian(x2))
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("time", [0.7, None])
def test_gradient_descent_mse_follows_the_closed_form_in_the_eigenbasis(nt, rng, time):
    n = 6
    n_test = 3
    learning_rate = 0.5
    features, features_test = rng.normal(size=(n, 8)), rng.normal(size=(n_test, 8))
    kernel, kernel_test = features @ features.T, features_test @ features.T
    y, f0, f0_test = rng.normal(size=(n, 1)), rng.normal(size=(n, 1)), rng.normal(size=(n_test, 1))

    predict = nt.predict.gradient_descent_mse(jnp.asarray(kernel), jnp.asarray(y), learning_rate=learning_rate)
    actual, actual_test = predict(time, jnp.asarray(f0), jnp.asarray(f0_test), jnp.asarray(kernel_test))

    # df/dt = -K (f - y) / n: the loss is the mean of the halved squares.
    eigenvalues, eigenvectors = np.linalg.eigh(kernel)
    left = np.zeros(n) if time is None else np.exp(-eigenvalues * learning_rate * time / n)
    moved = (eigenvectors * (1 - left)) @ eigenvectors.T @ (y - f0)
    np.testing.assert_allclose(actual, f0 + moved, rtol=0, atol=1e-9)
    np.testing.assert_allclose(actual_test, f0_test + kernel_test @ np.linalg.solve(kernel, moved), rtol=0, atol=1e-9)


@pytest.mark.parametrize("time", [5.0, None])
def test_gradient_descent_mse_ensemble_follows_the_closed_form_in_the_eigenbasis(nt, kernel_fn, rng, time):
    x, x_test, y = rng.normal(size=(6, 4)), rng.normal(size=(3, 4)), rng.normal(size=(6, 1))
    predict = nt.predict.gradient_descent_mse_ensemble(kernel_fn, jnp.asarray(x), jnp.asarray(y))
    actual = predict(t=time, x_test=jnp.asarray(x_test), get="ntk")

    kernel = np.asarray(kernel_fn(jnp.asarray(x), None, "ntk"))
    kernel_test = np.asarray(kernel_fn(jnp.asarray(x_test), jnp.asarray(x), "ntk"))
    eigenvalues, eigenvectors = np.linalg.eigh(kernel)
    left = np.zeros(len(x)) if time is None else np.exp(-eigenvalues * time / len(x))
    coefficients = (eigenvectors * ((1 - left) / eigenvalues)) @ eigenvectors.T @ y
    np.testing.assert_allclose(actual, kernel_test @ coefficients, rtol=0, atol=1e-9)


def test_a_second_call_returns_the_same_module():
    first = import_neural_tangents()
    assert import_neural_tangents() is first
    assert importlib.import_module("neural_tangents") is first


IN_A_FRESH_INTERPRETER = f"""
import concurrent.futures, contextlib, importlib, sys
import jax
from fixntk.ntk.neural_tangents_compat import import_neural_tangents

# As a user would have tried first.
with contextlib.suppress(ImportError, AttributeError):
    import neural_tangents

def snapshot():
    return {{name: dict(vars(sys.modules[name])) for name in {PATCHED!r} if name in sys.modules}}

for name in {PATCHED!r}:
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module(name)
before = snapshot()
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    modules = list(pool.map(lambda _: import_neural_tangents(), range(8)))
assert len(set(map(id, modules))) == 1, modules
after = snapshot()
assert after.keys() == before.keys(), (before.keys(), after.keys())
for name in before:
    assert after[name].keys() == before[name].keys(), (name, after[name].keys() ^ before[name].keys())
    assert all(after[name][key] is before[name][key] for key in before[name]), name
assert not hasattr(modules[0], "experimental") and "neural_tangents.experimental" not in sys.modules
import neural_tangents
assert neural_tangents is modules[0]
print("as before")
"""


def test_import_leaves_jax_as_it_was_and_warns_of_nothing():
    # In a process of its own, since this one has imported neural-tangents already.
    root = pathlib.Path(neural_tangents_compat.__file__).parents[2]
    completed = subprocess.run(
        [sys.executable, "-W", "error", "-c", IN_A_FRESH_INTERPRETER],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        timeout=60,
    )
    assert completed.stdout.strip() == "as before", completed.stderr


@pytest.fixture
def not_yet_imported(monkeypatch):
    """Forget neural-tangents for the length of a test."""
    import_neural_tangents()
    for name in [name for name in sys.modules if name.partition(".")[0] == "neural_tangents"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("package", ["neural_tangents", "frozendict"])
@pytest.mark.usefixtures("not_yet_imported")
def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    command = r"pip install --no-deps neural-tangents==0\.6\.5 frozendict"
    with pytest.raises(ImportError, match=rf"{package} is not installed: run `{command}`"):
        import_neural_tangents()


@pytest.mark.parametrize("where", ["jax.extend.core", "jax.no_such_module"])
@pytest.mark.usefixtures("not_yet_imported")
def test_a_name_that_this_jax_does_not_have_is_named_and_nothing_is_left_behind(monkeypatch, where):
    moved = (*neural_tangents_compat._MOVED_NAMES, ("jax.core", where, ("NoSuchName",)))
    monkeypatch.setattr(neural_tangents_compat, "_MOVED_NAMES", moved)
    before = _attributes()
    with pytest.raises(ImportError, match=rf"needs NoSuchName, which is not in {where} of jax {jax.__version__}"):
        import_neural_tangents()
    assert _attributes() == before


@pytest.mark.usefixtures("not_yet_imported")
def test_a_failure_inside_neural_tangents_is_an_import_error_and_nothing_is_left_behind(monkeypatch):
    monkeypatch.setattr(neural_tangents_compat, "_MOVED_NAMES", ())
    before = _attributes()
    with pytest.raises(ImportError, match=rf"neural-tangents does not import on jax {jax.__version__}: "):
        import_neural_tangents()
    assert _attributes() == before
    assert "neural_tangents" not in sys.modules
    assert "neural_tangents.experimental" not in sys.modules


def _attributes():
    found = {}
    for name in PATCHED:
        with contextlib.suppress(ModuleNotFoundError):
            found[name] = set(vars(importlib.import_module(name)))
    return found
