"""Parameters of which the network takes slices: only the parts that enter otherwise than by products have Jacobians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxpr_as_fun
from jax.flatten_util import ravel_pytree
from test_structure import jacobian_ntk, normal

import fixntk as fx
from fixntk.ntk.division import divide_leaves
from fixntk.ntk.methods import METHODS
from fixntk.ntk.plan import Request, make_plan

TREE = [
    {"b": normal(k, width), "w": normal(k + 3, inputs, width)}
    for k, (inputs, width) in enumerate([(8, 32), (32, 32), (32, 3)])
]
VECTOR, unravel = ravel_pytree(TREE)
X1, X2 = normal(7, 20, 8), normal(8, 9, 8)


def on_tree(params, x):
    *hidden, last = params
    for layer in hidden:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x @ last["w"] + last["b"]


def on_vector(vector, x):
    return on_tree(unravel(vector), x)


@pytest.mark.parametrize("outputs", ["full", "trace", "diagonal"])
def test_a_network_on_one_vector_costs_about_what_it_costs_on_its_tree(outputs):
    kernel = fx.empirical_ntk(on_vector, VECTOR, X1, X2, outputs=outputs)
    expected = fx.empirical_ntk(on_tree, TREE, X1, X2, outputs=outputs, method="jacobian")
    np.testing.assert_allclose(kernel, expected, rtol=1e-10, atol=1e-12)
    plan = fx.ntk_plan(on_vector, VECTOR, X1, X2, outputs=outputs)
    tree = fx.ntk_plan(on_tree, TREE, X1, X2, outputs=outputs)
    assert plan.flops < 1.5 * tree.flops
    (vector,) = plan.parameters
    assert vector.way == "in parts, 3 by matrix product; 3 by Jacobian, as it enters by 1 add"
    for number in ("flops", "entries"):
        assert getattr(vector, number) == sum(getattr(each, number) for each in tree.parameters)


def homogeneous(params, x):
    """Offsets in the last rows of weights, in a jitted and a checkpointed call, beside leaves without parts."""

    @jax.checkpoint
    def layer(weights, x):
        return jnp.tanh(x @ weights[:-1] + weights[-1])

    return params["scale"] * (jax.jit(layer)(params["u"], layer(params["w"], x)) @ params["v"])


def overlapping(vector, x):
    """Parts that overlap, with steps, without entries, and along the second axis."""
    matrix = vector[:12].reshape(3, 4)
    h = jnp.tanh(x @ matrix + vector[8:12]) * (1 + vector[12:20:2]) + vector[3:3].sum()
    return jnp.tanh(h @ vector[12:20].reshape(4, 2)) * jnp.exp(vector[20:22])


def by_columns(params, x):
    left, right = jnp.split(params["w"], [2], axis=1)
    return jnp.tanh(x @ left[1:] + params["w"][2, 1:3]) + x @ params["w"][:3, 3:5] * jnp.cos(right[3, :2])


def also_whole(vector, x):
    """A penalty of the whole vector beside its parts, and a step of gradient descent on it."""
    changed = vector - 0.1 * jax.grad(lambda v: jnp.sum(jnp.sin(v)))(vector)
    return jnp.tanh(x @ vector[:6].reshape(3, 2) + vector[6:]) + jnp.sum(vector**2) + changed[:2]


def out_of_call(vector, x):
    """A call that returns the vector as it is, and a part of it."""
    same, part = jax.jit(lambda v: (v, v[:3]))(vector)
    return jax.vmap(lambda x: jnp.append(x[:3] * part, 1) + same)(x)


# name: function, parameters, parts into which each leaf is divided.
NETWORKS = {
    "rows": (
        homogeneous,
        {"scale": normal(1), "u": normal(2, 5, 4), "v": normal(3, 4, 2), "w": normal(4, 4, 4)},
        [1, 2, 1, 2],
    ),
    "overlapping": (overlapping, normal(1, 22), [5]),
    "columns": (by_columns, {"w": normal(1, 4, 5)}, [3]),
    "also whole": (also_whole, normal(1, 8), [2]),
    "out of a call": (out_of_call, normal(1, 4), [2]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_divided_network_has_the_same_values_and_the_same_kernel(name):
    f, params, num_parts = NETWORKS[name]
    x1, x2 = normal(8, 4, 3), normal(9, 3, 3)
    leaves, groups = jax.tree.leaves(params), (0,) * len(num_parts)
    network = make_plan(Request(f, (), (), groups, "jacobian", None, None), params, x1, x2).network
    division = divide_leaves(network, range(len(leaves)))
    assert [max(1, len(places) - 1) for places in division.cuts] == num_parts
    parts = division.divide(leaves)
    assert [part.shape for part in parts] == [part.shape for part in division.network.leaves]
    np.testing.assert_allclose(jaxpr_as_fun(division.network.closed)(*parts, x1[0])[0], f(params, x1)[0], rtol=1e-13)
    expected = jacobian_ntk(f, params, x1, x2)
    for make in METHODS.values():
        method = division.of_leaves(make(division.network, 4, 3))
        assert {share.leaf for share in method.shares} == set(range(len(leaves)))
        one, two = (method.features(leaves, [x[1]]) for x in (x1, x2))
        np.testing.assert_allclose(method.kernels(leaves, one, two)[0], expected[1, 1], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(fx.empirical_ntk(f, params, x1, x2), expected, rtol=1e-10, atol=1e-12)


def test_groups_are_those_of_the_leaves():
    f = lambda p, x: on_vector(p["net"], x) * p["gain"]  # noqa: E731
    params = {"gain": normal(1, 3), "net": VECTOR}
    for name, share in fx.layerwise_ntk(f, params, X1, X2).items():
        expected = fx.empirical_ntk(f, params, X1, X2, select=name, method="jacobian")
        np.testing.assert_allclose(share, expected, rtol=1e-10, atol=1e-12)
    ways = {each.path: each.way for each in fx.ntk_plan(f, params, X1, X2, select="net").parameters}
    assert ways["gain"] == "not selected"
    assert ways["net"].startswith("in parts, 3 by matrix product")


def test_parts_that_all_have_jacobians_stay_together():
    f = lambda v, x: jnp.tanh(x + v[:8]) * v[8:]  # noqa: E731
    (vector,) = fx.ntk_plan(f, normal(1, 16), X1, method="structured").parameters
    assert vector.way.startswith("Jacobian, as it enters by")


def test_leaves_of_very_many_parts_stay_whole(monkeypatch):
    network = make_plan(Request(on_vector, (), (), (0,), "jacobian", None, None), VECTOR, X1, X1).network
    assert divide_leaves(network, [0]) is not None
    assert divide_leaves(network, []) is None
    monkeypatch.setattr("fixntk.ntk.division._MAX_PARTS", 5)
    assert divide_leaves(network, [0]) is None
