"""Inner products of Jacobians over chosen output axes, against loops over outputs and explicit Jacobians."""

import itertools
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fixntk.ntk.contraction import (
    Factors,
    OutputAxes,
    factor_flops,
    inner_product,
    jacobian_flops,
    outer_inner_product,
    outer_product,
)
from fixntk.ntk.sites import find_sites
from fixntk.ntk.structure import count_flops

SIZES = (2, 3, 2)
# Traced and diagonal axes.
CHOICES = [((), ()), ((1,), ()), ((), (1,)), ((0, 2), (1,)), ((2,), (0,)), ((0, 1, 2), ()), ((), (0, 1, 2))]


def reduced(full, axes):
    """The kernel (*outputs, *outputs) by loops: entries of full axes apart, diagonal ones once, traced ones added."""
    result = np.zeros(axes.result_shape)
    for one, two in itertools.product(np.ndindex(*axes.sizes), repeat=2):
        if any(one[k] != two[k] for k in (*axes.traced, *axes.diagonal)):
            continue
        index = []
        for k in range(len(axes.sizes)):
            index += [] if k in axes.traced else [one[k]] if k in axes.diagonal else [one[k], two[k]]
        result[tuple(index)] += full[one + two]
    return result


@pytest.mark.parametrize(("traced", "diagonal"), CHOICES)
def test_axes_are_summed_kept_once_or_kept_twice(rng, traced, diagonal):
    axes = OutputAxes(SIZES, traced, diagonal)
    jacobian1, jacobian2 = (rng.standard_normal((*SIZES, 5)) for _ in range(2))
    full = np.einsum("abcp,defp->abcdef", jacobian1, jacobian2)
    expected = reduced(full, axes)
    np.testing.assert_allclose(axes.select(jnp.asarray(full)), expected, atol=1e-13)
    found = inner_product(axes, jnp.asarray(jacobian1), jnp.asarray(jacobian2))
    np.testing.assert_allclose(found, expected, atol=1e-13)
    # The examples exchanged, behind two axes of examples.
    swapped = reduced(np.einsum("abcp,defp->abcdef", jacobian2, jacobian1), axes)
    np.testing.assert_allclose(axes.transpose(found[None, None], 2)[0, 0], swapped, atol=1e-13)
    assert axes.num_outputs == 12
    assert axes.traced_size == np.prod([SIZES[k] for k in traced])
    assert axes.num_pairs == np.prod([size ** (1 if k in traced + diagonal else 2) for k, size in enumerate(SIZES)])


def product_site(subscripts, a_shape, w_shape):
    closed = jax.make_jaxpr(lambda w, a: jnp.einsum(subscripts, a, w))(jnp.zeros(w_shape), jnp.zeros(a_shape))
    return find_sites(closed, 1)[0][0].parts[0]


def lookup_site(positions):
    closed = jax.make_jaxpr(lambda w, k: jnp.take(w, k, axis=0))(jnp.zeros((4, 3)), jnp.zeros(positions, int))
    return find_sites(closed, 1)[0][0].parts[0]


@cache
def sites():
    """Of every combination of one and several groups and positions."""
    return {
        "one": product_site("i,ij->j", (4,), (4, 3)),
        "positions": product_site("ti,ij->tj", (5, 4), (4, 3)),
        "groups": product_site("gi,gij->gj", (2, 4), (2, 4, 3)),
        "both": product_site("gti,gij->gtj", (2, 5, 4), (2, 4, 3)),
        "one row": lookup_site(1),
        "rows": lookup_site(5),
    }


NAMES = ("one", "positions", "groups", "both", "one row", "rows")


