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
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

from fixntk._numerics import at_least_float32
from fixntk.ntk.contraction import (
    Factors,
    OutputAxes,
    factor_flops,
    inner_product,
    jacobian_flops,
    outer_inner_product,
    outer_product,
)
from fixntk.ntk.structure import (
    Site,
    canonical_signals,
    count_flops,
    find_sites,
    inner_jaxprs,
    signals,
    uses_primitive,
)

# Largest size, in bytes, of the signals that are propagated backwards at the same time.
_CHUNK_BYTES = 2**26
# On an accelerator, the number of operations of a convolution's Jacobian that take the time of one operation of its
# structured form. Jacobians of all examples are contracted in one large matrix product, which reaches the card's peak.
# The structured form copies a patch for each position and multiplies small matrices, one pair for each example: on an
# H100 it took twice as long for the same number of operations (benchmarks/gpu.md).
_JACOBIAN_ADVANTAGE = 2.0


class Network(NamedTuple):
    """A network traced for one example: its jaxpr in (*leaves, *inputs), and the group of each leaf.

    A leaf of group −1 is a constant.
    """

    closed: ClosedJaxpr
    leaves: tuple[jax.ShapeDtypeStruct, ...]
    axes: OutputAxes
    groups: tuple[int, ...]

    @property
    def num_groups(self) -> int:
        """Number of kernels to compute."""
        return max(self.groups) + 1

    @property
    def output(self) -> Any:
        """Shape and dtype of the output of one example."""
        return self.closed.jaxpr.outvars[0].aval

    @property
    def kernel_dtype(self) -> Any:
        """Dtype of the kernels: the output's, float32 at least."""
        return at_least_float32(self.output.dtype)

    def apply(self, leaves: Sequence[Array], inputs: Sequence[Array]) -> Array:
        """Output of one example."""
        return jaxpr_as_fun(self.closed)(*leaves, *inputs)[0]

    def basis(self) -> Array:
        """One cotangent for each output."""
        count = self.axes.num_outputs
        return jnp.eye(count, dtype=self.output.dtype).reshape(count, *self.axes.sizes)


class Share(NamedTuple):
    """What one leaf adds to a kernel's work.

    Attributes
    ----------
    leaf
        Its number.
    way
        How its inner products are computed, in words.
    flops
        Operations of these for all pairs of examples, without the passes through the network that all leaves share.
    entries
        Numbers that are kept for each example.
    """

    leaf: int
    way: str
    flops: float
    entries: int


class Pairwise(NamedTuple):
    """A method: ``features(leaves, inputs)`` of an example, ``kernels(leaves, features1, features2)`` of a pair.

    The kernels are a tuple, one for each group of leaves. ``flops`` counts the operations for the numbers of examples
    that the method was made for, the bytes are those that an example and a pair of examples take while computed.
    """

    name: str
    shares: tuple[Share, ...]
    features: Callable[[Sequence[Array], Sequence[Array]], Any]
    kernels: Callable[[Sequence[Array], Any, Any], tuple[Array, ...]]
    flops: float
    example_bytes: int
    pair_bytes: int


def structured_method(network: Network, n1: int, n2: int, platform: str = "cpu") -> Pairwise:
    """Activations and back-propagated signals for leaves that enter by a product, Jacobians for other leaves.

    On an accelerator, as whose name any ``platform`` but ``"cpu"`` counts, also for convolutions whose Jacobians are
    faster there.
    """
    sites, others = find_sites(network.closed, len(network.leaves))
    sites = [site for site in sites if network.groups[site.leaf] >= 0]
    ways = {leaf: f"Jacobian, as it enters by {uses}" for leaf, uses in others.items()}
    faster = [site.leaf for site in sites if _has_faster_jacobian(platform, network, site, n1, n2)]
    ways |= dict.fromkeys(faster, f"Jacobian of a convolution, which is faster on {platform}")
    sites = [site for site in sites if site.leaf not in faster]
    return _method_from_sites("structured", network, sites, ways, n1, n2)


