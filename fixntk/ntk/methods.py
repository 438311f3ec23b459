"""Three methods for the empirical NTK of a pair of examples: Jacobians, NTK-vector products, structured.

Each is a :class:`Pairwise`: features of one example, and the kernel of two examples from their features. Both are
mapped over tiles of examples by :mod:`fixntk.ntk.tiles`. Under ``jax.vmap`` their inner products become matrix
products.

See docs/mathematics.md, M14.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from fixntk.ntk.blocks import (
    block_entries,
    block_flops,
    block_inner_product,
    block_jacobian,
    block_pair_entries,
    block_weights,
    leaves_summed,
    part_factors,
    use_coefficients,
    uses_of,
    ways_in_words,
)
from fixntk.ntk.contraction import OutputAxes, inner_product
from fixntk.ntk.division import divide_leaves
from fixntk.ntk.loops import has_short_loop, unroll_loops
from fixntk.ntk.pairwise import Network, Pairwise, Share
from fixntk.ntk.sites import Block, find_sites
from fixntk.ntk.structure import count_entries, count_flops, signals, uses_primitive

# Largest size, in bytes, of the signals that are propagated backwards at the same time.
_CHUNK_BYTES = 2**26
# Largest share of the operations that may be left for loops to be written out: the longer program compiles for longer.
_SHARE_UNROLLED = 0.5
# On an accelerator, the number of operations of a convolution's Jacobian that take the time of one operation of its
# structured form. Jacobians of all examples are contracted in one large matrix product, which reaches the card's peak.
# The structured form copies a patch for each position and multiplies small matrices, one pair for each example: on an
# H100 it took twice as long for the same number of operations (benchmarks/gpu.md).
_JACOBIAN_ADVANTAGE = 2.0


def structured_method(network: Network, n1: int, n2: int, platform: str = "cpu") -> Pairwise:
    """Activations and back-propagated signals for leaves that enter by products, Jacobians for other leaves.

    Products inside loops are found by writing the loops out, where this saves enough operations. On an accelerator, as
    whose name any ``platform`` but ``"cpu"`` counts, convolutions have Jacobians where these are faster. A leaf that
    the network takes slices of, and that would need its Jacobian, is divided where this saves operations.
    """
    method, others = _with_loops_written_out(network, n1, n2, platform)
    division = divide_leaves(network, [leaf for leaf in others if network.groups[leaf] >= 0])
    if division is not None:
        by_parts, not_products = _with_loops_written_out(division.network, n1, n2, platform)
        # Without a part that enters by a product, the Jacobians of the parts are that of the leaf, in smaller products.
        has_product = any(share.leaf not in not_products for share in by_parts.shares)
        if has_product and by_parts.flops < method.flops:
            return division.of_leaves(by_parts)
    return method


def _with_loops_written_out(network: Network, n1: int, n2: int, platform: str) -> tuple[Pairwise, dict[int, str]]:
    """The structured method, and the leaves that enter otherwise than by products, with the uses in words."""
    method, others = _structured(network, n1, n2, platform)
    in_loops = {leaf for leaf, uses in others.items() if "scan" in uses and network.groups[leaf] >= 0}
    unrolled = unroll_loops(network.closed) if in_loops else None
    if unrolled is not None:
        longer, others_then = _structured(network._replace(closed=unrolled), n1, n2, platform)
        if longer.flops < _SHARE_UNROLLED * method.flops:
            return longer, others_then
    return method, others


def _structured(network: Network, n1: int, n2: int, platform: str) -> tuple[Pairwise, dict[int, str]]:
    blocks, others = find_sites(network.closed, len(network.leaves))
    blocks = [block for block in blocks if network.groups[block.leaf] >= 0]
    ways = {leaf: f"Jacobian, as it enters by {uses}" for leaf, uses in others.items()}
    if not has_short_loop(network.closed.jaxpr):
        ways = {leaf: way.replace(" scan", " scan too long to write out") for leaf, way in ways.items()}
    faster = {block.leaf for block in blocks if _has_faster_jacobian(platform, network, block, n1, n2)}
    ways |= dict.fromkeys(faster, f"Jacobian of a convolution, which is faster on {platform}")
    # Differentiation forms the sum over positions by the same product, and keeps no factors beside it.
    summed = leaves_summed(network.axes, [block for block in blocks if block.leaf not in faster], n1, n2)
    ways |= {leaf: way for leaf, (way, _) in summed.items()}
    blocks = [block for block in blocks if block.leaf not in ways]
    costs = {leaf: flops for leaf, (_, flops) in summed.items()}
    return _method_from_blocks("structured", network, blocks, ways, n1, n2, costs), others


def prefers_jacobian(platform: str, structured: Share, jacobian: Share) -> bool:
    """Whether a convolution goes through its Jacobian on a platform, as JAX names it, rather than its structured form.

    On a CPU never. Elsewhere where the Jacobian takes at most twice the operations and no more memory.
    """
    if platform == "cpu":
        return False
    return jacobian.flops <= _JACOBIAN_ADVANTAGE * structured.flops and jacobian.entries <= structured.entries


def _has_faster_jacobian(platform: str, network: Network, block: Block, n1: int, n2: int) -> bool:
    if any(use.site.equation.primitive.name != "conv_general_dilated" for use in uses_of([block])):
        return False
    factored, explicit = block_flops(network.axes, block, n1, n2)
    entries = block_entries(network.axes, block, is_explicit=factored > explicit)
    structured = Share(block.leaf, "", min(factored, explicit), entries)
    jacobian = _jacobian_share(network, block.leaf, "", n1, n2)
    # Differentiating in the filter sums over positions, as the structured form does before its inner products.
    return prefers_jacobian(platform, structured, jacobian._replace(flops=explicit))


def jacobian_method(network: Network, n1: int, n2: int) -> Pairwise:
    """Contraction of the Jacobians of all leaves that belong to a group."""
    blocks, others = find_sites(network.closed, len(network.leaves))
    ways = dict.fromkeys({*others, *(block.leaf for block in blocks)}, "Jacobian")
    return _method_from_blocks("jacobian", network, [], ways, n1, n2)


class _Layout(NamedTuple):
    """Representation of the Jacobian of each leaf, for a network and numbers of examples.

    Attributes
    ----------
    network
        The network.
    blocks
        Entries with factors: activations a and signals δ whose Σ_t a_t ⊗ δ_t is the Jacobian.
    is_explicit
        For each block whether this sum is formed once for each example, instead of keeping the factors.
    others
        Leaves whose Jacobian is computed by differentiation.
    chunk
        Number of signals that are propagated backwards at the same time.
    """

    network: Network
    blocks: list[Block]
    is_explicit: list[bool]
    others: list[int]
    chunk: int


def _method_from_blocks(
    name: str,
    network: Network,
    blocks: list[Block],
    ways: dict[int, str],
    n1: int,
    n2: int,
    costs: dict[int, float] | None = None,
) -> Pairwise:
    """Kernels from factors of blocks and from Jacobians of the leaves in ``ways``, which says why.

    ``costs`` has the operations of leaves whose Jacobians are counted alone; those of the others are a backward pass
    that takes twice the operations.
    """
    costs = costs or {}
    others = sorted(leaf for leaf in ways if network.groups[leaf] >= 0)
    if not blocks and not others:
        # If no leaf enters the network, keep the zero Jacobian of one leaf, because vmap needs an array to map over.
        others = [min(range(len(network.leaves)), key=lambda k: (network.groups[k] < 0, network.leaves[k].size))]
        ways = {others[0]: "zero, as no parameter enters"}
    # A block's Jacobian Σ_t a_t ⊗ δ_t is formed only where this saves operations: with few parameters and many
    # positions.
    both = [block_flops(network.axes, block, n1, n2) for block in blocks]
    is_explicit = [factored > explicit for factored, explicit in both]
    forward, largest = count_entries(network.closed.jaxpr)
    # A backward pass holds about three arrays of the largest size for each signal.
    chunk = max(1, _CHUNK_BYTES // max(1, 3 * largest * network.output.dtype.itemsize))
    layout = _Layout(network, blocks, is_explicit, others, chunk)
    shares = _block_shares(network.axes, blocks, is_explicit, list(map(min, both)))
    jacobians = [_jacobian_share(network, leaf, ways[leaf], n1, n2) for leaf in others]
    shares += [share._replace(flops=costs.get(share.leaf, share.flops)) for share in jacobians]
    live = forward + 3 * min(network.axes.num_outputs, chunk) * largest
    itemsize = network.output.dtype.itemsize
    return Pairwise(
        name,
        tuple(sorted(shares)),
        partial(_features, layout),
        partial(_kernels, layout),
        _pass_flops(network, n1, n2, 1 if blocks or costs else 2) + sum(share.flops for share in shares),
        itemsize * (sum(share.entries for share in shares) + live),
        itemsize * _count_entries_of_pair(layout),
    )


def _features(layout: _Layout, leaves: Sequence[Array], inputs: Sequence[Array]) -> Any:
    """Factors or the Jacobian of an example, for each block; Jacobians (*outputs, size) of the other leaves."""
    network, blocks, is_explicit, others, chunk = layout
    axes = network.axes
    sites = [use.site for use in uses_of(blocks)]

    def run(zeros: list[Array], chosen: list[Array]) -> tuple[Array, list[Array]]:
        # Leaves of blocks stay constant here, because their Jacobians follow from activations and signals.
        replaced = dict(zip(others, chosen, strict=True))
        arguments = [replaced.get(k, leaf) for k, leaf in enumerate(leaves)]
        outputs, activations = signals(network.closed, [*arguments, *inputs], sites, zeros)
        return outputs[0], activations

    # The gradient in a zero that is added to a product is the signal that arrives there.
    zeros = [jnp.zeros(site.product.shape, site.product.dtype) for site in sites]
    _, pullback, activations = jax.vjp(run, zeros, [leaves[k] for k in others], has_aux=True)
    basis = network.basis()
    if axes.num_outputs <= chunk:
        backward, jacobians = jax.vmap(pullback)(basis)
    else:
        backward, jacobians = lax.map(pullback, basis, batch_size=chunk)
    # One entry for each use, in the order of the blocks.
    of_uses = iter(zip(activations, backward, use_coefficients(network.closed, blocks, leaves), strict=True))

    def of_block(block: Block, explicit: bool) -> Any:
        taken = [[next(of_uses) for _ in part.uses] for part in block.parts]
        factors = [
            part_factors(axes, part, *zip(*uses, strict=True)) for part, uses in zip(block.parts, taken, strict=True)
        ]
        return block_jacobian(block, factors, taken[0][0][2]) if explicit else factors

    entering = list(map(of_block, blocks, is_explicit))
    return entering, [jac.reshape(*axes.sizes, -1) for jac in jacobians]


def _kernels(layout: _Layout, leaves: Sequence[Array], features1: Any, features2: Any) -> tuple[Array, ...]:
    """Kernels of a pair of examples: the inner products of their Jacobians, summed over each group's leaves."""
    network, axes = layout.network, layout.network.axes
    totals: list[Any] = [0.0] * network.num_groups
    # Weights do not depend on the examples: computed here, there is one copy of them.
    weights = block_weights(network.closed, layout.blocks, leaves)
    for block, explicit, one, two, squares in zip(
        layout.blocks, layout.is_explicit, features1[0], features2[0], weights, strict=True
    ):
        share = inner_product(axes, one, two) if explicit else block_inner_product(axes, block, one, two, squares)
        totals[network.groups[block.leaf]] += share.astype(network.kernel_dtype)
    for leaf, one, two in zip(layout.others, features1[1], features2[1], strict=True):
        totals[network.groups[leaf]] += inner_product(axes, one, two).astype(network.kernel_dtype)
    return _mean_over_traced(network, totals)


