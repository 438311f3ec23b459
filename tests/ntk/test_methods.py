"""Kernels of a pair of examples by each method, against the contraction of two Jacobians in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_structure import normal

import fixntk as fx
from fixntk.ntk import methods
from fixntk.ntk.methods import METHODS, cheapest_method, prefers_jacobian
from fixntk.ntk.pairwise import Share
from fixntk.ntk.plan import Request, make_plan


def network(params, x):
    """Two output axes, (2, 3); a table of rows, two products, a bias, and a leaf that does not enter."""
    hidden = jnp.tanh(x["values"] @ params["w"] + params["table"][x["rows"]].sum(axis=1))
    return (hidden @ params["v"] + params["b"]).reshape(-1, 2, 3)


PARAMS = {
    "b": normal(1, 6),
    "table": normal(2, 4, 5),
    "unused": normal(3, 2),
    "v": normal(4, 5, 6),
    "w": normal(5, 3, 5),
}
X = {"values": normal(6, 2, 3), "rows": jnp.array([[0, 1, 1], [3, 1, 0]])}
# The second kernel is that of the bias and the leaf that does not enter; the readout is a constant.
GROUPS = {"b": 1, "table": 0, "unused": 1, "v": -1, "w": 0}


def network_of(traced=(), diagonal=(), groups=GROUPS, f=network):
    request = Request(f, traced, diagonal, tuple(groups[name] for name in sorted(groups)), "jacobian", None, None)
    return make_plan(request, PARAMS, X, None).network


def kernels_by(method):
    leaves = jax.tree.leaves(PARAMS)
    one, two = (method.features(leaves, jax.tree.leaves(jax.tree.map(lambda a, i=i: a[i], X))) for i in range(2))
    return method.kernels(leaves, one, two)


@pytest.fixture(scope="module")
def jacobians():
    """(2, 2, 3, …) of each leaf: two examples of two output axes."""
    return jax.tree.map(lambda leaf: np.asarray(leaf), jax.jacobian(network)(PARAMS, X))


def expected_kernel(jacobians, names, subscripts):
    return sum(np.einsum(subscripts, *(jacobians[name][i].reshape(2, 3, -1) for i in range(2))) for name in names)


@pytest.mark.parametrize("chunk_bytes", [1, 2**26])
@pytest.mark.parametrize("name", METHODS)
def test_each_group_has_the_kernel_of_its_jacobians(monkeypatch, jacobians, name, chunk_bytes):
    monkeypatch.setattr(methods, "_CHUNK_BYTES", chunk_bytes)
    for traced, diagonal, subscripts, mean_of in (
        ((), (), "abp,cdp->acbd", 1),
        ((2,), (1,), "abp,abp->a", 3),
        ((1, 2), (), "abp,abp->", 6),
    ):
        found = kernels_by(METHODS[name](network_of(traced, diagonal), 5, 7))
        for kernel, names in zip(found, (("table", "w"), ("b", "unused")), strict=True):
            np.testing.assert_allclose(
                kernel, expected_kernel(jacobians, names, subscripts) / mean_of, rtol=1e-11, atol=1e-13
            )


@pytest.mark.parametrize("name", METHODS)
def test_a_group_that_does_not_enter_has_the_kernel_zero(name):
    alone = {**dict.fromkeys(GROUPS, -1), "unused": 0}
    (kernel,) = kernels_by(METHODS[name](network_of(groups=alone), 2, 2))
    assert kernel.shape == (2, 2, 3, 3)
    assert not np.any(kernel)


def test_positions_are_summed_first_for_many_examples_and_the_kernel_is_the_same(jacobians):
    # 1 position for the weights, 3 for the table, whose sum over positions is never formed.
    made = [METHODS["structured"](network_of(), n, n) for n in (1, 10_000)]
    for method in made:
        np.testing.assert_allclose(
            kernels_by(method)[0], expected_kernel(jacobians, ("table", "w"), "abp,cdp->acbd"), rtol=1e-11, atol=1e-13
        )
    assert made[1].flops > 1e7 * made[0].flops


def test_features_take_no_more_memory_than_is_said():
    leaves, inputs = jax.tree.leaves(PARAMS), jax.tree.leaves(jax.tree.map(lambda a: a[0], X))
    for make in METHODS.values():
        method = make(network_of(), 3, 3)
        features = jax.eval_shape(method.features, leaves, inputs)
        assert sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(features)) <= method.example_bytes
        assert method.pair_bytes >= 2 * 36 * 8


@jax.custom_vjp
def squashed(x):
    return jnp.tanh(x)


squashed.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g / jnp.cosh(x) ** 2,))


def test_the_method_of_the_fewest_operations_is_chosen_where_its_derivatives_exist():
    for traced in ((), (1, 2)):
        chosen = cheapest_method(network_of(traced), 30, 40)
        costs = {name: METHODS[name](network_of(traced), 30, 40).flops for name in ("structured", "ntvp")}
        assert chosen.flops == min(costs.values())
    # A product of two large matrices, of which one output is taken: a vector product is far cheaper than a Jacobian.
    one_output = network_of(groups=GROUPS, f=lambda p, x: network(p, x)[:, 0, 0])
    assert cheapest_method(one_output, 2, 2).flops == min(make(one_output, 2, 2).flops for make in METHODS.values())
    ruled = network_of(f=lambda p, x: squashed(network(p, x)))
    assert cheapest_method(ruled, 2, 2).flops == METHODS["structured"](ruled, 2, 2).flops


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize(
    ("flops", "entries", "on_accelerators"), [(1.0, 10, True), (2.0, 10, True), (2.1, 10, False), (1.0, 11, False)]
)
def test_accelerators_take_jacobians_of_up_to_twice_the_operations_and_no_more_memory(
    platform, flops, entries, on_accelerators
):
    structured, jacobian = Share(0, "", 1e6, 10), Share(0, "", flops * 1e6, entries)
    assert prefers_jacobian(platform, structured, jacobian) == (on_accelerators and platform != "cpu")


# A filter with many positions, one with as many positions as inputs and outputs, and a readout.
FILTERS = {"late": normal(7, 2, 3, 2), "long": normal(8, 3, 2, 3), "readout": normal(9, 2, 2)}
SIGNALS = normal(10, 4, 40, 2)


def convolutions(params, x):
    def convolve(x, kernel, stride):
        return jax.lax.conv_general_dilated(x, kernel, (stride,), "VALID", dimension_numbers=("NHC", "HIO", "NHC"))

    hidden = jnp.tanh(convolve(x, params["long"], 1))
    return jnp.tanh(convolve(hidden, params["late"], 36)).mean(axis=1) @ params["readout"]


def test_convolutions_go_through_jacobians_on_accelerators_alone_and_the_kernel_is_the_same():
    ways, kernels = {}, {}
    for platform in ("cpu", "gpu"):
        request = Request(convolutions, (1,), (), (0, 0, 0), "auto", None, None, platform)
        plan, leaves = make_plan(request, FILTERS, SIGNALS, None), jax.tree.leaves(FILTERS)
        ways[platform] = {name: share.way for name, share in zip(sorted(FILTERS), plan.method.shares, strict=True)}
        features = plan.features(leaves, SIGNALS)
        (kernels[platform],) = plan.kernels(leaves, features, features)
    assert ways == {
        "cpu": {"late": "convolution", "long": "convolution, summed over positions", "readout": "matrix product"},
        "gpu": {
            # Its activations and signals at two positions are fewer numbers than its Jacobian.
            "late": "convolution",
            "long": "Jacobian of a convolution, which is faster on gpu",
            "readout": "matrix product",
        },
    }
    flat = [jac.reshape(4, 2, -1) for jac in jax.tree.leaves(jax.jacobian(convolutions)(FILTERS, SIGNALS))]
    expected = sum(np.einsum("iop,jop->ij", jac, jac) for jac in flat) / 2
    for kernel in kernels.values():
        np.testing.assert_allclose(kernel, expected, rtol=1e-11)


def sequences(params, x):
    """A weight that is applied to six positions, a look-up of as many rows, and a readout."""
    hidden = jnp.tanh(params["table"][x["rows"]] @ (params["w"] / 2) + x["values"][:, None])
    return hidden.mean(axis=1) @ params["v"]


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_sums_over_positions_are_formed_by_differentiation_where_that_is_as_accurate(dtype):
    params = {"table": normal(1, 4, 3), "v": normal(2, 3, 2), "w": normal(3, 3, 3)}
    params = {name: leaf.astype(dtype) for name, leaf in params.items()}
    x = {"values": normal(4, 40, 3).astype(dtype), "rows": jnp.arange(240).reshape(40, 6) ** 2 % 7 % 4}
    plan = fx.ntk_plan(sequences, params, x, method="structured")
    ways = {each.path: (each.way, each.entries) for each in plan.parameters}
    assert ways["w"][0] == "matrix product, summed over positions"
    assert ways["table"][0] == "look-up, summed over positions"
    # Two outputs of nine and of twelve entries; with factors there are also those of six positions.
    assert (ways["w"][1] == 18, ways["table"][1] == 24) == 2 * (dtype == "float64",)
    kernel = fx.empirical_ntk(sequences, params, x, method="structured")
    exact = jax.tree.map(lambda leaf: leaf.astype(float), (params, {"values": x["values"]}))
    jacobian = jax.jacobian(sequences)(exact[0], {**x, **exact[1]})
    rows = jnp.concatenate([leaf.reshape(40, 2, -1) for leaf in jax.tree.leaves(jacobian)], axis=-1)
    expected = jnp.einsum("iop,jqp->ijoq", rows, rows)
    tolerance = 1e-10 if dtype == "float64" else 0.05
    np.testing.assert_allclose(kernel, expected, atol=tolerance * float(jnp.max(expected)))