def prefers_jacobian(platform: str, structured: Share, jacobian: Share) -> bool:
    """Whether a convolution goes through its Jacobian on a platform, as JAX names it, rather than its structured form.

    On a CPU never. Elsewhere where the Jacobian takes at most twice the operations and no more memory.
    """
    if platform == "cpu":
        return False
    return jacobian.flops <= _JACOBIAN_ADVANTAGE * structured.flops and jacobian.entries <= structured.entries


def _has_faster_jacobian(platform: str, network: Network, site: Site, n1: int, n2: int) -> bool:
    if site.equation.primitive.name != "conv_general_dilated":
        return False
    costs = _site_flops(site, network.axes, n1, n2)
    structured = _site_share(network.axes, site, costs[0] > costs[1], min(costs))
    jacobian = _jacobian_share(network, site.leaf, "", n1, n2)
    # Differentiating in the filter sums over positions, as the structured form does before its inner products.
    return prefers_jacobian(platform, structured, jacobian._replace(flops=costs[1]))


def jacobian_method(network: Network, n1: int, n2: int) -> Pairwise:
    """Contraction of the Jacobians of all leaves that belong to a group."""
    sites, others = find_sites(network.closed, len(network.leaves))
    ways = dict.fromkeys({*others, *(site.leaf for site in sites)}, "Jacobian")
    return _method_from_sites("jacobian", network, [], ways, n1, n2)


class _Layout(NamedTuple):
    """Representation of the Jacobian of each leaf, for a network and numbers of examples.

    Attributes
    ----------
    network
        The network.
    sites
        Leaves with factors: activations a and signals δ whose Σ_t a_t ⊗ δ_t is the Jacobian.
    is_explicit
        For each site whether this sum is formed once for each example, instead of keeping the factors.
    others
        Leaves whose Jacobian is computed by differentiation.
    chunk
        Number of signals that are propagated backwards at the same time.
    """

    network: Network
    sites: list[Site]
    is_explicit: list[bool]
    others: list[int]
    chunk: int


