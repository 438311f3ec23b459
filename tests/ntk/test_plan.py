"""Plans of empirical kernels: what is traced, how large tiles are, and how requests are split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_empirical import PARAMS, X1, X2, network
from test_structure import jacobian_ntk

import fixntk as fx
from fixntk.ntk import empirical, plan
from fixntk.ntk.plan import Request, as_shapes, cached_plan, make_plan, split_request


def request_of(f=network, traced=(), diagonal=(), groups=(0, 0, 0), method="structured", batch_size=None):
    return Request(f, traced, diagonal, groups, method, batch_size, None)


def test_a_plan_knows_the_outputs_of_one_example_and_the_shapes_alone():
    made = make_plan(request_of(traced=(2,)), *jax.tree.map(jnp.zeros_like, (PARAMS, X1, X2)))
    assert made.network.axes == ((2, 3), (1,), ())
    leaves = jax.tree.leaves(PARAMS)
    np.testing.assert_allclose(made.network.apply(leaves, [X1[2]]), network(PARAMS, X1)[2], rtol=1e-13)
    paired = make_plan(request_of(traced=(0,), diagonal=(1,)), PARAMS, X1, X1)
    assert paired.network.axes == ((2, 3), (), (0,))


def test_shapes_keep_the_dtypes_that_give_way():
    """Python's numbers as parameters take the precision of the inputs."""
    shapes = as_shapes((jnp.asarray(1.0), jnp.ones(2, "float32"))).tree()
    assert jax.eval_shape(jnp.multiply, *shapes).dtype == "float32"
    assert as_shapes(jnp.asarray(1.0)) != as_shapes(jnp.ones(()))


@pytest.mark.parametrize(("axes", "is_paired"), [({}, False), ({"traced": (1,)}, False), ({"diagonal": (0, 1)}, True)])
def test_examples_are_paired_where_their_axis_is_not_full(axes, is_paired):
    assert request_of(**axes).is_paired == is_paired


def test_a_tile_takes_the_memory_that_it_is_given_or_the_number_that_is_asked_for(monkeypatch):
    for method in ("structured", "jacobian", "ntvp"):
        for axes in ({}, {"diagonal": (0,)}):
            tiles = []
            for budget in (1, 10**5, 10**7):
                monkeypatch.setattr(plan, "_TILE_BYTES", budget)
                made = make_plan(request_of(method=method, **axes), PARAMS, X1, X1)
                tiles.append(made.tile)
                by_example, by_pair = made.method.example_bytes, made.method.pair_bytes
                pairs = made.tile if axes else made.tile**2
                assert made.tile == 1 or max(made.tile * by_example, pairs * by_pair) <= budget
                more = made.tile + 1
                assert more * by_example + (more if axes else more**2) * by_pair > budget
            assert tiles[0] == 1 < tiles[1] < tiles[2]
            assert make_plan(request_of(method=method, batch_size=5, **axes), PARAMS, X1, X1).tile == 5


def test_kernels_the_other_way_round_are_those_of_exchanged_tiles():
    def bent(params, x):
        # Without a function of its own after the last layer, the kernel would be symmetric in its outputs.
        return jnp.sin(network(params, x))

    request = request_of(bent, diagonal=(1,))
    made, leaves = make_plan(request, PARAMS, X1, X2), jax.tree.leaves(PARAMS)
    one, two = (made.features(leaves, x) for x in (X1, X2))
    (forth,), (back,) = made.kernels_both_ways(leaves, one, two)
    assert forth.shape == (7, 5, 2, 3, 3)
    flat = jacobian_ntk(lambda p, x: bent(p, x).reshape(x.shape[0], -1), PARAMS, X1, X2)
    expected = jnp.einsum("ijaoaq->ijaoq", flat.reshape(7, 5, 2, 3, 2, 3))
    np.testing.assert_allclose(forth, expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(back, expected.transpose(1, 0, 2, 4, 3), rtol=1e-12, atol=1e-13)


def test_a_network_is_traced_once_for_arrays_of_the_same_shapes():
    calls = []

    def counted(params, x):
        calls.append(x.shape)
        return network(params, x)

    request = request_of(counted)
    first = cached_plan(request, as_shapes((PARAMS, X1, X2)))
    again = cached_plan(request, as_shapes(jax.tree.map(lambda a: a + 1, (PARAMS, X1, X2))))
    assert again is first
    assert calls == [(1, 4)]
    assert cached_plan(request, as_shapes((PARAMS, X1, X1))) is not first
    assert as_shapes((PARAMS, X1)) != as_shapes((PARAMS, X1.astype("float32")))
    assert jax.tree.structure(as_shapes((PARAMS, X1)).tree()) == jax.tree.structure((PARAMS, X1))


def test_parts_of_a_request_have_each_leaf_once_and_the_groups_that_they_add_to(monkeypatch):
    # Leaves in the order b, v, w, of 6, 30 and 20 parameters: 6 outputs of 8 bytes for each.
    request = request_of(groups=(1, -1, 1), method="jacobian")
    plan.cached_plan.cache_clear()
    assert split_request(request._replace(method="structured"), PARAMS, X1, X2) == [
        (request._replace(method="structured"), [1])
    ]
    whole = split_request(request, PARAMS, X1, X2)
    assert whole == [(request._replace(groups=(0, -1, 0)), [1])]
    monkeypatch.setattr(plan, "_TILE_BYTES", 48 * 25)
    parts = split_request(request, PARAMS, X1, X2)
    assert [(part.groups, groups) for part, groups in parts] == [((0, -1, -1), [1]), ((-1, -1, 0), [1])]
    monkeypatch.setattr(plan, "_TILE_BYTES", 48 * 36)
    parts = split_request(request._replace(groups=(2, 0, 1)), PARAMS, X1, X2)
    assert [(part.groups, groups) for part, groups in parts] == [((1, 0, -1), [0, 2]), ((-1, -1, 0), [1])]


def test_jacobians_of_a_few_leaves_at_a_time_add_up(monkeypatch):
    whole = fx.empirical_ntk(network, PARAMS, X1, X2, method="jacobian")
    shares = fx.layerwise_ntk(network, PARAMS, X1, X2, method="jacobian")
    num_parts = []
    right = empirical.split_request
    monkeypatch.setattr(empirical, "split_request", lambda *a: num_parts.append(len(parts := right(*a))) or parts)
    monkeypatch.setattr(plan, "_TILE_BYTES", 8 * 6 * 30)
    plan.cached_plan.cache_clear()
    np.testing.assert_allclose(
        fx.empirical_ntk(network, PARAMS, X1, X2, method="jacobian"), whole, rtol=1e-13, atol=1e-16
    )
    for name, share in fx.layerwise_ntk(network, PARAMS, X1, X2, method="jacobian").items():
        np.testing.assert_allclose(share, shares[name], rtol=1e-13, atol=1e-16)
    on_host = fx.empirical_ntk(network, PARAMS, X1, X2, method="jacobian", store_on_device=False)
    np.testing.assert_allclose(on_host, whole, rtol=1e-13, atol=1e-16)
    assert num_parts == [3, 3, 3]
