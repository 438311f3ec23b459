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
from fixntk.ntk.sites import Part


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
    """Activations (G, T, I) or row numbers (T,), and signals (*outputs, G, T, J), of an example at a part."""

    activations: Array
    signals: Array


def outer_inner_product(
    axes: OutputAxes, part1: Part, factors1: Factors, part2: Part, factors2: Factors, weights: Array | None = None
) -> Array:
    """Kernel of a pair of examples from the factors of two sums Σ_t a_t ⊗ δ_t, which are never formed.

    The sums are those of two parts of one block, or of one part for both examples. ``weights`` (G, I, J) multiply the
    products of their entries; a block with weights has one part.
    """
    first, second, result = axes.subscripts()
    # Axes of size one are left out: with them the products below would be batched instead of one large product.
    group = "g" if part1.groups > 1 else ""
    row, column = ("t" if part1.positions > 1 else ""), ("s" if part2.positions > 1 else "")
    if weights is not None:
        return _weighted_product(axes, (group, row, column), part1, factors1, factors2, weights)
    # First the products of the two arrays along inputs, and of those along outputs, for all positions t, s; then their
    # sum. Usually inputs belong to activations and outputs to signals, which alone have the network's outputs.
    grid = f"{group}{row}{column}"
    sides = zip(_sides(part1, factors1, first), _sides(part2, factors2, second), strict=True)
    (one, letters1), (two, letters2) = (_side_product(*pair, (group, row, column), result) for pair in sides)
    dtype = factors1.signals.dtype
    # Where row numbers are equal is a truth value.
    one, two = (array.astype(dtype) if array.dtype == bool else array for array in (one, two))
    if not grid and not letters1:
        # With one group and one position the activations' product is a single number.
        return one * two
    return _einsum(f"{letters1}{grid},{letters2}{grid}->{result}", one, two)


class _Side(NamedTuple):
    """The array along inputs, or along outputs, of a part's factors; its letters if it has the network's outputs."""

    part: Part
    array: Array
    letters: str
    is_rows: bool


def _sides(part: Part, factors: Factors, letters: str) -> tuple[_Side, _Side]:
    activations = _Side(part, factors.activations, "", part.is_lookup)
    signals = _Side(part, factors.signals, letters, False)
    return (signals, activations) if part.is_swapped else (activations, signals)


def _side_product(one: _Side, two: _Side, grid: tuple[str, str, str], result: str) -> tuple[Array, str]:
    """Inner products along inputs, or along outputs, for all positions of two parts, and their outputs' letters."""
    group, row, column = grid
    # If both have the network's outputs, traced ones are summed already here.
    letters = result if one.letters and two.letters else one.letters + two.letters
    if not one.is_rows and not two.is_rows:
        subscripts = f"{one.letters}{group}{row}i,{two.letters}{group}{column}i->{letters}{group}{row}{column}"
        return _einsum(subscripts, _drop_unit_axes(one.array, one.part), _drop_unit_axes(two.array, two.part)), letters
    # The activations of a look-up are one-hot vectors: their inner product is 1 where two row numbers are equal, and an
    # entry of the other array otherwise. Row numbers out of bounds have no derivative.
    if one.is_rows and two.is_rows:
        rows, columns = one.array[:, None], two.array[None, :]
        products = (rows == columns) & (rows >= 0) & (rows < one.part.inputs)
    elif one.is_rows:
        products = jnp.swapaxes(_entries_at(two.array, one), -1, -2)
    else:
        products = _entries_at(one.array, two)
    sizes = [part.positions for part in (one.part, two.part) if part.positions > 1]
    return products.reshape(*products.shape[: len(letters)], *sizes), letters


def _entries_at(array: Array, lookup: _Side) -> Array:
    """Entries (…, T, T of the look-up) of an array (…, 1, T, I) at a look-up's rows, 0 out of bounds."""
    size = lookup.part.inputs
    is_known = (lookup.array >= 0) & (lookup.array < size)
    return jnp.where(is_known, jnp.take(array[..., 0, :, :], jnp.clip(lookup.array, 0, size - 1), axis=-1), 0)


