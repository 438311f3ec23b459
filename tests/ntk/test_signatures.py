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
