"""Masked Gram kernels K(η) = (M diag(η) Mᵀ) ∘ (X Xᵀ): dense, in tiles, and as an operator without n×n memory.

Also the linear map W ↦ Σ_p D_p X W_p that the convex program fits, and its adjoint R ↦ (Xᵀ D_p R)_p: each is one
matrix product with the masks. Nothing of size n×P×d is ever made.

See docs/mathematics.md, M2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, UInt8

from fixntk._checks import (
    as_float_array,
    as_matrix,
    as_positive_int,
    check_same_columns,
    check_same_rows,
    describe_fields,
    place_rows_like,
)
from fixntk._numerics import einsum, matmul
from fixntk._tiling import compute_in_row_tiles, group_rows, memory_for
from fixntk.gates.masks import as_masks

# Largest array, in bytes, of masks converted to numbers; above that size they are converted a tile at a time.
TILE_BYTES = 2**28
# Number of times that the rows of a kernel of rows with themselves are halved.
_NUM_HALVINGS = 2
# Smallest number of rows that are halved.
_LEAST_HALVED_ROWS = 512
# What lowers the memory that a kernel takes.
_REMEDY = "use MaskedGram's tiles(), in fewer rows, or its product, which never make it whole"


def masked_gram(
    weights: ArrayLike,
    masks1: ArrayLike,
    x1: ArrayLike,
    masks2: ArrayLike | None = None,
    x2: ArrayLike | None = None,
) -> Float[Array, "n1 n2"]:
    """Masked Gram kernel matrix (M₁ diag(η) M₂ᵀ) ∘ (X₁ X₂ᵀ).

    The masks are converted to numbers a tile of gates and rows at a time, at most 256 MiB, so that memory beyond the
    inputs and the result stays bounded. :class:`MaskedGram` gives the kernel in row blocks or as a product alone.

    Parameters
    ----------
    weights
        (P,) kernel weights η. No unit.
    masks1, x1
        (n1, P) masks, bool or packed (:func:`fixntk.pack_masks`), and (n1, d) inputs.
    masks2, x2
        (n2, P) and (n2, d); the first ones when both are None.

    Returns
    -------
    (n1, n2), of the inputs' dtype.

    Raises
    ------
    ValueError
        If shapes do not fit together, an argument is empty or not finite, or only one of ``masks2`` and ``x2`` is
        given.
    OutOfMemoryError
        If memory does not suffice; a ValueError too.

    Examples
    --------
    >>> import jax.numpy as jnp, fixntk as fx
    >>> x = jnp.array([[1.0, 0.0], [1.0, 1.0]])
    >>> masks = jnp.array([[True, True], [True, False]])
    >>> fx.masked_gram(jnp.array([0.5, 0.25]), masks, x)
    Array([[0.75, 0.5 ],
           [0.5 , 1.  ]], dtype=float32)

    See docs/mathematics.md, M2.
    """
    weights, masks1, x1 = _as_operands(weights, masks1, x1, "1")
    if (masks2 is None) != (x2 is None):
        raise ValueError("masks2 and x2 must be given together or not at all")
    if masks2 is None or x2 is None:
        return _gram_within_memory(weights, masks1, x1)
    _, masks2, x2 = _as_operands(weights, masks2, x2, "2")
    check_same_columns("x1", x1, "x2", x2)
    return _gram_within_memory(weights, masks1, x1, masks2, x2)


@dataclass(frozen=True, eq=False, init=False)
class MaskedGram:
    """The masked Gram kernel K(η) of one data set as a symmetric linear operator.

    ``operator @ v`` costs O(n d P) and never makes an n×n matrix; ``tiles`` makes it a block of rows at a time. A
    pytree, so it goes through ``jit``, ``vmap`` and ``grad``.

    Attributes
    ----------
    weights
        (P,) kernel weights η.
    masks
        (n, P) bool, or packed.
    x
        (n, d) inputs.

    See docs/mathematics.md, M2.
    """

    # Under vmap there are axes before these, and JAX's transformations put placeholders into pytrees, hence Any.
    weights: Float[Array, " P"] | Any
    masks: Bool[Array, "n P"] | UInt8[Array, "n B"] | Any
    x: Float[Array, "n d"] | Any

    def __init__(self, weights: ArrayLike, masks: ArrayLike, x: ArrayLike) -> None:
        operands = _as_operands(weights, masks, x, "")
        for name, value in zip(("weights", "masks", "x"), operands, strict=True):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return describe_fields("MaskedGram", weights=self.weights, masks=self.masks, x=self.x)

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""
        return self.x.shape[0], self.x.shape[0]

    @property
    def dtype(self) -> jnp.dtype:
        """The inputs' dtype."""
        return self.x.dtype

    def __matmul__(self, vectors: ArrayLike) -> Array:
        """K(η) @ vectors for (n,) or (n, c), of the operator's dtype: Σ_p η_p D_p X (Xᵀ D_p v)."""
        vectors = as_float_array("vectors", vectors, (1, 2)).astype(self.dtype)
        check_same_rows("x", self.x, "vectors", vectors)
        columns = vectors[:, None] if vectors.ndim == 1 else vectors
        return _product(self.weights, self.masks, self.x, columns).reshape(vectors.shape)

    def diagonal(self) -> Float[Array, " n"]:
        """The diagonal (Σ_p η_p m_ip) ‖x_i‖²."""
        return _diagonal(self.weights, self.masks, self.x)

    def to_dense(self) -> Float[Array, "n n"]:
        """The whole matrix."""
        return masked_gram(self.weights, self.masks, self.x)

    def tiles(self, num_rows: int = 1024) -> Iterator[tuple[slice, Float[Array, "b n"]]]:
        """Yield (rows, K(η)[rows]) from top to bottom, ``num_rows`` rows at a time."""
        size, total = as_positive_int("num_rows", num_rows), self.x.shape[0]
        blocks = (slice(start, min(start + size, total)) for start in range(0, total, size))
        # A generator function would check num_rows only when the first block is requested.
        return (
            (rows, _gram_within_memory(self.weights, self.masks[rows], self.x[rows], self.masks, self.x))
            for rows in blocks
        )


