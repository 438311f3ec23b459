"""The gates and masks of a program: checked, replaced, turned into numbers."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from fixntk._checks import as_matrix, is_traced
from fixntk.convex.program import ConvexProgram, group_shape_of, replace_fields
from fixntk.gates.masks import activation_masks
from fixntk.gram import TILE_BYTES, as_numbers, select_masks

# Masks with at most this number of entries are turned into numbers once a solve instead of once a product.
_MAX_MASK_NUMBERS = 2**25


def check_gates(program: ConvexProgram, gates: ArrayLike) -> Array:
    """Gates as a (P, d) array, checked to give the program's masks on its x.

    Raises
    ------
    ValueError
        If the shape is wrong or a mask differs; masks are not looked at under a JAX transformation.
    """
    gates = as_matrix("gates", gates)
    if gates.shape != group_shape_of(program)[:2]:
        raise ValueError(f"gates must have shape {group_shape_of(program)[:2]}, got {gates.shape}")
    if not is_traced(gates, program):
        given = select_masks(program.masks, jnp.arange(program.num_gates)).astype(bool)
        if differing := int(jnp.sum(jnp.any(given != activation_masks(program.x, gates), axis=0))):
            raise ValueError(
                f"gates must give the program's masks on its x: {differing} of {gates.shape[0]} do not; "
                "are they those of other data?"
            )
    return gates


def with_masks(program: ConvexProgram, masks: Array, chosen: Array | None = None) -> ConvexProgram:
    """The program of other (n, P') masks on the same data, unchecked; bools, or numbers of x's dtype.

    ``chosen`` are the gates that they belong to, where the program has penalty weights.
    """
    weights = program.penalty_weights
    if weights is not None and chosen is not None:
        weights = weights[chosen]
    return replace_fields(program, masks=masks, num_gates=masks.shape[1], penalty_weights=weights)


def mask_number_bytes(program: ConvexProgram) -> int | float:
    """Bytes of masks as numbers in a product with them: of all masks, or of a tile."""
    num_bytes = program.x.shape[0] * program.num_gates * program.x.dtype.itemsize
    return min(num_bytes, max(TILE_BYTES, program.num_gates * program.x.dtype.itemsize))


def with_mask_numbers(program: ConvexProgram) -> ConvexProgram:
    """The program with masks as numbers of x's dtype, so that no product converts them; unchanged if they are many."""
    if program.x.shape[0] * program.num_gates > _MAX_MASK_NUMBERS:
        return program
    return replace_fields(program, masks=as_numbers(program.masks, program.num_gates, program.x.dtype))
