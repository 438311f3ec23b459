"""A network's NTK with learnt weights of its layers: the mixture of its layers' kernels."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fixntk as fx


def network(params, x):
    hidden = jnp.tanh(x @ params["first"]["w"] + params["first"]["b"])
    return jnp.tanh(hidden @ params["second"]["w"]) @ params["head"]


@pytest.fixture
def params(rng):
    shapes = {"w": (3, 20), "b": (20,)}
    return {
        "first": {name: rng.standard_normal(shape) for name, shape in shapes.items()},
        "second": {"w": rng.standard_normal((20, 20)) / 4, "unused": np.ones(2)},
        "head": rng.standard_normal((20, 2)) / 4,
    }


@pytest.mark.parametrize("criterion", ["leave_one_out", "kare", "objective"])
def test_it_is_the_mixture_of_the_layers_kernels(params, rng, criterion):
    x, x_new = rng.standard_normal((30, 3)), rng.standard_normal((7, 3))
    y = np.sin(2 * x[:, 0]) + 0.05 * rng.standard_normal(30)
    fixed = fx.fix_ntk(network, params, x, y, criterion=criterion)
    assert fixed.names == ("first/b", "first/w", "head", "second/w")
    paths = {"first/b": "first/b", "first/w": "first/w", "head": "head", "second/w": "second/w"}
    kernels, between = (
        np.stack([fx.empirical_ntk(network, params, rows, x, outputs="trace", select=paths[n]) for n in fixed.names])
        for rows in (x, x_new)
    )
    expected = fx.mix_kernels(kernels, y, criterion=criterion)
    np.testing.assert_allclose(fixed.mixture.value, expected.value, rtol=1e-6)
    np.testing.assert_allclose(fixed.predict(x_new), expected.predict(between), rtol=1e-3, atol=1e-3)
    traces = np.trace(kernels, axis1=1, axis2=2)
    np.testing.assert_allclose(fixed.shares_of_ntk, traces / traces.sum(), rtol=1e-9)
    weighted = traces * fixed.mixture.kernel_weights
    np.testing.assert_allclose(fixed.shares, weighted / weighted.sum(), rtol=1e-9)
    assert fixed.mixture.value <= fixed.mixture.value_of_sum
    assert repr(fixed).startswith(f"FixedNTK(KernelMixture({criterion} ")


def test_a_network_without_a_kernel_and_traced_parameters_are_refused(params, rng):
    x = rng.standard_normal((10, 3))
    with pytest.raises(ValueError, match="no parameter has a kernel on these inputs"):
        fx.fix_ntk(lambda p, x: 0 * network(p, x), params, x, x[:, 0])
    with pytest.raises(ValueError, match="fix_ntk cannot be traced"):
        jax.jit(lambda p: fx.fix_ntk(network, p, x, x[:, 0]).shares)(params)


def test_where_all_weights_are_zero_so_are_the_shares(params, rng):
    x = rng.standard_normal((10, 3))
    fixed = fx.fix_ntk(network, params, x, x[:, 0], criterion="objective", reg=1e6)
    np.testing.assert_array_equal(fixed.shares, 0)


def test_groups_share_a_weight(params, rng):
    x = rng.standard_normal((30, 3))
    groups = {"first": "input", "second": "hidden", "head": "hidden"}
    fixed = fx.fix_ntk(network, params, x, np.sin(2 * x[:, :2]), groups=groups)
    assert set(fixed.names) == {"input", "hidden"}
    assert fixed.predict(x[:4]).shape == (4, 2)
    one = fx.fix_ntk(network, params, x, np.sin(2 * x[:, 0]), groups="all")
    np.testing.assert_allclose(one.mixture.value, one.mixture.value_of_sum, rtol=1e-7)
    np.testing.assert_allclose(one.shares, 1)


def test_other_signatures_give_the_same_kernel(params, rng):
    x, y = rng.standard_normal((12, 3)), rng.standard_normal(12)
    expected = fx.fix_ntk(network, params, x, y, reg=0.1, max_iter=10)

    def heads(params, x, factor):
        outputs = factor * network(params, x.T)
        return outputs[:, 0], {"second": outputs[:, 1:].T}

    # The mean over the outputs of two arrays of one output each.
    found = fx.fix_ntk(heads, params, x.T, y, reg=0.1, max_iter=10, batch_axes=(1, -1), kwargs={"factor": 1.0})
    assert found.names == expected.names
    np.testing.assert_allclose(found.shares_of_ntk, expected.shares_of_ntk, rtol=1e-10)
    np.testing.assert_allclose(found.predict(x[:5].T + 0.1), expected.predict(x[:5] + 0.1), rtol=1e-7)


def test_a_module_as_it_is(rng):
    x, y = rng.standard_normal((12, 3)), rng.standard_normal(12)
    model = eqx.nn.MLP(3, 1, 5, 1, key=jax.random.key(0), dtype=jnp.float64)
    expected = fx.fix_ntk(*fx.split_model(model), x, y, reg=0.1, max_iter=10)
    found = fx.fix_ntk(model, x, y, reg=0.1, max_iter=10)
    np.testing.assert_allclose(found.predict(x + 0.1), expected.predict(x + 0.1), rtol=1e-7)
    with pytest.raises(TypeError, match=r"y is missing: fix_ntk\(f, params, x, y\)"):
        fx.fix_ntk(model, x)
    with pytest.raises(TypeError, match=r"a model takes the place of f and params: fix_ntk\(model, x, y\)"):
        fx.fix_ntk(model, {}, x, y)
