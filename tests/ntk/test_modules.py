import equinox as eqx
import flax.linen as nn
import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fixntk as fx


class Bare:
    """Not a module."""


class WithNorm(nnx.Module):
    """Two outputs for each row after batch normalisation."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.norm, self.readout = nnx.BatchNorm(3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x, factor=1.0):
        return factor * self.readout(self.norm(x))


class Recurrent(nnx.Module):
    """Two outputs for each sequence of three numbers, in float64."""

    def __init__(self, cell):
        rngs, dtypes = nnx.Rngs(0), {"dtype": jnp.float64, "param_dtype": jnp.float64}
        self.layers = nnx.RNN(cell(3, 5, rngs=rngs, **dtypes), rngs=rngs)
        self.readout = nnx.Linear(5, 2, rngs=rngs, **dtypes)

    def __call__(self, x):
        return self.readout(self.layers(x)[:, -1])


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.standard_normal((4, 3)), jnp.float32)


def by_jacobian(f, params, x):
    """(n, n, o, o) kernel from the Jacobian of all parameters."""
    jacobian = [leaf.reshape(*f(params, x).shape, -1) for leaf in jax.tree.leaves(jax.jacobian(f)(params, x))]
    whole = jnp.concatenate(jacobian, axis=-1)
    return jnp.einsum("iok,jqk->ijoq", whole, whole)


def test_nnx_module_as_it_is(x):
    model = WithNorm()
    model.eval()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    expected = by_jacobian(lambda params, x: nnx.merge(graph, params, rest)(x), params, x)
    np.testing.assert_allclose(fx.empirical_ntk(model, x), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(fx.empirical_ntk(model, x, x[:2]), expected[:, :2], rtol=1e-4, atol=1e-5)
    doubled = fx.empirical_ntk(model, x, kwargs={"factor": 2.0})
    np.testing.assert_allclose(doubled, 4 * expected, rtol=1e-4, atol=1e-5)
    last = fx.empirical_ntk(model, x, select="readout")
    assert np.all(np.diagonal(last[..., 0, 0]) < np.diagonal(expected[..., 0, 0]))


def test_a_state_that_changes_is_named(x):
    with pytest.raises(ValueError, match=r"state changes with the call \(norm/mean, norm/var\).*model.eval\(\)"):
        fx.empirical_ntk(WithNorm(), x)
    dropout = nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"state changes with the call \(random numbers.*model.eval\(\)"):
        jax.jit(lambda x: fx.empirical_ntk(dropout, x))(x)
    dropout.eval()
    assert fx.empirical_ntk(dropout, x).shape == (4, 4, 2, 2)


@pytest.mark.parametrize("cell", [nnx.LSTMCell, nnx.GRUCell])
def test_recurrent_nnx_module_as_it_is(cell, rng):
    """Its random numbers are counted when the carry is made, which does not depend on them."""
    model, x = Recurrent(cell), jnp.asarray(rng.standard_normal((4, 6, 3)))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    expected = by_jacobian(lambda params, x: nnx.merge(graph, params, rest, copy=True)(x), params, x)
    np.testing.assert_allclose(fx.empirical_ntk(model, x), expected, rtol=1e-10, atol=1e-12)


def test_linen_module_bound_to_its_variables(x):
    module = nn.Sequential([nn.Dense(3), nn.BatchNorm(use_running_average=True), nn.Dense(2)])
    variables = module.init(jax.random.key(0), x)
    rest = {"batch_stats": variables["batch_stats"]}
    expected = by_jacobian(lambda params, x: module.apply({"params": params, **rest}, x), variables["params"], x)
    np.testing.assert_allclose(fx.empirical_ntk(module.bind(variables), x), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="does not hold its parameters"):
        fx.split_model(module)


def test_linen_refuses_a_state_that_changes_and_randomness(x):
    module = nn.BatchNorm(use_running_average=False)
    model = module.bind(module.init(jax.random.key(0), x))
    with pytest.raises(ValueError, match=r"use_running_average=True.*Flax says.*batch_stats"):
        fx.empirical_ntk(model, x)
    module = nn.Sequential([nn.Dense(2), nn.Dropout(0.5, deterministic=False)])
    model = module.bind(module.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, x))
    with pytest.raises(ValueError, match=r"deterministic=True.*Flax says"):
        fx.empirical_ntk(model, x)


def test_a_linen_module_without_variables_is_named(x):
    module = nn.Dense(2)
    variables = module.init(jax.random.key(0), x)
    for arguments in ((variables, x), (variables["params"], x, x), (x,)):
        with pytest.raises(ValueError, match=r"pass model.bind\(variables\)"):
            fx.empirical_ntk(module, *arguments)
    with pytest.raises(ValueError, match=r"pass model.bind\(variables\)"):
        fx.ntk_vector_product(module, variables, jnp.ones((4, 2)), x)


def test_equinox_refuses_randomness(x):
    model = eqx.nn.Sequential([eqx.nn.Linear(3, 2, key=jax.random.key(0)), eqx.nn.Dropout(0.5)])
    with pytest.raises(ValueError, match=r"pass eqx.nn.inference_mode\(model\)"):
        fx.empirical_ntk(model, x)
    evaluated = eqx.nn.inference_mode(model)
    np.testing.assert_allclose(fx.empirical_ntk(evaluated, x), fx.empirical_ntk(model[0], x), rtol=1e-6)


def test_equinox_refuses_a_state_that_it_does_not_hold(x):
    norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, axis_name="batch", mode="ema")
    for model in (norm, eqx.nn.Sequential([norm])):
        with pytest.raises(ValueError, match="write the function, with params, static ="):
            fx.empirical_ntk(model, x)
    # What the message says to do.
    params, static = eqx.partition(eqx.nn.inference_mode(norm), eqx.is_inexact_array)
    f = lambda params, x: jax.vmap(lambda row: eqx.combine(params, static)(row, state)[0])(x)  # noqa: E731
    assert fx.empirical_ntk(f, params, x).shape == (4, 4, 3, 3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'factor'"):
        fx.empirical_ntk(eqx.nn.Linear(3, 2, key=jax.random.key(0)), x, kwargs={"factor": 2.0})


def test_equinox_module_of_one_example(x):
    model = eqx.nn.MLP(3, 2, 5, 2, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    expected = by_jacobian(lambda params, x: jax.vmap(eqx.combine(params, static))(x), params, x)
    np.testing.assert_allclose(fx.empirical_ntk(model, x), expected, rtol=1e-4, atol=1e-5)


def test_split_model_is_for_every_function(x):
    f, params = fx.split_model(eqx.nn.MLP(3, 2, 5, 2, key=jax.random.key(0)))
    kernel = fx.empirical_ntk(f, params, x)
    vector = jnp.ones((4, 2), jnp.float32)
    np.testing.assert_allclose(
        fx.ntk_vector_product(f, params, vector, x), jnp.einsum("ijoq,jq->io", kernel, vector), rtol=1e-4, atol=1e-5
    )


def test_outputs_of_a_structure_give_kernels_of_it(rng):
    """Each array with itself; the options hold for each."""
    x, w = jnp.asarray(rng.standard_normal((4, 3))), jnp.asarray(rng.standard_normal((3, 2)))

    def f(w, x):
        return {"linear": x @ w, "more": (jnp.sin(x @ w)[:, :1], jnp.sum(x @ w, axis=1))}

    kernels = fx.empirical_ntk(f, w, x, x[:3], outputs="trace")
    alone = {
        "linear": fx.empirical_ntk(lambda w, x: f(w, x)["linear"], w, x, x[:3], outputs="trace"),
        "more": tuple(
            fx.empirical_ntk(lambda w, x, k=k: f(w, x)["more"][k], w, x, x[:3], outputs="trace") for k in range(2)
        ),
    }
    assert jax.tree.structure(kernels) == jax.tree.structure(alone)
    for one, other in zip(jax.tree.leaves(kernels), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    with pytest.raises(TypeError, match="f must return a real floating-point array, got int"):
        fx.empirical_ntk(lambda w, x: (x @ w, jnp.argmax(x @ w, axis=1)), w, x)


def test_other_batch_axes(rng):
    """Examples along the last axis of inputs and outputs."""
    x, w = jnp.asarray(rng.standard_normal((4, 3))), jnp.asarray(rng.standard_normal((3, 2)))
    expected = fx.empirical_ntk(lambda w, x: jnp.sin(x @ w), w, x, x[:3])
    moved = fx.empirical_ntk(lambda w, x: jnp.sin(w.T @ x), w, x.T, x[:3].T, batch_axes=(1, -1))
    np.testing.assert_allclose(moved, expected, rtol=1e-12)
    only_inputs = fx.empirical_ntk(lambda w, x: jnp.sin(x.T @ w), w, x.T, x[:3].T, batch_axes=(1, 0))
    np.testing.assert_allclose(only_inputs, expected, rtol=1e-12)


# One of the calls passes a number for two.
@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((lambda w, x: x @ w, jnp.ones(3)), {}, TypeError, "x1 is missing"),
        ((lambda w, x: x @ w, jnp.ones(3), jnp.ones((2, 3))), {"batch_axes": 1}, TypeError, "batch_axes must be two"),
        (
            (lambda w, x: x @ w, jnp.ones(3), jnp.ones((2, 3))),
            {"batch_axes": (2, 0)},
            ValueError,
            "batch_axes has axis 2",
        ),
    ],
)
def test_bad_arguments_are_named(arguments, options, error, message):
    with pytest.raises(error, match=message):
        fx.empirical_ntk(*arguments, **options)


def test_what_is_no_module_is_named():
    with pytest.raises(TypeError, match="must be a Flax or Equinox module that holds its parameters, got Bare"):
        fx.split_model(Bare())