def _block_shares(axes: OutputAxes, blocks: list[Block], is_explicit: list[bool], flops: list[float]) -> list[Share]:
    """One share for each leaf that has blocks."""
    shares = []
    for leaf in dict.fromkeys(block.leaf for block in blocks):
        own = [k for k, block in enumerate(blocks) if block.leaf == leaf]
        way = ways_in_words([blocks[k] for k in own], [is_explicit[k] for k in own])
        entries = sum(block_entries(axes, blocks[k], is_explicit=is_explicit[k]) for k in own)
        shares.append(Share(leaf, way, sum(flops[k] for k in own), entries))
    return shares


def _jacobian_share(network: Network, leaf: int, way: str, n1: int, n2: int) -> Share:
    axes, size = network.axes, math.prod(network.leaves[leaf].shape)
    return Share(leaf, way, size * (2.0 * axes.num_pairs * n1 * n2), axes.num_outputs * size)


def _pass_flops(network: Network, n1: int, n2: int, backward: int) -> float:
    """Operations of the passes through the network: one forward, and one ``backward`` times as long for each output."""
    return (n1 + n2) * count_flops(network.closed.jaxpr) * (1 + network.axes.num_outputs * backward)


def _count_entries_of_pair(layout: _Layout) -> int:
    """Entries of the largest intermediate value of a pair's kernels."""
    axes = layout.network.axes
    factored = [block for block, explicit in zip(layout.blocks, layout.is_explicit, strict=True) if not explicit]
    size = math.prod(axes.result_shape)
    return max([2 * size, *(block_pair_entries(axes, block) for block in factored)])


