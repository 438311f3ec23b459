"""The empirical NTK: neural-tangents, the axes, tiles, transformations, the packages people write networks with."""

from functools import partial

import equinox as eqx
import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_structure import jacobian_ntk, normal

import fixntk as fx
from fixntk.ntk import structure
from fixntk.ntk.neural_tangents_compat import import_neural_tangents


def network(params, x):
    """Two output axes, (2, 3)."""
    return (jnp.tanh(x @ params["w"]) @ params["v"] + params["b"]).reshape(x.shape[0], 2, 3)


PARAMS = {"w": normal(1, 4, 5), "v": normal(2, 5, 6), "b": normal(3, 6)}
X1 = normal(4, 7, 4)
X2 = normal(5, 5, 4)


def full_kernel(x1, x2):
    """(n1, n2, 2, 2, 3, 3): neural-tangents' order of axes."""
    flat = jacobian_ntk(lambda p, x: network(p, x).reshape(x.shape[0], -1), PARAMS, x1, x2)
    return flat.reshape(*flat.shape[:2], 2, 3, 2, 3).transpose(0, 1, 2, 4, 3, 5)


@pytest.mark.parametrize("method", ["auto", "structured", "jacobian", "ntvp"])
def test_methods_and_tiles_agree(method):
    for batch_size in (None, 3):
        options = {"method": method, "batch_size": batch_size}
        between = fx.empirical_ntk(network, PARAMS, X1, X2, **options)
        assert jnp.allclose(between, full_kernel(X1, X2), rtol=1e-12, atol=1e-12)
        symmetric = fx.empirical_ntk(network, PARAMS, X1, **options)
        assert jnp.allclose(symmetric, full_kernel(X1, X1), rtol=1e-12, atol=1e-12)
    on_host = fx.empirical_ntk(network, PARAMS, X1, store_on_device=False, **options)
    assert isinstance(on_host, np.ndarray)
    assert np.array_equal(on_host, symmetric)
    jitted = jax.jit(lambda p, x: fx.empirical_ntk(network, p, x, **options))(PARAMS, X1)
    assert jnp.allclose(jitted, symmetric, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", ["structured", "jacobian", "ntvp"])
def test_axes_are_those_of_neural_tangents(method):
    nt = import_neural_tangents()
    cases = [((), ()), ((-1,), ()), (1, ()), ((1, 2), ()), ((), (1,)), ((), -1), ((1,), (2,)), ((), (2, 1))]
    paired = [((), (0,)), ((0,), (1,)), ((0, 1), ()), ((2,), (0,))]
    for trace_axes, diagonal_axes in cases + paired:
        x2 = X1[::-1] if (trace_axes, diagonal_axes) in paired else X2
        as_tuples = [(axes,) if isinstance(axes, int) else axes for axes in (trace_axes, diagonal_axes)]
        theirs = nt.empirical_ntk_fn(network, *as_tuples, implementation=1)(X1, x2, PARAMS)
        ours = fx.empirical_ntk(
            network, PARAMS, X1, x2, trace_axes=trace_axes, diagonal_axes=diagonal_axes, method=method
        )
        assert ours.shape == theirs.shape
        assert jnp.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_words_for_the_axes():
    full = full_kernel(X1, X2)
    assert jnp.allclose(fx.empirical_ntk(network, PARAMS, X1, X2, outputs="full"), full)
    trace = jnp.einsum("ijaabb->ij", full) / 6
    assert jnp.allclose(fx.empirical_ntk(network, PARAMS, X1, X2, outputs="trace"), trace)
    diagonal = jnp.einsum("ijaabb->ijab", full)
    assert jnp.allclose(fx.empirical_ntk(network, PARAMS, X1, X2, outputs="diagonal"), diagonal)


@pytest.mark.parametrize("method", ["structured", "ntvp"])
def test_layers_sum_to_the_whole(method):
    shares = fx.layerwise_ntk(network, PARAMS, X1, X2, method=method)
    assert shares.keys() == PARAMS.keys()
    for name, share in shares.items():
        alone = jacobian_ntk(
            lambda p, x, name=name: network({**PARAMS, name: p}, x).reshape(x.shape[0], -1), PARAMS[name], X1, X2
        )
        expected = alone.reshape(7, 5, 2, 3, 2, 3).transpose(0, 1, 2, 4, 3, 5)
        assert jnp.allclose(share, expected, rtol=1e-12, atol=1e-12)
    groups = {"w": "hidden", "v": "readout", "b": "readout"}
    grouped = fx.layerwise_ntk(network, PARAMS, X1, X2, groups=groups, method=method, batch_size=2)
    assert list(grouped) == ["readout", "hidden"]
    assert jnp.allclose(grouped["readout"], shares["v"] + shares["b"])
    assert jnp.allclose(grouped["hidden"], shares["w"])


def test_float32_and_half_precision_stay_themselves():
    for dtype, result, tolerance in (("float32", "float32", 1e-5), ("bfloat16", "float32", 0.1)):
        params = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), PARAMS)
        kernel = fx.empirical_ntk(network, params, X1.astype(dtype), X2.astype(dtype))
        assert kernel.dtype == result
        assert jnp.allclose(kernel, full_kernel(X1, X2), rtol=tolerance, atol=tolerance)


