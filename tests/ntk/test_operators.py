"""Kernels of several operators of one network: blocks of the dense kernel of all residuals together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fixntk as fx


def solution(params, x):
    return (jnp.tanh(x @ params["hidden"] + params["bias"]) @ params["head"] + params["shift"])[:, 0]


def residual(params, x):
    """−Δu − f of each point, into which the shift does not enter."""

    def of_point(point):
        return -jnp.trace(jax.hessian(lambda z: solution(params, z[None])[0])(point)) - jnp.sin(point[0])

    return jax.vmap(of_point)(x)


def flux(params, x):
    """The gradient at each point, and twice it: two axes of outputs."""
    gradient = jax.vmap(jax.grad(lambda z: solution(params, z[None])[0]))(x)
    return jnp.stack([gradient, 2 * gradient, -gradient], axis=2)


def slope(params, x):
    return flux(params, x)[:, :, 0] + x


OPERATORS = {"residual": residual, "boundary": solution, "flux": flux, "slope": slope}
NUM_ROWS = {"residual": 7, "boundary": 4, "flux": 3, "slope": 2}


@pytest.fixture
def params(rng):
    shapes = {"hidden": (2, 10), "bias": (10,), "head": (10, 1), "shift": (1,)}
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


@pytest.fixture
def batches(rng):
    return {name: rng.uniform(size=(num_rows, 2)) for name, num_rows in NUM_ROWS.items()}


def jacobian_of(name, params, batches, leaves=None):
    jacobian = jax.jacobian(lambda p: OPERATORS[name](p, batches[name]).ravel())(params)
    leaves = leaves or jacobian
    return np.concatenate([np.asarray(jacobian[leaf]).reshape(len(jacobian[leaf]), -1) for leaf in leaves], axis=1)


def flat(block, num_axes):
    """A block as a matrix: the axes of its rows, then those of its columns."""
    order = [0, *range(2, 2 + num_axes), 1, *range(2 + num_axes, block.ndim)]
    rows = block.shape[0] * int(np.prod(block.shape[2 : 2 + num_axes]))
    return np.asarray(block).transpose(order).reshape(rows, -1)


AXES = {"residual": 0, "boundary": 0, "flux": 2, "slope": 1}


@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_blocks_are_those_of_the_dense_kernel(params, batches, batch_size):
    found = fx.operator_ntk(OPERATORS, params, batches, batch_size=batch_size)
    jacobians = {name: jacobian_of(name, params, batches) for name in OPERATORS}
    assert list(found) == list(OPERATORS)
    for one in OPERATORS:
        for other in OPERATORS:
            expected = jacobians[one] @ jacobians[other].T
            np.testing.assert_allclose(flat(found[one][other], AXES[one]), expected, rtol=1e-10, atol=1e-10)
    assert found["flux"]["residual"].shape == (3, 7, 2, 3)
    assert found["residual"]["flux"].shape == (7, 3, 2, 3)
    assert found["flux"]["flux"].shape == (3, 3, 2, 3, 2, 3)
    whole = np.block([[flat(found[one][other], AXES[one]) for other in OPERATORS] for one in OPERATORS])
    np.testing.assert_allclose(whole, whole.T, rtol=1e-12, atol=1e-12)
    assert np.linalg.eigvalsh(whole)[0] > -1e-10 * np.linalg.eigvalsh(whole)[-1]


def test_the_compiled_and_the_traced_blocks_are_the_same(params, batches):
    eager = fx.operator_ntk(OPERATORS, params, batches, batch_size=2)
    traced = jax.jit(lambda p, b: fx.operator_ntk(OPERATORS, p, b, batch_size=2))(params, batches)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-11), eager, traced)
    traces = jax.jit(lambda p, b: fx.balancing_weights(fx.operator_ntk_traces(OPERATORS, p, b)))(params, batches)
    expected = fx.balancing_weights(fx.operator_ntk_traces(OPERATORS, params, batches))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-12), traces, expected)


def test_traces_and_weights(params, batches):
    traces = fx.operator_ntk_traces(OPERATORS, params, batches)
    weights = fx.balancing_weights(traces)
    total = sum(np.sum(jacobian_of(name, params, batches) ** 2) for name in OPERATORS)
    for name in OPERATORS:
        np.testing.assert_allclose(traces[name], np.sum(jacobian_of(name, params, batches) ** 2), rtol=1e-12)
        np.testing.assert_allclose(weights[name] * traces[name], total, rtol=1e-12)


def test_selected_parameters(params, batches):
    found = fx.operator_ntk(OPERATORS, params, batches, select=["head", "bias"])
    traces = fx.operator_ntk_traces(OPERATORS, params, batches, select=["head", "bias"])
    jacobians = {name: jacobian_of(name, params, batches, ("head", "bias")) for name in OPERATORS}
    np.testing.assert_allclose(
        found["residual"]["boundary"], jacobians["residual"] @ jacobians["boundary"].T, rtol=1e-10, atol=1e-12
    )
    np.testing.assert_allclose(traces["residual"], np.sum(jacobians["residual"] ** 2), rtol=1e-12)
    # The shift enters the boundary values only.
    shift = fx.operator_ntk(OPERATORS, params, batches, select="shift")
    np.testing.assert_array_equal(shift["residual"]["boundary"], 0)
    np.testing.assert_array_equal(shift["boundary"]["boundary"], 1)


def test_jacobians_that_are_too_large_for_memory_are_split_by_leaves(params, batches, monkeypatch):
    expected = fx.operator_ntk(OPERATORS, params, batches)
    monkeypatch.setattr("fixntk.ntk.plan._TILE_BYTES", 200)
    found = fx.operator_ntk(OPERATORS, params, {name: x[::-1] for name, x in batches.items()})
    np.testing.assert_allclose(found["residual"]["flux"][::-1, ::-1], expected["residual"]["flux"], rtol=1e-11)


def test_sequences_give_tuples(params, batches):
    names = ["boundary", "residual"]
    found = fx.operator_ntk([OPERATORS[n] for n in names], params, [batches[n] for n in names])
    named = fx.operator_ntk(OPERATORS, params, batches)
    assert isinstance(found, tuple)
    for a, one in enumerate(names):
        for b, other in enumerate(names):
            np.testing.assert_allclose(found[a][b], named[one][other], rtol=1e-12)
    traces = fx.operator_ntk_traces((solution,), params, (batches["boundary"],))
    np.testing.assert_allclose(traces[0], np.trace(named["boundary"]["boundary"]), rtol=1e-12)


def test_one_operator_alone_has_its_empirical_ntk(params, batches):
    found = fx.operator_ntk({"residual": residual}, params, {"residual": batches["residual"]})
    np.testing.assert_allclose(
        found["residual"]["residual"], fx.empirical_ntk(residual, params, batches["residual"]), rtol=1e-14
    )


def test_float32_stays_float32(params, batches):
    params, single = jax.tree.map(np.float32, (params, batches))
    found = fx.operator_ntk(OPERATORS, params, single)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(
        found["residual"]["boundary"],
        jacobian_of("residual", params, single) @ jacobian_of("boundary", params, single).T,
        rtol=1e-4,
        atol=1e-4,
    )


def test_rows_that_depend_on_one_another_are_refused_by_name(params, batches):
    def centred(params, x):
        values = solution(params, x)
        return values - jnp.mean(values)

    for function in (fx.operator_ntk, fx.operator_ntk_traces):
        with pytest.raises(ValueError, match=r"operators\['flux'\]: f's output for an example changes with the rest"):
            function(OPERATORS | {"flux": centred}, params, batches)


@pytest.mark.wrong_types
def test_wrong_arguments_are_refused(params, batches):
    with pytest.raises(ValueError, match="must have the same names"):
        fx.operator_ntk(OPERATORS, params, {"residual": batches["residual"]})
    with pytest.raises(ValueError, match="must have the same names"):
        fx.operator_ntk_traces([solution, residual], params, [batches["residual"]])
    with pytest.raises(TypeError, match="must both be dictionaries or both be sequences"):
        fx.operator_ntk(OPERATORS, params, list(batches.values()))
    with pytest.raises(TypeError, match="operators must be a dictionary or a sequence, got function"):
        fx.operator_ntk(solution, params, batches)
    with pytest.raises(ValueError, match="operators is empty"):
        fx.operator_ntk({}, params, {})
    with pytest.raises(ValueError, match=r"operators\['boundary'\]: x holds NaN"):
        fx.operator_ntk(OPERATORS, params, batches | {"boundary": np.full((2, 2), np.nan)})
    # Errors of JAX have constructors of their own.
    with pytest.raises(TypeError, match=r"operators\['solution'\]: Attempted boolean conversion"):
        fx.operator_ntk(
            {"solution": lambda p, x: solution(p, x) if x[0, 0] > 0 else x}, params, {"solution": batches["residual"]}
        )
    with pytest.raises(ValueError, match="batch_size must be a positive integer"):
        fx.operator_ntk(OPERATORS, params, batches, batch_size=0)
    with pytest.raises(ValueError, match=r"traces\['residual'\] must be positive, got 0"):
        fx.balancing_weights({"residual": 0.0})