def ntvp_method(network: Network, n1: int, n2: int) -> Pairwise:
    """NTK-vector products: push the pulled-back cotangents of one example through the linearisation at the other."""
    axes = network.axes
    members = [[k for k, g in enumerate(network.groups) if g == group] for group in range(network.num_groups)]

    def kernel(leaves: Sequence[Array], inputs1: Any, inputs2: Any, group: list[int]) -> Array:
        def apply(chosen: list[Array], inputs: Any) -> Array:
            replaced = dict(zip(group, chosen, strict=True))
            return network.apply([replaced.get(k, leaf) for k, leaf in enumerate(leaves)], inputs)

        chosen = [leaves[k] for k in group]
        _, pullback = jax.vjp(lambda c: apply(c, inputs2), chosen)

        def product(cotangent: Array) -> Array:
            # J₁ J₂ᵀ e for a unit vector e is one column of the kernel of this pair.
            return jax.jvp(lambda c: apply(c, inputs1), (chosen,), pullback(cotangent))[1]

        columns = jax.vmap(product, out_axes=-1)(network.basis())
        return axes.select(columns.reshape(*axes.sizes, *axes.sizes))

    def kernels(leaves: Sequence[Array], features1: Any, features2: Any) -> tuple[Array, ...]:
        return _mean_over_traced(network, [kernel(leaves, features1, features2, group) for group in members])

    forward_flops, (forward, largest) = count_flops(network.closed.jaxpr), count_entries(network.closed.jaxpr)
    size = sum(math.prod(leaf.shape) for leaf in network.leaves)
    itemsize = network.output.dtype.itemsize
    # For each output a pair takes a linearised pass, as long as two forward ones, and an example a pull-back, three.
    flops = network.num_groups * axes.num_outputs * (2.0 * n1 * n2 + 3.0 * n2) * forward_flops
    by_example = forward + axes.num_outputs * size
    shares = [
        Share(leaf, "NTK-vector products", 0.0, axes.num_outputs * math.prod(network.leaves[leaf].shape))
        for leaf in sorted(leaf for group in members for leaf in group)
    ]
    return Pairwise(
        "ntvp",
        tuple(shares),
        lambda _, inputs: inputs,
        kernels,
        flops,
        itemsize * by_example,
        itemsize * axes.num_outputs * (2 * largest + axes.num_outputs),
    )


METHODS: dict[str, Callable[[Network, int, int], Pairwise]] = {
    "structured": structured_method,
    "jacobian": jacobian_method,
    "ntvp": ntvp_method,
}


def cheapest_method(network: Network, n1: int, n2: int, platform: str = "cpu") -> Pairwise:
    """Return the method with the fewest operations; NTK-vector products only if forward derivatives exist."""
    candidates = [structured_method(network, n1, n2, platform)]
    if not uses_primitive(network.closed.jaxpr, "custom_vjp"):
        candidates.append(ntvp_method(network, n1, n2))
    return min(candidates, key=lambda method: method.flops)


def _mean_over_traced(network: Network, totals: Sequence[Any]) -> tuple[Array, ...]:
    """Divide by the number of traced outputs; groups of leaves that do not enter the network have kernel zero."""
    shape = network.axes.result_shape
    return tuple(
        jnp.broadcast_to(total, shape).astype(network.kernel_dtype) / network.axes.traced_size for total in totals
    )
