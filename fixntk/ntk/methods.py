"""Three ways to the empirical NTK of a pair of examples: Jacobians, NTK-vector products, structured (M14).

Each is a :class:`Pairwise`: what to compute once an example, and the kernel of two examples from it. Both are mapped
over tiles of examples by :mod:`fixntk.ntk.tiles`; under ``jax.vmap`` their inner products become matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

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

# Signals of at most this many outputs and bytes are propagated backwards at once.
_CHUNK_BYTES = 2**26


class Network(NamedTuple):
    """A network read for one example: its jaxpr in (*leaves, *inputs), and which group each leaf belongs to.

    Only the method "jacobian" leaves a leaf out, as group −1.
    """

    closed: ClosedJaxpr
    leaves: tuple[jax.ShapeDtypeStruct, ...]
    axes: OutputAxes
    groups: tuple[int, ...]

    @property
    def num_groups(self) -> int:
        """Number of kernels that are asked for."""
        return max(self.groups) + 1

    @property
    def output(self) -> Any:
        """Shape and dtype of the output of one example."""
        return self.closed.jaxpr.outvars[0].aval

    @property
    def kernel_dtype(self) -> Any:
        """Dtype of the kernels: the output's, float32 at least."""
        return jnp.promote_types(self.output.dtype, jnp.float32)

    def apply(self, leaves: Sequence[Array], inputs: Sequence[Array]) -> Array:
        """Output of one example."""
        return jaxpr_as_fun(self.closed)(*leaves, *inputs)[0]

    def basis(self) -> Array:
        """One cotangent for each output."""
        count = self.axes.num_outputs
        return jnp.eye(count, dtype=self.output.dtype).reshape(count, *self.axes.sizes)


class Pairwise(NamedTuple):
    """A method: ``features(leaves, inputs)`` of an example, ``kernels(leaves, features1, features2)`` of a pair.

    The kernels are a tuple, one for each group of leaves. ``flops`` counts the operations for the numbers of examples
    that the method was made for, the bytes are those that an example and a pair of examples take while computed.
    """

    features: Callable[[Sequence[Array], Sequence[Array]], Any]
    kernels: Callable[[Sequence[Array], Any, Any], tuple[Array, ...]]
    flops: float
    example_bytes: int
    pair_bytes: int


def structured(network: Network, n1: int, n2: int) -> Pairwise:
    """Activations and back-propagated signals where a product allows, the Jacobian of a leaf elsewhere."""
    sites, others = find_sites(network.closed, len(network.leaves))
    return _from_sites(network, sites, sorted(others), n1, n2)


def jacobian(network: Network, n1: int, n2: int) -> Pairwise:
    """Contraction of the Jacobians of all leaves that are in a group."""
    sites, others = find_sites(network.closed, len(network.leaves))
    entering = {*others, *(site.leaf for site in sites)}
    return _from_sites(network, [], sorted(leaf for leaf in entering if network.groups[leaf] >= 0), n1, n2)


