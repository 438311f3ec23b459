"""Blocks of entries that enter a network together: factors of their Jacobians, inner products of these, and their cost.

See docs/mathematics.md, M14.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend.core import ClosedJaxpr

from fixntk._numerics import at_least_float32
from fixntk.ntk.contraction import (
    Factors,
    OutputAxes,
    factor_entries,
    factor_flops,
    jacobian_flops,
    outer_inner_product,
    outer_product,
)
from fixntk.ntk.linear_maps import factor_of, move_entries, values_at
from fixntk.ntk.partitions import is_range
from fixntk.ntk.sites import Block, Part, Use
from fixntk.ntk.structure import aval, canonical_operand, canonical_signals

# Largest ratio of the numbers of a table's Jacobian to those of its factors: few rows of a large table are looked up,
# and its Jacobian would fill the memory.
_MAX_TABLE_GROWTH = 16
# What multiplies the entries of a use: factors (G, I), (G, J) or one number, and (G, I, J); None for ones.
_Coefficients = tuple[Array | None, Array | None, Array | None]


def use_coefficients(closed: ClosedJaxpr, blocks: Sequence[Block], leaves: Sequence[Array]) -> list[_Coefficients]:
    """The coefficients of each use, in the order of the blocks, their parts and the parts' uses."""
    uses = uses_of(blocks)
    paths = {use.steps[scale.step].path for use in uses for scale in use.scales}
    found = values_at(closed, leaves, paths) if paths else {}
    return [_coefficients(use, found) for use in uses]


def block_weights(closed: ClosedJaxpr, blocks: Sequence[Block], leaves: Sequence[Array]) -> list[Array | None]:
    """What multiplies the products of entries (G, I, J) in each block's kernel, None for ones."""
    weighted = [block for block in blocks if block.is_weighted]
    squares = iter([full**2 for _, _, full in use_coefficients(closed, weighted, leaves) if full is not None])
    return [next(squares) if block.is_weighted else None for block in blocks]


def uses_of(blocks: Sequence[Block]) -> list[Use]:
    """The uses of blocks, one after another."""
    return [use for block in blocks for part in block.parts for use in part.uses]


def _coefficients(use: Use, found: dict[Any, list[Any]]) -> _Coefficients:
    by_kind: dict[tuple[bool, bool], Any] = {}
    for scale in use.scales:
        step, kind = use.steps[scale.step], (scale.by_input, scale.by_output)
        factor = jnp.asarray(factor_of(step, found[step.path]))
        if kind == (False, False):
            factor = factor.reshape(-1)[0]  # All are the same number.
        else:
            moved = move_entries(use.steps[scale.step + 1 :], jnp.broadcast_to(factor, step.shape), 0, jnp)
            factor = _choose(canonical_operand(use.site, moved), use.chosen, (0, 1, 2))
            factor = factor if all(kind) else factor[:, :, 0] if scale.by_input else factor[:, 0, :]
        by_kind[kind] = by_kind[kind] * factor if kind in by_kind else factor
    outputs, number = by_kind.get((False, True)), by_kind.get((False, False))
    if outputs is not None and number is not None:
        outputs = outputs * number
    return by_kind.get((True, False)), number if outputs is None else outputs, by_kind.get((True, True))


def _choose(array: Array, chosen: tuple[np.ndarray, ...] | None, axes: Sequence[int]) -> Array:
    """Take the chosen groups, inputs and outputs, which ``axes`` of an array run over."""
    if chosen is None:
        return array
    for axis, numbers in zip(axes, chosen, strict=True):
        if is_range(numbers):
            array = lax.slice_in_dim(array, int(numbers[0]), int(numbers[-1]) + 1, axis=axis)
        else:
            array = jnp.take(array, numbers, axis=axis)
    return array


def part_factors(
    axes: OutputAxes, part: Part, activations: Sequence[Array], signals: Sequence[Array], coefficients: Any
) -> Factors:
    """Factors of a part of a block, from its uses' activations and from signals with the axes of their products."""
    made = [_use_factors(axes, *each) for each in zip(part.uses, activations, signals, coefficients, strict=True)]
    if len(made) == 1:
        return made[0]
    position = 0 if part.is_lookup else 1
    return Factors(
        jnp.concatenate([factors.activations for factors in made], axis=position),
        jnp.concatenate([factors.signals for factors in made], axis=-2),
    )


def _use_factors(
    axes: OutputAxes, use: Use, activations: Array, signals: Array, coefficients: _Coefficients
) -> Factors:
    by_input, by_output, _ = coefficients
    signals = canonical_signals(use.site, signals)
    if use.chosen is not None:
        groups, inputs, outputs = use.chosen
        signals = _choose(signals, (groups, outputs), (1, 3))
        if use.site.is_lookup:
            # Rows that are not the parameter's have no derivative in it, as if they were out of bounds.
            numbers = np.full(use.site.inputs, -1)
            numbers[inputs] = np.arange(len(inputs))
            is_known = (activations >= 0) & (activations < use.site.inputs)
            activations = jnp.where(is_known, jnp.asarray(numbers)[jnp.clip(activations, 0, len(numbers) - 1)], -1)
        else:
            activations = _choose(activations, (groups, inputs), (0, 2))
    if by_input is not None:
        by_input = by_input.astype(signals.dtype)
        if use.site.is_lookup:
            rows = jnp.clip(activations, 0, by_input.shape[1] - 1)
            signals = signals * by_input[0, rows][None, None, :, None]
        else:
            activations = activations * by_input[:, None, :].astype(activations.dtype)
    if by_output is not None:
        by_output = by_output.astype(signals.dtype)
        signals = signals * (by_output if by_output.ndim == 0 else by_output[None, :, None, :])
    return Factors(activations, signals.reshape(*axes.sizes, *signals.shape[1:]))


