"""Rectangles that uses of a parameter have in common, against the sets of entries themselves."""

import numpy as np
import pytest

from fixntk.ntk.partitions import all_in_order, common_cells, is_range, rectangle

NUMBERS = np.arange(48).reshape(2, 4, 6)
REORDERED = NUMBERS[:, [2, 0, 3, 1]][:, :, ::-1]

# name: the uses, and the number of groups of cells.
USES = {
    "one": ([NUMBERS], 1),
    "apart": ([NUMBERS[:, :2], NUMBERS[:, 2:]], 2),
    "whole and a corner": ([NUMBERS, NUMBERS[:, 1:, :2]], 4),
    "crossing": ([NUMBERS[:, 1:3], NUMBERS[..., 2:5], NUMBERS[:1]], 7),
    "every other": ([NUMBERS[..., ::2], NUMBERS[..., ::3], NUMBERS], 4),
    "swapped and reordered": ([NUMBERS[:1, :3], REORDERED.swapaxes(1, 2), NUMBERS[:, ::-1]], 4),
    "corners, which divide other corners": ([NUMBERS[:, :2, :2], NUMBERS[:, 1:3, 1:3], NUMBERS[:, 2:, 2:]], 10),
}


@pytest.mark.parametrize("name", USES)
def test_cells_divide_the_uses_and_have_all_their_entries_in_common(name):
    uses, expected = USES[name]
    shared = common_cells(uses, NUMBERS.size)
    assert len(shared) == expected
    seen = []
    for cells in shared:
        first = cells[0].entries
        assert not cells[0].is_swapped
        entries = set(first.ravel())
        # The cells are those of all uses with these entries, which lie there in the same order.
        assert [cell.use for cell in cells] == [k for k, use in enumerate(uses) if entries <= set(use.ravel())]
        assert all(entries <= set(use.ravel()) or entries.isdisjoint(use.ravel()) for use in uses)
        for cell in cells:
            found = uses[cell.use][np.ix_(*cell.indices)]
            np.testing.assert_array_equal(found.swapaxes(1, 2) if cell.is_swapped else found, first)
        seen += list(first.ravel())
    assert sorted(seen) == sorted(set(np.concatenate([use.ravel() for use in uses])))


def test_uses_that_do_not_divide_are_refused():
    square = np.arange(16).reshape(1, 4, 4)
    mixed = np.random.default_rng(0).permutation(400).reshape(1, 20, 20)
    assert common_cells([square, square.reshape(1, 2, 8)], 16) is None
    assert common_cells([np.arange(400).reshape(1, 20, 20), mixed[:, :15]], 400) is None
    assert common_cells([square[:, :0], square[:, :, 1:]], 16)[0][0].use == 1


def test_rectangles_and_ranges():
    is_own = np.zeros((2, 3, 4), bool)
    is_own[:, [[0], [2]], [1, 3]] = True
    found = rectangle(is_own)
    assert [each.tolist() for each in found] == [[0, 1], [0, 2], [1, 3]]
    is_own[1, 0, 1] = False
    assert rectangle(is_own) is None
    assert all_in_order((np.arange(2), np.arange(3), np.arange(4)), is_own.shape)
    assert not all_in_order((np.arange(2), np.array([0, 2, 1]), np.arange(4)), is_own.shape)
    assert is_range(np.array([2, 3, 4]))
    assert not any(is_range(np.array(each, int)) for each in ([0, 2, 1, 3], [1, 3], []))
