"""Arguments of empirical kernels in every type that arrays come in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fixntk as fx


def product(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


@pytest.mark.parametrize("method", ["structured", "jacobian"])
@pytest.mark.parametrize("kind", ["int32", "int64", "bool", "float32", ">f8"])
def test_inputs_beside_float64_weights_give_float64(rng, kind, method):
    params = {"w": rng.standard_normal((40, 3)) / 300, "v": rng.standard_normal((3, 2))}
    x = rng.integers(0, 2 if kind == "bool" else 120, (4, 40)).astype(kind)
    expected = fx.empirical_ntk(product, params, x.astype(float), method="jacobian")
    found = fx.empirical_ntk(product, params, x, method=method)
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_parameters_of_every_byte_order_are_taken(rng):
    params = {"w": rng.standard_normal((4, 3)), "v": rng.standard_normal((3, 2))}
    x = rng.standard_normal((5, 4))
    swapped = {name: value.astype(">f8") for name, value in params.items()}
    np.testing.assert_array_equal(fx.empirical_ntk(product, swapped, x), fx.empirical_ntk(product, params, x))


@pytest.mark.parametrize("method", ["structured", "jacobian"])
def test_inputs_may_hold_typed_keys(rng, key, method):
    params = {"w": rng.standard_normal((4, 3)), "v": rng.standard_normal((3, 2))}

    def noisy(params, x):
        return product(params, x["a"] + jax.vmap(lambda key: jax.random.normal(key, (4,)))(x["key"]))

    x1, x2 = (
        {"a": rng.standard_normal((n, 4)), "key": jax.random.split(jax.random.fold_in(key, n), n)} for n in (5, 3)
    )
    plain1, plain2 = (x["a"] + np.stack([jax.random.normal(key, (4,)) for key in x["key"]]) for x in (x1, x2))
    for batch_size in (None, 2):
        found = fx.empirical_ntk(noisy, params, x1, x2, method=method, batch_size=batch_size)
        np.testing.assert_allclose(found, fx.empirical_ntk(product, params, plain1, plain2), rtol=1e-10)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ({"a": np.array([1, None, 2], object)}, r"^x1\['a'\] has 1 missing value"),
        ({"a": np.array([1.0, np.nan])}, r"^x1\['a'\] holds NaN"),
    ],
)
def test_missing_inputs_are_refused_by_name(x, message):
    with pytest.raises(ValueError, match=message):
        fx.empirical_ntk(lambda params, x: params * x["a"], 1.0, x)


def test_outputs_that_are_rounding_errors_of_what_cancels_are_taken(rng):
    """Residuals of a network that has learnt: they change with the batch as the values that cancel round."""
    params = {"w": rng.standard_normal((40, 300)), "v": rng.standard_normal((300, 2))}
    x = rng.standard_normal((6, 40))
    params, data = jax.tree.map(np.float32, (params, {"a": x, "y": product(params, x)}))

    def residual(params, x):
        return product(params, x["a"]) - x["y"]

    assert np.max(np.abs(residual(params, data))) < 1e-3
    found = fx.empirical_ntk(residual, params, data)
    np.testing.assert_allclose(found, fx.empirical_ntk(product, params, data["a"]), rtol=1e-4, atol=1e-2)
    with pytest.raises(ValueError, match="changes with the rest of the batch"):
        fx.empirical_ntk(lambda p, x: residual(p, x) - jnp.mean(product(p, x["a"]), axis=0), params, data)


MIXED = {
    "computed in float32, returned in float64": lambda p, x: product(*as_dtype((p, x), "float32")).astype(float),
    "parameters cast to float32": lambda p, x: product(as_dtype(p, "float32"), x.astype("float32")).astype(x.dtype),
    "hidden layer in float32": lambda p, x: jnp.tanh(x @ p["w"]).astype("float32").astype(float) @ p["v"].astype(float),
    "in a jitted function": lambda p, x: jax.jit(product)(*as_dtype((p, x), "float32")).astype(float),
}


def as_dtype(tree, dtype):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)


@pytest.mark.parametrize("method", ["structured", "jacobian"])
@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("dtypes", [("float64", "float64"), ("float64", "float32"), ("float32", "float64")])
def test_networks_of_several_dtypes_are_taken(rng, name, dtypes, method):
    """Rounding depends on the size of the batch: by that of float32, where a part of the network is in float32."""
    f = MIXED[name]
    params = {"w": rng.standard_normal((40, 300)) / 6, "v": rng.standard_normal((300, 2)) / 17}
    x = rng.standard_normal((6, 40))
    expected = fx.empirical_ntk(product, params, x, method="jacobian")
    found = fx.empirical_ntk(f, as_dtype(params, dtypes[0]), jnp.asarray(x, dtypes[1]), method=method)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.max(np.abs(expected)))


def test_parameters_of_two_dtypes_are_taken(rng):
    params = {"w": rng.standard_normal((40, 300)) / 6, "v": rng.standard_normal((300, 2)) / 17}
    x = rng.standard_normal((6, 40))
    expected = fx.empirical_ntk(product, params, x, method="jacobian")
    for narrow in ("w", "v"):
        mixed = {**params, narrow: params[narrow].astype("float32")}
        for f in (product, MIXED["hidden layer in float32"]):
            found = fx.empirical_ntk(f, mixed, x)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.max(np.abs(expected)))


@pytest.mark.parametrize("method", ["structured", "jacobian"])
def test_dtypes_are_not_promoted_where_that_is_refused(rng, method):
    params = {"w": jnp.asarray(rng.standard_normal((4, 3)), "float32"), "v": rng.standard_normal((3, 2))}
    x = rng.standard_normal((5, 4))

    def f(params, x):
        return jnp.tanh(x.astype("float32") @ params["w"]).astype("float64") @ params["v"]

    with jax.numpy_dtype_promotion("strict"):
        found = fx.empirical_ntk(f, params, x, method=method)
    np.testing.assert_allclose(found, fx.empirical_ntk(product, params, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_batch_statistics_are_found_in_every_dtype(rng, dtype):
    params = {"w": rng.standard_normal((40, 300)) / 6, "v": rng.standard_normal((300, 2)) / 17}

    def normalised(params, x):
        hidden = x.astype(dtype) @ params["w"].astype(dtype)
        centred = hidden - hidden.mean(axis=0)
        return (jnp.tanh(centred) @ params["v"].astype(dtype)).astype(float)

    with pytest.raises(ValueError, match="changes with the rest of the batch"):
        fx.empirical_ntk(normalised, params, rng.standard_normal((6, 40)))