def test_transformations_and_closures():
    def scaled(scale):
        return fx.empirical_ntk(lambda p, x: scale * network(p, x), PARAMS, X1, X2, outputs="trace", batch_size=3)

    # The function closes over what is traced, nothing that is passed is.
    doubled = jax.jit(scaled)(2.0)
    assert jnp.allclose(doubled, 4 * scaled(1.0))
    assert jnp.allclose(jax.vmap(scaled)(jnp.array([1.0, 2.0]))[1], doubled)

    def total(w):
        return jnp.sum(jnp.sin(fx.empirical_ntk(network, {**PARAMS, "w": w}, X1, X2, outputs="trace")))

    direction, step = normal(7, 4, 5), 1e-5
    slope = (total(PARAMS["w"] + step * direction) - total(PARAMS["w"] - step * direction)) / (2 * step)
    assert jnp.allclose(jnp.vdot(jax.grad(total)(PARAMS["w"]), direction), slope, rtol=1e-7)


def test_pytrees_of_inputs():
    def two_towers(params, x):
        return jnp.sin(x["left"] @ params["w"]) @ params["v"] * x["scale"][:, None]

    x = {"left": X1, "scale": normal(8, 7)}
    kernel = fx.empirical_ntk(two_towers, PARAMS, x, batch_size=4)
    assert jnp.allclose(kernel, jacobian_ntk(two_towers, {k: PARAMS[k] for k in "wv"}, x, x), rtol=1e-12, atol=1e-12)


class LinenNetwork(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x):
        x = flax.linen.LayerNorm()(flax.linen.relu(flax.linen.Conv(3, (3, 3))(x)))
        x = flax.linen.MultiHeadDotProductAttention(num_heads=2, qkv_features=4)(x.reshape(x.shape[0], -1, 3))
        return flax.linen.Dense(2)(x.mean(axis=1))


class NNXNetwork(flax.nnx.Module):
    def __init__(self, rngs):
        self.hidden = flax.nnx.Linear(4, 5, rngs=rngs)
        self.dropout = flax.nnx.Dropout(0.5, rngs=rngs)
        self.readout = flax.nnx.Linear(5, 2, rngs=rngs)

    def __call__(self, x):
        return self.readout(self.dropout(flax.nnx.gelu(self.hidden(x))))


def test_flax_linen():
    x = normal(1, 4, 4, 4, 2)
    model = LinenNetwork()
    params = model.init(jax.random.key(0), x)
    params = jax.tree.map(lambda leaf: leaf.astype(x.dtype), params)
    kernel = fx.empirical_ntk(model.apply, params, x)
    assert jnp.allclose(kernel, jacobian_ntk(model.apply, params, x, x), rtol=1e-10, atol=1e-10)


def test_flax_nnx():
    model = NNXNetwork(flax.nnx.Rngs(0))
    model.eval()
    graph, params, rest = flax.nnx.split(model, flax.nnx.Param, ...)

    def f(params, x):
        return flax.nnx.merge(graph, params, rest)(x)

    kernel = fx.empirical_ntk(f, params, X1)
    assert jnp.allclose(kernel, jacobian_ntk(f, params, X1, X1), rtol=1e-6, atol=1e-6)


def test_equinox():
    model = eqx.nn.MLP(4, 2, 5, 2, key=jax.random.key(0), dtype=jnp.float64)
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def f(params, x):
        return jax.vmap(eqx.combine(params, static))(x)

    kernel = fx.empirical_ntk(f, params, X1, X2)
    assert jnp.allclose(kernel, jacobian_ntk(f, params, X1, X2), rtol=1e-12, atol=1e-12)
    with pytest.raises(TypeError, match=r"params\.activation is a .*eqx\.partition"):
        fx.empirical_ntk(f, model, X1)


