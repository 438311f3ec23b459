"""Solid angles of cells: the probability of a random gate in each cell, which is the weight of its kernel in the NTK.

See docs/mathematics.md, M3 and M4.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Key

from fixntk._checks import as_matrix, as_numpy, as_positive_int
from fixntk.gates.arrangements import BLOCK_ENTRIES, Hyperplanes, distinct_hyperplanes, row_blocks
from fixntk.gates.masks import Arrangements, as_masks


def arrangement_weights(
    x: ArrayLike,
    arrangements: Arrangements,
    *,
    key: Key[Array, ""] | None = None,
    num_samples: int = 200_000,
) -> tuple[Float[Array, " P"], Float[Array, " P"]]:
    """Probability that a gate from N(0, I) has each mask: the solid angle of its cell.

    Exact for data of rank 3 or less (counting the bias column): arcs in rank 2, spherical polygons in rank 3. Above,
    the share of ``num_samples`` random gates. Over a complete set of distinct masks the weights sum to one.

    Parameters
    ----------
    x
        (n, d) inputs.
    arrangements
        Distinct masks (n, P) on x with a gate (P, d) strictly inside each cell.
    key
        JAX random key for rank 4 and above; ``jax.random.key(0)`` when None.
    num_samples
        Number of random gates for rank 4 and above.

    Returns
    -------
    weights, standard_errors
        (P,) each. Standard errors are zero if the weights are exact. For Monte Carlo, half a hit is added to each
        count, so that a cell without hits has a positive standard error.

    Raises
    ------
    TypeError
        If ``num_samples`` is not an integer.
    ValueError
        If shapes do not fit, or the gates do not have the masks on x.

    See docs/mathematics.md, M3 and M4.
    """
    dtype = as_matrix("x", x).dtype
    masks, gates = np.asarray(as_masks("arrangements.masks", arrangements.masks)), arrangements.gates
    num_gates = masks.shape[1]
    if masks.shape[0] != jnp.shape(x)[0] or jnp.shape(gates) != (num_gates, jnp.shape(x)[1]):
        raise ValueError(
            f"x, arrangements.masks and arrangements.gates do not fit together: "
            f"shapes {jnp.shape(x)}, {masks.shape} and {jnp.shape(gates)}"
        )
    num_samples = as_positive_int("num_samples", num_samples)
    planes = distinct_hyperplanes(x)
    rank = planes.normals.shape[1]
    if rank <= 3:
        weights = _exact_shares(planes, masks, as_numpy(gates) @ planes.basis)
        errors = np.zeros(num_gates)
    else:
        weights, errors = _monte_carlo_shares(planes, masks, jax.random.key(0) if key is None else key, num_samples)
    return jnp.asarray(weights, dtype), jnp.asarray(errors, dtype)


def _plane_signs(planes: Hyperplanes, masks: np.ndarray) -> np.ndarray:
    """(P, k) signs ±1 of the masks with respect to each distinct hyperplane's normal."""
    # Any row of a hyperplane determines the side of a gate; ``side`` relates the row to the normal.
    first = np.array([np.flatnonzero(planes.owner == j)[0] for j in range(planes.normals.shape[0])], int)
    return np.where(masks[first] == (planes.side[first] > 0)[:, None], 1.0, -1.0).T


def _exact_shares(planes: Hyperplanes, masks: np.ndarray, points: np.ndarray) -> np.ndarray:
    num_planes, rank = planes.normals.shape
    if num_planes == 0:
        return np.ones(masks.shape[1])
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    points = points / np.where(lengths > 0, lengths, 1.0)
    # The areas below are computed around a point inside each cell, so the gates must lie inside.
    signs = _plane_signs(planes, masks)
    outside = np.any((points @ planes.normals.T) * signs <= 0, axis=1)
    if outside.any():
        raise ValueError(
            f"arrangements.gates: {int(outside.sum())} gate(s), the first of index {int(np.argmax(outside))}, "
            f"do not lie inside the cell of their mask on x (narrow cells need gates in float64)"
        )
    if rank == 1:
        return np.full(points.shape[0], 0.5)
    area = _arc_share if rank == 2 else _polygon_share
    blocks = zip(row_blocks(points, num_planes), row_blocks(signs, num_planes), strict=True)
    return np.concatenate([area(point, sign[:, :, None] * planes.normals) for point, sign in blocks])


