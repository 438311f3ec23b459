"""Backtracking: the first acceptable halving of each length, by a loop."""

import jax
import jax.numpy as jnp
import numpy as np

from fixntk._line_search import backtrack


def first_acceptable(limit, longest, max_halvings):
    for k in range(max_halvings + 1):
        if longest * 0.5**k <= limit:
            return longest * 0.5**k, True, k
    return longest * 0.5**max_halvings, False, max_halvings


def test_each_length_is_halved_until_it_is_acceptable(rng):
    limits, longest = rng.uniform(0, 1, 50) ** 6, rng.uniform(0.5, 2, 50)
    found = backtrack(lambda lengths: lengths <= limits, jnp.asarray(longest), max_halvings=12)
    expected = [first_acceptable(*pair, 12) for pair in zip(limits, longest, strict=True)]
    np.testing.assert_array_equal(found.length, [length for length, _, _ in expected])
    np.testing.assert_array_equal(found.accepted, [accepted for _, accepted, _ in expected])
    assert 0 < np.sum(found.accepted) < 50
    assert int(found.num_halvings) == 12


def test_one_length_is_searched_for_under_jit_and_stops_where_it_is_acceptable():
    search = jax.jit(lambda limit: backtrack(lambda length: length <= limit, jnp.asarray(1.0), max_halvings=30))
    for limit, halvings in ((3.0, 0), (1.0, 0), (0.3, 2), (0.125, 3)):
        found = search(limit)
        assert bool(found.accepted)
        assert float(found.length) == 0.5**halvings
        assert int(found.num_halvings) == halvings


def test_a_length_that_is_never_acceptable_is_given_back_after_the_last_halving():
    found = backtrack(lambda length: length < 0, jnp.asarray(1.0), max_halvings=5)
    assert not bool(found.accepted)
    assert (float(found.length), int(found.num_halvings)) == (2.0**-5, 5)
