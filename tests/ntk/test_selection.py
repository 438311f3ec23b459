"""Selected parameters: paths, wildcards, predicates, and what nothing selects."""

import jax.numpy as jnp
import numpy as np
import pytest

import fixntk as fx
from fixntk.ntk.selection import selected_leaves

PARAMS = {
    "encoder": {"layers": [{"kernel": np.zeros(1), "bias": np.zeros(2)}, {"kernel": np.zeros(3), "bias": np.zeros(4)}]},
    "encoder_2": np.zeros(5),
    "head": {"kernel": np.zeros(6), "lora_a": np.zeros(7)},
}
# In the order of the leaves: sizes 2, 1, 4, 3, 5, 6, 7, as keys are sorted.


@pytest.mark.parametrize(
    ("select", "sizes"),
    [
        (None, {1, 2, 3, 4, 5, 6, 7}),
        ("encoder", {1, 2, 3, 4}),
        ("encoder/layers/1", {3, 4}),
        ("encoder/layers/1/kernel", {3}),
        ("/head/", {6, 7}),
        ("*/kernel", {1, 3, 6}),
        ("*/lora_*", {7}),
        (["head", "encoder_2"], {5, 6, 7}),
        (lambda path, leaf: path.endswith("bias") and leaf.size > 2, {4}),
    ],
)
def test_paths_wildcards_and_predicates_select(select, sizes):
    chosen = selected_leaves(PARAMS, select)
    assert {size for size, is_chosen in zip([2, 1, 4, 3, 5, 6, 7], chosen, strict=True) if is_chosen} == sizes


@pytest.mark.wrong_types
def test_a_selection_of_nothing_lists_the_paths():
    with pytest.raises(ValueError, match=r"selects none of the parameters: .*'encoder/layers/0/bias'"):
        selected_leaves(PARAMS, "encoder/layers/2")
    with pytest.raises(ValueError, match="and 4 more"):
        selected_leaves([np.zeros(1)] * 12, lambda *_: False)
    with pytest.raises(TypeError, match="select must be a path"):
        selected_leaves(PARAMS, 3)


def network(params, x):
    return jnp.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"]) @ params["head"]


@pytest.fixture
def case(rng):
    params = {
        "hidden": {"w": rng.standard_normal((4, 6)), "b": rng.standard_normal(6)},
        "head": rng.standard_normal((6, 2)),
    }
    return params, rng.standard_normal((5, 4)), rng.standard_normal((3, 4))


@pytest.mark.parametrize("method", ["auto", "structured", "jacobian", "ntvp"])
def test_the_selected_kernel_is_that_of_the_function_of_these_parameters(case, method):
    params, x1, x2 = case

    def of_head(head, x):
        return network(params | {"head": head}, x)

    expected = fx.empirical_ntk(of_head, params["head"], x1, x2)
    for options in ({}, {"batch_size": 2}):
        found = fx.empirical_ntk(network, params, x1, x2, select="head", method=method, **options)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", ["structured", "jacobian", "ntvp"])
def test_kernels_of_a_selection_and_of_the_rest_add_up(case, method):
    params, x1, _ = case
    parts = [fx.empirical_ntk(network, params, x1, select=part, method=method) for part in ("hidden", "head")]
    np.testing.assert_allclose(sum(parts), fx.empirical_ntk(network, params, x1), rtol=1e-12)


def test_the_vector_product_has_the_selected_kernel(case, rng):
    params, x1, x2 = case
    vector = rng.standard_normal((3, 2))
    kernel = fx.empirical_ntk(network, params, x1, x2, select="hidden/w")
    found = fx.ntk_vector_product(network, params, vector, x1, x2, select="hidden/w", batch_size=2)
    np.testing.assert_allclose(found, np.einsum("ijoq,jq->io", kernel, vector), rtol=1e-12)
