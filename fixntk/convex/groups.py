"""The gates and masks of a program: checked, replaced, turned into numbers."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool

from fixntk._checks import as_matrix, is_traced, to_device
from fixntk._compilation import jit_for_host
from fixntk.convex.program import ConvexProgram, group_shape_of, replace_fields
from fixntk.gates.masks import activation_masks
from fixntk.gram import TILE_BYTES, as_numbers

# Gates are checked with padding to a multiple of this number, so that few sizes are compiled.
_GATE_MULTIPLE = 128
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
    if not is_traced(gates, program) and (differing := _count_differing(program, gates)):
        raise ValueError(
            f"gates must give the program's masks on its x: {differing} of {gates.shape[0]} do not; "
            "are they those of other data?"
        )
    return gates


def _count_differing(program: ConvexProgram, gates: Array) -> int:
    """For how many gates the program's masks are not those that they make."""
    num_gates = gates.shape[0]
    masks = np.asarray(program.masks)
    if masks.dtype == np.uint8:
        masks = np.unpackbits(masks, axis=1, count=num_gates)
    added = -num_gates % _GATE_MULTIPLE
    masks, padded = np.pad(masks, ((0, 0), (0, added))), np.pad(np.asarray(gates), ((0, added), (0, 0)))
    return int(np.asarray(_differ(program.x, to_device(masks), to_device(padded)))[:num_gates].sum())


@jit_for_host
def _differ(x: Array, masks: Array, gates: Array) -> Bool[Array, " P"]:
    return jnp.any(masks.astype(bool) != activation_masks(x, gates), axis=0)


@jit_for_host
def place_groups(like: Array, chosen: Array, weights: Array) -> Array:
    """Weights of the chosen groups among those of all, which are shaped as ``like`` and zero elsewhere."""
    return jnp.zeros_like(like).at[chosen].set(weights)


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
