"""Covariances between pairs of inputs, the state that passes from layer to layer of an infinitely wide network.

Angles are kept beside the covariances, as haversine sin²(θ/2) and havercosine cos²(θ/2), and every sum here updates
them without cancellation: computed from a correlation near ±1 they would lose half of their digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from fixntk._numerics import eps_of, safe_sqrt
from fixntk.ntk.angles import Rows, products_and_angles
from fixntk.ntk.gaussians import Gaussians

# Bound on the rounding error of a mean, in units of the dtype's epsilon. A difference below it is treated as zero.
_MEAN_ROUNDING = 32


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pairs:
    """Second moments of a hidden unit's values at pairs of inputs after some layers, over the random weights.

    The arrays broadcast to (n1, n2, positions …). The positions are absent; or positions of an image, where each
    position of the first input is paired with the same position of the second; or all pairs of positions, with the axes
    of the first input before the axes of the second.

    Attributes
    ----------
    variance1, variance2
        Variances of the two values.
    covariance
        Their covariance Σ, the kernel of the network as a Gaussian process (NNGP).
    haversine, havercosine
        sin²(θ/2) and cos²(θ/2) of the angle θ with cos θ = their correlation.
    ntk
        The NTK Θ after these layers.
    """

    variance1: Array
    variance2: Array
    covariance: Array
    haversine: Array
    havercosine: Array
    ntk: Array

    def gaussians(self) -> Gaussians:
        """The two values as Gaussian variables."""
        std1, std2 = safe_sqrt(self.variance1), safe_sqrt(self.variance2)
        return Gaussians(std1, std2, self.covariance, self.haversine, self.havercosine)


@dataclass(frozen=True)
class Covariances:
    """The state that a layer maps: pairs of first and second inputs, and pairs of each input with itself.

    Attributes
    ----------
    pairs
        Each of the first inputs with each of the second.
    own1, own2
        Each first input with itself, (n1, 1, …), and each second input with itself, (1, n2, …), at all pairs of
        positions; None if only equal positions are paired.
    num_positions
        Number of axes of positions of an input.
    is_gaussian
        Whether the values are Gaussian, as sums over random weights are.
    num_channels
        Number of channels; None if it is not stated.
    same
        (n1, n2), which of the first inputs are the same as which of the second; None if none of them are.
    has_weights
        Whether there were random weights since the inputs.
    centred
        For each branch around this place, from the outermost in, whether the values have mean zero given all values at
        its start: the last random weights are within the branch.
    patterns
        (n1, S, S) and (n2, S, S), the graphs of the first and of the second inputs; None if they have none.
    """

    pairs: Pairs
    own1: Pairs | None
    own2: Pairs | None
    num_positions: int
    is_gaussian: bool
    num_channels: int | None = None
    same: Array | None = None
    has_weights: bool = False
    centred: tuple[bool, ...] = ()
    patterns: tuple[Array, Array] | None = None

    @property
    def has_all_positions(self) -> bool:
        """Whether pairs of different positions are included."""
        return self.own1 is not None

    def map(self, change: Callable[[Pairs], Pairs], **flags: Any) -> Covariances:
        """Apply one change to every set of pairs."""
        own1, own2 = (None if own is None else change(own) for own in (self.own1, self.own2))
        return replace(self, pairs=change(self.pairs), own1=own1, own2=own2, **flags)

    @property
    def positions(self) -> tuple[int, ...]:
        """Sizes of the axes of positions of an input."""
        return self.pairs.covariance.shape[2 : 2 + self.num_positions]

    @property
    def sides(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Axes of the positions of the first and of the second inputs; the same axes if both share them."""
        first = tuple(range(2, 2 + self.num_positions))
        second = tuple(axis + self.num_positions for axis in first)
        return first, second if self.has_all_positions else first


def add_pairs(pairs1: Pairs, pairs2: Pairs) -> Pairs:
    """Sums of independent values; the angle without cancellation at small angles."""
    first, second = pairs1.gaussians(), pairs2.gaussians()
    variance1, variance2 = pairs1.variance1 + pairs2.variance1, pairs1.variance2 + pairs2.variance2
    product1, product2 = first.std1 * first.std2, second.std1 * second.std2
    lengths = product1 + product2
    # Lagrange's identity: √(variance1 variance2) − lengths = crossed² / total, without a difference of near numbers.
    product3, product4 = first.std1 * second.std2, second.std1 * first.std2
    crossed, rounding = product3 - product4, 4 * eps_of(lengths) * product3
    total = safe_sqrt(variance1) * safe_sqrt(variance2) + lengths
    # A difference within rounding errors counts as zero, so that equal inputs keep the angle zero.
    excess = jnp.where(jnp.abs(crossed) > rounding, crossed**2 / jnp.where(total > 0, total, 1.0), 0.0)
    # Both shares are the new haversine and havercosine times 2 √(variance1 variance2), which cancels in the ratio.
    haversines = haversines_from_shares(
        excess + 2 * (product1 * pairs1.haversine + product2 * pairs2.haversine),
        excess + 2 * (product1 * pairs1.havercosine + product2 * pairs2.havercosine),
    )
    return Pairs(variance1, variance2, pairs1.covariance + pairs2.covariance, *haversines, pairs1.ntk + pairs2.ntk)