def _arc_share(points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Share of the circle of the cones {g : normals·g ≥ 0}; ``normals`` is (P, k, 2), ``points`` (P, 2) inside."""
    tangents = np.stack([-points[:, 1], points[:, 0]], axis=1)
    # A normal at angle φ from the point allows the arc from φ − π/2 to φ + π/2.
    angle = np.arctan2(np.einsum("pki,pi->pk", normals, tangents), np.einsum("pki,pi->pk", normals, points))
    # The intersection of these arcs goes from max φ − π/2 to min φ + π/2.
    return (np.pi - angle.max(axis=1) + angle.min(axis=1)) / (2 * np.pi)


def _polygon_share(points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Share of the sphere of the cones {g : normals·g ≥ 0} in R^3; ``points`` (P, 3) lie inside.

    The facets of a cone are, in cyclic order, the convex hull of its normals seen from the inside point. Neighbouring
    facets meet in a vertex, and the triangles from the point to neighbouring vertices add up to the polygon.
    """
    # Any two directions that complete the point to an orthonormal frame.
    # The last two right singular vectors of the point as a matrix of one row.
    frame = np.linalg.svd(points[:, None, :])[2][:, 1:, :]
    # A right-handed frame makes the cross products of successive normals below point into the cone.
    frame[:, 1] *= np.sign(np.linalg.det(np.concatenate([points[:, None], frame], axis=1)))[:, None]
    # Gnomonic projection of the dual: facet {g : n·g = 0} becomes the point n·frame / n·point of the plane.
    plane = np.einsum("pki,pji->pkj", normals, frame) / np.einsum("pki,pi->pk", normals, points)[:, :, None]
    total = np.zeros(points.shape[0])
    first_vertex = np.zeros_like(points)
    last_vertex = np.zeros_like(points)
    started = False
    for cells, facet, following in _hull_edges(plane):
        # Two facets meet along the line orthogonal to both normals.
        vertex = np.cross(normals[cells, facet], normals[cells, following])
        vertex /= np.linalg.norm(vertex, axis=1, keepdims=True)
        if started:
            # The walk has found an edge from the last vertex to this one.
            total[cells] += _triangle_area(points[cells], last_vertex[cells], vertex)
        else:
            first_vertex[cells] = vertex
            started = True
        last_vertex[cells] = vertex
    # The last triangle closes the polygon.
    return (total + _triangle_area(points, last_vertex, first_vertex)) / (4 * np.pi)


def _triangle_area(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Areas of spherical triangles of unit vectors, (P, 3) each (Van Oosterom and Strackee 1983)."""
    volume = np.einsum("pi,pi->p", a, np.cross(b, c))
    dots = [np.einsum("pi,pi->p", u, v) for u, v in ((a, b), (b, c), (c, a))]
    # The two arguments of arctan2 also give areas above π, for which the second one is negative.
    return 2 * np.arctan2(volume, 1 + sum(dots))


def _hull_edges(plane: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Walk around the convex hulls of P sets of k points in the plane at once, counter-clockwise (gift wrapping).

    Yields (cells, from, to): the sets not yet closed, and the indices of the hull's corners from which and to which
    the next edge goes in each. Every set has a first edge, and an edge back to where it began.
    """
    cells = np.arange(plane.shape[0])
    # The leftmost point, the lower one of two, is a corner; from there the hull turns on from straight down.
    start = np.lexsort((plane[:, :, 1], plane[:, :, 0]), axis=1)[:, 0]
    current = start.copy()
    direction = np.full(cells.size, -np.pi / 2)
    turned = np.zeros(cells.size)
    while cells.size:
        offset = plane[cells] - plane[cells, current][:, None, :]
        turn = (np.arctan2(offset[:, :, 1], offset[:, :, 0]) - direction[:, None]) % (2 * np.pi)
        # Rounding can turn an edge in line with the last one into a full turn back.
        turn[turn > 2 * np.pi - 1e-9] = 0.0
        # The current corner and copies of it cannot be the next corner.
        turn[np.all(offset == 0, axis=2)] = np.inf
        following = np.argmin(turn, axis=1)
        step = turn[np.arange(cells.size), following]
        turned = turned + step
        # After more than a full turn the walk has passed its start, which is in line with its neighbours: end there.
        following = np.where(turned > 2 * np.pi + 1e-9, start, following)
        yield cells, current, following
        # Only the hulls that are not closed yet stay in the arrays.
        open_ = following != start
        direction = (direction + step)[open_]
        cells, current, start, turned = cells[open_], following[open_], start[open_], turned[open_]


def _monte_carlo_shares(
    planes: Hyperplanes, masks: np.ndarray, key: Array, num_samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Shares of random gates in each cell, with their standard errors."""
    positive = _plane_signs(planes, masks) > 0
    # Packed sign patterns serve as keys, to find the cell of a sample without comparing it with every cell.
    index = {row.tobytes(): p for p, row in enumerate(np.packbits(positive, axis=1))}
    rank = planes.normals.shape[1]
    counts = np.zeros(masks.shape[1])
    size = max(1, min(num_samples, BLOCK_ENTRIES // max(planes.normals.shape)))
    for number, begin in enumerate(range(0, num_samples, size)):
        # Blocks of one size, so that drawing is compiled once; the rest of the last one is not used.
        samples = as_numpy(jax.random.normal(jax.random.fold_in(key, number), (size, rank)))[: num_samples - begin]
        for row in np.packbits(samples @ planes.normals.T > 0, axis=1):
            cell = index.get(row.tobytes())
            # A sample on a hyperplane, or in a cell that is not among the masks, is not counted.
            if cell is not None:
                counts[cell] += 1
    # Half a hit is added so that a cell without hits has a positive error.
    smoothed = (counts + 0.5) / (num_samples + 1)
    return counts / num_samples, np.sqrt(smoothed * (1 - smoothed) / num_samples)
