"""Inner products of the Jacobians of two examples, from activations and back-propagated signals.

See docs/mathematics.md, M14.
"""

from __future__ import annotations

import math
import string
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from fixntk._numerics import at_least_float32
from fixntk.ntk.structure import Site


class OutputAxes(NamedTuple):
    """Output axes of one example: their sizes, and which are traced and which kept as a diagonal."""

    sizes: tuple[int, ...]
    traced: tuple[int, ...]
    diagonal: tuple[int, ...]

    @property
    def num_outputs(self) -> int:
        """Number of outputs of an example."""
        return math.prod(self.sizes)

    @property
    def traced_size(self) -> int:
        """Number of outputs that are averaged over."""
        return math.prod(self.sizes[k] for k in self.traced)

    @property
    def num_pairs(self) -> int:
        """Number of pairs of outputs whose Jacobians are multiplied."""
        # A traced or diagonal axis pairs each index with itself only.
        shared = math.prod(self.sizes[k] for k in (*self.traced, *self.diagonal))
        return self.num_outputs**2 // max(shared, 1)

    @property
    def result_shape(self) -> tuple[int, ...]:
        """Shape of a pair's kernel: a full axis stands twice, a diagonal one once, a traced one not at all."""
        return tuple(size for k, size in enumerate(self.sizes) for _ in range(self._copies(k)))

    def _copies(self, axis: int) -> int:
        return 0 if axis in self.traced else 1 if axis in self.diagonal else 2

    def subscripts(self) -> tuple[str, str, str]:
        """Einsum subscripts of the output axes of both examples and of the result."""
        # The first example has letters from the start of the alphabet, the second from the end. Both share the letter
        # of an axis that is traced or diagonal. A traced axis has no letter in the result: einsum sums over it.
        first = string.ascii_uppercase[: len(self.sizes)]
        second = "".join(
            letter if self._copies(k) < 2 else string.ascii_uppercase[-1 - k] for k, letter in enumerate(first)
        )
        both = zip(first, second, strict=True)
        result = "".join((one + two) if one != two else one for k, (one, two) in enumerate(both) if self._copies(k))
        return first, second, result

    def transpose(self, kernel: Array, leading: int) -> Array:
        """Swap the two copies of each full axis; ``leading`` axes stand before the output axes."""
        # ``position`` counts the axes of the kernel, of which each output axis has as many as its copies.
        order, position = list(range(leading)), leading
        for k in range(len(self.sizes)):
            copies = self._copies(k)
            order += [position + 1, position] if copies == 2 else [position] * copies
            position += copies
        return jnp.transpose(kernel, order)

    def select(self, full: Array) -> Array:
        """Reduce a kernel (*outputs, *outputs) of a pair of examples to the requested axes, summed where traced."""
        first, second, result = self.subscripts()
        return jnp.einsum(f"{first}{second}->{result}", full)


def inner_product(axes: OutputAxes, jacobian1: Array, jacobian2: Array) -> Array:
    """Kernel of a pair of examples from Jacobians (*outputs, size of the leaf)."""
    first, second, result = axes.subscripts()
    return _einsum(f"{first}p,{second}p->{result}", jacobian1, jacobian2)


class Factors(NamedTuple):
    """Activations (G, T, I) or row numbers (T,), and signals (*outputs, G, T, J), of an example at a site."""

    activations: Array
    signals: Array


def outer_inner_product(axes: OutputAxes, site: Site, factors1: Factors, factors2: Factors) -> Array:
    """Kernel of a pair of examples from the factors of Σ_t a_t ⊗ δ_t, which is never formed."""
    first, second, result = axes.subscripts()
    # Axes of size one are left out: with them the products below would be batched instead of one large product.
    group = "g" if site.groups > 1 else ""
    row, column = ("t", "s") if site.positions > 1 else ("", "")
    # First the products a_t · a'_s of activations and δ_t · δ'_s of signals for all positions t, s, then their sum.
    if site.is_lookup:
        # The activations of a look-up are one-hot vectors, whose inner product is 1 where two row numbers are equal.
        # Row numbers out of bounds have no derivative.
        rows, columns = factors1.activations[:, None], factors2.activations[None, :]
        known = (rows >= 0) & (rows < site.inputs)
        activations = ((rows == columns) & known).astype(factors1.signals.dtype)
        activations = activations if row else activations[0, 0]
    else:
        activations = _einsum(
            f"{group}{row}i,{group}{column}i->{group}{row}{column}",
            _drop_unit_axes(factors1.activations, site),
            _drop_unit_axes(factors2.activations, site),
        )
    products = _einsum(
        f"{first}{group}{row}j,{second}{group}{column}j->{result}{group}{row}{column}",
        _drop_unit_axes(factors1.signals, site),
        _drop_unit_axes(factors2.signals, site),
    )
    if not group and not row:
        # With one group and one position the activations' product is a single number.
        return activations * products
    return _einsum(f"{group}{row}{column},{result}{group}{row}{column}->{result}", activations, products)


def outer_product(site: Site, factors: Factors) -> Array:
    """Jacobian (*outputs, size of the leaf) Σ_t a_t ⊗ δ_t, its entries in an order of the site's own."""
    outputs = factors.signals.shape[:-3]
    signals = factors.signals.reshape(-1, site.groups, site.positions, site.outputs)
    return _einsum("gti,ogtj->ogij", factors.activations, signals).reshape(*outputs, -1)


def factor_flops(site: Site, axes: OutputAxes) -> float:
    """Operations of :func:`outer_inner_product` for a pair of examples."""
    grid = site.groups * site.positions**2
    return 2.0 * grid * ((1 if site.is_lookup else site.inputs) + axes.num_pairs * (site.outputs + 1))


def jacobian_flops(site: Site, axes: OutputAxes) -> tuple[float, float]:
    """Operations of :func:`outer_product` for an example and of :func:`inner_product` for a pair."""
    size = site.groups * site.inputs * site.outputs
    return 2.0 * axes.num_outputs * site.positions * size, 2.0 * axes.num_pairs * size


def _drop_unit_axes(factor: Array, site: Site) -> Array:
    """Drop the group and position axes (the second and third from the end) of size one."""
    kept = [size for size in (site.groups, site.positions) if size > 1]
    return factor.reshape(*factor.shape[:-3], *kept, factor.shape[-1])


def _einsum(subscripts: str, *operands: ArrayLike) -> Array:
    # Half-precision networks get kernels summed in float32; a GPU's TF32 would cost three digits.
    wide = at_least_float32(jnp.result_type(*operands))
    return jnp.einsum(subscripts, *operands, precision=lax.Precision.HIGHEST, preferred_element_type=wide)