def _unchecked_operator(_: None, leaves: Iterable[Any]) -> MaskedGram:
    operator = object.__new__(MaskedGram)
    for name, value in zip(("weights", "masks", "x"), leaves, strict=True):
        object.__setattr__(operator, name, value)
    return operator


# Not register_dataclass, which rebuilds an operator by its constructor: that checks its arguments, and transformations
# put leaves of other shapes, or placeholders, into pytrees.
jax.tree_util.register_pytree_node(
    MaskedGram, lambda operator: ((operator.weights, operator.masks, operator.x), None), _unchecked_operator
)


# Compiled here rather than left to the caller: outside jit, JAX would compile the loop over tiles anew in every call.
@jax.jit
def masked_apply(masks: Array, x: Array, weights: Array) -> Float[Array, "n c"]:
    """Outputs Σ_p D_p X W_p of the group weights W, (P, d, c), on (n, d) inputs with (n, P) masks.

    See docs/mathematics.md, M2.
    """
    # Row i of the outputs is Σ_d x_id (Σ_p m_ip W_pdc): one product of the masks with the flattened weights, then a sum
    # over features.
    num_gates, num_features, num_outputs = weights.shape
    flat = weights.reshape(num_gates, num_features * num_outputs)
    summed = _apply_to_rows(lambda tile: matmul(tile, flat), masks, num_gates, x.dtype)
    summed = summed.reshape(x.shape[0], num_features, num_outputs)
    return einsum("nd,ndc->nc", x, summed)


@partial(jax.jit, static_argnames="num_gates")
def masked_adjoint(masks: Array, x: Array, residual: Array, num_gates: int) -> Float[Array, "P d c"]:
    """Correlations Xᵀ D_p R of every gate with the (n, c) residual: the adjoint of :func:`masked_apply`.

    See docs/mathematics.md, M2 and M7.
    """
    num_rows, num_features = x.shape
    num_outputs = residual.shape[1]
    # Xᵀ D_p R = Σ_i m_ip x_i ⊗ R_i: one product of the masks with the rows' outer products.
    outer = (x[:, :, None] * residual[:, None, :]).reshape(num_rows, num_features * num_outputs)
    tile = _tile_size(num_rows, num_gates * x.dtype.itemsize)
    if tile == num_rows:
        total = matmul(as_numbers(masks, num_gates, x.dtype).T, outer)
    else:
        (grouped, height), (outer, _) = group_rows(masks, tile), group_rows(outer, tile)

        def term(begin: Array, is_new: Array) -> Array:
            rows = lax.dynamic_slice_in_dim(outer, begin, height, axis=1) * is_new[None, :, None]
            numbers = as_numbers(lax.dynamic_slice_in_dim(grouped, begin, height, axis=1), num_gates, x.dtype)
            return einsum("rhp,rhk->rpk", numbers, rows)

        # The sum over groups comes last: where rows are sharded, it is a sum over devices.
        total = jnp.sum(sum_over_tiles(term, outer.shape[1], height), axis=0)
    return total.reshape(num_gates, num_features, num_outputs)