def batch_normalised(params, x):
    hidden = x @ params["w"]
    return (hidden - hidden.mean(axis=0)) @ params["v"]


def dropout(params, x):
    hidden = x @ params["w"]
    return (hidden * jax.random.bernoulli(jax.random.key(0), 0.5, hidden.shape)) @ params["v"]


NO_HEAD = {**PARAMS, "v": jnp.zeros_like(PARAMS["v"])}


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (ValueError, "trace_axes has axis 3", {"trace_axes": (3,)}),
        (ValueError, "diagonal_axes has axis -4", {"diagonal_axes": -4}),
        pytest.param(
            TypeError, "trace_axes must be an integer or integers", {"trace_axes": "ab"}, marks=pytest.mark.wrong_types
        ),
        (ValueError, r"axes \[2\] are in both", {"trace_axes": (-1,), "diagonal_axes": (2,)}),
        (ValueError, "either outputs or", {"outputs": "trace", "trace_axes": (1,)}),
        pytest.param(
            ValueError,
            "outputs must be 'full', 'trace' or 'diagonal'",
            {"outputs": "all"},
            marks=pytest.mark.wrong_types,
        ),
        pytest.param(ValueError, "method must be one of 'auto'", {"method": "fast"}, marks=pytest.mark.wrong_types),
        (ValueError, "batch_size must be a positive integer", {"batch_size": 0}),
        (ValueError, "paired row by row", {"diagonal_axes": (0,), "x2": X2}),
        (TypeError, r"params\['w'\] must be a real floating-point array .* int", {"params": {**PARAMS, "w": 3}}),
        (TypeError, r"params\['w'\] is a str", {"params": {**PARAMS, "w": "weights"}}),
        (ValueError, r"params\['b'\] holds NaN", {"params": {**PARAMS, "b": jnp.full(6, jnp.nan)}}),
        (ValueError, "params has no arrays", {"params": {}}),
        (ValueError, "x1 is empty", {"x1": X1[:0]}),
        (ValueError, "x1 holds NaN", {"x1": X1.at[0, 0].set(jnp.inf)}),
        (ValueError, "x1 and x2 must agree", {"x2": X2[:, :3]}),
        (ValueError, "x1 and x2 must agree", {"x2": X2.astype("float32")}),
        (ValueError, "same kind of pytree", {"x2": {"a": X2}}),
        pytest.param(TypeError, "f must be a function", {"f": 3}, marks=pytest.mark.wrong_types),
        (TypeError, "f must return one array", {"f": lambda *_: None}),
        (TypeError, "real floating-point array", {"f": lambda _, x: jnp.argmax(x, axis=1)}),
        (ValueError, "one row for each example: x1 has 7 rows.*jax.vmap", {"f": lambda p, x: jnp.sum(x @ p["w"])}),
        (ValueError, "changes with the rest of the batch", {"f": batch_normalised}),
        (ValueError, "changes with the rest of the batch", {"f": dropout}),
        (ValueError, "derivative for an example changes", {"f": batch_normalised, "params": NO_HEAD}),
        (ValueError, "derivative for an example changes", {"f": dropout, "params": NO_HEAD}),
        (ValueError, "changes with the rest of the batch", {"f": batch_normalised, "x1": X1.at[1].set(X1[0])}),
        (ValueError, "changes with the rest of the batch", {"f": batch_normalised, "x1": X1[:1], "x2": X2}),
        (
            ValueError,
            "changes with the rest of the batch",
            {"f": lambda p, x: network(p, x) + network(p, jnp.roll(x, 2, axis=0))},
        ),
        (
            ValueError,
            r"for a batch of one example, expected \(1,\), got \(\)",
            {"f": lambda p, x: (x @ p["w"][:, 0:1]).squeeze()},
        ),
    ],
)
def test_bad_input_is_named(error, message, change):
    arguments = {"f": network, "params": PARAMS, "x1": X1, **change}
    with pytest.raises(error, match=message):
        fx.empirical_ntk(**arguments)


@pytest.mark.parametrize("method", ["auto", "structured", "jacobian", "ntvp"])
def test_parameters_that_do_not_enter_have_kernel_zero(method):
    kernels = fx.layerwise_ntk(
        lambda p, x: jnp.sin(x) * p["s"], {"s": jnp.ones(4), "u": PARAMS["w"]}, X1, method=method
    )
    assert jnp.all(kernels["u"] == 0)
    assert jnp.any(kernels["s"] != 0)
    assert jnp.all(fx.empirical_ntk(lambda _, x: jnp.sin(x), PARAMS, X1, method=method) == 0)


