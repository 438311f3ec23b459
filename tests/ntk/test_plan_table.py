"""The plan of an empirical kernel that people read: treatment of each parameter, operations, memory."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fixntk as fx
from fixntk import _tiling
from fixntk.ntk import empirical

PARAMS = {
    "bias": np.ones(4),
    "conv": np.ones((3, 4, 4)),
    "embedding": np.ones((9, 4)),
    "square": np.ones((4, 4)),
    "unused": np.ones((2, 2)),
    "weights": np.ones((4, 2)),
}
TOKENS = np.arange(30).reshape(5, 6) % 9


def network(params, tokens):
    h = params["embedding"][tokens]
    h = jax.lax.conv_general_dilated(h, params["conv"], (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"))
    h = jnp.tanh(h + params["bias"])
    h = jnp.tanh(h @ params["square"]) @ params["square"]
    return h.sum(axis=1) @ params["weights"]


def test_each_parameter_is_listed_with_how_it_enters():
    plan = fx.ntk_plan(network, PARAMS, TOKENS)
    assert plan.method == "structured"
    assert {each.path: (each.shape, each.way) for each in plan.parameters} == {
        "bias": ((4,), "Jacobian, as it enters by 1 add"),
        "conv": ((3, 4, 4), "convolution, summed over positions"),
        "embedding": ((9, 4), "look-up, summed over positions"),
        "square": ((4, 4), "2 matrix products, summed over positions"),
        "unused": ((2, 2), "does not enter"),
        "weights": ((4, 2), "matrix product"),
    }
    shown = repr(plan).splitlines()
    assert len(shown) == 8
    assert re.match(r"NTKPlan\(structured: .* operations, .* KiB, tiles of \d+ examples\)$", shown[0])
    assert re.match(r"square +4×4 +2 matrix products, summed over positions +\S+ +\d+$", shown[5])


def test_the_plan_is_that_of_the_default_device(monkeypatch):
    monkeypatch.setattr(empirical, "default_platform", lambda: "gpu")
    plan = fx.ntk_plan(network, PARAMS, TOKENS)
    assert {each.path: each.way for each in plan.parameters}[
        "conv"
    ] == "Jacobian of a convolution, which is faster on gpu"


def test_operations_of_a_jacobian_are_those_of_its_inner_products():
    plan = fx.ntk_plan(network, PARAMS, TOKENS, TOKENS[:3], method="jacobian")
    for each in plan.parameters:
        # 5 · 3 pairs of examples, 2 · 2 pairs of outputs, a multiplication and an addition for each number.
        size = 0 if each.path == "unused" else np.prod(each.shape)
        assert (each.flops, each.entries) == (2 * size * 15 * 4, 2 * size)
    assert plan.flops > sum(each.flops for each in plan.parameters)


def test_selected_parameters_alone_are_treated():
    plan = fx.ntk_plan(network, PARAMS, TOKENS, select="weights", outputs="trace", batch_size=3)
    assert plan.batch_size == 3
    ways = {each.path: each.way for each in plan.parameters}
    assert ways.pop("weights") == "matrix product"
    assert set(ways.values()) == {"not selected"}


def test_a_single_array_has_a_name():
    plan = fx.ntk_plan(lambda w, x: x @ w, np.ones((3, 2)), np.ones((4, 3)))
    assert plan.parameters[0].path == "params"
    assert repr(plan).splitlines()[2].startswith("params ")


def test_the_memory_is_that_which_the_kernel_asks_for(monkeypatch):
    x = np.ones((2000, 50))
    for batch_size in (None, 100):
        plan = fx.ntk_plan(lambda w, x: x @ w, np.ones(50), x, batch_size=batch_size)
        with monkeypatch.context() as patch:
            patch.setattr(_tiling, "_free_of_machine", lambda: 0)
            with pytest.raises(fx.OutOfMemoryError, match=f"needs {_tiling.bytes_in_words(plan.num_bytes)}, "):
                fx.empirical_ntk(lambda w, x: x @ w, np.ones(50), x, batch_size=batch_size)


def test_products_with_vectors_and_several_outputs_have_plans_too():
    plans = fx.ntk_plan(lambda w, x: {"a": x @ w, "b": x[:, 0] * w[0, 0]}, np.ones((3, 2)), np.ones((4, 3)))
    assert plans.keys() == {"a", "b"}
    assert plans["a"].parameters[0].way == "matrix product"
    plan = fx.ntk_plan(lambda w, x: x @ w, np.ones((3, 2)), np.ones((4, 3)), method="ntvp")
    assert (plan.method, plan.parameters[0].way) == ("ntvp", "NTK-vector products")
    plan = fx.ntk_plan(lambda _, x: x, np.ones(3), np.ones((4, 3)), method="structured")
    assert plan.parameters[0].way == "zero, as no parameter enters"


@pytest.mark.wrong_types
def test_bad_requests_are_named_as_those_of_the_kernel():
    with pytest.raises(ValueError, match="select='x' selects none"):
        fx.ntk_plan(network, PARAMS, TOKENS, select="x")
    with pytest.raises(ValueError, match="method must be one of"):
        fx.ntk_plan(network, PARAMS, TOKENS, method="x")