def _method_from_sites(
    name: str, network: Network, sites: list[Site], ways: dict[int, str], n1: int, n2: int
) -> Pairwise:
    """Kernels from factors at sites and from Jacobians of the leaves in ``ways``, which says why."""
    others = sorted(leaf for leaf in ways if network.groups[leaf] >= 0)
    if not sites and not others:
        # If no leaf enters the network, keep the zero Jacobian of one leaf, because vmap needs an array to map over.
        others = [min(range(len(network.leaves)), key=lambda k: (network.groups[k] < 0, network.leaves[k].size))]
        ways = {others[0]: "zero, as no parameter enters"}
    # A site's Jacobian Σ_t a_t ⊗ δ_t is formed only where this saves operations: with few parameters and many
    # positions.
    costs = [_site_flops(site, network.axes, n1, n2) for site in sites]
    is_explicit = [factored > explicit for factored, explicit in costs]
    forward, largest = _count_entries(network.closed.jaxpr)
    # A backward pass holds about three arrays of the largest size for each signal.
    chunk = max(1, _CHUNK_BYTES // max(1, 3 * largest * network.output.dtype.itemsize))
    layout = _Layout(network, sites, is_explicit, others, chunk)
    shares = [_site_share(network.axes, *site) for site in zip(sites, is_explicit, map(min, costs), strict=True)]
    shares += [_jacobian_share(network, leaf, ways[leaf], n1, n2) for leaf in others]
    live = forward + 3 * min(network.axes.num_outputs, chunk) * largest
    itemsize = network.output.dtype.itemsize
    return Pairwise(
        name,
        tuple(sorted(shares)),
        partial(_features, layout),
        partial(_kernels, layout),
        _pass_flops(layout, n1, n2) + sum(share.flops for share in shares),
        itemsize * (sum(share.entries for share in shares) + live),
        itemsize * _count_entries_of_pair(layout),
    )


def _features(layout: _Layout, leaves: Sequence[Array], inputs: Sequence[Array]) -> Any:
    """Factors or Jacobians of an example, for each site; Jacobians (*outputs, size) of the other leaves."""
    network, sites, is_explicit, others, chunk = layout
    axes = network.axes

    def run(zeros: list[Array], chosen: list[Array]) -> tuple[Array, list[Array]]:
        # Leaves at sites stay constant here, because their Jacobians follow from activations and signals.
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

    def at_site(site: Site, activation: Array, signal: Array, explicit: bool) -> Any:
        signal = canonical_signals(site, signal)
        factors = Factors(activation, signal.reshape(*axes.sizes, *signal.shape[1:]))
        return outer_product(site, factors) if explicit else factors

    entering = list(map(at_site, sites, activations, backward, is_explicit))
    return entering, [jac.reshape(*axes.sizes, -1) for jac in jacobians]


def _kernels(layout: _Layout, _: Sequence[Array], features1: Any, features2: Any) -> tuple[Array, ...]:
    """Kernels of a pair of examples: the inner products of their Jacobians, summed over each group's leaves."""
    network, axes = layout.network, layout.network.axes
    totals: list[Any] = [0.0] * network.num_groups
    for site, explicit, one, two in zip(layout.sites, layout.is_explicit, features1[0], features2[0], strict=True):
        share = inner_product(axes, one, two) if explicit else outer_inner_product(axes, site, one, two)
        totals[network.groups[site.leaf]] += share
    for leaf, one, two in zip(layout.others, features1[1], features2[1], strict=True):
        totals[network.groups[leaf]] += inner_product(axes, one, two)
    return _mean_over_traced(network, totals)


def _site_flops(site: Site, axes: OutputAxes, n1: int, n2: int) -> tuple[float, float]:
    """Operations of both orders of contraction: parameters first (factors kept), or positions first (explicit)."""
    by_example, by_pair = jacobian_flops(site, axes)
    explicit = math.inf if site.is_lookup else (n1 + n2) * by_example + n1 * n2 * by_pair
    return n1 * n2 * factor_flops(site, axes), explicit


def _site_share(axes: OutputAxes, site: Site, explicit: bool, flops: float) -> Share:
    kinds = {"gather": "look-up", "conv_general_dilated": "convolution"}
    way = kinds.get(site.equation.primitive.name, "matrix product")
    # The factors are in memory when their product is formed.
    entries = site.groups * site.positions * (site.inputs + axes.num_outputs * site.outputs)
    if explicit:
        way += ", summed over positions"
        entries += axes.num_outputs * site.groups * site.inputs * site.outputs
    return Share(site.leaf, way, flops, entries)


def _jacobian_share(network: Network, leaf: int, way: str, n1: int, n2: int) -> Share:
    axes, size = network.axes, math.prod(network.leaves[leaf].shape)
    return Share(leaf, way, size * (2.0 * axes.num_pairs * n1 * n2), axes.num_outputs * size)


def _pass_flops(layout: _Layout, n1: int, n2: int) -> float:
    """Operations of the passes through the network.

    One forward, and one backward for each output, which takes twice the operations if a leaf's own gradient is
    computed.
    """
    forward = count_flops(layout.network.closed.jaxpr)
    passes = 1 + layout.network.axes.num_outputs * (1 if layout.sites else 2)
    return (n1 + n2) * forward * passes


def _count_entries_of_pair(layout: _Layout) -> int:
    """Entries of the largest intermediate value of a pair's kernels."""
    axes = layout.network.axes
    factored = [site for site, explicit in zip(layout.sites, layout.is_explicit, strict=True) if not explicit]
    size = math.prod(axes.result_shape)
    return max([2 * size, *(site.groups * site.positions**2 * (1 + size) for site in factored)])


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

    forward_flops, (forward, largest) = count_flops(network.closed.jaxpr), _count_entries(network.closed.jaxpr)
    size = sum(math.prod(leaf.shape) for leaf in network.leaves)
    itemsize = network.output.dtype.itemsize
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


def _count_entries(jaxpr: Jaxpr) -> tuple[int, int]:
    """Number of entries of all intermediate values, which a backward pass keeps, and of the largest value."""
    total, largest = 0, 1
    for equation in jaxpr.eqns:
        sizes = [math.prod(v.aval.shape) for v in equation.outvars if hasattr(v.aval, "shape")]
        for sub in inner_jaxprs(equation):
            inner_total, inner_largest = _count_entries(sub)
            total += inner_total * equation.params.get("length", 1)
            largest = max(largest, inner_largest)
        total += sum(sizes)
        largest = max([largest, *sizes])
    return total, largest
