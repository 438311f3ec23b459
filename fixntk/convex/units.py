"""Units of x and y, so that a solver works with numbers of size one whatever the data's scale.

They are powers of two: dividing by them does not round, so that nothing else changes.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from fixntk.convex.program import ConvexProgram, replace_fields, targets_of


class Units(NamedTuple):
    """Powers of two near the root mean squares of x and y.

    Group weights have the unit y/x, objectives and gaps y², λ the unit x y, a ridge x².
    """

    x: Float[Array, ""]
    y: Float[Array, ""]

    @property
    def weights(self) -> Float[Array, ""]:
        """The unit of group weights."""
        return self.y / self.x

    @property
    def objective(self) -> Float[Array, ""]:
        """The unit of objectives and gaps."""
        return self.y**2


def units_of(program: ConvexProgram) -> Units:
    """The units of a program's inputs and targets."""

    def unit(array: Array) -> Array:
        # Divided by the largest entry before squaring, so that the squares do not leave the dtype's range.
        largest = jnp.max(jnp.abs(array))
        largest = jnp.where(largest > 0, largest, 1.0)
        mean_square = jnp.mean((array / largest) ** 2)
        exponent = jnp.log2(largest) + 0.5 * jnp.log2(jnp.where(mean_square > 0, mean_square, 1.0))
        return jnp.ldexp(jnp.ones((), array.dtype), jnp.round(exponent).astype(jnp.int32))

    return Units(unit(program.x), unit(targets_of(program)))


def in_units(program: ConvexProgram, units: Units) -> ConvexProgram:
    """The program of x and y divided by their units, whose solution is W x_unit / y_unit; squared loss only."""
    return replace_fields(
        program,
        x=program.x / units.x,
        y=program.y / units.y,
        reg=program.reg / units.x / units.y,
        ridge=None if program.ridge is None else program.ridge / units.x**2,
    )