def _from_sites(network: Network, sites: list[Site], others: list[int], n1: int, n2: int) -> Pairwise:
    axes, closed = network.axes, network.closed
    if not sites and not others:
        # No leaf enters: the zeros of one leaf's Jacobian, for vmap needs an array to map over.
        others = [min(range(len(network.leaves)), key=lambda k: (network.groups[k] < 0, network.leaves[k].size))]
    # Of both orders of contraction the cheaper one: positions first, or parameters first.
    costs = []
    for site in sites:
        by_example, by_pair = jacobian_flops(site, axes)
        explicit = math.inf if site.is_lookup else (n1 + n2) * by_example + n1 * n2 * by_pair
        costs.append((n1 * n2 * factor_flops(site, axes), explicit))
    explicit_sites = [factored > explicit for factored, explicit in costs]

    def features(leaves: Sequence[Array], inputs: Sequence[Array]) -> Any:
        def run(zeros: list[Array], chosen: list[Array]) -> tuple[Array, list[Array]]:
            replaced = dict(zip(others, chosen, strict=True))
            arguments = [replaced.get(k, leaf) for k, leaf in enumerate(leaves)]
            outputs, activations = signals(closed, [*arguments, *inputs], sites, zeros)
            return outputs[0], activations

        products = [site.product for site in sites]
        zeros = [jnp.zeros(product.shape, product.dtype) for product in products]
        _, pullback, activations = jax.vjp(run, zeros, [leaves[k] for k in others], has_aux=True)
        basis = network.basis()
        if axes.num_outputs <= chunk:
            backward, jacobians = jax.vmap(pullback)(basis)
        else:
            backward, jacobians = lax.map(pullback, basis, batch_size=chunk)
        factors = [
            Factors(a, jnp.reshape(s := canonical_signals(site, signal), (*axes.sizes, *s.shape[1:])))
            for site, a, signal in zip(sites, activations, backward, strict=True)
        ]
        entering = [
            outer_product(site, pair) if explicit else pair
            for site, pair, explicit in zip(sites, factors, explicit_sites, strict=True)
        ]
        return entering, [jac.reshape(*axes.sizes, -1) for jac in jacobians]

    def kernels(_: Sequence[Array], features1: Any, features2: Any) -> tuple[Array, ...]:
        totals: list[Any] = [0.0] * network.num_groups
        for site, explicit, one, two in zip(sites, explicit_sites, features1[0], features2[0], strict=True):
            share = inner_product(axes, one, two) if explicit else outer_inner_product(axes, site, one, two)
            totals[network.groups[site.leaf]] += share
        for leaf, one, two in zip(others, features1[1], features2[1], strict=True):
            totals[network.groups[leaf]] += inner_product(axes, one, two)
        return _finished(network, totals)

    itemsize = network.output.dtype.itemsize
    forward, largest = _entries(closed.jaxpr)
    chunk = max(1, _CHUNK_BYTES // max(1, 3 * largest * itemsize))
    sizes = [math.prod(network.leaves[k].shape) for k in others]
    kept, by_pair = axes.num_outputs * sum(sizes), 2 * math.prod(axes.result_shape)
    for site, explicit in zip(sites, explicit_sites, strict=True):
        factor_size = site.groups * site.positions * (site.inputs + axes.num_outputs * site.outputs)
        kept += factor_size + (axes.num_outputs * site.groups * site.inputs * site.outputs if explicit else 0)
        if not explicit:
            by_pair = max(by_pair, site.groups * site.positions**2 * (1 + math.prod(axes.result_shape)))
    # Forwards once; backwards once for each output, twice as much where a leaf's own gradient is taken.
    forward_flops = count_flops(closed.jaxpr)
    flops = (n1 + n2) * forward_flops * (1 + axes.num_outputs) + sum(min(pair) for pair in costs)
    flops += sum(size * (2.0 * axes.num_pairs * n1 * n2) for size in sizes)
    if not sites:
        flops += (n1 + n2) * forward_flops * axes.num_outputs
    live = forward + 3 * min(axes.num_outputs, chunk) * largest
    return Pairwise(features, kernels, flops, itemsize * (kept + live), itemsize * by_pair)


def ntvp(network: Network, n1: int, n2: int) -> Pairwise:
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
            return jax.jvp(lambda c: apply(c, inputs1), (chosen,), pullback(cotangent))[1]

        columns = jax.vmap(product, out_axes=-1)(network.basis())
        return axes.select(columns.reshape(*axes.sizes, *axes.sizes))

    def kernels(leaves: Sequence[Array], features1: Any, features2: Any) -> tuple[Array, ...]:
        return _finished(network, [kernel(leaves, features1, features2, group) for group in members])

    forward_flops, (forward, largest) = count_flops(network.closed.jaxpr), _entries(network.closed.jaxpr)
    size = sum(math.prod(leaf.shape) for leaf in network.leaves)
    itemsize = network.output.dtype.itemsize
    flops = network.num_groups * axes.num_outputs * (2.0 * n1 * n2 + 3.0 * n2) * forward_flops
    by_example = forward + axes.num_outputs * size
    return Pairwise(
        lambda _, inputs: inputs,
        kernels,
        flops,
        itemsize * by_example,
        itemsize * axes.num_outputs * (2 * largest + axes.num_outputs),
    )


METHODS: dict[str, Callable[[Network, int, int], Pairwise]] = {
    "structured": structured,
    "jacobian": jacobian,
    "ntvp": ntvp,
}


def cheapest(network: Network, n1: int, n2: int) -> Pairwise:
    """Return the method with the fewest operations; products only where forward differentiation is possible."""
    candidates = [structured(network, n1, n2)]
    if not uses_primitive(network.closed.jaxpr, "custom_vjp"):
        candidates.append(ntvp(network, n1, n2))
    return min(candidates, key=lambda method: method.flops)


def _finished(network: Network, totals: Sequence[Any]) -> tuple[Array, ...]:
    """Divide by the number of traced outputs; groups of leaves that do not enter the network have kernel zero."""
    shape = network.axes.result_shape
    return tuple(
        jnp.broadcast_to(total, shape).astype(network.kernel_dtype) / network.axes.traced_size for total in totals
    )


def _entries(jaxpr: Jaxpr) -> tuple[int, int]:
    """Entries of all intermediate values, as they are kept for a backward pass, and of the largest one."""
    total, largest = 0, 1
    for equation in jaxpr.eqns:
        sizes = [math.prod(v.aval.shape) for v in equation.outvars if hasattr(v.aval, "shape")]
        for sub in inner_jaxprs(equation):
            inner_total, inner_largest = _entries(sub)
            total += inner_total * equation.params.get("length", 1)
            largest = max(largest, inner_largest)
        total += sum(sizes)
        largest = max([largest, *sizes])
    return total, largest