def drawn(rng, site):
    """Factors, and the Jacobian Σ_t a_t ⊗ δ_t of the leaf by loops."""
    signals = rng.standard_normal((*SIZES, site.groups, site.positions, 3))
    if site.is_lookup:
        activations = rng.integers(-1, 5, site.positions)
        dense = (activations[None, :, None] == np.arange(4)).astype(float)
    else:
        activations = dense = rng.standard_normal((site.groups, site.positions, 4))
    jacobian = np.zeros((*SIZES, site.groups, 4, 3))
    for g, t in np.ndindex(site.groups, site.positions):
        jacobian[..., g, :, :] += dense[g, t, :, None] * signals[..., g, t, None, :]
    return Factors(jnp.asarray(activations), jnp.asarray(signals)), jacobian.reshape(*SIZES, -1)


@pytest.mark.parametrize("name", NAMES)
def test_factors_give_the_kernel_of_their_jacobians(rng, name):
    site = sites()[name]
    assert (site.groups, site.positions) == {
        "one": (1, 1),
        "positions": (1, 5),
        "groups": (2, 1),
        "both": (2, 5),
        "one row": (1, 1),
        "rows": (1, 5),
    }[name]
    # Several draws, so that rows of a table are equal, apart, and out of bounds.
    for traced, diagonal in (((), ()), ((2,), (0,))):
        axes = OutputAxes(SIZES, traced, diagonal)
        for _ in range(3 if site.is_lookup else 1):
            (one, jacobian1), (two, jacobian2) = drawn(rng, site), drawn(rng, site)
            expected = reduced(np.einsum("abcp,defp->abcdef", jacobian1, jacobian2), axes)
            np.testing.assert_allclose(outer_inner_product(axes, site, one, site, two), expected, atol=1e-12)
            if not site.is_lookup:
                explicit = [outer_product(site, factors).reshape(*SIZES, -1) for factors in (one, two)]
                assert explicit[0].size == jacobian1.size
                np.testing.assert_allclose(inner_product(axes, *explicit), expected, atol=1e-12)


def test_half_precision_is_summed_in_single():
    axes, one = OutputAxes((1,), (), ()), jnp.full((1, 4096), 0.1, jnp.bfloat16)
    found = inner_product(axes, one, one)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, 4096 * float(one[0, 0]) ** 2, rtol=1e-5)


@pytest.mark.parametrize("name", ["positions", "both"])
def test_counts_of_operations_are_those_of_the_programs(rng, name):
    site = sites()[name]
    for traced, diagonal in (((), ()), ((0, 2), (1,))):
        axes = OutputAxes(SIZES, traced, diagonal)
        (one, _), (two, _) = drawn(rng, site), drawn(rng, site)

        def count(function, *operands):
            return count_flops(jax.make_jaxpr(function)(*operands).jaxpr)

        by_factors = count(lambda a, b: outer_inner_product(axes, site, a, site, b), one, two)  # noqa: B023
        np.testing.assert_allclose(factor_flops(axes, site, site), by_factors, rtol=0.35)
        by_example, by_pair = jacobian_flops(axes, site)
        np.testing.assert_allclose(by_example, count(lambda a: outer_product(site, a), one), rtol=0.35)
        explicit = outer_product(site, one).reshape(*SIZES, -1)
        np.testing.assert_allclose(by_pair, count(lambda a: inner_product(axes, a, a), explicit), rtol=0.35)  # noqa: B023


def test_jacobians_of_look_ups_are_sums_over_rows_that_are_in_the_table(rng):
    part, rows = lookup_site(6), jnp.array([1, 0, -1, 1, 99, 1])
    signals = rng.standard_normal((2, 1, 6, part.outputs))
    expected = np.zeros((2, 1, part.inputs, part.outputs))
    for position in (0, 1, 3, 5):
        expected[:, 0, rows[position]] += signals[:, 0, position]
    for dtype, tolerance in (("float64", 1e-15), ("bfloat16", 2e-2)):
        found = outer_product(part, Factors(rows, jnp.asarray(signals, dtype)))
        np.testing.assert_allclose(found, expected, atol=tolerance, rtol=tolerance)
        assert found.dtype == ("float64" if dtype == "float64" else "float32")
