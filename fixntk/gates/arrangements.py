"""Every mask that a gate can produce on a data set: exact enumeration of hyperplane arrangements.

Each row x_i of the data is a hyperplane {g : x_i·g = 0} in the space of gates, and a cell between the hyperplanes
is the set of all gates with one mask. The enumeration adds one hyperplane after the other: a new hyperplane cuts
a cell in two exactly where the cell meets it, so the cut cells correspond to the cells of the arrangement
*restricted to* the new hyperplane, one dimension lower. A point of each of those, pushed off the hyperplane to
either side, is a gate in each half. Everything runs on the host in float64, since the sizes depend on the data; the
numbers of a lower precision are exact there.

See docs/mathematics.md, M4.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from fixntk._checks import as_matrix, as_numpy, as_positive_int
from fixntk._tiling import free_on_host, memory_for
from fixntk.gates.cover import cover_count
from fixntk.gates.masks import Arrangements, row_bytes

# Bound on the error of a unit normal (no unit) after a few dozen operations in float64.
_NOISE = 1e-13
# Largest number of entries of a matrix of points by hyperplanes that is in memory at a time.
BLOCK_ENTRIES = 4_000_000
# Number of matrices of points by hyperplanes that are in memory at a time.
_ARRAYS_PER_BLOCK = 5


class Hyperplanes(NamedTuple):
    """The distinct hyperplanes of a data set, in coordinates of its row space.

    Attributes
    ----------
    basis
        (d, r) orthonormal basis of the row space.
    normals
        (k, r) unit normals, no two of them parallel.
    owner
        (n,) index of each row's hyperplane, −1 for a zero row.
    side
        (n,) +1 where the row points along its normal, −1 where against it, 0 for a zero row.
    """

    basis: np.ndarray
    normals: np.ndarray
    owner: np.ndarray
    side: np.ndarray


class _TooManyCellsError(Exception):
    """The arrangement has more cells than the budget allows."""


def enumerate_arrangements(x: ArrayLike, *, max_cells: int = 200_000) -> Arrangements:
    """Enumerate every mask that gates in general position produce on x, each with a gate well inside its cell.

    Exact for any rank and for degenerate data: duplicate, parallel, opposite and zero rows, more than r hyperplanes
    through a line, a bias column. Gates *on* a hyperplane are not counted: they have probability zero.

    The entries of x are taken as exact in any dtype. Rows that are parallel or dependent up to the rounding of float64
    (an angle of about 1e-12) are treated as exactly parallel or dependent. Rows that are so only up to the rounding of
    a lower precision have separate cells, whose width is of the order of that rounding.

    Parameters
    ----------
    x
        (n, d) inputs. No unit.
    max_cells
        Largest number of cells to enumerate.

    Returns
    -------
    Arrangements
        Masks (n, P) and unit-norm gates (P, d) in the row space of x, of x's dtype. The masks are exact.

    Warns
    -----
    UserWarning
        If some cells are so narrow that their gates, rounded to x's dtype, or :func:`fixntk.activation_masks` in it may
        miss their masks. Without the warning every gate has its mask, for every order of summation.

    Raises
    ------
    TypeError
        If ``max_cells`` is not an integer.
    ValueError
        If there are more cells than ``max_cells``; the message gives the count in general position. Also if x is not
        a finite matrix, or its rows are too close to degenerate to be distinguished in float64.

    Notes
    -----
    In general position there are 2 Σ_{k<r} C(n−1, k) cells (Cover 1965), and the time grows in proportion to them.

    Examples
    --------
    >>> import jax, fixntk as fx
    >>> x = jax.random.normal(jax.random.key(0), (5, 2))
    >>> arrangements = fx.enumerate_arrangements(x)
    >>> arrangements.masks.shape  # 2n in the plane
    (5, 10)

    See docs/mathematics.md, M4.
    """
    array, max_cells = as_matrix("x", x), as_positive_int("max_cells", max_cells)
    planes = distinct_hyperplanes(x)
    num_cells, rank = min(max_cells, cover_count(*planes.normals.shape)), planes.normals.shape[1]
    remedy = "lower max_cells, or take sampled gates (sample_gates)"
    needed = _ARRAYS_PER_BLOCK * num_cells * rank * planes.normals.itemsize
    with memory_for(f"the points of {num_cells} cells", needed, remedy, free_memory=free_on_host):
        points = _points_in_cells(planes, max_cells)
    # The masks and JAX's copy of them, and what moving the points of a block takes.
    size = array.shape[0] * points.shape[0]
    needed = 2 * size + _ARRAYS_PER_BLOCK * min(size, BLOCK_ENTRIES) * points.itemsize
    with memory_for(f"the array of {array.shape[0]}×{points.shape[0]} masks", needed, remedy, free_memory=free_on_host):
        points = _move_inside(points, planes.normals)
        masks, gates = jnp.asarray(_masks_at(points, planes)), jnp.asarray(points @ planes.basis.T, array.dtype)
        narrow = int(np.sum(~_have_certain_masks(array, gates, np.asarray(masks))))
    if narrow:
        higher = "" if array.dtype == jnp.float64 else ", or pass it in float64 with jax_enable_x64"
        warnings.warn(
            f"{narrow} of {masks.shape[1]} cells are narrower than {array.dtype} resolves: the masks are exact, but "
            f"activation_masks(x, gates) may give others there; centre and scale the columns of x{higher}",
            UserWarning,
            stacklevel=2,
        )
    return Arrangements(masks, gates)


def distinct_hyperplanes(x: ArrayLike) -> Hyperplanes:
    """Reduce rows to the row space and merge rows that are multiples of each other, up to float64's rounding.

    Raises
    ------
    ValueError
        If the merged rows, or the rank, depend on the units of the columns, and so on rounding errors of float64.

    See docs/mathematics.md, M4.
    """
    rows = np.asarray(x, np.float64)
    planes = _distinct_hyperplanes(rows)
    # Scaling the columns does not change which rows are parallel or dependent. If the result changes, rounding errors
    # decided, as for large values next to a bias column: (10⁷, 1) and (10⁷ + 1, 1) are at an angle of 10⁻¹⁴.
    largest = np.abs(rows).max(axis=0)
    scaled = _distinct_hyperplanes(rows / np.where(largest > 0, largest, 1.0))
    if scaled.normals.shape != planes.normals.shape:
        described = [f"{k} distinct hyperplanes of rank {r}" for k, r in (planes.normals.shape, scaled.normals.shape)]
        raise ValueError(
            f"x is too close to degenerate for float64: {described[0]} as it is, {described[1]} with its columns "
            "scaled; centre and scale the columns of x, and leave out columns that hold only rounding errors"
        )
    return planes


def _distinct_hyperplanes(rows: np.ndarray) -> Hyperplanes:
    # Two steps, as the square of a large or a tiny entry would leave the range of floating-point numbers.
    largest = np.abs(rows).max(axis=1)
    nonzero = largest > 0
    units = rows[nonzero] / largest[nonzero, None]
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    owner = np.full(rows.shape[0], -1)
    side = np.zeros(rows.shape[0], int)
    if not nonzero.any():
        return Hyperplanes(np.zeros((rows.shape[1], 0)), np.zeros((0, 0)), owner, side)
    # Singular values move by at most the norm of the error matrix, which is bounded by this threshold.
    _, singular, basis = np.linalg.svd(units, full_matrices=False)
    rank = int(np.sum(singular > _NOISE * np.sqrt(units.size)))
    basis = basis[:rank].T
    units = units @ basis
    kept, group = _merge_parallel(units, np.full(units.shape[0], _NOISE))
    owner[nonzero] = group
    # The first row of each group is its normal; other rows of the group may point against it.
    side[nonzero] = np.where(np.sum(units * units[kept][group], axis=1) > 0, 1, -1)
    return Hyperplanes(basis, units[kept], owner, side)


def _points_in_cells(planes: Hyperplanes, max_cells: int) -> np.ndarray:
    """One point in each cell, in coordinates of the row space."""
    num_planes, rank = planes.normals.shape
    # Any arrangement of rank r has at least 2^r cells.
    if 2**rank > max_cells:
        raise ValueError(_budget_message(max_cells, num_planes, rank))
    try:
        return _cells(planes.normals, np.full(num_planes, _NOISE), max_cells)
    except _TooManyCellsError:
        raise ValueError(_budget_message(max_cells, num_planes, rank)) from None


def _budget_message(max_cells: int, num_planes: int, rank: int) -> str:
    return (
        f"x has more than max_cells={max_cells} arrangements: {num_planes} distinct hyperplanes of rank {rank} have "
        f"{cover_count(num_planes, rank)} cells in general position; "
        "raise max_cells, or take sampled gates (sample_gates)"
    )


def _merge_parallel(units: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Group unit vectors that are equal up to sign and noise.

    Returns the index of each group's first vector, and the group of each vector.
    """
    kept: list[int] = []
    group = np.full(units.shape[0], -1)
    for i in range(units.shape[0]):
        if group[i] >= 0:
            continue
        group[i] = len(kept)
        rest = np.flatnonzero(group < 0)
        signs = np.where(units[rest] @ units[i] < 0, -1.0, 1.0)
        # Differences, not cosines: 1 − cos θ loses all angles below the square root of the precision.
        distance = np.linalg.norm(units[rest] - signs[:, None] * units[i], axis=1)
        group[rest[distance <= 8 * (noise[rest] + noise[i])]] = len(kept)
        kept.append(i)
    return np.asarray(kept, int), group