def block_jacobian(block: Block, factors: Sequence[Factors], coefficients: _Coefficients) -> Array:
    """Jacobian (*outputs, size of the block), its entries in an order of the block's own.

    The coefficients are those of the block's first use.
    """
    first, *rest = (outer_product(part, each) for part, each in zip(block.parts, factors, strict=True))
    jacobian = sum(rest, start=first)
    if coefficients[2] is not None:
        jacobian = jacobian * coefficients[2].astype(jacobian.dtype)
    return jacobian.reshape(*jacobian.shape[:-3], -1)


def block_inner_product(
    axes: OutputAxes,
    block: Block,
    factors1: Sequence[Factors],
    factors2: Sequence[Factors],
    weights: Array | None,
) -> Array:
    """Kernel of a pair of examples from the factors of each: the sum over all pairs of the block's parts."""
    pairs = [
        outer_inner_product(axes, part1, one, part2, two, weights)
        for part1, one in zip(block.parts, factors1, strict=True)
        for part2, two in zip(block.parts, factors2, strict=True)
    ]
    return sum(pairs[1:], start=pairs[0])


def block_flops(axes: OutputAxes, block: Block, n1: int, n2: int) -> tuple[float, float]:
    """Operations of both orders of contraction: parameters first (factors kept), or positions first (Jacobians)."""
    factored = sum(
        factor_flops(axes, one, two, is_weighted=block.is_weighted) for one in block.parts for two in block.parts
    )
    by_example = sum(jacobian_flops(axes, part)[0] for part in block.parts)
    by_pair = jacobian_flops(axes, block.parts[0])[1]
    explicit = (n1 + n2) * by_example + n1 * n2 * by_pair
    kept = block_entries(axes, block, is_explicit=False)
    if any(part.is_lookup for part in block.parts) and axes.num_outputs * block.size > _MAX_TABLE_GROWTH * kept:
        explicit = math.inf
    return n1 * n2 * factored, explicit


def block_entries(axes: OutputAxes, block: Block, *, is_explicit: bool) -> int:
    """Numbers that are kept for each example."""
    # The factors are in memory when their products are formed.
    entries = sum(
        part.groups * part.positions * (part.inputs + axes.num_outputs * part.outputs) for part in block.parts
    )
    return entries + (axes.num_outputs * block.size if is_explicit else 0)


def block_pair_entries(axes: OutputAxes, block: Block) -> int:
    """Entries of the largest intermediate value of a pair's kernel by factors."""
    return max(
        factor_entries(axes, one, two, is_weighted=block.is_weighted) for one in block.parts for two in block.parts
    )


def leaves_summed(axes: OutputAxes, blocks: Sequence[Block], n1: int, n2: int) -> dict[int, tuple[str, float]]:
    """Leaves whose sums over positions differentiation forms as well, with the way in words and the operations.

    These are leaves that enter by matrix products and look-ups alone, all of which take fewer operations when summed
    over positions. The derivative in a filter is slower than the product with patches, and a Jacobian in the dtype of
    a leaf is less accurate than factors of a wider one.
    """
    found: dict[int, tuple[str, float]] = {}
    for leaf in dict.fromkeys(block.leaf for block in blocks):
        own = [block for block in blocks if block.leaf == leaf]
        costs = [block_flops(axes, block, n1, n2) for block in own]
        is_summed = all(factored > explicit for factored, explicit in costs)
        if is_summed and all(_has_plain_derivative(use) for use in uses_of(own)):
            found[leaf] = ways_in_words(own, [True] * len(own)), sum(explicit for _, explicit in costs)
    return found


def _has_plain_derivative(use: Use) -> bool:
    """Whether a leaf's derivative at a site is a product that is as fast and accurate as that of factors."""
    dtype = use.site.product.dtype
    before = use.steps[0].equation.invars[use.steps[0].operand] if use.steps else None
    start = aval(use.site.equation.invars[use.site.operand] if before is None else before).dtype
    return (
        use.site.equation.primitive.name != "conv_general_dilated"
        and start == dtype
        and at_least_float32(dtype) == dtype
    )


def ways_in_words(blocks: Sequence[Block], is_explicit: Sequence[bool]) -> str:
    """How the entries of one leaf enter: "matrix product", "look-up and 2 matrix products", …."""
    kinds = {"gather": "look-up", "conv_general_dilated": "convolution"}
    names = [kinds.get(use.site.equation.primitive.name, "matrix product") for use in uses_of(blocks)]
    counts = {name: names.count(name) for name in dict.fromkeys(names)}
    words = " and ".join(name if count == 1 else f"{count} {name}s" for name, count in counts.items())
    if all(is_explicit):
        return f"{words}, summed over positions"
    return f"{words}, partly summed over positions" if any(is_explicit) else words