def test_bad_groups_and_vectors_are_named():
    with pytest.raises(ValueError, match="groups must be a pytree of labels that is a prefix"):
        fx.layerwise_ntk(network, PARAMS, X1, groups={"w": 1})
    with pytest.raises(ValueError, match=r"vector must have the shape of f\(params, x2\), \(7, 2, 3\), got \(7,\)"):
        fx.ntk_vector_product(network, PARAMS, jnp.ones(7), X1)
    with pytest.raises(ValueError, match="store_on_device=False"):
        jax.jit(lambda x: fx.empirical_ntk(network, PARAMS, x, store_on_device=False))(X1)


def relu_network(params, x):
    """A convolution, a ReLU and a layer whose derivative is a rule of its own, written without a precision."""
    images = x[:, :, None] * jnp.ones(3)
    hidden = jax.lax.conv_general_dilated(images, params["conv"], (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"))
    return own_rule(jax.nn.relu(hidden).reshape(x.shape[0], -1), params["w"])


@jax.custom_jvp
def own_rule(x, w):
    return x @ w


@own_rule.defjvp
def _own_rule_jvp(primals, tangents):
    (x, w), (d_x, d_w) = primals, tangents
    return own_rule(x, w), d_x @ w + x @ d_w


RELU_PARAMS = {"conv": normal(6, 2, 3, 5), "w": normal(7, 20, 2)}

PRODUCTS = {
    **{
        method: partial(fx.empirical_ntk, relu_network, method=method)
        for method in ("auto", "structured", "jacobian", "ntvp")
    },
    "tiles": partial(fx.empirical_ntk, relu_network, batch_size=2),
    "layerwise": partial(fx.layerwise_ntk, relu_network),
    "product": lambda params, x: fx.ntk_vector_product(relu_network, params, jnp.ones((x.shape[0], 2)), x),
}


def precisions(jaxpr):
    """Precision of each matrix product and convolution, those of inner programs included."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            found.append(equation.params["precision"])
        for inner in structure.inner_jaxprs(equation):
            found += precisions(inner)
    return found


@pytest.mark.parametrize("name", PRODUCTS)
def test_every_product_of_the_kernel_and_of_the_function_is_in_full_precision(name):
    found = precisions(jax.make_jaxpr(PRODUCTS[name])(RELU_PARAMS, X1).jaxpr)
    assert len(found) >= 6
    assert set(found) == {(jax.lax.Precision.HIGHEST,) * 2}


@pytest.mark.parametrize("name", PRODUCTS)
def test_compiled_tiles_trace_the_function_in_full_precision(name, monkeypatch):
    seen, compiled = set(), []
    bind = structure.bind_equation

    def watched(jaxpr, equation, operands):
        compiled.extend(precisions(jaxpr.replace(eqns=[equation])))
        return bind(jaxpr, equation, operands)

    def f(params, x):
        seen.add(jax.config.jax_default_matmul_precision)
        return relu_network(params, x)

    monkeypatch.setattr(structure, "bind_equation", watched)
    if name == "product":
        fx.ntk_vector_product(f, RELU_PARAMS, jnp.ones((7, 2)), X1)
    else:
        PRODUCTS[name].func(f, RELU_PARAMS, X1, **PRODUCTS[name].keywords)
    assert seen == {"highest"}
    assert set(compiled) <= {(jax.lax.Precision.HIGHEST,) * 2}


def test_a_precision_that_the_user_sets_is_kept():
    with jax.default_matmul_precision("tensorfloat32"):
        found = precisions(jax.make_jaxpr(PRODUCTS["ntvp"])(RELU_PARAMS, X1).jaxpr)
    assert set(found) == {(jax.lax.Precision.HIGH,) * 2}
    seen = []

    def f(params, x):
        seen.append(jax.config.jax_default_matmul_precision)
        return relu_network(params, x)

    fx.empirical_ntk(f, RELU_PARAMS, X1)
    seen.clear()
    with jax.default_matmul_precision("tensorfloat32"):
        fx.empirical_ntk(f, RELU_PARAMS, X1)
    # The network that was read in full precision is not taken from the cache.
    assert set(seen) == {"tensorfloat32"}
    assert len(seen) > 2
