"""Step lengths against loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from fixntk._line_search import backtrack, extend, longest_step, search_by_armijo


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


def test_armijo_takes_the_first_halving_that_falls_by_a_share_of_its_slope():
    # t⁴ − t falls by a share c of its slope −1 where t³ ≤ 1 − c.
    def change(length):
        return length**4 - length

    for share, expected in ((0.1, 0.5), (0.5, 0.5), (0.9, 0.25), (0.99, 0.125)):
        found = search_by_armijo(
            change, jnp.asarray(-1.0), jnp.asarray(2.0), share=share, slack=jnp.asarray(0.0), max_halvings=20
        )
        assert float(found.length) == expected, share
        assert bool(found.accepted)


def test_armijo_takes_a_step_whose_increase_is_rounding_and_none_to_nan():
    def search(change, slack):
        return search_by_armijo(
            change, jnp.asarray(-1e-20), jnp.asarray(1.0), share=0.1, slack=jnp.asarray(slack), max_halvings=4
        )

    assert bool(search(lambda length: 1e-17 + 0 * length, 1e-16).accepted)
    assert not bool(search(lambda length: 1e-15 + 0 * length, 1e-16).accepted)
    found = search(lambda length: jnp.where(length > 0.3, jnp.nan, -1.0), 0.0)
    assert (bool(found.accepted), float(found.length)) == (True, 0.25)


def test_the_longest_step_stays_inside_along_an_axis_and_as_a_whole(rng):
    values, changes = rng.uniform(0.1, 2, (6, 9)), rng.standard_normal((6, 9))
    changes[:, 4] = np.abs(changes[:, 4])
    ways = np.where(changes < 0, -values / changes, np.inf)
    found = longest_step(jnp.asarray(values), jnp.asarray(changes), share=0.9, axis=0)
    np.testing.assert_allclose(found, np.minimum(1, 0.9 * ways.min(axis=0)))
    assert found[4] == 1
    whole = longest_step(jnp.asarray(values), jnp.asarray(changes), share=0.9)
    np.testing.assert_allclose(whole, min(1, 0.9 * ways.min()))
    assert np.all(values + float(whole) * changes > 0)


def test_a_length_is_doubled_where_the_objective_goes_on_falling_and_not_at_the_minimum_of_a_model():
    def extended(change, length=1.0, max_doublings=10):
        return float(extend(change, jnp.asarray(length), slack=jnp.asarray(1e-12), max_doublings=max_doublings))

    # Down to a bend at 100: the last length that doubles the fall is 64; from 64 to 100 it grows by 36 of 64 more.
    assert extended(lambda length: jnp.abs(length - 100) - 100) == 64.0
    assert extended(lambda length: jnp.abs(length - 80) - 80) == 64.0
    assert extended(lambda length: -length, max_doublings=3) == 8.0
    # A quadratic whose minimum is at the length, or before it; an increase; NaN beyond; no step.
    assert extended(lambda length: length**2 - 2 * length) == 1.0
    assert extended(lambda length: length**2 - length) == 1.0
    assert extended(lambda length: length) == 1.0
    assert extended(lambda length: jnp.where(length > 1, jnp.nan, -length)) == 1.0
    assert extended(lambda length: -length, length=0.0) == 0.0
