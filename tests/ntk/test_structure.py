"""Structured empirical NTKs against a plain contraction of jax.jacobian, use by use of a parameter (float64)."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from fixntk.ntk.empirical import empirical_ntk
from fixntk.ntk.neural_tangents_compat import import_neural_tangents
from fixntk.ntk.sites import find_sites


@partial(jax.jit, static_argnums=0)
def jacobian_ntk(f, params, x1, x2):
    def rows(x):
        leaves = jax.tree.leaves(jax.jacobian(f)(params, x))
        shape = jax.eval_shape(f, params, x).shape
        return jnp.concatenate([leaf.reshape(*shape, -1) for leaf in leaves], axis=-1)

    return jnp.einsum("iop,jqp->ijoq", rows(x1), rows(x2))


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape) / 2


def convolution(**options):
    def f(params, x):
        images = jnp.tanh(lax.conv_general_dilated(x, params["w"], **options))
        return jnp.tanh(images).reshape(x.shape[0], -1) @ params["v"]

    return f


NHWC = ("NHWC", "HWIO", "NHWC")


@jax.custom_jvp
def straight_through(w):
    return jnp.round(w)


straight_through.defjvps(lambda tangent, _, w: tangent * jnp.cos(w))


@jax.custom_vjp
def clipped_product(x, w):
    return x @ w


clipped_product.defvjp(
    lambda x, w: (x @ w, (x, w)), lambda kept, g: (g @ kept[1].T, jnp.clip(kept[0].T @ g, -0.1, 0.1))
)


def gru_like(params, x):
    def step(state, inputs):
        return jnp.tanh(state @ params["u"] + inputs @ params["w"]), None

    state, _ = lax.scan(step, jnp.zeros((x.shape[0], 3)), jnp.swapaxes(x, 0, 1))
    return state


def attention(params, x):
    query, key, value = (jnp.einsum("nti,ihj->nthj", x, params[name]) for name in "qkv")
    weights = jax.nn.softmax(jnp.einsum("nthj,nshj->nhts", query, key))
    mixed = jnp.einsum("nhts,nshj->nthj", weights, value)
    return jnp.einsum("nthj,hjo->nto", mixed, params["o"]).mean(axis=1)


def branches(params, x):
    def one(row):
        return lax.cond(row[0] > 0, lambda w: row @ w, lambda w: row @ jnp.sin(w), params["w"])

    return jax.vmap(one)(x)


# name: function, parameters, shape of an example, leaves that enter through structure.
NETWORKS = {
    "left operand": (
        lambda p, x: jnp.tanh((p["w"] @ x.T).T) @ p["v"].T + p["b"],
        {"w": normal(1, 4, 3), "v": normal(2, 2, 4), "b": normal(3, 2)},
        (3,),
        {"w", "v"},
    ),
    "reshaped, transposed, jitted, checkpointed": (
        jax.jit(
            lambda p, x: jax.checkpoint(lambda w, y: jnp.tanh(y) @ w)(
                p["v"].reshape(2, 4).T, jax.jit(jax.nn.gelu)(x @ p["w"].T)
            )
        ),
        {"w": normal(1, 4, 3), "v": normal(2, 8)},
        (3,),
        {"w", "v"},
    ),
    "one jitted function, two leaves": (
        lambda p, x: _layer(_layer(x, p["w"]), p["v"]),
        {"w": normal(1, 3, 3), "v": normal(2, 3, 3)},
        (3,),
        {"w", "v"},
    ),
    "complex activations": (
        lambda p, x: jnp.abs(jnp.fft.rfft(x @ p["w"]) @ p["v"]) ** 2 + jnp.real(jnp.fft.rfft(x)) @ p["u"],
        {"w": normal(1, 4, 4), "v": normal(2, 3, 2), "u": normal(3, 3, 2)},
        (4,),
        {"w", "u"},
    ),
    "product of leaves": (
        lambda p, x: jnp.tanh(x @ (p["a"] @ p["b"])) @ p["v"],
        {"a": normal(1, 4, 2), "b": normal(2, 2, 5), "v": normal(3, 5, 2)},
        (4,),
        {"a", "b", "v"},
    ),
    "batched product": (
        lambda p, x: jnp.tanh(jnp.einsum("ngi,gij->ngj", x, p["w"])).reshape(x.shape[0], -1) @ p["v"],
        {"w": normal(1, 3, 2, 4), "v": normal(2, 12, 2)},
        (3, 2),
        {"w", "v"},
    ),
    "attention": (
        attention,
        {"q": normal(1, 3, 2, 4), "k": normal(2, 3, 2, 4), "v": normal(3, 3, 2, 4), "o": normal(4, 2, 4, 2)},
        (5, 3),
        {"q", "k", "v", "o"},
    ),
    "convolution, strided and padded": (
        convolution(window_strides=(2, 1), padding=((1, 0), (0, 2)), dimension_numbers=NHWC),
        {"w": normal(1, 3, 2, 2, 4), "v": normal(2, 72, 2)},
        (6, 5, 2),
        {"w", "v"},
    ),
    "convolution, grouped and dilated": (
        convolution(
            window_strides=(1, 1),
            padding=((0, 0), (1, -1)),
            lhs_dilation=(1, 2),
            rhs_dilation=(2, 1),
            feature_group_count=2,
            dimension_numbers=("NCHW", "OIHW", "NCHW"),
        ),
        {"w": normal(1, 6, 2, 2, 3), "v": normal(2, 270, 2)},
        (4, 7, 6),
        {"w", "v"},
    ),
    "residual": (
        lambda p, x: (h := x @ p["w"]) + jax.nn.relu(jax.nn.standardize(h)) @ p["v"] + p["b"],
        {"w": normal(1, 3, 4), "v": normal(2, 4, 4), "b": normal(3, 4)},
        (3,),
        {"w", "v"},
    ),
    "shared weights": (
        lambda p, x: jnp.tanh(jnp.tanh(x @ p["w"]) @ p["w"].T) @ p["v"],
        {"w": normal(1, 3, 4), "v": normal(2, 3, 2)},
        (3,),
        {"w", "v"},
    ),
    "scan": (gru_like, {"u": normal(1, 3, 3), "w": normal(2, 2, 3)}, (4, 2), set()),
    "conditional": (branches, {"w": normal(1, 3, 2)}, (3,), set()),
    "custom derivatives": (
        lambda p, x: clipped_product(jnp.tanh(x @ straight_through(4 * p["w"])), p["v"]),
        {"w": normal(1, 3, 4), "v": normal(2, 4, 2)},
        (3,),
        set(),
    ),
    "scale, shift and a leaf that is not used": (
        lambda p, x: jax.nn.standardize(x @ p["w"]) * p["scale"] + p["shift"],
        {"w": normal(1, 3, 4), "scale": normal(2, 4), "shift": normal(3, 4), "unused": normal(4, 7)},
        (3,),
        {"w"},
    ),
    "used beside its product": (
        lambda p, x: x @ p["w"] + jnp.sum(p["w"] ** 2, axis=0),
        {"w": normal(1, 3, 2)},
        (3,),
        set(),
    ),
    "output is a leaf": (
        lambda p, x: jnp.broadcast_to(p["b"], (x.shape[0], 3)) if x.shape[0] != 1 else p["b"],
        {"b": normal(1, 1, 3)},
        (2,),
        set(),
    ),
    "values that are not returned": (
        lambda p, x: (_layer_and_penalty(x, p["w"])[0] @ p["v"], p["v"] ** 2)[0],
        {"w": normal(1, 3, 4), "v": normal(2, 4, 2)},
        (3,),
        {"w", "v"},
    ),
}


@jax.jit
def _layer_and_penalty(x, w):
    return jnp.sin(x @ w), jnp.sum(w**2)


@jax.jit
def _layer(x, w):
    return jnp.sin(x @ w)


@pytest.mark.parametrize("name", NETWORKS)
def test_structured_is_the_contraction_of_jacobians(name):
    f, params, shape, expected = NETWORKS[name]
    x1, x2 = normal(8, 4, *shape), normal(9, 3, *shape)
    closed = jax.make_jaxpr(lambda leaves, x: f(dict(zip(sorted(params), leaves, strict=True)), x[None]))(
        jax.tree.leaves(params), x1[0]
    )
    sites, _ = find_sites(closed, len(params))
    assert {sorted(params)[site.leaf] for site in sites} == expected
    kernel = empirical_ntk(f, params, x1, x2, method="structured")
    assert jnp.allclose(kernel, jacobian_ntk(f, params, x1, x2), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["left operand", "convolution, strided and padded", "residual", "attention"])
def test_blocks_are_those_of_neural_tangents(name):
    f, params, shape, _ = NETWORKS[name]
    x1, x2 = normal(8, 4, *shape), normal(9, 3, *shape)
    expected = import_neural_tangents().empirical_ntk_fn(f, trace_axes=(), implementation=1)(x1, x2, params)
    assert jnp.allclose(empirical_ntk(f, params, x1, x2), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["attention", "convolution, strided and padded"])
def test_both_orders_of_contraction_agree(name):
    # Which is cheaper depends on the number of examples: that of positions first, or of parameters first.
    f, params, shape, _ = NETWORKS[name]
    kernels = []
    for copies in (1, 100):
        x = jnp.tile(normal(8, 2, *shape), (copies,) + (1,) * len(shape))
        kernels.append(empirical_ntk(f, params, x, outputs="trace", method="structured")[:2, :2])
    assert jnp.allclose(*kernels, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("mode", ["fill", "clip", None])
def test_structured_looks_rows_of_a_table_up(mode):
    def f(params, tokens):
        rows = jnp.take(params["table"], tokens, axis=0, mode=mode) if mode else params["table"].at[tokens].get()
        return jnp.sin(jnp.nan_to_num(rows)).sum(axis=1) @ params["v"]

    params = {"table": normal(1, 5, 3), "v": normal(2, 3, 2)}
    x1, x2 = jnp.array([[0, 1, 1, 4], [2, 2, 2, 9], [-1, 0, 3, 4]]), jnp.array([[1, 4, 4, 0], [9, -2, 7, 2]])
    closed = jax.make_jaxpr(lambda leaves, x: f(dict(zip(("table", "v"), leaves, strict=True)), x[None]))(
        jax.tree.leaves(params), x1[0]
    )
    assert len(find_sites(closed, 2)[0]) == 2
    kernel = empirical_ntk(f, params, x1, x2, method="structured")
    assert jnp.allclose(kernel, jacobian_ntk(f, params, x1, x2), rtol=1e-11, atol=1e-11)