def _weighted_product(
    axes: OutputAxes, grid: tuple[str, str, str], part: Part, factors1: Factors, factors2: Factors, weights: Array
) -> Array:
    first, second, result = axes.subscripts()
    group, row, column = grid
    both = f"{group}{row}{column}"
    one, two = (Factors(*(_drop_unit_axes(array, part) for array in factors)) for factors in (factors1, factors2))
    squares = _einsum(f"{group}{row}i,{group}{column}i->{both}i", one.activations, two.activations)
    mixed = _einsum(f"{both}i,{group}ij->{both}j", squares, weights if group else weights[0])
    right = _einsum(f"{both}j,{second}{group}{column}j->{second}{both}j", mixed, two.signals)
    return _einsum(f"{first}{group}{row}j,{second}{both}j->{result}", one.signals, right)


def outer_product(part: Part, factors: Factors) -> Array:
    """The sum (*outputs, G, I, J) over t of a_t ⊗ δ_t, its axes swapped if the part's are."""
    outputs = factors.signals.shape[:-3]
    signals = factors.signals.reshape(-1, part.groups, part.positions, part.outputs)
    if part.is_lookup:
        # Adding rows up takes fewer operations than a product with one-hot vectors by the number of rows in the table.
        rows = jnp.where(factors.activations < 0, part.inputs, factors.activations)
        added = signals[:, 0].astype(at_least_float32(signals.dtype))
        table = jnp.zeros((len(signals), part.inputs, part.outputs), added.dtype)
        product = table.at[:, rows].add(added, mode="drop")
    else:
        product = _einsum("gti,ogtj->ogij", factors.activations, signals)
    product = product.reshape(*outputs, part.groups, part.inputs, part.outputs)
    return jnp.swapaxes(product, -1, -2) if part.is_swapped else product


def factor_flops(axes: OutputAxes, part1: Part, part2: Part, *, is_weighted: bool = False) -> float:
    """Operations of :func:`outer_inner_product` for a pair of examples."""
    grid = part1.groups * part1.positions * part2.positions
    inputs, outputs = part1.inputs, part1.outputs
    if is_weighted:
        return 2.0 * grid * (inputs * (1 + outputs) + (axes.num_outputs + axes.num_pairs) * outputs)
    # A look-up's product takes an entry instead of a sum.
    along_activations = 1 if part1.is_lookup or part2.is_lookup else inputs
    if part1.is_swapped == part2.is_swapped:
        return 2.0 * grid * (along_activations + axes.num_pairs * (outputs + 1))
    one, two = (1 if part.is_lookup else part.inputs for part in (part1, part2))
    return 2.0 * grid * (axes.num_outputs * (one + two) + axes.num_pairs)


def factor_entries(axes: OutputAxes, part1: Part, part2: Part, *, is_weighted: bool = False) -> int:
    """Entries of the intermediate values of :func:`outer_inner_product` for a pair of examples."""
    grid = part1.groups * part1.positions * part2.positions
    if is_weighted:
        return grid * (part1.inputs + part1.outputs * (1 + axes.num_outputs))
    if part1.is_swapped == part2.is_swapped:
        return grid * (1 + math.prod(axes.result_shape))
    return grid * (2 * axes.num_outputs + axes.num_pairs)


def jacobian_flops(axes: OutputAxes, part: Part) -> tuple[float, float]:
    """Operations of :func:`outer_product` for an example and of :func:`inner_product` for a pair."""
    size = part.groups * part.inputs * part.outputs
    entries = part.groups * part.outputs * (1 if part.is_lookup else part.inputs)
    return 2.0 * axes.num_outputs * part.positions * entries, 2.0 * axes.num_pairs * size


def _drop_unit_axes(factor: Array, part: Part) -> Array:
    """Drop the group and position axes (the second and third from the end) of size one."""
    kept = [size for size in (part.groups, part.positions) if size > 1]
    return factor.reshape(*factor.shape[:-3], *kept, factor.shape[-1])


def _einsum(subscripts: str, *operands: ArrayLike) -> Array:
    # Half-precision networks get kernels summed in float32; a GPU's TF32 would cost three digits.
    wide = at_least_float32(jnp.result_type(*operands))
    return jnp.einsum(subscripts, *operands, precision=lax.Precision.HIGHEST, preferred_element_type=wide)
