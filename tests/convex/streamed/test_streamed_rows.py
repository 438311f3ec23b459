"""Rows of shards: what is read, each refusal, and that the next tile is read while this one is used."""

import threading

import numpy as np
import pytest

from fixntk.convex.streamed.rows import check_same_shards, open_rows, read_ahead, tile_bounds


def rows_of(*shards, name="x", ndim=(2,)):
    return open_rows(name, list(shards), ndim)


def save(folder, array, name="x.npy"):
    np.save(folder / name, array)
    return folder / name


@pytest.mark.parametrize("tile", [1, 3, 7, 10, 25])
def test_tiles_are_the_rows_in_order_with_zeros_after_the_last(rng, tile):
    whole = rng.standard_normal((23, 2))
    rows = rows_of(*np.split(whole, [4, 4, 5, 19]))
    tiles = [rows.read(*bounds, np.float64) for bounds in tile_bounds(23, tile)]
    assert {len(one) for one in tiles} == {tile}
    read = np.concatenate(tiles)
    np.testing.assert_array_equal(read[:23], whole)
    np.testing.assert_array_equal(read[23:], 0)


def test_files_are_mapped_and_of_any_byte_order(tmp_path, rng):
    whole = rng.standard_normal((9, 2)).astype(">f4")
    rows = open_rows("x", [save(tmp_path, whole[:5]), str(save(tmp_path, whole[5:], "b.npy"))], (2,))
    assert all(isinstance(shard, np.memmap) for shard in rows.shards)
    found = rows.read(3, 8, np.float32)
    assert found.dtype == np.dtype("=f4")
    np.testing.assert_array_equal(found, whole[3:8])


def test_truncated_files_are_refused_when_opened_and_when_read(tmp_path, rng):
    path = save(tmp_path, rng.standard_normal((50, 3)))
    content = path.read_bytes()
    rows = open_rows("x", path, (2,))
    rows.check_files()
    path.write_bytes(content[:-8])
    with pytest.raises(
        ValueError, match=r"x: .*x\.npy has 1320 bytes, and had 1328 when it was opened: write it again"
    ):
        rows.check_files()
    for size in (len(content) - 8, 100, 3, 0):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"x\[1\]: .*x\.npy is truncated or no \.npy file of numbers .*: write it"):
            open_rows("x", [np.ones((2, 3)), path], (2,))


@pytest.mark.parametrize(
    ("shards", "error", "message"),
    [
        ([np.ones((2, 3)), np.ones((2, 4))], ValueError, r"one width, got shape \(2, 3\) for x\[0\] and \(2, 4\)"),
        ([np.ones((2, 3)), np.ones((2, 3), np.float32)], ValueError, r"one dtype, got float64 .* float32 for x\[1\]"),
        ([np.ones((2, 3)), np.ones(3)], ValueError, r"x\[1\] must have 2 dimensions, got shape \(3,\)"),
        ([np.ones((0, 3)), np.ones((0, 3))], ValueError, r"x is empty: shape \(0, 3\)"),
        ([np.ones((2, 0))], ValueError, r"x is empty: shape \(2, 0\)"),
        ([], ValueError, "x is an empty list"),
        ([[1.0, 2.0]], TypeError, r"x\[0\] must be an array, the path of a \.npy file, or a list of these, got list"),
        ([np.array([["a"]])], TypeError, "must hold real numbers, got dtype <U1"),
        ([np.ones((2, 3), complex)], TypeError, "must hold real numbers, got dtype complex128"),
    ],
)
def test_shards_that_do_not_fit_are_refused_by_name(shards, error, message):
    with pytest.raises(error, match=message):
        rows_of(*shards)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_named_by_its_number_over_all_shards(bad):
    shards = np.ones((4, 2)), np.ones((5, 2)), np.ones((3, 2))
    shards[1][3, 1] = bad
    rows = rows_of(*shards)
    rows.read(0, 7, np.float64)
    with pytest.raises(ValueError, match=r"x holds NaN, infinity .* in row 7, row 3 of shard 1 \(counted from 0\)"):
        rows.read(5, 12, np.float64)
    with pytest.raises(ValueError, match=r"beyond float64 in row 3 \(counted from 0\): remove the row"):
        open_rows("x", shards[1], (2,)).read(0, 5, np.float64)


def test_numbers_beyond_single_precision_are_refused_where_it_is_used():
    rows = open_rows("y", np.array([1.0, 1e39]), (1, 2))
    rows.read(0, 2, np.float64)
    with pytest.raises(ValueError, match="y holds NaN, infinity or a number beyond float32 in row 1"):
        rows.read(0, 2, np.float32)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (([5, 3], [5, 4]), "the same number of rows over all shards, got 8 and 9"),
        (([5, 3], [3, 5]), r"x\[0\] and y\[0\] must have the same number of rows, got 5 and 3: are the shards in one"),
    ],
)
def test_targets_of_other_rows_are_refused(sizes, message):
    x, y = ([np.ones((size, 2)) for size in each] for each in sizes)
    with pytest.raises(ValueError, match=message):
        check_same_shards(rows_of(*x), rows_of(*y, name="y"))


def test_targets_may_be_cut_otherwise():
    check_same_shards(rows_of(np.ones((5, 2)), np.ones((3, 2))), rows_of(np.ones((8, 1)), name="y"))


def test_the_next_item_is_read_while_this_one_is_used():
    is_read = [threading.Event() for _ in range(4)]

    def read(k):
        is_read[k].set()
        return 10 * k

    used = []
    for k, content in enumerate(read_ahead(read, range(4))):
        used.append(content)
        # Without a reader of its own this would wait in vain.
        assert k == 3 or is_read[k + 1].wait(timeout=10)
        # Not more than one item is in memory beyond the one that is used.
        assert k >= 2 or not is_read[k + 2].is_set()
    assert used == [0, 10, 20, 30]


def test_an_error_of_the_reader_is_raised_where_its_item_is_due():
    def read(k):
        if k == 2:
            raise ValueError("of item 2")
        return k

    found = read_ahead(read, range(5))
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(ValueError, match="of item 2"):
        next(found)


def test_a_loop_that_is_left_ends_the_reader():
    before = threading.active_count()
    found = read_ahead(lambda k: k, range(5))
    next(found)
    assert threading.active_count() == before + 1
    found.close()
    assert threading.active_count() == before
