"""Step lengths: backtracking, Armijo's rule, and the way to a boundary."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int


class Backtracking(NamedTuple):
    """The end of a line search.

    Attributes
    ----------
    length
        Step lengths, shaped like ``longest``.
    accepted
        Whether each is acceptable; where it is not, the search has reached its last halving.
    num_halvings
        How often the lengths that were halved most were halved.
    """

    length: Float[Array, "*k"]
    accepted: Bool[Array, "*k"]
    num_halvings: Int[Array, ""]


def backtrack(is_acceptable: Callable[[Array], Array], longest: Array, *, max_halvings: int) -> Backtracking:
    """Halve step lengths until each is acceptable.

    Parameters
    ----------
    is_acceptable
        From lengths of ``longest``'s shape to booleans of that shape. A condition on a value that may be NaN must be
        written so that NaN is not acceptable.
    longest
        The first lengths to try, a scalar or several that are searched for independently.
    max_halvings
        The search gives up after this number of halvings.
    """

    def is_unfinished(search: Backtracking) -> Array:
        return (search.num_halvings < max_halvings) & ~jnp.all(search.accepted)

    def halve(search: Backtracking) -> Backtracking:
        length = jnp.where(search.accepted, search.length, 0.5 * search.length)
        return Backtracking(length, search.accepted | is_acceptable(length), search.num_halvings + 1)

    return lax.while_loop(is_unfinished, halve, Backtracking(longest, is_acceptable(longest), jnp.asarray(0)))


def search_by_armijo(
    change: Callable[[Array], Array],
    slope: Array,
    longest: Array,
    *,
    share: float,
    slack: Array,
    max_halvings: int,
) -> Backtracking:
    """Halve step lengths until the objective falls by a share of what its slope promises: Armijo's rule.

    Parameters
    ----------
    change
        From lengths of ``longest``'s shape to the objective there less the objective at length zero; ∞ or NaN where a
        length is not allowed.
    slope
        The objective's derivative at length zero, negative.
    longest, max_halvings
        As for :func:`backtrack`.
    share
        Of the decrease, between 0 and 1.
    slack
        What the objective may grow by rounding: near the optimum its decrease is smaller than its rounding error.
    """
    return backtrack(
        lambda length: change(length) <= share * length * slope + slack, longest, max_halvings=max_halvings
    )


def extend(change: Callable[[Array], Array], length: Array, *, slack: Array, max_doublings: int) -> Array:
    """Double a step length as long as the objective falls by half as much again with each doubling.

    The objective of a step to the minimum of its own quadratic model never does: it is for directions in which the
    model's curvature is far too large.

    Parameters
    ----------
    change
        As for :func:`search_by_armijo`.
    length
        A scalar; zero stays.
    slack
        What the objective may change by rounding.
    max_doublings
        Largest number of doublings.
    """

    def is_unfinished(carry: tuple[Array, Array, Array]) -> Array:
        num_doublings, length, fallen = carry
        return (num_doublings < max_doublings) & (change(2 * length) < 1.5 * fallen - slack)

    def double(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        num_doublings, length, _ = carry
        return num_doublings + 1, 2 * length, change(2 * length)

    return lax.while_loop(is_unfinished, double, (jnp.asarray(0), length, change(length)))[1]


def longest_step(values: Array, changes: Array, *, share: float, axis: int | None = None) -> Array:
    """The longest step, up to 1, that goes at most a share of the way to where a positive value reaches zero.

    Parameters
    ----------
    values, changes
        Positive values, and what a step of length 1 adds to them.
    share
        Of the way, below 1.
    axis
        Axis along which all values have to stay positive; all axes if None.
    """
    is_approaching = changes < 0
    # ∞ for values that do not fall.
    distances = jnp.where(is_approaching, -values / jnp.where(is_approaching, changes, 1.0), jnp.inf)
    return jnp.minimum(1.0, share * jnp.min(distances, axis=axis))
