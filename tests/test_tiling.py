"""Tiles: results in tiles of any size are those in one piece."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fixntk._tiling import Grid, compute_in_row_tiles
from fixntk.gram import sum_over_tiles

# More rows than fit into tiles, exactly as many, one tile of all, and one row a tile.
TILES = pytest.mark.parametrize(("num_rows", "tile"), [(11, 4), (12, 4), (12, 12), (5, 1), (9, 3), (7, 2)])


@pytest.mark.parametrize("num_devices", [1, 3, 8])
@TILES
def test_rows_in_tiles_are_the_rows(num_rows, tile, num_devices, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: num_devices)
    rows = jnp.arange(2 * num_rows).reshape(num_rows, 2)
    found = compute_in_row_tiles(lambda rows: rows[:, :, None] * jnp.array([1, 10]), rows, tile)
    np.testing.assert_array_equal(found, rows[:, :, None] * np.array([1, 10]))


@TILES
def test_each_entry_of_a_sum_over_tiles_counts_once(rng, num_rows, tile):
    entries = jnp.asarray(rng.standard_normal(num_rows))

    def term(begin, is_new):
        return jnp.sum(jax.lax.dynamic_slice_in_dim(entries, begin, tile) * is_new)

    np.testing.assert_allclose(sum_over_tiles(term, num_rows, tile), np.sum(entries), rtol=1e-12)


def both_ways(rows1, rows2):
    """Two kernels that are not symmetric functions of their rows, and the same of the pairs the other way round."""
    kernel = rows1 @ rows2.T
    difference = rows1[:, None, :2] - rows2[None, :, :2]
    return (kernel, difference), (kernel.T, -difference.swapaxes(0, 1))


@TILES
@pytest.mark.parametrize("is_symmetric", [True, False])
@pytest.mark.parametrize("place", ["inside", "host", "device"])
def test_kernels_of_all_pairs_are_those_in_one_piece(rng, num_rows, tile, is_symmetric, place):
    x1, x2 = (jnp.asarray(rng.standard_normal((count, 3))) for count in (num_rows, num_rows + 2))
    grid = Grid(x1, None if is_symmetric else x2, tile)
    if place == "inside":
        empty = tuple(jnp.zeros((*grid.padded_shape, *shape)) for shape in ((), (2,)))
        found = jax.jit(lambda results: grid.fill(results, lambda rows: rows, both_ways))(empty)
    else:
        # One kernel at a time, as all have one shape here.
        sides = (grid.row, grid.column)
        found = [
            grid.fill_from_host(
                shape,
                (jnp.float64,),
                lambda side, number: sides[side](number),
                lambda a, b, k=k: tuple((blocks[k],) for blocks in both_ways(a, b)),
                place == "device",
            )[0]
            for k, shape in enumerate(((), (2,)))
        ]
    expected, _ = both_ways(x1, x1 if is_symmetric else x2)
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-13)


@pytest.mark.parametrize("num_tiles", [1, 2, 5, 6])
def test_no_pair_of_tiles_of_a_symmetric_kernel_is_computed_twice(num_tiles):
    grid, calls = Grid(jnp.arange(num_tiles, dtype=float)[:, None], None, 1), []

    def kernels(rows1, rows2):
        calls.append(frozenset((int(rows1[0, 0]), int(rows2[0, 0]))))
        return both_ways_of_one(rows1, rows2)

    grid.fill_from_host((), (jnp.float64,), lambda _, number: grid.row(number), kernels, False)
    assert len(calls) == len(set(calls)) == num_tiles * (num_tiles + 1) // 2


def both_ways_of_one(rows1, rows2):
    kernel = rows1 @ rows2.T
    return (kernel,), (kernel.T,)