def average_pairs(pairs: Pairs, mean: Callable[..., Array], sides: tuple[tuple[int, ...], tuple[int, ...]]) -> Pairs:
    """Means over aligned positions; ``mean`` takes an array and the axes of positions that it really has."""
    both = (sides[0],) if sides[0] == sides[1] else sides
    gaussians = pairs.gaussians()
    variance1, variance2 = mean(pairs.variance1, sides[0]), mean(pairs.variance2, sides[1])
    lengths = gaussians.std1 * gaussians.std2
    sin_share = mean(2 * lengths * pairs.haversine, *both)
    cos_share = mean(2 * lengths * pairs.havercosine, *both)
    total = safe_sqrt(variance1) * safe_sqrt(variance2)
    # √(variance1 variance2) minus the mean length, which is not negative by the Cauchy–Schwarz inequality.
    excess = total - (sin_share + cos_share) / 2
    excess = jnp.where(excess > _MEAN_ROUNDING * eps_of(total) * total, excess, 0.0)
    haversines = haversines_from_shares(sin_share + excess, cos_share + excess)
    # The covariance is lengths · (cos² − sin²), so its mean follows from the shares without another sum.
    return Pairs(variance1, variance2, (cos_share - sin_share) / 2, *haversines, mean(pairs.ntk, *both))


def from_moments(
    covariances: Covariances,
    change: Callable[[Array, int, int], Array],
    change_ntk: Callable[[Array, Array, int, int], Array],
) -> Covariances:
    """Covariances of which only second moments are known, after a linear map between all positions.

    ``change(covariance, side1, side2)`` maps a covariance, and ``change_ntk(ntk, new_covariance, side1, side2)`` an
    NTK, between the positions of input ``side1`` and those of ``side2``, 1 or 2. Axes of positions may be dropped.
    """
    own1, own2 = covariances.own1, covariances.own2
    if own1 is None or own2 is None:
        raise ValueError("a layer that mixes positions needs the covariances between all pairs of positions")
    moments = {
        (side1, side2): change(pairs.covariance, side1, side2)
        for (side1, side2), pairs in {(1, 2): covariances.pairs, (1, 1): own1, (2, 2): own2}.items()
    }
    num_positions = (moments[1, 2].ndim - 2) // 2
    ones = (1,) * num_positions

    def variances(own: Array) -> Array:
        """Variances (n1, 1, positions …) or (1, n2, positions …) from own covariances."""
        positions = own.shape[2 : 2 + num_positions]
        size = math.prod(positions)
        flat = own.reshape(*own.shape[:2], size, size)
        return jnp.diagonal(flat, axis1=2, axis2=3).reshape(*own.shape[:2], *positions)

    def pairs_of(pairs: Pairs, side1: int, side2: int) -> Pairs:
        # Variances are the diagonal of an input's covariances with itself, at axes of the own side and size one on the
        # other.
        own = {side: variances(moments[side, side]) for side in (1, 2)}
        first = own[side1].reshape(*own[side1].shape, *ones)
        second = own[side2].reshape(*own[side2].shape[:2], *ones, *own[side2].shape[2:])
        covariance = moments[side1, side2]
        haversines = haversines_from_moments(first, second, covariance)
        ntk = change_ntk(pairs.ntk, covariance, side1, side2)
        return Pairs(first, second, covariance, *haversines, ntk)

    pairs = pairs_of(covariances.pairs, 1, 2)
    if not num_positions:
        return replace(covariances, pairs=pairs, own1=None, own2=None, num_positions=0)
    new1, new2 = pairs_of(own1, 1, 1), pairs_of(own2, 2, 2)
    return replace(covariances, pairs=pairs, own1=new1, own2=new2, num_positions=num_positions)


def haversines_from_moments(variance1: Array, variance2: Array, covariance: Array) -> tuple[Array, Array]:
    """Haversine and havercosine from second moments alone; zero if they are below the rounding error."""
    total = safe_sqrt(variance1) * safe_sqrt(variance2)
    rounding = _MEAN_ROUNDING * eps_of(total) * total
    # total ∓ covariance are 2 · total · sin²(θ/2) and 2 · total · cos²(θ/2).
    shares = (jnp.where(share > rounding, share, 0.0) for share in (total - covariance, total + covariance))
    return haversines_from_shares(*shares)


