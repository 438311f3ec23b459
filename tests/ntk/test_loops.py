"""Loops that are written out: the same values, and kernels of weights inside them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import jaxpr_as_fun
from test_structure import jacobian_ntk, normal

import fixntk as fx
from fixntk.ntk import loops, methods
from fixntk.ntk.loops import unroll_loops


def layers(params, x):
    """Residual layers in one array, with their biases, in a jitted function."""

    @jax.jit
    def run(x):
        def step(h, layer):
            weight, bias = layer
            return h + jnp.tanh(h @ weight + bias) / 2, jnp.sum(h, axis=-1)

        return lax.scan(step, x, (params["w"], params["b"]), reverse=True)

    h, sums = run(x)
    return h @ params["v"] + sums[1, :, None]


def recurrent(params, x):
    def step(state, inputs):
        return jnp.tanh(state @ params["u"] + inputs @ params["w"]), None

    state, _ = lax.scan(step, jnp.zeros((x.shape[0], 6)), jnp.swapaxes(x, 0, 1))
    return state[:, :2]


def nested(params, x):
    def step(h, weights):
        return lax.scan(lambda h, w: (jnp.sin(h @ w), None), h, weights)[0], None

    return lax.scan(step, x, params["w"])[0]


# name: function, parameters, shape of an example, leaves inside loops that enter through structure.
NETWORKS = {
    "layers": (
        layers,
        {"b": normal(1, 3, 30), "v": normal(2, 30, 2), "w": normal(3, 3, 30, 30) / 3},
        (30,),
        {"v", "w"},
    ),
    "recurrent": (recurrent, {"u": normal(1, 6, 6), "w": normal(2, 40, 6)}, (2, 40), {"u", "w"}),
    "nested": (nested, {"w": normal(1, 2, 2, 12, 12)}, (12,), {"w"}),
}


def traced(f, params, x):
    leaves, treedef = jax.tree.flatten(params)
    return jax.make_jaxpr(lambda leaves, x: f(jax.tree.unflatten(treedef, leaves), x))(leaves, x)


@pytest.mark.parametrize("name", NETWORKS)
def test_loops_that_are_written_out_have_the_same_values(name):
    f, params, shape, _ = NETWORKS[name]
    x = normal(8, 4, *shape)
    unrolled = unroll_loops(traced(f, params, x))
    assert "scan" not in str(unrolled)
    (found,) = jaxpr_as_fun(unrolled)(*jax.tree.leaves(params), x)
    np.testing.assert_allclose(found, f(params, x), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("axes", [{}, {"outputs": "trace"}])
@pytest.mark.parametrize("name", NETWORKS)
def test_weights_inside_loops_have_the_kernel_of_their_jacobians(monkeypatch, name, axes):
    monkeypatch.setattr(methods, "_SHARE_UNROLLED", float("inf"))
    network, params, shape, expected = NETWORKS[name]
    # A function of its own, as plans are kept for the function.
    f = lambda p, x: network(p, x)  # noqa: E731
    x1, x2 = normal(8, 4, *shape), normal(9, 3, *shape)
    full = jacobian_ntk(f, params, x1, x2)
    kernel = fx.empirical_ntk(f, params, x1, x2, method="structured", batch_size=2, **axes)
    full = jnp.einsum("ijoo->ij", full) / full.shape[2] if axes else full
    np.testing.assert_allclose(kernel, full, rtol=1e-10, atol=1e-10)
    plan = fx.ntk_plan(f, params, x1, x2, method="structured", **axes)
    ways = {each.path: each.way for each in plan.parameters}
    assert {name for name, way in ways.items() if "matrix product" in way} == expected


def test_loops_are_left_that_are_long_or_for_which_it_saves_little(monkeypatch):
    f, params, shape, _ = NETWORKS["layers"]
    x = normal(8, 4, *shape)
    ways = [fx.ntk_plan(f, params, normal(8, n, *shape), method="structured").parameters[2].way for n in (4, 100)]
    assert ways == ["Jacobian, as it enters by 1 scan", "3 matrix products"]
    assert unroll_loops(traced(lambda p, x: x @ p["v"], params, x)) is None
    monkeypatch.setattr(loops, "MAX_EQUATIONS", 10)
    assert unroll_loops(traced(f, params, x)) is None
    plan = fx.ntk_plan(lambda p, x: f(p, x), params, normal(8, 100, *shape), method="structured")
    assert plan.parameters[2].way == "Jacobian, as it enters by 1 scan too long to write out"
