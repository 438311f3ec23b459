"""Backtracking: the one line search of the library."""

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