def haversines_from_shares(sin_share: Array, cos_share: Array) -> tuple[Array, Array]:
    """Haversine and havercosine in the ratio of two numbers; a right angle if both numbers are 0."""
    total = sin_share + cos_share
    known = total > 0
    scale = 1 / jnp.where(known, total, 1.0)
    return jnp.where(known, sin_share * scale, 0.5), jnp.where(known, cos_share * scale, 0.5)


def covariances_of_inputs(rows1: Rows, rows2: Rows, scale: Any, has_all_positions: bool) -> Covariances:
    """Covariances of inputs, which are fixed, so that inner products replace expectations.

    ``has_all_positions`` asks for those between different positions too, and for each input's with itself.
    """
    positions = rows1.lengths.shape[1:]
    pattern1, pattern2 = rows1.pattern, rows2.pattern
    state = partial(
        Covariances,
        patterns=None if pattern1 is None or pattern2 is None else (pattern1, pattern2),
        is_gaussian=False,
        num_channels=rows1.x.shape[-1],
        same=rows1.numbers[:, None] == rows2.numbers[None, :],
    )
    if not positions:
        return state(_inner_products(rows1, rows2, scale), None, None, 0)
    first, second = _stack_positions(rows1), _stack_positions(rows2)
    if not has_all_positions:
        # Each position of a first input is paired with the same position of the second only.
        at_each = jax.vmap(partial(_inner_products, scale=scale), in_axes=1, out_axes=-1)(first, second)
        pairs = jax.tree.map(lambda array: array.reshape(*array.shape[:2], *positions), at_each)
        return state(pairs, None, None, len(positions))
    own1, own2 = (_pairs_of_own_positions(rows, positions, scale) for rows in (first, second))
    # The inputs of the second side are the second axis.
    own2 = jax.tree.map(lambda array: array.swapaxes(0, 1), own2)
    return state(_pairs_of_all_positions(first, second, positions, scale), own1, own2, len(positions))


def _stack_positions(rows: Rows) -> Rows:
    """Merge the axes of positions into one, (n, S, …), and give each position its own number."""
    size = math.prod(rows.lengths.shape[1:])
    # Numbers of different rows and positions stay distinct, and rows of x2 keep negative numbers.
    step = jnp.where(rows.numbers < 0, -1, 1)[:, None]
    numbers = rows.numbers[:, None] * size + step * jnp.arange(size)[None, :]
    vectors = (array.reshape(-1, size, array.shape[-1]) for array in (rows.x, rows.units, rows.scaled))
    x, units, scaled = vectors
    return Rows(x, units, rows.lengths.reshape(-1, size), numbers, scaled, rows.scaled_lengths.reshape(-1, size))


def _pairs_of_all_positions(first: Rows, second: Rows, positions: tuple[int, ...], scale: Any) -> Pairs:
    """Pairs of every position of the first inputs with every position of the second ones, both (n, S, …)."""
    flat1, flat2 = jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), (first, second))
    num_rows1, num_rows2 = first.lengths.shape[0], second.lengths.shape[0]
    size, ones = math.prod(positions), (1,) * len(positions)

    def unfold(array: Array) -> Array:
        # From (n1 · S, n2 · S) to (n1, n2, positions of the first, positions of the second).
        array = array.reshape(num_rows1, size, num_rows2, size).swapaxes(1, 2)
        return array.reshape(num_rows1, num_rows2, *positions, *positions)

    flat = _inner_products(flat1, flat2, scale)
    variance1 = flat.variance1.reshape(num_rows1, 1, *positions, *ones)
    variance2 = flat.variance2.reshape(1, num_rows2, *ones, *positions)
    crossed = (flat.covariance, flat.haversine, flat.havercosine, flat.ntk)
    return Pairs(variance1, variance2, *map(unfold, crossed))


def _pairs_of_own_positions(rows: Rows, positions: tuple[int, ...], scale: Any) -> Pairs:
    """Pairs (n, 1, …) of every position of each input with every position of the same input."""

    def pairs_of_one(row: Rows) -> Pairs:
        single = jax.tree.map(lambda array: array[None], row)
        return _pairs_of_all_positions(single, single, positions, scale)

    # Each input alone with itself gives (n, 1, 1, …), of which one axis is dropped.
    return jax.tree.map(lambda array: array[:, 0], jax.vmap(pairs_of_one)(rows))


def _inner_products(rows1: Rows, rows2: Rows, scale: Any) -> Pairs:
    """Pairs of vectors without positions."""
    products, haversine, havercosine = products_and_angles(rows1, rows2)
    variance1, variance2 = scale * rows1.lengths[:, None] ** 2, scale * rows2.lengths**2
    return Pairs(variance1, variance2[None], scale * products, haversine, havercosine, jnp.zeros_like(products))