def _cells(normals: np.ndarray, noise: np.ndarray, budget: int) -> np.ndarray:
    """One unit vector strictly inside each cell of an arrangement of pairwise distinct hyperplanes.

    ``noise`` is the error of each unit normal; ``budget`` the largest number of cells wanted.
    """
    num_planes, rank = normals.shape
    if num_planes == 0:
        return np.eye(1, rank)
    if rank <= 2:
        # In one dimension the only hyperplane is the origin, and the cells are the two half-lines.
        points = _cells_of_a_plane(normals, noise) if rank == 2 else np.array([[1.0], [-1.0]])
        if points.shape[0] > budget:
            raise _TooManyCellsError
        return points
    # Without hyperplanes the whole space is one cell, with any point inside.
    count = 1
    candidates = [np.eye(1, rank)]
    for j in range(num_planes):
        # Hyperplane j cuts as many cells in two as its restricted arrangement has cells.
        crossed = _restricted_cells(normals[:j], normals[j], noise[:j], noise[j], budget - count)
        count += crossed.shape[0]
        # One of the two points lies in the new half of the cell; the other may replace a point closer to the boundary.
        candidates.append(_push_to_both_sides(crossed, normals[:j], normals[j]))
    return _select_one_per_cell(np.concatenate(candidates), normals, noise, count)


