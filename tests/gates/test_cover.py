"""Cover's count of cells: its recursion, and its errors."""

import pytest

import fixntk as fx


@pytest.mark.parametrize("rank", range(2, 6))
@pytest.mark.parametrize("num_rows", range(8))
def test_a_further_hyperplane_cuts_the_cells_that_it_meets(num_rows, rank):
    # Deletion and restriction: it meets as many cells as the others make within it.
    met = fx.cover_count(num_rows, rank - 1)
    assert fx.cover_count(num_rows + 1, rank) == fx.cover_count(num_rows, rank) + met


def test_lines_through_the_origin_of_a_plane_make_two_sectors_each():
    assert [fx.cover_count(number, 2) for number in range(1, 5)] == [2, 4, 6, 8]


def test_without_a_hyperplane_there_is_one_cell():
    assert [fx.cover_count(0, rank) for rank in range(4)] == [1, 1, 1, 1]


@pytest.mark.parametrize(("arguments", "name"), [((-1, 2), "num_rows"), ((3, -2), "rank")])
def test_negative_counts_are_named(arguments, name):
    with pytest.raises(ValueError, match=f"{name} must not be negative, got {min(arguments)}"):
        fx.cover_count(*arguments)


@pytest.mark.wrong_types
@pytest.mark.parametrize(("arguments", "name"), [(("a", 2), "num_rows"), ((3, 1.5), "rank")])
def test_other_types_than_integers_are_named(arguments, name):
    with pytest.raises(TypeError, match=f"{name} must be an integer"):
        fx.cover_count(*arguments)