def select_masks(masks: Array, chosen: Array) -> Array:
    """Masks (n, B) of the chosen gates: bool from bool or packed ones, numbers from numbers."""
    if masks.dtype == jnp.uint8:
        # Gate 8k + j is bit 7 − j of byte k.
        return (masks[:, chosen // 8] >> (7 - chosen % 8).astype(jnp.uint8)) & 1 > 0
    return masks[:, chosen]


def _as_operands(weights: ArrayLike, masks: ArrayLike, x: ArrayLike, suffix: str) -> tuple[Array, Array, Array]:
    x = as_matrix(f"x{suffix}", x)
    weights = as_float_array("weights", weights, (1,)).astype(x.dtype)
    masks = as_masks(f"masks{suffix}", masks, weights.size)
    check_same_rows(f"masks{suffix}", masks, f"x{suffix}", x)
    # Where the rows of x are divided over devices, those of the masks are too.
    return weights, place_rows_like(x, masks), x


@jax.jit
def _product(weights: Array, masks: Array, x: Array, columns: Array) -> Array:
    # K(η) v is the adjoint, a scaling of each gate by η_p, and the forward map.
    correlations = masked_adjoint(masks, x, columns, weights.size)
    return masked_apply(masks, x, weights[:, None, None] * correlations)


@jax.jit
def _diagonal(weights: Array, masks: Array, x: Array) -> Array:
    counts = _apply_to_rows(lambda tile: matmul(tile, weights), masks, weights.size, x.dtype)
    return counts * jnp.sum(x**2, axis=1)


def _gram_within_memory(
    weights: Array, masks1: Array, x1: Array, masks2: Array | None = None, x2: Array | None = None
) -> Array:
    """The kernel of rows with others, or with themselves."""
    rows1, rows2 = x1.shape[0], (x1 if x2 is None else x2).shape[0]
    kernel_bytes = rows1 * rows2 * x1.dtype.itemsize
    bytes_each = (rows1 + rows2) * x1.dtype.itemsize
    tile = _tile_size(weights.size, bytes_each, multiple=8)
    # Coactivations and inner products; over several tiles also the term that is added to the first.
    num_kernels = 2 if tile == weights.size else 3
    needed = num_kernels * kernel_bytes + tile * bytes_each
    with memory_for(f"the {rows1}×{rows2} kernel matrix", needed, _REMEDY, weights, masks1, x1, masks2, x2) as done:
        if masks2 is not None and x2 is not None:
            return done(_masked_gram(weights, masks1, x1, masks2, x2))
        return done(_symmetric_gram(weights, masks1, x1, num_halvings=_num_halvings(rows1)))


def computed_share(num_rows: int) -> float:
    """Share of the entries of a kernel of rows with themselves that are computed; the others are equal to these."""
    return (1 + 0.5 ** _num_halvings(num_rows)) / 2


def _num_halvings(num_rows: int) -> int:
    # Rows that are divided over devices would leave theirs in blocks.
    return _NUM_HALVINGS if num_rows >= _LEAST_HALVED_ROWS and jax.device_count() == 1 else 0


@partial(jax.jit, static_argnames="num_halvings")
def _symmetric_gram(weights: Array, masks: Array, x: Array, *, num_halvings: int) -> Array:
    """The kernel of rows with themselves. Of two halves of the rows, the block of one with the other is made once."""
    if num_halvings == 0:
        return _masked_gram(weights, masks, x, masks, x)
    half = x.shape[0] // 2
    halves = [(masks[:half], x[:half]), (masks[half:], x[half:])]
    first, last = (_symmetric_gram(weights, *rows, num_halvings=num_halvings - 1) for rows in halves)
    between = _masked_gram(weights, *halves[1], *halves[0])
    return jnp.block([[first, between.T], [between, last]])


@jax.jit
def _masked_gram(weights: Array, masks1: Array, x1: Array, masks2: Array, x2: Array) -> Array:
    return _weighted_coactivations(weights, masks1, masks2) * matmul(x1, x2.T)


def _weighted_coactivations(weights: Array, masks1: Array, masks2: Array) -> Array:
    """M₁ diag(η) M₂ᵀ, over tiles of gates when the masks as numbers are large."""
    num_gates = weights.size
    rows1, rows2 = masks1.shape[0], masks2.shape[0]
    tile = _tile_size(num_gates, (rows1 + rows2) * weights.dtype.itemsize, multiple=8)

    def product(tile_weights: Array, tile_masks1: Array, tile_masks2: Array) -> Array:
        numbers1 = as_numbers(tile_masks1, tile_weights.size, weights.dtype)
        numbers2 = as_numbers(tile_masks2, tile_weights.size, weights.dtype)
        return matmul(numbers1 * tile_weights[None, :], numbers2.T)

    if tile == num_gates:
        return product(weights, masks1, masks2)

    if masks1.dtype != masks2.dtype:
        # Both masks need the same number of gates in a column, one or eight.
        masks1, masks2 = (
            masks if masks.dtype == jnp.uint8 else jnp.packbits(masks, axis=1) for masks in (masks1, masks2)
        )
    # A tile of gates has to start at a whole byte of packed masks, so gates of weight zero are added up to a multiple
    # of eight.
    per_column = 8 if masks1.dtype == jnp.uint8 else 1
    length = -(-num_gates // per_column) * per_column
    padded = jnp.pad(weights, (0, length - num_gates))

    def term(begin: Array, is_new: Array) -> Array:
        columns = [
            lax.dynamic_slice_in_dim(masks, begin // per_column, tile // per_column, axis=1)
            for masks in (masks1, masks2)
        ]
        # Gates that an earlier tile has counted get weight zero.
        return product(lax.dynamic_slice_in_dim(padded, begin, tile) * is_new, *columns)

    return sum_over_tiles(term, length, tile)


def _apply_to_rows(function: Callable[[Array], Array], masks: Array, num_gates: int, dtype: jnp.dtype) -> Array:
    """Apply a function to the masks as numbers, a tile of rows at a time; it must treat rows independently."""
    num_rows = masks.shape[0]
    tile = _tile_size(num_rows, num_gates * dtype.itemsize)
    if tile == num_rows:
        return function(as_numbers(masks, num_gates, dtype))
    return compute_in_row_tiles(lambda rows: function(as_numbers(rows, num_gates, dtype)), masks, tile)


def sum_over_tiles(term_from: Callable[[Array, Array], Array], length: int, tile: int) -> Array:
    """Sum of terms over the tiles of an axis; ``term_from(begin, is_new)`` gives the term of a tile.

    The last tile ends with the axis and may overlap the tile before it. ``term_from`` must omit the entries for which
    the (tile,) bool array ``is_new`` is False, so that every entry counts once.
    """

    def add_tile(i: Array, total: Array) -> Array:
        begin = jnp.minimum(i * tile, length - tile)
        return total + term_from(begin, jnp.arange(tile) + begin >= i * tile)

    term = jax.eval_shape(term_from, jnp.asarray(0), jnp.zeros(tile, bool))
    return lax.fori_loop(0, -(-length // tile), add_tile, jnp.zeros(term.shape, term.dtype))


def _tile_size(length: int, bytes_each: int, multiple: int = 1) -> int:
    """Largest number of rows or gates whose masks, as numbers, fit into the bytes of a tile."""
    if length * bytes_each <= TILE_BYTES:
        return length
    return min(length, max(multiple, TILE_BYTES // bytes_each // multiple * multiple))


def as_numbers(masks: Array, num_gates: int, dtype: jnp.dtype) -> Float[Array, "*n P"]:
    """Masks as zeros and ones of a dtype, from bool, packed, or such numbers already."""
    if masks.dtype == jnp.uint8:
        masks = jnp.unpackbits(masks, axis=-1, count=num_gates)
    return masks.astype(dtype)
