"""Every mask that a gate can produce on a data set: exact enumeration of hyperplane arrangements (M4).

Each row x_i of the data is a hyperplane {g : x_i·g = 0} in the space of gates, and a cell between the hyperplanes
is the set of all gates with one mask. The enumeration adds one hyperplane after the other: a new hyperplane cuts
a cell in two exactly where the cell meets it, so the cut cells correspond to the cells of the arrangement
*restricted to* the new hyperplane, one dimension lower. A point of each of those, pushed off the hyperplane to
either side, is a gate in each half. Everything runs on the host in float64, since the sizes depend on the data.
"""

from __future__ import annotations

from math import comb
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fixntk._checks import as_matrix
from fixntk.gates import Arrangements, _row_bytes

# What a few dozen operations in float64 make of exact data; well above its rounding, far below any real cell.
_FINEST_NOISE = 1e-13


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
    noise
        Relative rounding error of the normals, from the dtype of the data.
    """

    basis: np.ndarray
    normals: np.ndarray
    owner: np.ndarray
    side: np.ndarray
    noise: float


class _TooManyCellsError(Exception):
    """More cells than wanted."""


class _InconsistentCellsError(ValueError):
    """The cells found are not as many as were counted: the data is degenerate up to its precision."""


def enumerate_arrangements(x: ArrayLike, *, max_cells: int = 200_000) -> Arrangements:
    """Enumerate every mask that gates in general position produce on x, each with a gate well inside its cell (M4).

    Exact for any rank and for degenerate data: duplicate, parallel, opposite and zero rows, more than r hyperplanes
    through a line, a bias column. Gates *on* a hyperplane are not counted: they have probability zero.

    Parameters
    ----------
    x
        (n, d) inputs. No unit.
    max_cells
        Largest number of cells to enumerate.

    Returns
    -------
    Arrangements
        Masks (n, P) and unit-norm gates (P, d) in the row space of x, of x's dtype.

    Raises
    ------
    ValueError
        If there are more cells than ``max_cells``; the message gives the count in general position. Also if x is not
        a finite matrix, or its rows are too close to degenerate to be told apart at their precision.

    Notes
    -----
    In general position there are 2 Σ_{k<r} C(n−1, k) cells (Cover 1965), and the time grows in proportion to them.
    """
    dtype = as_matrix("x", x).dtype
    coarse = _noise_of(x)
    try:
        points, planes = _points_in_cells(x, coarse, max_cells)
    except _InconsistentCellsError:
        # Rows of low precision, yet in general position: take the numbers as exact.
        points, planes = _points_in_cells(x, _FINEST_NOISE, max_cells)
    points = _move_inside(points, planes.normals)
    masks = _masks_at(points, planes)
    return Arrangements(jnp.asarray(masks), jnp.asarray(points @ planes.basis.T, dtype))


def cover_count(num_rows: int, rank: int) -> int:
    """Number of cells of ``num_rows`` hyperplanes in general position in R^rank: 2 Σ_{k<r} C(n−1, k) (M4)."""
    if num_rows == 0:
        return 1
    return 2 * sum(comb(num_rows - 1, k) for k in range(rank))


def distinct_hyperplanes(x: ArrayLike, noise: float = _FINEST_NOISE) -> Hyperplanes:
    """Reduce rows to the row space and merge rows that are multiples of each other (M4).

    Rows are parallel if they are so up to ``noise``, by default none but what float64 arithmetic adds. The rank is
    always that up to the precision of x's dtype.
    """
    rows = np.asarray(x, np.float64)
    # Two steps, as the square of a large or a tiny entry would leave the range of floating-point numbers.
    largest = np.abs(rows).max(axis=1)
    nonzero = largest > 0
    units = rows[nonzero] / largest[nonzero, None]
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    owner = np.full(rows.shape[0], -1)
    side = np.zeros(rows.shape[0], int)
    if not nonzero.any():
        return Hyperplanes(np.zeros((rows.shape[1], 0)), np.zeros((0, 0)), owner, side, noise)
    _, singular, basis = np.linalg.svd(units, full_matrices=False)
    rank = int(np.sum(singular > _noise_of(x) * np.sqrt(units.size)))
    basis = basis[:rank].T
    units = units @ basis
    kept, group = _merge_parallel(units, np.full(units.shape[0], noise))
    owner[nonzero] = group
    side[nonzero] = np.where(np.sum(units * units[kept][group], axis=1) > 0, 1, -1)
    return Hyperplanes(basis, units[kept], owner, side, noise)


def _noise_of(x: ArrayLike) -> float:
    """Relative error to expect of rows in x's own dtype: a few roundings."""
    dtype = np.asarray(x).dtype
    return max(8 * float(jnp.finfo(dtype).eps), _FINEST_NOISE) if dtype.kind not in "iub" else _FINEST_NOISE


def _points_in_cells(x: ArrayLike, noise: float, max_cells: int) -> tuple[np.ndarray, Hyperplanes]:
    """One point in each cell, in coordinates of the row space."""
    planes = distinct_hyperplanes(x, noise)
    num_planes, rank = planes.normals.shape
    # Any arrangement of rank r has at least 2^r cells.
    if 2**rank > max_cells:
        raise ValueError(_too_many(max_cells, num_planes, rank))
    try:
        return _cells(planes.normals, np.full(num_planes, planes.noise), max_cells), planes
    except _TooManyCellsError:
        raise ValueError(_too_many(max_cells, num_planes, rank)) from None


