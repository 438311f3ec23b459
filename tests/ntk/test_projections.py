"""Projected gradients: unbiased, of the stated variance, the same in tiles, on disk, under jit and for other rows."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fixntk as fx
from fixntk.ntk.calls import OneOutput

KINDS = ["sjlt", "gaussian", "rademacher"]
NUM_KEYS = 300


def network(params, x):
    return jnp.tanh(x @ params["hidden"]) @ params["head"]


@pytest.fixture
def case(rng):
    return {"hidden": rng.standard_normal((4, 9)), "head": rng.standard_normal((9, 2))}, rng.standard_normal((5, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_inner_products_are_the_kernel_on_average_with_the_stated_variance(case, kind):
    params, x = case
    dim = 20
    kernel = np.asarray(fx.empirical_ntk(network, params, x))
    project = jax.jit(lambda key: fx.projected_gradients(network, params, x, dim=dim, key=key, kind=kind))
    projected = jnp.stack([project(jax.random.key(seed)) for seed in range(NUM_KEYS)])
    estimates = np.asarray(jnp.einsum("siok,sjqk->sijoq", projected, projected))
    deviations = estimates.std(axis=0) / np.sqrt(NUM_KEYS)
    # 300 estimates of which none is further than 5 standard errors from the truth.
    assert np.all(np.abs(estimates.mean(axis=0) - kernel) < 5 * deviations)
    own = np.einsum("iioo->io", kernel)
    bound = (own[:, None, :, None] * own[None, :, None, :] + kernel**2) / dim
    ratio = np.mean(estimates.var(axis=0) / bound)
    assert 0.6 < ratio < 1.15
    if kind == "gaussian":
        assert ratio > 0.85


@pytest.mark.parametrize("kind", KINDS)
def test_one_key_is_one_linear_map_of_the_gradients(case, kind):
    params, x = case
    options = {"dim": 7, "key": jax.random.key(3), "kind": kind}
    whole = fx.projected_gradients(network, params, x, **options)
    assert whole.shape == (5, 2, 7)
    # Any tile size, other rows in another call, and jit.
    tiled = fx.projected_gradients(network, params, x, **options, batch_size=2)
    np.testing.assert_allclose(tiled, whole, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(fx.projected_gradients(network, params, x[3:], **options), whole[3:], atol=1e-12)
    jitted = jax.jit(lambda p, x: fx.projected_gradients(network, p, x, **options))(params, x)
    np.testing.assert_allclose(jitted, whole, rtol=1e-12, atol=1e-12)
    # A network of twice the outputs has twice the gradients.
    twice = fx.projected_gradients(lambda p, x: 2 * network(p, x), params, x, **options)
    np.testing.assert_allclose(twice, 2 * whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_projection_has_columns_of_length_one_also_in_blocks(kind, monkeypatch):
    options = {"dim": 7, "key": jax.random.key(3), "kind": kind}
    matrix = fx.projected_gradients(lambda p, x: x @ p, np.zeros(54), np.eye(54), **options)
    # The rows of the identity give S itself, whose columns have length one for entries ±1.
    if kind != "gaussian":
        np.testing.assert_allclose(np.sum(np.asarray(matrix) ** 2, axis=1), 1, rtol=1e-12)
    monkeypatch.setattr("fixntk.ntk.projections._MAX_DENSE_ENTRIES", 70)
    jax.clear_caches()
    blocks = fx.projected_gradients(lambda p, x: x @ p, np.zeros(54), np.eye(54), **options)
    assert blocks.shape == matrix.shape
    if kind == "rademacher":
        np.testing.assert_allclose(np.sum(np.asarray(blocks) ** 2, axis=1), 1, rtol=1e-12)


def test_only_the_selected_parameters_are_projected(case):
    params, x = case
    key = jax.random.key(0)
    found = fx.projected_gradients(network, params, x, dim=6, key=key, select="head")
    hidden = params["hidden"]
    alone = fx.projected_gradients(
        lambda head, x: network({"hidden": hidden, "head": head}, x), params["head"], x, dim=6, key=key
    )
    np.testing.assert_allclose(found, alone, rtol=1e-12)


def test_projections_go_to_a_file_that_is_whole_or_not_there(case, tmp_path):
    params, x = case
    options = {"dim": 7, "key": jax.random.key(3), "batch_size": 2}
    path = tmp_path / "projected.npy"
    stored = fx.projected_gradients(network, params, x, **options, out=path)
    assert isinstance(stored, np.memmap)
    np.testing.assert_array_equal(stored, fx.projected_gradients(network, params, x, **options))
    np.testing.assert_array_equal(np.load(path), stored)
    assert [file.name for file in tmp_path.iterdir()] == ["projected.npy"]


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 100}, "dim must be at most the number of selected parameters, 54, got 100"),
        ({"dim": 20, "select": "head"}, "at most the number of selected parameters, 18"),
        ({"dim": 0}, "dim must be at least 1, got 0"),
        ({"dim": 2, "kind": "fourier"}, "kind must be one of 'sjlt', 'gaussian', 'rademacher', got 'fourier'"),
        ({"dim": 2, "batch_size": 0}, "batch_size must be a positive integer"),
    ],
)
def test_wrong_options_are_named(case, options, message):
    with pytest.raises(ValueError, match=message):
        fx.projected_gradients(network, *case, **({"key": jax.random.key(0)} | options))


def test_a_file_cannot_be_written_under_jit(case, tmp_path):
    params, x = case
    with pytest.raises(ValueError, match="out cannot be given under a JAX transformation"):
        jax.jit(lambda p: fx.projected_gradients(network, p, x, dim=2, key=jax.random.key(0), out=tmp_path / "p.npy"))(
            params
        )


def test_outputs_of_a_structure_share_one_projection(case):
    params, x = case
    options = {"dim": 7, "key": jax.random.key(3)}

    def heads(params, x):
        return {"both": network(params, x), "more": (jnp.sin(x @ params["hidden"]),)}

    found = fx.projected_gradients(heads, params, x, **options)
    assert jax.tree.map(jnp.shape, found) == {"both": (5, 2, 7), "more": ((5, 9, 7),)}
    # Of a dense projection to as many dimensions as there are parameters, which is invertible.
    options["dim"] = 54
    for kind in ("gaussian", "rademacher"):
        found = fx.projected_gradients(heads, params, x, **options, kind=kind)
        # The rows of the identity give the projection itself.
        matrix = fx.projected_gradients(lambda p, x: x @ p, np.zeros(54), np.eye(54), **options, kind=kind)
        for number, projected in enumerate(jax.tree.leaves(found)):
            jacobian = jax.jacobian(OneOutput(heads, number))(params, x)
            flat = jnp.concatenate([jacobian[name].reshape(5, -1, params[name].size) for name in ("head", "hidden")], 2)
            np.testing.assert_allclose(projected, flat @ matrix, rtol=1e-10, atol=1e-12)


def test_batch_axes_and_keyword_arguments(case):
    params, x = case
    options = {"dim": 7, "key": jax.random.key(3)}
    expected = fx.projected_gradients(lambda p, x: 2 * network(p, x), params, x, **options)
    found = fx.projected_gradients(
        lambda p, x, factor: factor * network(p, x.T).T, params, x.T, batch_axes=(1, 1), kwargs={"factor": 2}, **options
    )
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_module_as_it_is(case):
    model = eqx.nn.MLP(4, 2, 5, 1, key=jax.random.key(0), dtype=jnp.float64)
    options = {"dim": 7, "key": jax.random.key(3)}
    params, static = eqx.partition(model, eqx.is_inexact_array)
    expected = fx.projected_gradients(lambda p, x: jax.vmap(eqx.combine(p, static))(x), params, case[1], **options)
    np.testing.assert_allclose(fx.projected_gradients(model, case[1], **options), expected, rtol=1e-12)
    with pytest.raises(TypeError, match=r"a model takes the place of f and params: projected_gradients\(model, x\)"):
        fx.projected_gradients(model, params, case[1], **options)
    with pytest.raises(TypeError, match=r"x is missing: projected_gradients\(f, params, x\)"):
        fx.projected_gradients(network, case[1], **options)


def test_several_outputs_are_not_written_to_one_file(case, tmp_path):
    with pytest.raises(ValueError, match="out cannot be given where f returns several arrays"):
        fx.projected_gradients(
            lambda p, x: (network(p, x),) * 2, *case, dim=7, key=jax.random.key(3), out=tmp_path / "projected.npy"
        )
