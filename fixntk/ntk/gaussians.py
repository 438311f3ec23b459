"""Pairs of Gaussian variables, and activations by their moments.

See docs/mathematics.md, M13.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jax import Array

from fixntk._checks import as_positive_int
from fixntk.ntk.angles import full_angle


class Gaussians(NamedTuple):
    """Pairs of centred Gaussian variables u, v, as arrays that broadcast together.

    Attributes
    ----------
    std1, std2
        Standard deviations of u and of v.
    covariance
        E[uv].
    haversine, havercosine
        sin²(θ/2) and cos²(θ/2) of the angle θ with cos θ = E[uv] / (std1 std2).
    """

    std1: Array
    std2: Array
    covariance: Array
    haversine: Array
    havercosine: Array

    @property
    def are_both_random(self) -> Array:
        """Whether neither standard deviation is zero."""
        return (self.std1 > 0) & (self.std2 > 0)

    @property
    def angle(self) -> Array:
        """θ in [0, π]."""
        return full_angle(self.haversine, self.havercosine)


Moments = tuple[Array, Array]
Haversines = tuple[Array, Array]


@dataclass(frozen=True)
class Activation:
    """An elementwise function by its Gaussian moments.

    Attributes
    ----------
    name
        For messages.
    moments
        E[φ(u)φ(v)] and E[φ'(u)φ'(v)] of :class:`Gaussians`. The derivative is the one almost everywhere.
    haversines
        Haversine and havercosine of the angle between φ(u) and φ(v), without the cancellation at small angles that the
        second moments alone would suffer; None if there is no formula for it.
    truncation
        Shares of E[φ(u)²] and E[φ'(u)²] that a finite series omits, by the standard deviation of u; None for
        closed forms.
    function
        φ itself, for networks of finite width; None if only its moments are known.
    """

    name: str
    moments: Callable[[Gaussians], Moments]
    haversines: Callable[[Gaussians], Haversines] | None = None
    truncation: Callable[[Array], tuple[Array, Array]] | None = None
    function: Callable[[Array], Array] | None = None


def as_degree(degree: Any) -> int:
    """The degree of a polynomial as an int, 0 included.

    Raises
    ------
    TypeError, ValueError
        If it is not an integer, or negative.
    """
    # 0 is a degree, which the check of positive integers would refuse.
    return as_positive_int("degree", degree) if degree else 0


def as_numbers(name: str, values: Any) -> list[float]:
    """Constants of an activation as floats; there are no derivatives with respect to them.

    Raises
    ------
    TypeError
        If they are not real numbers, or not known before the compilation.
    """
    try:
        # NumPy refuses tracers, with an error that is a TypeError.
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be numbers known before the compilation, got {values!r}") from error
    if array.dtype.kind not in "biuf" or array.ndim != 1:
        raise TypeError(f"{name} must be real numbers, got {values!r}")
    return [float(value) for value in array]