def _too_many(max_cells: int, num_planes: int, rank: int) -> str:
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
        points = _cells_of_a_plane(normals, noise) if rank == 2 else np.array([[1.0], [-1.0]])
        if points.shape[0] > budget:
            raise _TooManyCellsError
        return points
    count = 1
    candidates = [np.eye(1, rank)]
    for j in range(num_planes):
        crossed = _restricted_cells(normals[:j], normals[j], noise[:j], noise[j], budget - count)
        count += crossed.shape[0]
        candidates.append(_both_sides(crossed, normals[:j], normals[j]))
    return _one_in_each_cell(np.concatenate(candidates), normals, noise, count)


def _cells_of_a_plane(normals: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Cells in R^2: the arcs between neighbouring lines through the origin, each by its middle."""
    angles = np.arctan2(normals[:, 1], normals[:, 0]) + np.pi / 2
    order = np.argsort(angles % np.pi)
    angles, noise = (angles % np.pi)[order], noise[order]
    gaps = np.diff(angles, append=angles[0] + np.pi)
    kept = gaps > 8 * (noise + np.roll(noise, -1))
    middles = (angles + gaps / 2)[kept]
    points = np.stack([np.cos(middles), np.sin(middles)], axis=1)
    return np.concatenate([points, -points])


def _restricted_cells(
    previous: np.ndarray, normal: np.ndarray, noise: np.ndarray, own_noise: float, budget: int
) -> np.ndarray:
    """A point in each cell of the arrangement restricted to the hyperplane of ``normal``, in R^r."""
    # The last r − 1 columns of the complete QR factor are an orthonormal basis of the hyperplane.
    basis = np.linalg.qr(normal[:, None], mode="complete")[0][:, 1:]
    projected = previous @ basis
    lengths = np.linalg.norm(projected, axis=1)
    projected /= lengths[:, None]
    noise = (noise + own_noise) / lengths
    if projected.shape[1] > 2:  # in a plane, sorting the angles finds the parallel ones
        kept, _ = _merge_parallel(projected, noise)
        projected, noise = projected[kept], noise[kept]
    return _cells(projected, noise, budget) @ basis.T


def _both_sides(points: np.ndarray, previous: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Push points of a hyperplane off it to either side, halfway to the nearest of the previous hyperplanes."""
    step = np.ones(points.shape[0])
    if previous.shape[0]:
        slope = np.abs(previous @ normal)
        with np.errstate(divide="ignore"):
            step = np.minimum(step, 0.5 * np.min(np.abs(points @ previous.T) / slope, axis=1))
    moved = np.concatenate([points + step[:, None] * normal, points - step[:, None] * normal])
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def _one_in_each_cell(points: np.ndarray, normals: np.ndarray, noise: np.ndarray, expected: int) -> np.ndarray:
    """Of several points in some cells keep the one farthest from the hyperplanes.

    A point that lies on a hyperplane was made before that hyperplane was added, which has then put new points on
    either side of itself: it can go. The number of cells is known from the counting recursion, an independent check.
    """
    products = points @ normals.T
    margins = np.min(np.abs(products) - 8 * noise, axis=1)
    order = np.argsort(-margins, kind="stable")
    order = order[margins[order] > 0]
    _, first = np.unique(_row_bytes(products[order] > 0), return_index=True)
    if first.size != expected:
        raise _InconsistentCellsError(
            f"x is too close to degenerate for its precision: {first.size} cells can be told apart, {expected} are "
            f"there; centre the columns of x, round it so that dependent rows are exactly so, or pass float64"
        )
    return points[order[np.sort(first)]]


def _move_inside(points: np.ndarray, normals: np.ndarray, num_steps: int = 40) -> np.ndarray:
    """Raise each point's distance to its nearest hyperplane by steps away from that hyperplane."""
    if normals.shape[0] == 0:
        return points
    moved = [_ascend_margin(block, normals, num_steps) for block in _row_blocks(points, normals.shape[0])]
    return np.concatenate(moved)


def _ascend_margin(points: np.ndarray, normals: np.ndarray, num_steps: int) -> np.ndarray:
    def nearest(candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        products = candidates @ normals.T * signs
        index = np.argmin(products, axis=1)
        return index, products[np.arange(index.size), index]

    signs = np.sign(points @ normals.T)
    rows = np.arange(points.shape[0])
    index, margin = nearest(points)
    step = np.full(points.shape[0], 0.5)
    for _ in range(num_steps):
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
    positive = points @ planes.normals.T > 0
    masks = np.ones((planes.owner.size, points.shape[0]), bool)
    real = planes.owner >= 0
    masks[real] = positive.T[planes.owner[real]] == (planes.side[real] > 0)[:, None]
    return masks


def _row_blocks(rows: np.ndarray, width: int, max_entries: int = 4_000_000) -> list[np.ndarray]:
    """Split rows into blocks so that a matrix of a block's rows × width has at most ``max_entries`` entries."""
    return np.array_split(rows, max(1, -(-rows.shape[0] * width // max_entries)))
