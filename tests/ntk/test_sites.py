"""Parameters that arrive at products through linear maps, in parts, or several times, against jax.jacobian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from test_structure import jacobian_ntk, normal

import fixntk as fx
from fixntk.ntk.sites import find_sites

MASK = jnp.tril(jnp.ones((4, 4)))
PERMUTED = np.array([0, 2, 1, 3])


def attention(params, x):
    """Self-attention of one head, whose queries, keys and values are thirds of one weight."""
    query, key, value = (x @ part for part in jnp.split(params["qkv"], 3, axis=1))
    weights = jax.nn.softmax(jnp.einsum("nti,nsi->nts", query, key))
    return jnp.einsum("nts,nsi->nti", weights, value).mean(axis=1) @ params["v"]


def recurrent(params, x):
    state = jnp.zeros((x.shape[0], 3))
    for k in range(x.shape[1]):
        state = jnp.tanh(state @ params["u"] + x[:, k] @ (params["w"] / 2))
    return state


def images(params, x):
    """A filter and its reflection, a part of another twice, one with factors, and one made of two."""
    numbers = ("NHWC", "HWIO", "NHWC")
    part, factors = 0.5 * params["u"][1:], jnp.arange(12.0).reshape(3, 1, 1, 4)
    parts = jnp.concatenate([params["a"], params["b"]], axis=2)
    h = x
    for w in (params["w"], params["w"][::-1, ::-1], part, part, params["v"] * factors, parts):
        h = jnp.tanh(lax.conv_general_dilated(h, w, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=2))
    return h.mean(axis=(1, 2))


def parametrised(params, x):
    """Factors of width, of a parameter, of inputs and of outputs."""
    h = jnp.tanh(x @ (-params["w"] / jnp.sqrt(3) * params["s"] - 1))
    h = jnp.tanh(h @ (params["u"] * params["gain"][:, None] * jnp.arange(1.0, 5.0)))
    return (h @ (2 * params["v"].T).reshape(4, 2)).mean(axis=1)


def overlapping(params, x):
    """A weight, its upper left and its lower right part, whole and swapped, over positions."""
    h = jnp.tanh(x @ params["w"])
    h = jnp.tanh(h[..., :3] @ params["w"][:3, :3] + h @ params["u"][:, :3])
    return (h @ (3 * params["w"][1:, 1:]).T + h @ params["u"][1:, :3].T).mean(axis=1)


def stacked(params, x):
    for k in range(3):
        x = jnp.tanh(x @ params["w"][k].T)
    return x[:, :2]


def doubled(params, x):
    # 128 ways from the parameter to the product: too many to follow.
    w = params["w"]
    for _ in range(7):
        w = w + w.T
    return jnp.tanh(x @ w)


# name: function, parameters, shape of an example, the leaves that enter through structure.
NETWORKS = {
    "multiples": (
        parametrised,
        {
            "gain": normal(1, 4),
            "s": normal(2),
            "u": normal(3, 4, 4),
            "v": normal(4, 2, 4),
            "w": normal(5, 3, 4),
        },
        (5, 3),
        {"u", "v", "w"},
    ),
    "masks": (
        lambda p, x: jnp.tanh(jnp.tanh(x @ (p["w"] * MASK)) @ (2 * jnp.tril(p["u"]))) @ jnp.where(MASK > 0, 1, p["v"]),
        {"u": normal(1, 4, 4), "v": normal(2, 4, 4), "w": normal(3, 4, 4)},
        (4,),
        {"u", "v", "w"},
    ),
    "masks, positions and groups": (
        lambda p, x: jnp.tanh(jnp.einsum("ntgi,gij->ntgj", x, p["w"] * jnp.tanh(p["u"]))).sum(axis=(1, 2)),
        {"u": normal(1, 2, 3, 4), "w": normal(2, 2, 3, 4)},
        (5, 2, 3),
        {"w"},
    ),
    "slices of one weight": (attention, {"qkv": normal(1, 4, 12), "v": normal(2, 4, 2)}, (5, 4), {"qkv", "v"}),
    "concatenated, padded and stacked": (
        lambda p, x: (
            jnp.tanh(jnp.tanh(x @ jnp.concatenate([p["a"], p["b"]], axis=1)) @ jnp.pad(p["c"], ((0, 3), (1, 0))))
            @ jnp.stack([p["d"], 3 * p["d"][::-1]])[1]
        ),
        {"a": normal(1, 3, 2), "b": normal(2, 3, 4), "c": normal(3, 3, 2), "d": normal(4, 3, 2)},
        (3,),
        {"a", "b", "c", "d"},
    ),
    "low-rank change": (
        lambda p, x: jnp.tanh(x @ (p["w"] + 0.3 * p["a"] @ p["b"])) @ p["v"],
        {"a": normal(1, 3, 2), "b": normal(2, 2, 4), "v": normal(3, 4, 2), "w": normal(4, 3, 4)},
        (3,),
        {"a", "b", "v", "w"},
    ),
    "recurrent": (recurrent, {"u": normal(1, 3, 3), "w": normal(2, 2, 3)}, (4, 2), {"u", "w"}),
    "transpose of a layer": (
        lambda p, x: jnp.tanh(jnp.tanh(x @ p["w"] + p["b"]) @ -p["w"].T / 2),
        {"b": normal(1, 4), "w": normal(2, 3, 4)},
        (3,),
        {"w"},
    ),
    "transpose of a layer, positions": (
        lambda p, x: (h := jnp.tanh(x @ p["w"]), jnp.tanh(h @ p["w"].T) @ jnp.flip(p["w"], 0)[::-1])[1].mean(axis=1),
        {"w": normal(2, 3, 4)},
        (5, 3),
        {"w"},
    ),
    "symmetric": (
        lambda p, x: jnp.tanh(x @ (p["w"] - 2 * p["w"].T)) @ (p["u"].T @ p["u"]),
        {"u": normal(1, 2, 3), "w": normal(2, 3, 3)},
        (3,),
        {"u", "w"},
    ),
    "filters": (
        images,
        {
            "a": normal(1, 2, 3, 1, 4),
            "b": normal(2, 2, 3, 1, 4),
            "u": normal(3, 3, 2, 2, 4),
            "v": normal(4, 3, 2, 2, 4),
            "w": normal(5, 3, 2, 2, 4),
        },
        (4, 3, 4),
        {"a", "b", "u", "v", "w"},
    ),
    "layers in one array": (stacked, {"w": normal(1, 3, 3, 3)}, (3,), {"w"}),
    "mask that is a function of the weight": (
        lambda p, x: x @ (p["w"] * jnp.exp(p["w"])) + x @ (p["v"] / jnp.linalg.norm(p["v"])),
        {"v": normal(1, 3, 2), "w": normal(2, 3, 2)},
        (3,),
        set(),
    ),
    "weight times itself": (lambda p, x: x @ (p["w"] * p["w"]), {"w": normal(1, 3, 2)}, (3,), set()),
    "factor with a product of the weight": (
        lambda p, x: jnp.tanh(x @ (p["w"] * jnp.sin(jnp.ones(3) @ p["w"]))),
        {"w": normal(1, 3, 2)},
        (3,),
        {"w"},
    ),
    "parts that overlap": (
        lambda p, x: jnp.tanh(x @ p["w"][:3]) + x @ p["w"][1:],
        {"w": normal(1, 4, 2)},
        (3,),
        {"w"},
    ),
    "a weight and its parts": (overlapping, {"u": normal(1, 4, 4), "w": normal(2, 4, 4)}, (5, 4), {"u", "w"}),
    "windows of one weight, each swapped": (
        lambda p, x: sum(jnp.tanh(jnp.tanh(x @ p["w"][:, k : k + 2]) @ p["w"][:, k : k + 2].T) for k in range(4)),
        {"w": normal(1, 3, 5)},
        (3,),
        {"w"},
    ),
    "groups that overlap": (
        lambda p, x: (
            jnp.tanh(jnp.einsum("ngi,gij->ngj", x, p["w"][:2])) + jnp.einsum("ngi,gij->ngj", x, 2 * p["w"][1:, ::-1])
        ).mean(axis=1),
        {"w": normal(1, 3, 3, 2)},
        (2, 3),
        {"w"},
    ),
    "rows and columns by number": (
        lambda p, x: (
            jnp.tanh(jnp.tanh(x @ p["w"][:, PERMUTED]) @ p["w"][PERMUTED] + x @ p["w"])
            @ jnp.take(p["u"], jnp.arange(3), axis=1)
            + lax.dynamic_index_in_dim(p["v"], jnp.array(1), keepdims=False)[2] * (x @ p["v"][jnp.array(1)])
        ),
        {"u": normal(1, 4, 5), "v": normal(2, 2, 4, 3), "w": normal(3, 4, 4)},
        (4,),
        {"u", "w"},
    ),
    "part by number in a call": (
        lambda p, x: jnp.tanh(jax.jit(lambda w, k, x: x @ lax.dynamic_index_in_dim(w, k, 0, False))(p["w"], 1, x)),
        {"w": normal(1, 3, 3, 2)},
        (3,),
        {"w"},
    ),
    "rows that are given twice": (
        lambda p, x: (
            jnp.tanh(x @ p["u"][jnp.array([0, 2, 0])])
            + x @ (p["w"][:, jnp.array([0, 1, 0])] * jnp.array([1.0, 2.0, 3.0]))
            + x @ p["w"] @ p["w"][:, jnp.array([0, 0, 1])].T[:2]
        ),
        {"u": normal(1, 3, 3), "w": normal(2, 3, 2)},
        (3,),
        {"u", "w"},
    ),
    "a row that is given many times": (
        lambda p, x: jnp.tanh(x @ p["w"][:, jnp.zeros(9, int)]),
        {"w": normal(2, 3, 2)},
        (3,),
        set(),
    ),
    "rows by number that depend on weights": (
        lambda p, x: x @ p["w"][:, jnp.argsort(p["w"][0])],
        {"w": normal(2, 3, 2)},
        (3,),
        set(),
    ),
    "mask over a part": (
        lambda p, x: jnp.tanh(x @ (p["w"] * MASK)) + x[:, 1:] @ p["w"][1:],
        {"w": normal(1, 4, 4)},
        (4,),
        set(),
    ),
    "mask over another part": (
        lambda p, x: jnp.tanh(x[:, :2] @ (p["w"] * MASK)[:2]) + x[:, 2:] @ p["w"][2:],
        {"w": normal(1, 4, 4)},
        (4,),
        {"w"},
    ),
    "parts in another order": (
        lambda p, x: jnp.tanh(x @ p["w"].reshape(4, 3)) + x @ p["w"].T.reshape(4, 3),
        {"w": normal(1, 3, 4)},
        (4,),
        None,
    ),
    "parts that are no rectangle": (
        lambda p, x: x @ jnp.concatenate([p["w"], jnp.ones(1)]).reshape(2, 2).T,
        {"w": normal(1, 3)},
        (2,),
        set(),
    ),
    "entries that are repeated": (
        lambda p, x: jnp.tanh(x @ (p["w"] + jnp.zeros((3, 2)))) + x @ jnp.tile(p["u"], (3, 1)),
        {"u": normal(1, 1, 2), "w": normal(2, 2)},
        (3,),
        set(),
    ),
    "more ways than are followed": (doubled, {"w": normal(1, 3, 3) / 64}, (3,), set()),
    "stopped gradient": (
        lambda p, x: jnp.tanh(x @ (p["w"] - lax.stop_gradient(p["w"]) + 1)) + x @ lax.stop_gradient(p["u"]),
        {"u": normal(1, 3, 2), "w": normal(2, 3, 2)},
        (3,),
        None,
    ),
}


def structured_leaves(f, params, x):
    leaves, treedef = jax.tree.flatten(params)
    closed = jax.make_jaxpr(lambda leaves, x: f(jax.tree.unflatten(treedef, leaves), x[None]))(leaves, x[0])
    return {sorted(params)[block.leaf] for block in find_sites(closed, len(params))[0]}


@pytest.mark.parametrize("name", NETWORKS)
def test_kernel_is_the_contraction_of_jacobians(name):
    f, params, shape, expected = NETWORKS[name]
    x1, x2 = normal(8, 4, *shape), normal(9, 3, *shape)
    if expected is not None:
        assert structured_leaves(f, params, x1) == expected
    kernel = fx.empirical_ntk(f, params, x1, x2, method="structured", batch_size=2)
    np.testing.assert_allclose(kernel, jacobian_ntk(f, params, x1, x2), rtol=1e-10, atol=1e-10)
    if expected is not None:
        ways = {each.path: each.way for each in fx.ntk_plan(f, params, x1, x2, method="structured").parameters}
        assert {name for name, way in ways.items() if "Jacobian" not in way} == expected


TOKENS1, TOKENS2 = jnp.array([[0, 1, 1, 5], [6, 6, 2, 0], [3, 9, 4, 4]]), jnp.array([[1, 4, 4, 0], [9, -2, 6, 2]])


def tied(params, tokens):
    """Embedding and readout of one table, whose last row is that of another parameter; (n, 2, 7)."""
    table = jnp.concatenate([params["table"] * 2, params["other"]])
    h = jnp.tanh(jnp.take(table, tokens, axis=0, mode="fill", fill_value=0) @ params["w"])
    return jnp.tanh(h @ table.T)[:, ::3]


TIED = {"other": normal(1, 1, 3), "table": normal(2, 6, 3), "w": normal(3, 3, 3)}


@pytest.mark.parametrize(
    ("axes", "subscripts", "mean_of"),
    [
        ({}, "iabp,jcdp->ijacbd", 1),
        ({"trace_axes": (1,)}, "iabp,jadp->ijbd", 2),
        ({"trace_axes": (2,), "diagonal_axes": (1,)}, "iabp,jabp->ija", 7),
        ({"trace_axes": (1, 2)}, "iabp,jabp->ij", 14),
        ({"diagonal_axes": (1, 2)}, "iabp,jabp->ijab", 1),
    ],
)
def test_tied_embedding_has_the_products_of_look_up_and_readout(monkeypatch, axes, subscripts, mean_of):
    jacobians = []
    for tokens in (TOKENS1, TOKENS2):
        leaves = jax.tree.leaves(jax.jacobian(tied)(TIED, tokens))
        jacobians.append(np.concatenate([leaf.reshape(*leaf.shape[:3], -1) for leaf in leaves], axis=-1))
    assert structured_leaves(tied, TIED, TOKENS1) == set(TIED)
    ways = [each.way for each in fx.ntk_plan(tied, TIED, TOKENS1, TOKENS2, method="structured", **axes).parameters]
    assert all(way.startswith("look-up and matrix product") for way in ways[:2])
    # By factors in tiles, and by Jacobians.
    for cost, batch_size in (((0.0, 1.0), 2), ((1.0, 0.0), None)):
        monkeypatch.setattr("fixntk.ntk.methods.block_flops", lambda *_, cost=cost: cost)
        monkeypatch.setattr("fixntk.ntk.methods.leaves_summed", lambda *_: {})
        f = lambda p, tokens: tied(p, tokens)  # noqa: E731
        kernel = fx.empirical_ntk(f, TIED, TOKENS1, TOKENS2, method="structured", batch_size=batch_size, **axes)
        expected = np.einsum(subscripts, *jacobians) / mean_of
        np.testing.assert_allclose(kernel, expected, rtol=1e-10, atol=1e-10)


def test_paired_examples_and_layers_apart():
    whole = fx.empirical_ntk(tied, TIED, TOKENS1, method="structured", diagonal_axes=(0,))
    full = fx.empirical_ntk(tied, TIED, TOKENS1, method="jacobian")
    np.testing.assert_allclose(whole, np.einsum("iiabcd->iabcd", full), rtol=1e-10, atol=1e-12)
    shares = fx.layerwise_ntk(tied, TIED, TOKENS1, TOKENS2, method="structured")
    for name, share in fx.layerwise_ntk(tied, TIED, TOKENS1, TOKENS2, method="jacobian").items():
        np.testing.assert_allclose(shares[name], share, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "name",
    [
        "masks",
        "masks, positions and groups",
        "transpose of a layer, positions",
        "symmetric",
        "filters",
        "recurrent",
        "a weight and its parts",
        "groups that overlap",
    ],
)
def test_both_orders_of_contraction_agree(monkeypatch, name):
    f, params, shape, _ = NETWORKS[name]
    x1, x2 = normal(8, 4, *shape), normal(9, 3, *shape)
    expected = jacobian_ntk(f, params, x1, x2)
    for cost in ((0.0, 1.0), (1.0, 0.0)):
        monkeypatch.setattr("fixntk.ntk.methods.block_flops", lambda *_, cost=cost: cost)
        monkeypatch.setattr("fixntk.ntk.methods.leaves_summed", lambda *_: {})
        # A function of its own, as plans are kept for the function.
        kernel = fx.empirical_ntk(lambda p, x: f(p, x), params, x1, x2, method="structured")
        np.testing.assert_allclose(kernel, expected, rtol=1e-10, atol=1e-10)


def lookups(params, tokens):
    """A product with a table, then look-ups in it, in one with factors of rows and columns, and in one with a mask."""
    tokens = tokens % 6
    table, gain = params["table"], jnp.arange(1.0, 7.0)[:, None]
    scaled = params["scaled"] * gain * jnp.array([1.0, -2.0, 0.5])
    masked = params["masked"] * jnp.tril(jnp.ones((6, 3)))
    h = jnp.tanh(jax.nn.one_hot(tokens, 6) @ table.T.T + table[tokens])
    h = jnp.tanh(h @ params["w"] + scaled[tokens] + masked[tokens])
    return (h @ table.T).sum(axis=1)


def positions(params, tokens):
    """Rows by number, added to tokens; the table itself is the readout of a part of the channels, and a weight."""
    h = params["table"][tokens % 6][..., :3] + params["table"][jnp.array([4, 1, 0, 5])][:, :3]
    h = jnp.tanh(h @ params["table"][PERMUTED[:3], ::2])
    return (h @ params["table"][1:5, 2:].T).sum(axis=1)


@pytest.mark.parametrize("cost", [(0.0, 1.0), (1.0, 0.0)])
def test_rows_by_number_are_looked_up_or_are_a_weight(monkeypatch, cost):
    monkeypatch.setattr("fixntk.ntk.methods.block_flops", lambda *_: cost)
    monkeypatch.setattr("fixntk.ntk.methods.leaves_summed", lambda *_: {})
    params = {"table": normal(3, 6, 4)}
    assert structured_leaves(positions, params, TOKENS1) == {"table"}
    f = lambda p, tokens: positions(p, tokens)  # noqa: E731
    kernel = fx.empirical_ntk(f, params, TOKENS1, TOKENS2, method="structured")
    np.testing.assert_allclose(kernel, jacobian_ntk(positions, params, TOKENS1, TOKENS2), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cost", [(0.0, 1.0), (1.0, 0.0)])
def test_look_ups_in_tables_with_factors_and_beside_products(monkeypatch, cost):
    monkeypatch.setattr("fixntk.ntk.methods.block_flops", lambda *_: cost)
    monkeypatch.setattr("fixntk.ntk.methods.leaves_summed", lambda *_: {})
    params = {name: normal(k, 6, 3) for k, name in enumerate(("masked", "scaled", "table"))} | {"w": normal(3, 3, 3)}
    assert structured_leaves(lookups, params, TOKENS1) == {"scaled", "table", "w"}
    f = lambda p, tokens: lookups(p, tokens)  # noqa: E731
    kernel = fx.empirical_ntk(f, params, TOKENS1, TOKENS2, method="structured")
    np.testing.assert_allclose(kernel, jacobian_ntk(lookups, params, TOKENS1, TOKENS2), rtol=1e-10, atol=1e-10)


def test_weights_that_are_cast_stay_structured():
    def f(params, x):
        return jnp.tanh(x @ (params["w"].astype(x.dtype) * 2).T) @ params["v"].T.astype(x.dtype)

    params = {"v": normal(1, 2, 4).astype("float32"), "w": normal(2, 4, 3).astype("float32")}
    x1, x2 = normal(8, 4, 3), normal(9, 3, 3)
    assert structured_leaves(f, params, x1) == {"v", "w"}
    kernel = fx.empirical_ntk(f, params, x1, x2, method="structured")
    # Unlike the Jacobian in float32, the factors are in float64.
    exact = jacobian_ntk(f, jax.tree.map(lambda leaf: leaf.astype(float), params), x1, x2)
    np.testing.assert_allclose(kernel, exact, rtol=1e-10, atol=1e-10)
