"""Signatures of empirical kernels: several outputs, other batch axes, keyword arguments, modules as they are."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fixntk as fx

N = 4


def heads(params, x, *, factor=1.0):
    hidden = jnp.tanh(x @ params["hidden"])
    return {"class": factor * hidden @ params["class"], "more": (jnp.sum(hidden, axis=1) * params["value"],)}


def as_columns(params, x, *, factor):
    """The same with examples along the last axes."""
    return jax.tree.map(lambda y: jnp.moveaxis(y, 0, -1), heads(params, x.T, factor=factor))


@pytest.fixture
def case(rng):
    shapes = {"hidden": (3, 5), "class": (5, 2), "value": ()}
    return {name: jnp.asarray(rng.standard_normal(shape)) for name, shape in shapes.items()}, rng.standard_normal(
        (N, 3)
    )


@pytest.fixture
def model():
    return eqx.nn.MLP(3, 2, 5, 1, key=jax.random.key(0), dtype=jnp.float64)


def jacobian_of(f, params, x):
    """(n, outputs, p) derivatives of all outputs, those of several arrays one after another."""

    def flat(leaves):
        outputs = jax.tree.leaves(f(jax.tree.unflatten(jax.tree.structure(params), leaves), x))
        return jnp.concatenate([each.reshape(len(x), -1) for each in outputs], axis=1)

    found = jax.jacobian(flat)(jax.tree.leaves(params))
    return jnp.concatenate([leaf.reshape(*leaf.shape[:2], -1) for leaf in found], axis=2)


def test_shares_of_layers_have_the_structure_of_the_outputs(case):
    """Shares of each layer in the kernel of each array, as of a function with this layer alone."""
    params, x = case
    shares = fx.layerwise_ntk(heads, params, x, x[:3], outputs="trace", kwargs={"factor": 2.0})
    assert shares.keys() == params.keys()
    for name, share in shares.items():

        def alone(leaf, x, name=name):
            return heads(params | {name: leaf}, x, factor=2.0)

        jacobian = jacobian_of(alone, params[name], x)
        parts = {"class": jacobian[:, :2], "more": (jacobian[:, 2:],)}
        expected = jax.tree.map(lambda part: jnp.einsum("iop,jop->ij", part, part[:3]) / part.shape[1], parts)
        assert jax.tree.structure(share) == jax.tree.structure(expected)
        for one, other in zip(jax.tree.leaves(share), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)
    grouped = fx.layerwise_ntk(
        as_columns,
        params,
        x.T,
        x[:3].T,
        groups={"hidden": "body", "class": "head", "value": "head"},
        outputs="trace",
        batch_axes=(1, -1),
        kwargs={"factor": 2.0},
    )
    assert set(grouped) == {"body", "head"}
    np.testing.assert_allclose(grouped["body"]["class"], shares["hidden"]["class"], rtol=1e-10)
    both = shares["class"]["more"][0] + shares["value"]["more"][0]
    np.testing.assert_allclose(grouped["head"]["more"][0], both, rtol=1e-10)


def test_layers_of_a_module_as_it_is(model, rng):
    x = rng.standard_normal((N, 3))
    shares = fx.layerwise_ntk(model, x, x[:3], outputs="trace")
    assert shares.layers[0].weight.shape == (N, 3)
    whole = sum(jax.tree.leaves(shares))
    np.testing.assert_allclose(whole, fx.empirical_ntk(model, x, x[:3], outputs="trace"), rtol=1e-10)
    _, params = fx.split_model(model)
    last = fx.empirical_ntk(model, x, x[:3], outputs="trace", select="layers/1/bias")
    np.testing.assert_allclose(shares.layers[1].bias, last, rtol=1e-10)
    with pytest.raises(TypeError, match=r"a model takes the place of f and params: layerwise_ntk\(model, x1, x2\)"):
        fx.layerwise_ntk(model, params, x, x)


@pytest.mark.parametrize("num_rows", [N, 70])
def test_the_spectrum_is_that_of_all_outputs_together(case, rng, num_rows):
    params, x = case[0], rng.standard_normal((num_rows, 3))
    jacobian = jacobian_of(lambda params, x: heads(params, x, factor=2.0), params, x).reshape(3 * num_rows, -1)
    kernel = jacobian @ jacobian.T
    options = {"num": 3, "tol": 1e-10, "kwargs": {"factor": 2.0}}
    for found in (
        fx.ntk_spectrum(heads, params, x, **options),
        fx.ntk_spectrum(as_columns, params, x.T, batch_axes=(1, -1), **options),
    ):
        np.testing.assert_allclose(found.eigenvalues, np.linalg.eigvalsh(kernel)[::-1][:3], rtol=1e-9)
        assert found.eigenvectors.shape == (3, num_rows, 3)
        flat = found.eigenvectors.reshape(3, -1)
        np.testing.assert_allclose(flat @ kernel, found.eigenvalues[:, None] * flat, atol=1e-7)
        np.testing.assert_allclose(found.trace, np.trace(kernel), rtol=1e-10)


def test_the_spectrum_of_a_module_as_it_is(model, rng):
    x = rng.standard_normal((N, 3))
    f, params = fx.split_model(model)
    kernel = fx.empirical_ntk(f, params, x).transpose(0, 2, 1, 3).reshape(2 * N, 2 * N)
    found = fx.ntk_spectrum(model, x, num=3)
    np.testing.assert_allclose(found.eigenvalues, np.linalg.eigvalsh(kernel)[::-1][:3], rtol=1e-9)
    with pytest.raises(TypeError, match=r"x is missing: ntk_spectrum\(f, params, x\)"):
        fx.ntk_spectrum(f, params)


def test_each_of_several_outputs_is_checked(case):
    def with_numbers(params, x):
        return heads(params, x), jnp.arange(len(x))

    for function in (fx.ntk_spectrum, fx.layerwise_ntk):
        with pytest.raises(TypeError, match="f must return a real floating-point array, got int"):
            function(with_numbers, *case)
    with pytest.raises(TypeError, match="f must return one array, got tuple"):
        fx.ntk_spectrum(lambda *_: (), *case)