def _cells_of_a_plane(normals: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Cells in R^2: the arcs between neighbouring lines through the origin, each by its middle."""
    # A line is orthogonal to its normal, and its angle counts modulo π.
    angles = np.arctan2(normals[:, 1], normals[:, 0]) + np.pi / 2
    order = np.argsort(angles % np.pi)
    angles, noise = (angles % np.pi)[order], noise[order]
    # The gap to the next line, from the last line to the first one half a turn later. A gap below the noise lies
    # between two copies of one line.
    gaps = np.diff(angles, append=angles[0] + np.pi)
    kept = gaps > 8 * (noise + np.roll(noise, -1))
    middles = (angles + gaps / 2)[kept]
    points = np.stack([np.cos(middles), np.sin(middles)], axis=1)
    # Every arc has an opposite one, because all lines pass through the origin.
    return np.concatenate([points, -points])


def _restricted_cells(
    previous: np.ndarray, normal: np.ndarray, noise: np.ndarray, own_noise: float, budget: int
) -> np.ndarray:
    """A point in each cell of the arrangement restricted to the hyperplane of ``normal``, in R^r."""
    # The last r − 1 columns of the complete QR factor are an orthonormal basis of the hyperplane.
    basis = np.linalg.qr(normal[:, None], mode="complete")[0][:, 1:]
    # A normal projected into the hyperplane is the normal of the intersection there. Scaling a short projection to unit
    # length also scales its error.
    projected = previous @ basis
    lengths = np.linalg.norm(projected, axis=1)
    projected /= lengths[:, None]
    noise = (noise + own_noise) / lengths
    # In a plane this is not needed, because sorting the angles there finds parallel normals.
    if projected.shape[1] > 2:
        kept, _ = _merge_parallel(projected, noise)
        projected, noise = projected[kept], noise[kept]
    return _cells(projected, noise, budget) @ basis.T


def _push_to_both_sides(points: np.ndarray, previous: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Push points of a hyperplane off it to either side, halfway to the nearest of the previous hyperplanes."""
    # Half the distance leaves the points on the same side of all previous hyperplanes.
    step = np.ones(points.shape[0])
    if previous.shape[0]:
        # Moving by t along the normal changes the distance to a hyperplane by t times this.
        slope = np.abs(previous @ normal)
        with np.errstate(divide="ignore"):
            step = np.minimum(step, 0.5 * np.min(np.abs(points @ previous.T) / slope, axis=1))
    moved = np.concatenate([points + step[:, None] * normal, points - step[:, None] * normal])
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def _select_one_per_cell(points: np.ndarray, normals: np.ndarray, noise: np.ndarray, expected: int) -> np.ndarray:
    """Keep, in each cell, the point that is farthest from the hyperplanes.

    A point on a hyperplane was made before that hyperplane was added. Adding it made new points on both of its sides,
    so that the old point is not needed. ``expected`` is the number of cells by the counting recursion, a check.
    """
    margins, sides = [], []
    for block in row_blocks(points, normals.shape[0]):
        products = block @ normals.T
        # The signs of a point are known only if its products exceed a safe multiple of their errors.
        margins.append(np.min(np.abs(products) - 8 * noise, axis=1))
        sides.append(row_bytes(products > 0))
    margin = np.concatenate(margins)
    # np.unique returns the first of equal sign patterns, which has the largest margin in this order.
    order = np.argsort(-margin, kind="stable")
    order = order[margin[order] > 0]
    _, first = np.unique(np.concatenate(sides)[order], return_index=True)
    if first.size != expected:
        raise ValueError(
            f"x is too close to degenerate for float64: {first.size} cells can be distinguished, {expected} are "
            f"there; centre the columns of x, or round it so that dependent rows are exactly so"
        )
    return points[order[np.sort(first)]]


def _move_inside(points: np.ndarray, normals: np.ndarray, num_steps: int = 40) -> np.ndarray:
    """Move each point within its cell so that its distance to the nearest hyperplane grows."""
    if normals.shape[0] == 0:
        return points
    moved = [_ascend_margin(block, normals, num_steps) for block in row_blocks(points, normals.shape[0])]
    return np.concatenate(moved)


def _ascend_margin(points: np.ndarray, normals: np.ndarray, num_steps: int) -> np.ndarray:
    def nearest(candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        products = candidates @ normals.T * signs
        index = np.argmin(products, axis=1)
        return index, products[np.arange(index.size), index]

    # The signs fix the cell: a product times its sign is the distance to a hyperplane, positive inside the cell. The
    # smallest distance is concave in the point, and the loop is a subgradient ascent on it, with normalised points.
    signs = np.sign(points @ normals.T)
    rows = np.arange(points.shape[0])
    index, margin = nearest(points)
    step = np.full(points.shape[0], 0.5)
    for _ in range(num_steps):
        # Step away from the nearest hyperplane, keep what raises the distance to the nearest one, else halve the step.
        trial = points + (step * signs[rows, index])[:, None] * normals[index]
        trial /= np.maximum(np.linalg.norm(trial, axis=1, keepdims=True), np.finfo(float).tiny)
        trial_index, trial_margin = nearest(trial)
        better = trial_margin > margin
        points = np.where(better[:, None], trial, points)
        index, margin = np.where(better, trial_index, index), np.where(better, trial_margin, margin)
        step = np.where(better, step, step / 2)
    return points


def _masks_at(points: np.ndarray, planes: Hyperplanes) -> np.ndarray:
    """(n, P) masks of all rows at gates given in the row space; zero rows are active."""
    masks = np.ones((planes.owner.size, points.shape[0]), bool)
    # A row is active on the positive side of its normal, or on the negative side if it points against the normal.
    for rows in row_blocks(np.flatnonzero(planes.owner >= 0)[:, None], points.shape[0]):
        real = rows[:, 0]
        positive = planes.normals[planes.owner[real]] @ points.T > 0
        masks[real] = positive == (planes.side[real] > 0)[:, None]
    return masks


def _have_certain_masks(x: Array, gates: Array, masks: np.ndarray) -> np.ndarray:
    """Which gates have their masks on x for every rounding of their inner products in their dtype.

    The error of a sum of d products is at most d·ε/2 times the sum of their absolute values, in any order. Twice this
    bound also covers the sum here if the dtype is float64. Products below the smallest normal number may be flushed to
    zero.
    """
    info, rows = jnp.finfo(gates.dtype), as_numpy(x)
    num_rows, num_columns = rows.shape
    floor = np.where(rows.any(axis=1), num_columns * float(info.tiny), 0.0)
    sure = []
    with np.errstate(over="ignore", invalid="ignore"):
        for block, mask in zip(row_blocks(as_numpy(gates), num_rows), row_blocks(masks.T, num_rows), strict=True):
            products, sizes = block @ rows.T, np.abs(block) @ np.abs(rows.T)
            errors = num_columns * float(info.eps) * sizes + floor
            # A product is certain if it exceeds its error bound and no partial sum can overflow in the dtype.
            right = np.where(mask, products >= errors, products < -errors) & (sizes < float(info.max))
            sure.append(right.all(axis=1))
    return np.concatenate(sure)


def row_blocks(rows: np.ndarray, width: int) -> list[np.ndarray]:
    """Split rows into blocks so that a matrix of a block's rows × width has at most ``BLOCK_ENTRIES`` entries."""
    return np.array_split(rows, max(1, -(-rows.shape[0] * width // BLOCK_ENTRIES)))
