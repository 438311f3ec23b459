"""Linearised functions: finite differences, the empirical NTK, custom backward passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flow_problems import network

import fixntk as fx
from fixntk.ntk.linearize import linearize


def test_linearisation_is_the_tangent_by_finite_differences(rng):
    def f(params, x, *, scale):
        return {"out": scale * network(params[0], x), "bias": jnp.sin(params[1])}

    params0 = ({"w": rng.standard_normal((3, 5)), "v": rng.standard_normal((5, 2))}, rng.standard_normal(2))
    other = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), params0)
    x, step = rng.standard_normal((4, 3)), 1e-6
    f_lin = linearize(f, params0)
    ahead, behind = (
        f(jax.tree.map(lambda a, b, s=s: a + s * (b - a), params0, other), x, scale=2.0) for s in (step, -step)
    )
    expected = jax.tree.map(lambda v, a, b: v + (a - b) / (2 * step), f(params0, x, scale=2.0), ahead, behind)
    found = jax.jit(f_lin, static_argnames="scale")(other, x, scale=2.0)
    for key in expected:
        np.testing.assert_allclose(found[key], expected[key], atol=1e-8)
    np.testing.assert_allclose(f_lin(params0, x, scale=2.0)["out"], f(params0, x, scale=2.0)["out"], rtol=1e-14)


def test_linearisation_has_the_same_empirical_ntk_everywhere(rng):
    params0, other = (
        {"w": jnp.asarray(rng.standard_normal((3, 5))), "v": jnp.asarray(rng.standard_normal((5, 2)))} for _ in "ab"
    )
    x = rng.standard_normal((4, 3))
    kernel = fx.empirical_ntk(linearize(network, params0), other, x)
    np.testing.assert_allclose(kernel, fx.empirical_ntk(network, params0, x), atol=1e-12)


def test_linearisation_keeps_the_dtype_of_its_parameters():
    f_lin = linearize(lambda p, x: x * p, jnp.ones(3, jnp.float32))
    assert f_lin(np.zeros(3), jnp.ones(3, jnp.float32)).dtype == jnp.float32


def test_linearisation_leaves_integers_and_takes_custom_backward_passes(rng):
    params0, step, x = (jnp.asarray(rng.standard_normal(shape)) for shape in ((3, 2), (3, 2), (4, 3)))

    @jax.custom_vjp
    def doubled(h):
        return jnp.sin(h)

    doubled.defvjp(lambda h: (jnp.sin(h), h), lambda h, change: (2 * change * jnp.cos(h),))
    values, classes = linearize(lambda p, x: (x @ p, jnp.argmax(x @ p, axis=1)), params0)(params0 + step, x)
    np.testing.assert_allclose(values, x @ (params0 + step))
    np.testing.assert_array_equal(classes, jnp.argmax(x @ params0, axis=1))
    moved = linearize(lambda p, x: doubled(x @ p), params0)(params0 + step, x)
    np.testing.assert_allclose(moved, jnp.sin(x @ params0) + 2 * jnp.cos(x @ params0) * (x @ step))
    with pytest.raises(TypeError, match="f must return one floating-point array where it uses"):
        linearize(lambda p, x: (doubled(x @ p), 1.0), params0)(params0, x)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: linearize(network, {"w": np.ones(2)})({"v": np.ones(2)}),
            ValueError,
            "params must be a pytree like params0",
        ),
        (
            lambda: linearize(network, {"w": np.ones(2)})({"w": np.ones(1)}),
            ValueError,
            r"params\['w'\] must have params0's shape",
        ),
        pytest.param(
            lambda: linearize(None, np.ones(3)),
            TypeError,
            r"f must be a function f\(params, ...\), got NoneType",
            marks=pytest.mark.wrong_types,
        ),
        (
            lambda: linearize(network, {"w": np.arange(3)}),
            TypeError,
            r"params0\['w'\] must be a real floating-point array, got int",
        ),
        (
            lambda: linearize(network, {"w": "text"}),
            TypeError,
            r"params0\['w'\] must be a real floating-point array, got str",
        ),
    ],
)
def test_bad_parameters_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_the_error_of_a_taylor_expansion_falls_with_the_degree(degree, rng):
    params0 = {"w": rng.standard_normal((3, 5)), "v": rng.standard_normal(5)}
    x, step = rng.standard_normal((4, 3)), jax.tree.map(lambda a: rng.standard_normal(a.shape), params0)

    def f(params, x):
        return jnp.sin(x @ params["w"]) @ params["v"], jnp.arange(2)

    expansion = fx.taylor_expand(f, params0, degree)
    errors = []
    for share in (1e-1, 1e-2):
        params = jax.tree.map(lambda a, s, share=share: a + share * s, params0, step)
        outputs, integers = expansion(params, x)
        np.testing.assert_array_equal(integers, jnp.arange(2))
        errors.append(np.max(np.abs(outputs - f(params, x)[0])))
    # The remainder is of order degree + 1.
    assert np.log10(errors[0] / errors[1]) == pytest.approx(degree + 1, abs=0.4)


def test_a_polynomial_is_its_own_expansion(rng):
    x, params0, params = rng.standard_normal(4), rng.standard_normal(4), rng.standard_normal(4)
    expansion = fx.taylor_expand(lambda w, x: jnp.sum(w**3 * x), params0, 3)
    np.testing.assert_allclose(expansion(params, x), np.sum(params**3 * x), rtol=1e-12)
    np.testing.assert_allclose(jax.jit(expansion)(params, x), np.sum(params**3 * x), rtol=1e-12)


@pytest.mark.wrong_types
@pytest.mark.parametrize("degree", [-1, 1.5, True, "2"])
def test_a_degree_is_a_non_negative_integer(degree):
    with pytest.raises(ValueError, match="degree must be a non-negative integer"):
        fx.taylor_expand(lambda w, x: w * x, 1.0, degree)
